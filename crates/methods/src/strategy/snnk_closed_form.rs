//! A classification head in closed form: random features of what the head reads, and a linear readout of them by least
//! squares against the classes, `W = (Phi^T Phi + ridge I)^-1 Phi^T T`. There is no descent: every step only adds to the
//! sums, nothing is updated, and the last step of the training solves. One pass over the data is enough; several count
//! every row as often.
//!
//! The sums over rows travel as gradients do, so that any split into ranks, lanes and micro-batches gives the same:
//! `Phi^T Phi`, the sum of `Phi` and the number of rows are put on the gradients of parameters that stand for them.
//! `Phi^T T` comes from the loss itself: while `W` is zero, the gradient of the cross-entropy of `C` classes by `W` is
//! `(1 / C - T)^T Phi` over the number of rows. The adapter inside stays as it begins and is saved with the head.
//!
//! Sehanobish, Choromanski, Zhao, Dubey, Likhosherstov, *Scalable Neural Network Kernels*, 2024.

use pleach_nn::{HeadKind, SiteId};

use crate::adapter::common::{own_fields, positive_number};
use crate::adapter::prelude::*;
use crate::adapter::snnk::{self, Normalize};
use crate::adapter::{HasCard, StepInfo, Virtual};
use crate::around::{Around, AroundOptions, INNER};
use crate::card::MethodKind;
use crate::plan::Keep;

options! {
    /// Options of the closed-form head.
    pub struct Config {
        /// Random features of the head.
        num_rfs: u32 = 512,
        /// What is added to the diagonal of the sums.
        ridge: f64 = 1e-3,
        /// Where features are cut off.
        constant: f64 = 0.0,
        /// How the head's inputs are scaled before the features: `none`, `l2`, `d_quarter`.
        normalize: Normalize = Normalize::L2,
        /// Orthogonal rows of the random matrix.
        orthogonal: bool = false,
        /// Seed of the random matrix.
        seed: u64 = 0,
        /// The head is solved and its sums are gone: what the file of a trained one says.
        fitted: bool = false,
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &CARD;
    const EXAMPLE: &'static str = r#"{"num_rfs": 8}"#;

    fn validate(&self) -> Result<()> {
        positive_number("ridge", self.ridge)?;
        self.layer().validate()
    }
}

static CARD: Card = Card {
    name: "snnk_closed_form",
    kind: MethodKind::Strategy,
    title: "Closed-form head",
    summary: "Solves a classification head over random features by least squares, without any step of descent.",
    formula: "`logits = Phi(x) W^T`, `W^T = (Phi^T Phi + ridge I)^-1 Phi^T T` over all rows and their classes `T`.",
    paper: "Sehanobish et al., Scalable Neural Network Kernels, 2024 (arXiv:2310.13225)",
    roles: &[Role::Head],
    sync: &[Sync::SyncStats, Sync::SharedSeed],
    mergeable: false,
    identity_at_init: false,
    sample_job: concat!(
        "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model}\n",
        "  data: {source: ./train.jsonl, task: sequence_classification}\n",
        "  train: {global_batch: 16, epochs: 1, optimizer: {lr: 1e-3}}\n",
        "  strategy: {method: snnk_closed_form, num_rfs: 512}\n",
        "  tasks:\n    - {name: topics, adapter: {method: lora, r: 8}}\n  checkpoint: {store: ./checkpoints}\n"
    ),
    invalid: &[
        Invalid { options: r#"{"num_rfs": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"ridge": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"normalize": "max"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"lambda": 1}"#, code: code::UNKNOWN_KEY },
    ],
    ..Card::ADAPTER
};

impl Config {
    /// The features as those of an SNNK adapter.
    fn layer(&self) -> snnk::Config {
        let Self { num_rfs, constant, normalize, orthogonal, seed, .. } = *self;
        snnk::Config { num_rfs, constant, normalize: Some(normalize), orthogonal, seed, ..snnk::Config::default() }
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(Bundled { config: self.clone(), inner: adapter }))
    }
}

/// An adapter whose head is solved.
#[derive(Debug)]
struct Bundled {
    config: Config,
    inner: Box<dyn AdapterConfig>,
}

const W: &str = "bundled_W";
const GRAM: &str = "bundled_gram";
const TOTALS: &str = "bundled_totals";
const CROSS: &str = "bundled_cross";
const G: &str = "bundled_G";

/// The head that makes one row of class logits a sequence.
fn head(model: &dyn BackboneConfig) -> Result<SiteId> {
    let kind = model.info().head;
    let classifies = [HeadKind::SequenceClassification, HeadKind::ImageClassification, HeadKind::AudioClassification];
    let found = model.sites().with_role(Role::Head).filter(|site| site.runs && site.dims.output == model.info().num_labels);
    match found.last() {
        Some(site) if classifies.contains(&kind) => Ok(site.id),
        _ => Err(code::METHOD_CONFIG
            .error(format!("method: {} has no head to solve", kind.name()))
            .hint("it is for classification")),
    }
}

impl Bundled {
    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let (m, d, classes) = (self.config.num_rfs as usize, site.dims.input, site.dims.output);
        let tensor = |part: &'static str, shape: Vec<usize>| {
            let name = format!("base_model.model.{}.{part}", site.path);
            PlannedTensor::trained(name, site.id, part, shape, Init::Zeros)
        };
        let g = PlannedTensor { init: Init::Derived, ..tensor(G, vec![m, d]) }.keep(Keep::Saved);
        let mut all = vec![tensor(W, vec![classes, m])];
        if !self.config.fitted {
            all.extend([tensor(GRAM, vec![m, m]), tensor(TOTALS, vec![m + 1])]);
            all.push(tensor(CROSS, vec![classes, m]).keep(Keep::State));
        }
        all.push(g);
        all
    }

    /// A tensor of the head rather than of the adapter.
    #[cfg(feature = "torch")]
    fn is_own(tensor: &PlannedTensor) -> bool {
        [W, GRAM, TOTALS, CROSS, G].contains(&tensor.part)
    }
}

impl HasCard for Bundled {
    fn card(&self) -> &'static Card {
        &CARD
    }
}

impl AdapterConfig for Bundled {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let head = head(model)?;
        let mut inner = self.inner.plan(model)?;
        if inner.sites.contains(&head) {
            let path = &model.sites()[head].path;
            return Err(code::METHOD_CONFIG.error(format!("method: the adapter acts on `{path}`, which is solved")));
        }
        // The head that classification would train whole.
        inner.saved.retain(|site| *site != head);
        inner.tensors.retain(|tensor| tensor.site != head);
        let mut plan = Plan { tensors: self.tensors(&model.sites()[head]), ..inner.clone() };
        plan.tensors.extend(inner.tensors.iter().cloned());
        plan.sites.push(head);
        plan.sites.sort_unstable();
        plan.children = vec![inner];
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = own_fields(&CARD, &Config { fitted: true, ..self.config.clone() }, model, export);
        let inner = plan.children.first().map(|inner| self.inner.adapter_config(model, inner, export));
        fields.insert(INNER.to_owned(), Value::Object(inner.unwrap_or_default()));
        fields
    }

    fn see_file(&mut self, shapes: &std::collections::BTreeMap<String, Vec<usize>>) {
        self.inner.see_file(shapes);
    }

    fn virtual_tokens(&self) -> Virtual {
        self.inner.virtual_tokens()
    }

    fn partial(&self) -> bool {
        !self.config.fitted
    }

    fn updates(&self, _: &PlannedTensor, _: StepInfo) -> bool {
        self.config.fitted
    }

    fn shapes_gradients(&self) -> bool {
        !self.config.fitted
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        if !Self::is_own(tensor) {
            return self.inner.initial(tensor, base, key);
        }
        let site = &base.config().sites()[tensor.site];
        Ok(snnk::run::random_matrix(&self.config.layer(), &site.path, site.dims.input).to_device(base.device()))
    }

    #[cfg(feature = "torch")]
    fn before_update(&self, parts: &crate::adapter::Parts<'_>, _: StepInfo) -> Result<()> {
        if self.config.fitted { Ok(()) } else { run::add(parts) }
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        if self.config.fitted || step.step < step.total { Ok(()) } else { run::solve(&self.config, parts) }
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &crate::adapter::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        run::exported(self, parts).map(Some)
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::{Result, code};
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
    use tch::{Kind, Tensor};

    use super::{Bundled, CROSS, Config, G, GRAM, TOTALS, W};
    use crate::adapter::snnk::closed_form::Normal;
    use crate::adapter::snnk::features::{Features, Numbers};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// In place of the head.
    struct Head {
        features: Features,
        w: Numbers,
        /// Stand for the sums: they get them as gradients.
        sums: Option<[Tensor; 2]>,
    }

    fn inside<'a>(parts: &Parts<'a>) -> Result<Parts<'a>> {
        let inner = parts.plan.children.first();
        let inner = inner.ok_or_else(|| code::INTERNAL.error("the plan has no adapter inside"))?;
        Ok(parts.under(inner, parts.key))
    }

    fn site(parts: &Parts<'_>) -> Result<SiteId> {
        let own = parts.plan.tensors.iter().find(|tensor| tensor.part == W);
        own.map(|tensor| tensor.site).ok_or_else(|| code::INTERNAL.error("the plan has no head"))
    }

    pub(super) fn hooks(bundled: &Bundled, parts: &Parts<'_>) -> Result<Hooks> {
        let mut hooks = bundled.inner.hooks(&inside(parts)?)?;
        let site = site(parts)?;
        let part = |name| parts.part(site, name).map(Tensor::shallow_clone);
        let sums = if bundled.config.fitted { None } else { Some([part(GRAM)?, part(TOTALS)?]) };
        let features = Features::new(&bundled.config.layer(), part(G)?, None)?;
        hooks.insert(site, Box::new(Head { features, w: Numbers { re: part(W)?, im: None }, sums }));
        Ok(hooks)
    }

    impl Head {
        /// Puts the sums over the rows of `phi` `[rows, m]` on the gradients of what stands for them.
        fn note(&self, phi: &Tensor) {
            let Some([gram, totals]) = &self.sums else { return };
            let phi = phi.detach().flatten(0, -2);
            let count = Tensor::from_slice(&[phi.size()[0] as f32]).to_device(phi.device());
            let total = Tensor::cat(&[&phi.sum_dim_intlist([0i64].as_slice(), false, Kind::Float), &count], 0);
            for (leaf, sum) in [(gram, phi.tr().matmul(&phi)), (totals, total)] {
                // A backward pass makes the gradient if there is none yet, and adds to it otherwise.
                (leaf * sum).sum(Kind::Float).backward();
            }
        }
    }

    impl SiteHook for Head {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, _: &BaseOp<'_>) -> Vec<Tensor> {
            let phi = self.features.phi(&x[0].to_kind(Kind::Float));
            if cx.train {
                self.note(&phi.re);
            }
            vec![phi.times(&self.w).to_kind(x[0].kind())]
        }
    }

    impl SiteMethod for Head {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }

    /// Adds what a step gave to the sums.
    pub(super) fn add(parts: &Parts<'_>) -> Result<()> {
        let site = site(parts)?;
        let [w, gram, totals, cross] = [W, GRAM, TOTALS, CROSS].map(|name| parts.part(site, name));
        let (w, gram, totals, cross) = (w?, gram?, totals?, cross?);
        let (m, classes) = (w.size()[1], w.size()[0] as f64);
        let (sums, rows) = (totals.grad().narrow(0, 0, m), totals.grad().double_value(&[m]));
        let targets = sums.unsqueeze(0) / classes - w.grad() * rows; // [classes, m]
        let _ = cross.shallow_clone().g_add_(&targets);
        let _ = gram.shallow_clone().g_add_(&gram.grad());
        // The readout keeps its own, which says that it is being worked on.
        for tensor in parts.plan.trained().filter(|tensor| tensor.part != W) {
            let mut grad = parts.get(&tensor.name)?.grad();
            if grad.defined() {
                let _ = grad.zero_();
            }
        }
        Ok(())
    }

    pub(super) fn solve(config: &Config, parts: &Parts<'_>) -> Result<()> {
        let site = site(parts)?;
        let normal = Normal::sums(parts.part(site, GRAM)?, &parts.part(site, CROSS)?.tr());
        let solution = normal.solve(config.ridge)?.tr().to_kind(Kind::Float);
        parts.part(site, W)?.shallow_clone().copy_(&solution);
        Ok(())
    }

    /// Head and adapter, without the sums.
    pub(super) fn exported(bundled: &Bundled, parts: &Parts<'_>) -> Result<Vec<(String, Tensor)>> {
        let of = |tensor: &crate::plan::PlannedTensor| Ok((tensor.name.clone(), parts.get(&tensor.name)?.detach()));
        let own = parts.plan.tensors.iter().filter(|tensor| [W, G].contains(&tensor.part));
        let mut all = own.map(of).collect::<Result<Vec<_>>>()?;
        let inside = inside(parts)?;
        match bundled.inner.exported(&inside)? {
            Some(inner) => all.extend(inner),
            None => {
                let inner = inside.plan.tensors.iter().filter(|tensor| tensor.in_file());
                all.extend(inner.map(of).collect::<Result<Vec<_>>>()?);
            }
        }
        Ok(all)
    }
}
