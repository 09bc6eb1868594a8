//! PILL: experts by modality in front of feed-forward parts, a gate on the values of other tokens than text, and a
//! projection of features onto their places, for a frozen decoder of text.
//!
//! Every token has a modality, number 0 being text; the data says which. With `a(x) = U (silu(Dg x) * (D x))`:
//!
//! ```text
//! row at a place of modality m:  P_m f                                 instead of the token's own
//! u = norm(x) + a_attn(norm(x))                                        the input of attention
//! v <- tanh(G_m u)_head v      at places of modality m; text and queries and keys are left alone
//! y = h + FFN(n + a_m(n)),     n = norm(h)                             a_m by the token's modality
//! ```
//!
//! `U` and `G` begin at zero. Two stages: `align` trains the projections and the experts of other kinds than text, without
//! gates (they would keep everything out), and in the last block, where what a place of another kind gives is of no
//! account, text and the first other kind exchange experts; `tune` trains everything. A job does one of them (and the
//! second goes on from the first by `init_from`), or both, as phases.
//!
//! Generalised from two modalities to several, each with its gate, projection and expert, and to fewer heads of values
//! than of queries: there is a gate for each head of values.
//!
//! Zhang, Liang, Wu, Yin, *PILL: Plug Into LLM with Adapter Expert and Attention Gate*, 2023 (arXiv:2311.02126).

mod options;
#[cfg(feature = "torch")]
pub(crate) mod run;
#[cfg(test)]
mod tests;

use pleach_nn::{Part, SiteId, Source};

use super::common::{own_config, usual_init};
use super::prelude::*;
use super::{Modalities, StepInfo, saved};
use crate::plan::Keep;
pub use options::{Bound, Form, FullModality, Gate, Kind, Modality, Per, Stage, Stages, Visual};

options! {
    /// Options of PILL.
    pub struct Config {
        /// Width of the adapters' bottlenecks.
        down_sample_size: u32 = 32,
        /// Their form: `silu`, gated, or `gelu`, plain.
        adapter_activation: Form = Form::Silu,
        /// The kinds of tokens by number, text first.
        modalities: Vec<Modality> = vec![Modality::Name("text".into()), Modality::Name("image".into())],
        /// The gate of values.
        gate: Gate = Gate::default(),
        /// Whether the input of attention has an adapter.
        attn_adapter: bool = true,
        /// Features of other tokens than text.
        visual: Visual = Visual::default(),
        /// `align`, `tune`, or `[align, tune]`.
        stage: Stages = Stages::One(Stage::Tune),
        /// Share of the steps that `align` gets where both stages are trained.
        align_share: f64 = 0.5,
        /// Whether text and the first other kind exchange experts in the last block while aligning.
        align_invert_last_layer: bool = true,
        /// Modules that are trained and saved whole, when tuning.
        modules_to_save: Option<Vec<String>> = None,
    }
}

/// Names of the tensors of one modality.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) project: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) expert: Glu,
}

/// Names of the tensors of an adapter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glu {
    pub(crate) down: &'static str,
    pub(crate) down_gate: &'static str,
    pub(crate) up: &'static str,
}

macro_rules! numbered {
    ($($number:literal),*) => {
        [$(Names {
            project: concat!("pill_project_", $number),
            gate: concat!("pill_gate_", $number),
            expert: Glu {
                down: concat!("pill_down_", $number),
                down_gate: concat!("pill_down_gate_", $number),
                up: concat!("pill_up_", $number),
            },
        }),*]
    };
}

/// By the number of the modality.
pub(crate) static NAMES: [Names; options::MOST] = numbered!(0, 1, 2, 3, 4, 5, 6, 7);
/// The adapter at the input of attention.
pub(crate) const ATTENTION: Glu =
    Glu { down: "pill_attn_down", down_gate: "pill_attn_down_gate", up: "pill_attn_up" };
/// The stage that is trained now, in a job with both: 0 or 1.
const STAGE: &str = "pill_stage";

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "pill",
        title: "PILL",
        summary: "Adds modalities to a frozen decoder: an expert for each, gated values, and projected features.",
        formula: "`u = n + a_attn(n)`, `v <- tanh(G_m u) v` at tokens of modality m, `y = h + FFN(n + a_m(n))`, with \
                  `a(x) = U (silu(Dg x) * (D x))`; `U` and `G` begin at zero.",
        paper: "Zhang et al., PILL: Plug Into LLM with Adapter Expert and Attention Gate, 2023 (arXiv:2311.02126)",
        roles: &[Role::Embed, Role::Norm, Role::Linear],
        mergeable: false,
        // Of text it is unchanged; tokens of other kinds mean something from the start.
        identity_at_init: false,
        sample_job: sample_job!("pill", ", down_sample_size: 8, stage: [align, tune]"),
        invalid: &[
            Invalid { options: r#"{"down_sample_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapter_activation": "tanh"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"modalities": ["text"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"modalities": ["text", "image", "image"]}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"modalities": [{"name": "text", "gated": true}, "image"]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"modalities": ["text", {"name": "image", "expert": false}]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"modalities": ["text", {"name": "image", "tokens": 0}]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"gate": {"per": "layer"}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"gate": {"activation": "sigmoid"}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"visual": {"proj_in": 0}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"stage": "warmup"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"stage": ["tune", "align"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"stage": ["align", "tune"], "align_share": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"stage": "align", "modules_to_save": ["o_proj"]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["o_proj"]}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"down_sample_size": 4, "visual": {"proj_in": 6, "tokens": 2}}"#;

    fn validate(&self) -> Result<()> {
        positive("down_sample_size", self.down_sample_size)?;
        positive("visual.proj_in", self.visual.proj_in)?;
        if !self.gate.init.is_finite() {
            return Err(refuse("gate.init", "must be a number"));
        }
        let stages = self.stages();
        if !matches!(stages, [Stage::Align | Stage::Tune] | [Stage::Align, Stage::Tune]) {
            return Err(refuse("stage", "must be `align`, `tune`, or `[align, tune]`"));
        }
        if !(self.align_share > 0.0 && self.align_share < 1.0) {
            return Err(refuse("align_share", "must be between 0 and 1"));
        }
        if stages.contains(&Stage::Align) && self.modules_to_save.as_ref().is_some_and(|names| !names.is_empty()) {
            return Err(refuse("modules_to_save", "weights of the model are not trained while aligning"));
        }
        self.kinds().map(|_| ())
    }
}

impl Config {
    /// The stages in order.
    fn stages(&self) -> &[Stage] {
        match &self.stage {
            Stages::One(stage) => std::slice::from_ref(stage),
            Stages::Several(stages) => stages,
        }
    }

    /// Whether both stages are trained, one after the other.
    fn both(&self) -> bool {
        self.stages().len() > 1
    }

    /// The kinds of tokens.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when they cannot be.
    pub(crate) fn kinds(&self) -> Result<Vec<Kind>> {
        options::kinds(&self.modalities, self.visual)
    }

    /// Whether a stage trains the tensor that is this part of a site.
    fn trains(stage: Stage, part: &str) -> bool {
        let of_others = |names: &Names| [names.project, names.expert.down, names.expert.down_gate, names.expert.up].contains(&part);
        stage == Stage::Tune || NAMES[1..].iter().any(of_others)
    }

    fn glu(&self, to: &mut Vec<PlannedTensor>, site: &Site, names: Glu, called: &str) {
        let (width, r) = (site.dims.output, self.down_sample_size as usize);
        let mut add = |part, what: &str, shape: [usize; 2], init| {
            let name = format!("base_model.model.{}.{called}.{what}.weight", site.path);
            to.push(PlannedTensor::trained(name, site.id, part, shape, init));
        };
        add(names.down, "down_sampler", [r, width], Init::Normal { std: 0.02 });
        if self.adapter_activation == Form::Silu {
            add(names.down_gate, "down_sampler_gate", [r, width], usual_init(width));
        }
        add(names.up, "up_sampler", [width, r], Init::Zeros);
    }

    /// The tensors of a block.
    fn block(&self, to: &mut Vec<PlannedTensor>, places: &Places<'_>, kinds: &[Kind]) {
        if self.attn_adapter {
            self.glu(to, places.attention, ATTENTION, "adapter_attn");
        }
        let init = if self.gate.init == 0.0 { Init::Zeros } else { Init::Derived };
        for (kind, names) in kinds.iter().zip(&NAMES).filter(|(kind, _)| kind.gated) {
            let name = format!("base_model.model.{}.{}_adapter_gate.weight", places.value.path, kind.name);
            let shape = [places.heads, places.value.dims.input];
            to.push(PlannedTensor::trained(name, places.value.id, names.gate, shape, init));
        }
        for (kind, names) in kinds.iter().zip(&NAMES).filter(|(kind, _)| kind.expert) {
            self.glu(to, places.feed_forward, names.expert, &format!("{}_adapter_ffn", kind.name));
        }
    }
}

/// Where a block is acted on.
#[derive(Clone, Copy, Debug)]
struct Places<'m> {
    /// The normalisation before attention.
    attention: &'m Site,
    /// The map that makes values.
    value: &'m Site,
    /// Heads of values.
    heads: usize,
    /// The normalisation before the feed-forward part.
    feed_forward: &'m Site,
}

/// The places of every block.
///
/// # Errors
/// `METHOD_CONFIG` when a block has none of them.
fn places(model: &dyn BackboneConfig) -> Result<Vec<Places<'_>>> {
    let none = |block: u32, what: &str| refuse("method", &format!("block {block} has no {what}"));
    let of = |block: u32| {
        let own: Vec<&Site> = model.sites().iter().filter(|site| site.block == Some(block)).collect();
        let linear = |site: &Site| matches!(site.role, Role::Linear | Role::Router | Role::Experts);
        let first_norm = |sites: &[&'_ Site]| sites.iter().position(|site| site.role == Role::Norm);
        let before_linear = |sites: &[&'_ Site]| {
            let (norm, map) = (first_norm(sites), sites.iter().position(|site| linear(site)));
            norm.filter(|norm| map.is_some_and(|map| *norm < map))
        };
        let sum = own.iter().position(|site| site.role == Role::SublayerOut && site.part == Part::Attention);
        let sum = sum.ok_or_else(|| none(block, "attention"))?;
        let (first, second) = own.split_at(sum);
        let attention = before_linear(first).map(|at| first[at]);
        let feed_forward = before_linear(second).map(|at| second[at]);
        let value = first.iter().find(|site| site.role == Role::Linear && site.part == Part::Value).copied();
        let heads = first.iter().find(|site| site.role == Role::AttnKv).and_then(|site| site.dims.heads);
        Ok(Places {
            attention: attention.ok_or_else(|| none(block, "normalisation before attention, whose result is changed"))?,
            value: value.ok_or_else(|| none(block, "map for values alone, which are gated"))?,
            heads: heads.ok_or_else(|| none(block, "heads of values"))?.kv,
            feed_forward: feed_forward
                .ok_or_else(|| none(block, "normalisation before the feed-forward part, whose result is changed"))?,
        })
    };
    (0..model.info().num_blocks as u32).map(of).collect()
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let info = model.info();
        let text = matches!(info.reads.first, Source::Tokens { name: "input_ids" });
        if !info.causal || info.reads.second.is_some() || !text {
            return Err(refuse("method", &format!("{} is no decoder of text on its own", info.class)));
        }
        let (kinds, blocks) = (self.kinds()?, places(model)?);
        let table = model.sites().with_role(Role::Embed).next();
        let table = table.ok_or_else(|| refuse("method", "the model has no token table"))?;
        let (saved, whole) = saved::plan(self.modules_to_save.as_deref(), model)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for (kind, names) in kinds.iter().zip(&NAMES).skip(1) {
            let name = format!("base_model.model.{}.{}_adapter_proj.weight", table.path, kind.name);
            let shape = [table.dims.output, self.visual.proj_in as usize];
            plan.tensors.push(PlannedTensor::trained(name, table.id, names.project, shape, Init::Normal { std: 0.02 }));
        }
        plan.sites.push(table.id);
        for places in &blocks {
            self.block(&mut plan.tensors, places, &kinds);
            plan.sites.extend([places.attention.id, places.value.id, places.feed_forward.id]);
        }
        if let [stage] = self.stages() {
            for tensor in plan.tensors.iter_mut().filter(|tensor| !Self::trains(*stage, tensor.part)) {
                tensor.keep = Keep::Saved;
            }
            if *stage == Stage::Tune {
                plan.notes.push("stage tune goes on from a projection that was aligned: name it with init_from".into());
            }
        } else {
            let stage = PlannedTensor::trained(STAGE.into(), table.id, STAGE, [1], Init::Zeros);
            plan.tensors.push(stage.keep(Keep::State));
        }
        plan.tensors.extend(whole);
        plan.sites.sort_unstable();
        let unused = |id: &SiteId| plan.tensors.iter().any(|tensor| tensor.site == *id);
        plan.sites.retain(unused);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn modalities(&self) -> Option<Modalities> {
        let tokens = self.kinds().ok()?.iter().map(|kind| kind.tokens).collect();
        Some(Modalities { tokens, width: self.visual.proj_in as usize })
    }

    fn phases(&self, total: u64) -> Vec<u64> {
        if !self.both() || total < 2 {
            return vec![total];
        }
        let align = ((total as f64 * self.align_share).round() as u64).clamp(1, total - 1);
        vec![align, total - align]
    }

    fn partial(&self) -> bool {
        self.both()
    }

    fn updates(&self, tensor: &PlannedTensor, step: StepInfo) -> bool {
        let stage = self.stages().get(step.phase).copied().unwrap_or(Stage::Tune);
        Self::trains(stage, tensor.part)
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &super::Parts<'_>, step: StepInfo) -> Result<()> {
        if self.both() {
            let _ = parts.get(STAGE)?.shallow_clone().fill_((step.phase + 1).min(1) as f64);
        }
        Ok(())
    }

    #[cfg(feature = "torch")]
    fn exported_config(&self, parts: &super::Parts<'_>) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        if self.both() {
            let stage = if parts.get(STAGE)?.double_value(&[0]) == 0.0 { Stage::Align } else { Stage::Tune };
            fields.insert("stage".to_owned(), serde_json::json!(stage));
        }
        Ok(fields)
    }

    #[cfg(feature = "torch")]
    fn initial(&self, tensor: &PlannedTensor, base: &dyn pleach_nn::Backbone, _: pleach_base::rng::Key) -> Result<tch::Tensor> {
        Ok(tch::Tensor::full(super::common::sizes(tensor), self.gate.init, (tch::Kind::Float, base.device())))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}
