//! Uptraining by SNNK: the first map of the feed-forward part and its activation, in the last blocks, become a layer of
//! random features, `act(W x + b)` to `Phi(x) Y^T`, whose `Y` `[inner, m]` begins as the features `Psi(W)` of the frozen
//! weight and is trained beside the adapter: `inner * m` numbers in place of `inner * d`.
//!
//! Attaches to the first map, which it stands in for, and to the last one, whose input it replaces: what the block's
//! activation makes of the layer's result is not used. The frozen bias is dropped; there is nothing that it could be a
//! feature of. Gated parts have no activation of one map, and are refused, as is an adapter that acts on a replaced map.
//! With `tie_layers` one layer serves all blocks, and begins as that of the first of them.
//!
//! Sehanobish, Choromanski, Zhao, Dubey, Likhosherstov, *Scalable Neural Network Kernels*, 2024.

use pleach_nn::{Part, SiteId, Sites};

use crate::adapter::common::own_fields;
use crate::adapter::prelude::*;
use crate::adapter::snnk::{self, Normalize};
use crate::adapter::{HasCard, Passes, StepInfo, Virtual};
use crate::around::{Around, AroundOptions, INNER};
use crate::card::MethodKind;
use crate::plan::Keep;

options! {
    /// Options of uptraining by SNNK.
    pub struct Config {
        /// How many blocks, from the last one on.
        layers: u32 = 6,
        /// Random features of each layer.
        num_rfs: u32 = 16,
        /// One layer for all blocks.
        tie_layers: bool = false,
        /// Where features are cut off.
        constant: f64 = 0.0,
        /// How inputs and weights are scaled before the features: `none`, `l2`, `d_quarter`.
        normalize: Normalize = Normalize::L2,
        /// Orthogonal rows of the random matrix.
        orthogonal: bool = false,
        /// Seed of the random matrices.
        seed: u64 = 0,
    }
}

impl AroundOptions for Config {
    const CARD: &'static Card = &CARD;
    const EXAMPLE: &'static str = r#"{"layers": 1, "num_rfs": 4}"#;

    fn validate(&self) -> Result<()> {
        positive("layers", self.layers)?;
        self.layer().validate()
    }
}

static CARD: Card = Card {
    name: "snnk_uptrain",
    kind: MethodKind::Compress,
    title: "SNNK uptraining",
    summary: "Replaces the first map and the activation of feed-forward parts by a layer of random features.",
    formula: "`act(W x + b)` becomes `Phi(x) Y^T` in the last blocks; `Y` begins as `Psi(W)` and is trained.",
    paper: "Sehanobish et al., Scalable Neural Network Kernels, 2024 (arXiv:2310.13225)",
    roles: &[Role::Linear],
    sync: &[Sync::MeanGrads, Sync::SharedSeed],
    mergeable: false,
    identity_at_init: false,
    sample_job: concat!(
        "apiVersion: pleach.dev/v1\nkind: Job\nmetadata: {name: sample}\nspec:\n  backbone: {path: ./model, num_labels: 2}\n",
        "  data: {source: ./train.jsonl, task: sequence_classification}\n",
        "  train: {global_batch: 16, max_steps: 100, optimizer: {lr: 2e-4}}\n",
        "  compress: {method: snnk_uptrain, layers: 1, num_rfs: 16}\n",
        "  tasks:\n    - {name: answers, adapter: {method: lora, r: 8}}\n  checkpoint: {store: ./checkpoints}\n"
    ),
    invalid: &[
        Invalid { options: r#"{"layers": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"num_rfs": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"layers": 1000}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"normalize": "max"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"layer": 6}"#, code: code::UNKNOWN_KEY },
    ],
    ..Card::ADAPTER
};

impl Config {
    /// The layers as those of an SNNK adapter.
    fn layer(&self) -> snnk::Config {
        let Self { num_rfs, constant, normalize, orthogonal, seed, .. } = *self;
        snnk::Config { num_rfs, constant, normalize: Some(normalize), orthogonal, seed, ..snnk::Config::default() }
    }
}

impl Around for Config {
    fn wrap(&self, adapter: Box<dyn AdapterConfig>) -> Result<Box<dyn AdapterConfig>> {
        Ok(Box::new(Uptrained { config: self.clone(), inner: adapter }))
    }
}

/// An adapter with replaced layers around it.
#[derive(Debug)]
struct Uptrained {
    config: Config,
    inner: Box<dyn AdapterConfig>,
}

/// The maps of a replaced layer.
#[derive(Clone, Copy, Debug)]
struct Spot {
    up: SiteId,
    down: SiteId,
}

/// The feed-forward parts of the last `count` blocks.
fn spots(count: usize, sites: &Sites, blocks: usize) -> Result<Vec<Spot>> {
    if count > blocks {
        return Err(refuse("layers", &format!("the model has {blocks} blocks")));
    }
    let of = |block: u32, part: Part| {
        sites.with_role(Role::Linear).find(|site| site.block == Some(block) && site.part == part)
    };
    let spot = |block: usize| {
        let block = u32::try_from(block).unwrap_or_default();
        let plain = |why: &str| refuse("layers", &format!("block {block} has {why}"));
        let (Some(up), Some(down)) = (of(block, Part::Up), of(block, Part::Down)) else {
            return Err(plain("no feed-forward part of two maps"));
        };
        if of(block, Part::Gate).is_some() || up.dims.output != down.dims.input {
            return Err(plain("a gated feed-forward part, which has no activation of one map"));
        }
        Ok(Spot { up: up.id, down: down.id })
    };
    (blocks - count..blocks).map(spot).collect()
}

impl Uptrained {
    fn spots(&self, model: &dyn BackboneConfig) -> Result<Vec<Spot>> {
        spots(self.config.layers as usize, model.sites(), model.info().num_blocks)
    }

    fn tensors(&self, site: &Site) -> [PlannedTensor; 2] {
        let m = self.config.num_rfs as usize;
        let tensor = |part: &'static str, shape: [usize; 2]| {
            let name = format!("base_model.model.{}.snnk_uptrain.{part}", site.path);
            PlannedTensor::trained(name, site.id, part, shape, Init::Derived)
        };
        [tensor(Y, [site.dims.output, m]), tensor(G, [m, site.dims.input]).keep(Keep::Saved)]
    }

    /// A tensor of the replaced layers rather than of the adapter.
    fn is_own(tensor: &PlannedTensor) -> bool {
        [Y, G].contains(&tensor.part)
    }
}

const Y: &str = "uptrain_Y";
const G: &str = "uptrain_G";

impl HasCard for Uptrained {
    fn card(&self) -> &'static Card {
        &CARD
    }
}

impl AdapterConfig for Uptrained {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let inner = self.inner.plan(model)?;
        let spots = self.spots(model)?;
        let taken = |spot: &&Spot| inner.sites.contains(&spot.up) || inner.saved.contains(&spot.up);
        if let Some(spot) = spots.iter().find(taken) {
            let path = &model.sites()[spot.up].path;
            return Err(refuse("layers", &format!("the adapter acts on `{path}`, which is replaced"))
                .hint("leave it out of the adapter's target_modules, or replace fewer blocks"));
        }
        let mut plan = Plan { tensors: Vec::new(), ..inner.clone() };
        let own = if self.config.tie_layers { &spots[..1] } else { &spots[..] };
        plan.tensors.extend(own.iter().flat_map(|spot| self.tensors(&model.sites()[spot.up])));
        plan.tensors.extend(inner.tensors.iter().cloned());
        plan.sites.extend(spots.iter().flat_map(|spot| [spot.up, spot.down]));
        plan.sites.sort_unstable();
        plan.sites.dedup();
        plan.children = vec![inner];
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = own_fields(&CARD, &self.config, model, export);
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

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        if Self::is_own(tensor) { 1.0 } else { self.inner.lr_scale(tensor) }
    }

    fn phases(&self, total: u64) -> Vec<u64> {
        self.inner.phases(total)
    }

    fn partial(&self) -> bool {
        self.inner.partial()
    }

    fn updates(&self, tensor: &PlannedTensor, step: StepInfo) -> bool {
        Self::is_own(tensor) || self.inner.updates(tensor, step)
    }

    fn shapes_gradients(&self) -> bool {
        self.inner.shapes_gradients()
    }

    fn passes(&self) -> Passes {
        self.inner.passes()
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
        if Self::is_own(tensor) { run::initial(&self.config, tensor, base) } else { self.inner.initial(tensor, base, key) }
    }

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &crate::adapter::Parts<'_>) -> Option<tch::Tensor> {
        self.inner.regulariser(&run::inside(parts).ok()?)
    }

    #[cfg(feature = "torch")]
    fn before_update(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.inner.before_update(&run::inside(parts)?, step)
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.inner.after_step(&run::inside(parts)?, step)
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.inner.end_phase(&run::inside(parts)?, step)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &crate::adapter::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        let Some(inner) = self.inner.exported(&run::inside(parts)?)? else { return Ok(None) };
        let own = parts.plan.tensors.iter().filter(|tensor| Self::is_own(tensor));
        let own = own.map(|tensor| Ok((tensor.name.clone(), parts.get(&tensor.name)?.detach())));
        Ok(Some(own.chain(inner.into_iter().map(Ok)).collect::<Result<_>>()?))
    }
}

#[cfg(feature = "torch")]
mod run {
    use pleach_base::{Result, code};
    use pleach_nn::{Backbone, BaseOp, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::{Config, G, Spot, Uptrained, Y, spots};
    use crate::adapter::common::{Relay, dense, sizes};
    use crate::adapter::snnk::features::{Features, Numbers};
    use crate::adapter::snnk::run::random_matrix;
    use crate::adapter::{Hooks, Parts, SiteMethod};
    use crate::plan::PlannedTensor;

    /// The tensors as the adapter inside planned them.
    pub(super) fn inside<'a>(parts: &Parts<'a>) -> Result<Parts<'a>> {
        let inner = parts.plan.children.first();
        let inner = inner.ok_or_else(|| code::INTERNAL.error("the plan has no adapter inside"))?;
        Ok(parts.under(inner, parts.key))
    }

    pub(super) fn initial(config: &Config, tensor: &PlannedTensor, base: &dyn Backbone) -> Result<Tensor> {
        let (site, layer) = (&base.config().sites()[tensor.site], config.layer());
        let g = random_matrix(&layer, &site.path, site.dims.input).to_device(base.device());
        if tensor.part == G {
            return Ok(g);
        }
        let missing = || code::INTERNAL.error(format!("`{}` has no weight", site.path));
        let weight = dense(site, base.weights(site.id).ok_or_else(missing)?);
        Ok(Features::new(&layer, g, None)?.psi(&weight, None).re.reshape(sizes(tensor)))
    }

    /// In place of the first map.
    struct Layer {
        features: Features,
        y: Numbers,
        result: Relay<Tensor>,
    }

    /// Before the last map.
    struct Swap {
        result: Relay<Tensor>,
        inner: Option<Box<dyn SiteMethod>>,
    }

    pub(super) fn hooks(wrapped: &Uptrained, parts: &Parts<'_>) -> Result<Hooks> {
        let mut hooks = wrapped.inner.hooks(&inside(parts)?)?;
        let blocks = parts.sites.iter().filter_map(|site| site.block).max().map_or(0, |last| last as usize + 1);
        let config = &wrapped.config;
        let spots = spots(config.layers as usize, parts.sites, blocks)?;
        for Spot { up, down } in &spots {
            let home = if config.tie_layers { spots[0].up } else { *up };
            let part = |name| parts.part(home, name).map(Tensor::shallow_clone);
            let features = Features::new(&config.layer(), part(G)?, None)?;
            let result = Relay::new();
            let layer = Layer { features, y: Numbers { re: part(Y)?, im: None }, result: result.share() };
            hooks.insert(*up, Box::new(layer));
            let inner = hooks.remove(down);
            hooks.insert(*down, Box::new(Swap { result, inner }));
        }
        Ok(hooks)
    }

    impl SiteHook for Layer {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, _: &BaseOp<'_>) -> Vec<Tensor> {
            let result = self.features.phi(&x[0].to_kind(Kind::Float)).times(&self.y).to_kind(x[0].kind());
            self.result.put(result.shallow_clone());
            vec![result]
        }
    }

    impl SiteMethod for Layer {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }

    impl SiteHook for Swap {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let x = vec![self.result.take().unwrap_or_else(|| x[0].shallow_clone())];
            match &self.inner {
                None => base.run(&x),
                Some(inner) if inner.shares_base() => inner.after(cx, &x, base.run(&x)),
                Some(inner) => inner.around(cx, x, base),
            }
        }
    }

    impl SiteMethod for Swap {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use pleach_nn::{HeadOptions, ModelDir, configure};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replaced_map_has_as_many_parameters_as_features() {
        let model = json!({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 768,
            "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522,
            "max_position_embeddings": 512, "type_vocab_size": 2});
        let Value::Object(model) = model else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap();
        let plan = |config: Config, inner: &str| {
            let lora = crate::registry::find(MethodKind::Adapter, "lora").unwrap();
            let inner = lora.parse(&serde_json::from_str(inner).unwrap(), "adapter").unwrap();
            config.wrap(inner).unwrap().plan(&*model)
        };
        let lora = 24 * 2 * 8 * 768;
        assert_eq!(plan(Config::default(), "{}").unwrap().params(), lora + 6 * 3072 * 16);
        let tied = Config { tie_layers: true, ..Config::default() };
        assert_eq!(plan(tied, "{}").unwrap().params(), lora + 3072 * 16);
        let error = plan(Config::default(), r#"{"target_modules": "all-linear"}"#).unwrap_err();
        assert_eq!(error.code(), code::METHOD_CONFIG);
        assert!(error.message().starts_with("layers: the adapter acts on `encoder.layer.6.intermediate.dense`"), "{error}");
    }
}
