//! Composable sparse fine-tuning (LT-SFT): a difference to the frozen weights with at most `K` entries, `W = W0 + phi`.
//!
//! A training has two parts. The *full phase* trains all weights. Then the `K` entries that changed most, over all
//! tensors together, are selected, everything is rewound to where it began, and the *sparse phase* trains those entries
//! alone: `g <- mask * g`. With `n_ft_iterations = n` that happens `n` times; each time `K / n` further entries are
//! selected, and the rewind is to where the iteration began. With `Random` entries are drawn, and there is no full phase.
//! `l1_reg` adds `(lambda / N) sum |W - W0|`, `N` all parameters of the model, before the mask and before clipping.
//! Classification heads are trained whole. Biases of selected maps belong to them.
//!
//! Differences of several trainings on one model add up: a language's and a task's (Ansell, Ponti, Korhonen, Vulic,
//! *Composable Sparse Fine-Tuning for Cross-Lingual Transfer*, 2022). The file holds the index steps and values of each
//! tensor. Deviates from the released code, whose L1 term has no gradient, in that it has one, and in that there are exactly
//! `K` entries where several changed alike.

#[cfg(feature = "torch")]
pub(crate) mod gaps;
#[cfg(feature = "torch")]
mod run;
#[cfg(feature = "torch")]
pub(crate) mod select;
#[cfg(feature = "torch")]
pub(crate) mod sft;
#[cfg(test)]
mod tests;
#[cfg(feature = "torch")]
pub(crate) mod ticket;

use pleach_nn::{HeadKind, Modules, SiteId, Target};

use super::common::own_config;
use super::prelude::*;
use super::saved;
#[cfg(feature = "torch")]
use crate::adapter::StepInfo;
use crate::card::Status;
use crate::plan::Keep;

options! {
    /// Options of composable sparse fine-tuning.
    pub struct Config {
        /// Entries that may differ in the end.
        ft_params_num: Option<u64> = None,
        /// The same as a share of all maskable entries, where `ft_params_num` is left out.
        ft_params_proportion: f64 = 0.01,
        /// How often a part of the entries is selected.
        n_ft_iterations: u32 = 1,
        /// Steps of each full phase.
        full_ft_max_steps_per_iteration: Option<u64> = None,
        /// Least steps of each full phase, where epochs are given.
        full_ft_min_steps_per_iteration: Option<u64> = None,
        /// Epochs of each full phase: the job's steps are divided as the epochs of both phases say.
        full_ft_max_epochs_per_iteration: Option<u64> = None,
        /// Steps of each sparse phase.
        sparse_ft_max_steps_per_iteration: Option<u64> = None,
        /// Least steps of each sparse phase, where epochs are given.
        sparse_ft_min_steps_per_iteration: Option<u64> = None,
        /// Epochs of each sparse phase.
        sparse_ft_max_epochs_per_iteration: Option<u64> = None,
        /// Weight of the L1 distance to the first values in full phases.
        full_l1_reg: f64 = 0.0,
        /// The same in sparse phases.
        sparse_l1_reg: f64 = 0.0,
        /// Leave heads that are trained whole out of that distance.
        apply_reg_to_sparse_only: bool = false,
        /// Leave normalisations as they are.
        freeze_layer_norm: bool = true,
        /// Leave token tables as they are.
        freeze_embeddings: bool = false,
        /// Leave the map from hidden states to tokens as it is; otherwise it is trained whole.
        freeze_decoder: bool = true,
        /// Leave a classification head as it is; otherwise it is trained whole.
        freeze_head: bool = false,
        /// How entries are selected: `LotteryTicket` takes those that changed most, `Random` any.
        sparse_ft_method: FtMethod = FtMethod::LotteryTicket,
        /// Folders of differences on the same model that are applied before training, such as that of a language: this one
        /// is trained on top of them. They are in its file, and a composition takes others in their place.
        base_sfts: Vec<String> = Vec::new(),
        /// Regular expression for the whole path of modules whose entries may be selected; all when left out.
        maskable: Option<String> = None,
    }
}

/// How entries are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FtMethod {
    /// Those that changed most in the full phase.
    LotteryTicket,
    /// Any.
    Random,
}

const ROLES: &[Role] =
    &[Role::Linear, Role::Conv, Role::Embed, Role::Norm, Role::Experts, Role::Router, Role::Head];

/// Whatever `maskable` may match.
const ALL: &[Role] = &[
    Role::Linear,
    Role::Conv,
    Role::Embed,
    Role::Norm,
    Role::Experts,
    Role::Router,
    Role::Head,
    Role::AttnKv,
    Role::AttnScores,
    Role::SublayerOut,
    Role::BlockIn,
    Role::BlockOut,
];

/// Parts of a site: the difference of its weight or bias, which entries of it may move, where an iteration began, what is
/// applied before.
pub(crate) const WEIGHT: Names = Names {
    change: "sft_weight",
    mask: "sft_weight.mask",
    start: "sft_weight.start",
    base: "sft_weight.base",
};
pub(crate) const BIAS: Names =
    Names { change: "sft_bias", mask: "sft_bias.mask", start: "sft_bias.start", base: "sft_bias.base" };
/// Behind the name of a difference: what is applied before it.
pub(crate) const BASE: &str = ".base_sft";
/// Of modules that are trained whole: where the iteration began, and where the training began.
const WHOLE: [[&str; 2]; 2] = [["weight.start", "weight.anchor"], ["bias.start", "bias.anchor"]];
/// The number of the model's parameters.
const COUNT: &str = "parameters";

/// Names of the parts that belong to one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub(crate) change: &'static str,
    pub(crate) mask: &'static str,
    pub(crate) start: &'static str,
    pub(crate) base: &'static str,
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "lt_sft",
        title: "LT-SFT",
        summary: "Trains the few entries of all weights that change most; differences of several trainings add up.",
        formula: "`W = W0 + phi`, `phi` with at most `K` entries: all weights are trained, the `K` largest changes over \
                  all tensors selected, everything rewound, and those entries trained alone.",
        paper: "Ansell et al., Composable Sparse Fine-Tuning for Cross-Lingual Transfer, 2022 (arXiv:2110.07560)",
        status: Status::Experimental,
        roles: ROLES,
        sync: &[Sync::MeanGrads, Sync::AgreeTopK],
        sample_job: sample_job!(
            "lt_sft",
            ", ft_params_num: 1000, full_ft_max_steps_per_iteration: 40, sparse_ft_max_steps_per_iteration: 60"
        ),
        invalid: &[
            Invalid { options: r#"{"ft_params_num": 100}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"full_ft_max_steps_per_iteration": 4, "sparse_ft_max_epochs_per_iteration": 4}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"full_ft_max_epochs_per_iteration": 4, "full_ft_min_steps_per_iteration": 9,
                             "sparse_ft_max_epochs_per_iteration": 1, "full_ft_max_steps_per_iteration": 8,
                             "sparse_ft_max_steps_per_iteration": 8}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"ft_params_num": 1000000000000, "full_ft_max_epochs_per_iteration": 1,
                             "sparse_ft_max_epochs_per_iteration": 1}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"ft_params_num": 1, "n_ft_iterations": 2, "full_ft_max_epochs_per_iteration": 1,
                             "sparse_ft_max_epochs_per_iteration": 1}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"ft_params_proportion": 1.5, "full_ft_max_epochs_per_iteration": 1,
                             "sparse_ft_max_epochs_per_iteration": 1}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"maskable": "no_such_module", "full_ft_max_epochs_per_iteration": 1,
                             "sparse_ft_max_epochs_per_iteration": 1}"#,
                code: code::TARGET_NOTHING,
            },
            Invalid { options: r#"{"ft_params": 100}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"ft_params_proportion": 0.1, "full_ft_max_epochs_per_iteration": 2,
                                      "sparse_ft_max_epochs_per_iteration": 1}"#;

    fn validate(&self) -> Result<()> {
        if !(self.ft_params_proportion > 0.0 && self.ft_params_proportion <= 1.0) {
            return Err(refuse("ft_params_proportion", "must be above 0 and at most 1"));
        }
        positive("n_ft_iterations", self.n_ft_iterations)?;
        for (name, value) in [("full_l1_reg", self.full_l1_reg), ("sparse_l1_reg", self.sparse_l1_reg)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(refuse(name, "must be 0 or a positive number"));
            }
        }
        if self.sparse_ft_method == FtMethod::Random {
            return if self.n_ft_iterations == 1 { Ok(()) } else { Err(refuse("n_ft_iterations", "is 1 with `Random`")) };
        }
        self.validate_length("full", self.full())?;
        self.validate_length("sparse", self.sparse())?;
        let (full, sparse) = (self.full(), self.sparse());
        if (full.steps.is_some() && sparse.steps.is_some()) || (full.epochs.is_some() && sparse.epochs.is_some()) {
            return Ok(());
        }
        let field = if full.steps.is_some() { "sparse_ft_max_steps_per_iteration" } else { "sparse_ft_max_epochs_per_iteration" };
        Err(refuse(field, "both phases must be given in steps, or both in epochs"))
    }
}

/// The options about the length of a kind of phase.
#[derive(Clone, Copy, Debug)]
struct Length {
    steps: Option<u64>,
    least: Option<u64>,
    epochs: Option<u64>,
}

impl Config {
    fn full(&self) -> Length {
        Length {
            steps: self.full_ft_max_steps_per_iteration,
            least: self.full_ft_min_steps_per_iteration,
            epochs: self.full_ft_max_epochs_per_iteration,
        }
    }

    fn sparse(&self) -> Length {
        Length {
            steps: self.sparse_ft_max_steps_per_iteration,
            least: self.sparse_ft_min_steps_per_iteration,
            epochs: self.sparse_ft_max_epochs_per_iteration,
        }
    }

    fn validate_length(&self, phase: &str, length: Length) -> Result<()> {
        let field = |what: &str| format!("{phase}_ft_{what}_per_iteration");
        if length.steps.is_none() && length.epochs.is_none() {
            return Err(refuse(&field("max_steps"), "neither this nor the number of epochs is given"));
        }
        if length.steps == Some(0) || length.epochs == Some(0) {
            let what = if length.steps == Some(0) { "max_steps" } else { "max_epochs" };
            return Err(refuse(&field(what), "must be at least 1"));
        }
        match (length.least, length.steps) {
            (Some(least), Some(most)) if least > most => {
                Err(refuse(&field("min_steps"), "is above the largest number of steps"))
            }
            _ => Ok(()),
        }
    }

    /// Steps of a sparse or full phase, where the options say them.
    pub(crate) fn steps(&self, sparse: bool) -> Option<u64> {
        if sparse { self.sparse().steps } else { self.full().steps }
    }

    /// Entries that may differ, of `all`.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when there are not so many, or none in an iteration.
    pub(crate) fn entries(&self, all: u64) -> Result<u64> {
        let asked = self.ft_params_num.unwrap_or((all as f64 * self.ft_params_proportion) as u64);
        let field = if self.ft_params_num.is_some() { "ft_params_num" } else { "ft_params_proportion" };
        if asked > all {
            return Err(refuse(field, &format!("there are only {all} entries to choose from")));
        }
        if asked < u64::from(self.n_ft_iterations) {
            return Err(refuse(field, "leaves no entry for an iteration"));
        }
        Ok(asked)
    }

    /// Steps of the full and the sparse phase of an iteration that has `steps` in all: as the options say where they are
    /// given in steps, otherwise divided as the epochs are, within the limits.
    fn divide(&self, steps: u64) -> [u64; 2] {
        let (full, sparse) = (self.full(), self.sparse());
        let share = match (full.epochs, sparse.epochs, full.steps, sparse.steps) {
            (Some(f), Some(s), ..) | (_, _, Some(f), Some(s)) => (f as f64) / ((f + s) as f64),
            _ => 0.5,
        };
        let mut first = (steps as f64 * share).round() as u64;
        if full.epochs.is_some() {
            first = first.min(full.steps.unwrap_or(u64::MAX)).max(full.least.unwrap_or(0));
            first = first.min(steps.saturating_sub(sparse.least.unwrap_or(0)));
        }
        let first = first.clamp(u64::from(steps > 1), steps.saturating_sub(1).max(1));
        [first, steps - first.min(steps)]
    }

    /// What draws the parameters towards their first values in a phase.
    #[cfg(feature = "torch")]
    pub(crate) fn pull(&self, sparse: bool, params: u64) -> ticket::Pull {
        let strength = if sparse { self.sparse_l1_reg } else { self.full_l1_reg };
        ticket::Pull { factor: strength / params as f64, on_whole: !self.apply_reg_to_sparse_only }
    }

    #[cfg(feature = "torch")]
    fn is_sparse(&self, step: StepInfo) -> bool {
        self.sparse_ft_method == FtMethod::Random || step.phase % 2 == 1
    }

    /// The sites whose entries may be selected.
    fn sites(&self, model: &dyn BackboneConfig, saved: &[SiteId]) -> Result<Vec<SiteId>> {
        let named = match &self.maskable {
            None => None,
            Some(text) => {
                let modules = Modules::Regex(text.clone());
                let target =
                    Target { modules: &modules, exclude: None, saved: &[], layers: None, pattern: None, roles: ALL };
                let ours = |error: pleach_base::Error| {
                    error.code().error(error.message().replacen("target_modules", "maskable", 1))
                };
                Some(target.select(model.sites()).map_err(ours)?)
            }
        };
        let wanted = |site: &&Site| {
            let role = match site.role {
                Role::Norm => !self.freeze_layer_norm,
                Role::Embed => !self.freeze_embeddings,
                role => role != Role::Head && ROLES.contains(&role),
            };
            let named = named.as_ref().is_none_or(|named| named.contains(&site.id));
            role && named && site.runs && site.weight.is_some() && !saved.contains(&site.id)
        };
        let sites: Vec<_> = model.sites().iter().filter(wanted).map(|site| site.id).collect();
        if sites.is_empty() {
            return Err(code::TARGET_NOTHING
                .error("maskable: no module of the model matches")
                .hint("it is a regular expression for whole paths, such as `.*attention.*`"));
        }
        Ok(sites)
    }

    /// The heads that are trained whole.
    fn saved(&self, model: &dyn BackboneConfig) -> Result<(Vec<SiteId>, Vec<PlannedTensor>)> {
        let decodes = matches!(model.info().head, HeadKind::CausalLm | HeadKind::MaskedLm | HeadKind::Seq2SeqLm);
        if (decodes && self.freeze_decoder) || (!decodes && self.freeze_head) {
            return Ok((Vec::new(), Vec::new()));
        }
        let heads = model.sites().with_role(Role::Head).filter(|site| site.runs && site.is_module());
        let names: Vec<_> = heads.map(|site| site.path.clone()).collect();
        saved::plan(if names.is_empty() { None } else { Some(&names) }, model)
    }

    /// The difference of a tensor and what belongs to it.
    fn tensors(&self, site: &Site, names: Names, own: &str, shape: &[usize]) -> Vec<PlannedTensor> {
        let name = |suffix: &str| format!("base_model.model.{}.{own}{suffix}", site.path);
        let planned = |suffix: &str, part| {
            PlannedTensor::trained(name(suffix), site.id, part, shape, Init::Zeros)
        };
        let mut all = vec![planned("", names.change), planned(".mask", names.mask).keep(Keep::State)];
        if self.n_ft_iterations > 1 {
            all.push(planned(".start", names.start).keep(Keep::State));
        }
        if !self.base_sfts.is_empty() {
            let base = PlannedTensor { init: Init::Derived, ..planned(BASE, names.base) };
            all.push(base.keep(Keep::Saved));
        }
        all
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (saved, whole) = self.saved(model)?;
        let sites = self.sites(model, &saved)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for id in &sites {
            let site = &model.sites()[*id];
            if let Some(weight) = &site.weight {
                plan.tensors.extend(self.tensors(site, WEIGHT, "weight", &weight.shape));
            }
            if site.bias.is_some() {
                plan.tensors.extend(self.tensors(site, BIAS, "bias", &[site.dims.output]));
            }
        }
        let all = plan.trained().map(PlannedTensor::numel).sum();
        let entries = self.entries(all)?;
        plan.notes.push(format!("{entries} of {all} entries will differ: the others are trained only to be compared"));
        for tensor in &whole {
            let parts = WHOLE[usize::from(tensor.part == "bias")];
            for (part, keep) in parts.into_iter().zip([Keep::State, Keep::Derived]) {
                let name = format!("{}.{}", tensor.name, if keep == Keep::State { "start" } else { "anchor" });
                plan.tensors.push(PlannedTensor { name, part, init: Init::Derived, keep, ..tensor.clone() });
            }
        }
        plan.tensors.extend(whole);
        if let Some(site) = sites.first() {
            let count = PlannedTensor::trained(COUNT.to_owned(), *site, COUNT, [1], Init::Derived);
            plan.tensors.push(count.keep(Keep::Derived));
        }
        plan.sites = sites;
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn phases(&self, total: u64) -> Vec<u64> {
        if self.sparse_ft_method == FtMethod::Random {
            return vec![total];
        }
        let n = u64::from(self.n_ft_iterations);
        (0..n).flat_map(|at| self.divide(total * (at + 1) / n - total * at / n)).collect()
    }

    fn fits(&self, total: u64) -> Result<()> {
        let each = self.steps(false).unwrap_or(0) + self.steps(true).unwrap_or(0);
        let by_steps = self.full().epochs.is_none() && self.sparse_ft_method == FtMethod::LotteryTicket;
        if by_steps && each * u64::from(self.n_ft_iterations) != total {
            let why = format!(
                "the phases have {each} steps in each of {} iterations, which is not the job's {total}",
                self.n_ft_iterations
            );
            return Err(refuse("full_ft_max_steps_per_iteration", &why).hint("set train.max_steps to their sum"));
        }
        Ok(())
    }

    fn shapes_gradients(&self) -> bool {
        true
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        _: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        run::initial(self, tensor, base)
    }

    #[cfg(feature = "torch")]
    fn before_update(&self, parts: &super::Parts<'_>, step: StepInfo) -> Result<()> {
        run::before_update(self, parts, step)
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &super::Parts<'_>, step: StepInfo) -> Result<()> {
        run::end_phase(self, parts, step)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &super::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        run::exported(parts).map(Some)
    }

    #[cfg(feature = "torch")]
    fn decoded(
        &self,
        plan: &Plan,
        file: &std::collections::BTreeMap<String, tch::Tensor>,
    ) -> Result<Option<std::collections::BTreeMap<String, tch::Tensor>>> {
        run::decoded(plan, file).map(Some)
    }

    fn encodes(&self) -> bool {
        true
    }
}
