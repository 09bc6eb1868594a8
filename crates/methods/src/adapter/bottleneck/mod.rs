//! Bottleneck adapters: `h + s U act(D h)` behind attention or the feed-forward part of every block, with AdapterHub's
//! options for what is added and normalised before and after, and its presets.
//!
//! Attaches to the sum behind a part of a block, whose operation is `norm(output + residual)` in blocks that normalise
//! after it and `output + residual` in others: the adapter chooses what to feed to it, how often, and whether at all.
//! One implementation serves `bottleneck`, `compacter` (maps of Kronecker products) and `invertible`.
//!
//! Gates are means over a sequence's real tokens; AdapterHub's take padding in.
//!
//! Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, 2019; Pfeiffer et al., *AdapterFusion*, 2020; He et
//! al., *Towards a Unified View of Parameter-Efficient Transfer Learning*, 2021.

mod coupling;
mod options;
mod phm;
mod plan;
#[cfg(feature = "torch")]
mod run;
#[cfg(feature = "torch")]
mod sublayer;

use std::fmt::Debug;
use std::marker::PhantomData;

use serde::Deserializer;

pub use options::{Bn, Coupling, InitWeights, PostAdd, Reduction, Residual, RuleInit, Scaling, TrainedScaling};
#[cfg(feature = "torch")]
pub(crate) use phm::{Factor, Products};
#[cfg(feature = "torch")]
pub(crate) use run::{Affine, Net, Pair, finished};
#[cfg(feature = "torch")]
pub use run::{Before, Bottleneck};
#[cfg(feature = "torch")]
pub(crate) use sublayer::around;
#[cfg(feature = "torch")]
pub use sublayer::{Io, State, Sublayer};

use super::common::own_config;
use super::prelude::*;

/// A method over these options: its card and the preset that its options begin with.
pub trait Kind: Debug + Clone + PartialEq + Send + std::marker::Sync + 'static {
    /// What it is.
    const CARD: &'static Card;

    /// The preset when none is named.
    const PRESET: &'static str;
}

/// Options: a preset and what differs from it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Of<K> {
    /// Which of AdapterHub's presets gives the options that are left out: `seq_bn` (or `pfeiffer`), `double_seq_bn` (or
    /// `houlsby`), `par_bn` (or `parallel`), `scaled_par_bn`, `seq_bn_inv`, `double_seq_bn_inv`, `adapter_plus`,
    /// `compacter`, `compacter++`.
    pub preset: String,
    /// The adapter.
    #[serde(flatten)]
    pub bn: Bn,
    /// Modules that are trained and saved whole. Classification adds its head by itself.
    pub modules_to_save: Option<Vec<String>>,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Of<K> {
    /// These options.
    pub(crate) fn new(bn: Bn, modules_to_save: Option<Vec<String>>) -> Self {
        Self { preset: K::PRESET.to_owned(), bn, modules_to_save, kind: PhantomData }
    }
}

impl<'de, K: Kind> Deserialize<'de> for Of<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error;
        let mut map = Map::deserialize(deserializer)?;
        let preset = match map.remove("preset") {
            Some(name) => String::deserialize(name).map_err(D::Error::custom)?,
            None => K::PRESET.to_owned(),
        };
        let bn =
            Bn::preset(&preset).ok_or_else(|| D::Error::custom(format!("`{preset}` is not one of the presets")))?;
        let whole = map.remove("modules_to_save").map(Option::deserialize).transpose().map_err(D::Error::custom)?;
        let mut fields = serde_json::to_value(bn).map_err(D::Error::custom)?;
        if let Value::Object(fields) = &mut fields {
            fields.extend(map);
        }
        let bn = Bn::deserialize(fields).map_err(D::Error::custom)?;
        Ok(Self { preset, bn, modules_to_save: whole.flatten(), kind: PhantomData })
    }
}

/// The method `bottleneck`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequential;

impl Kind for Sequential {
    const CARD: &'static Card = &CARD;
    const PRESET: &'static str = "seq_bn";
}

/// Options of bottleneck adapters.
pub type Config = Of<Sequential>;

/// Roles that bottleneck adapters act on.
pub(crate) const ROLES: &[Role] = &[Role::SublayerOut, Role::BlockIn, Role::Head];

static CARD: Card = Card {
    name: "bottleneck",
    title: "Bottleneck adapter",
    summary: "Puts a small feed-forward network behind attention or the feed-forward part of every block.",
    formula: "`h + s U act(D h)` behind a part of a block; `D` `[hidden / reduction_factor, hidden]`, `U` back. `preset` \
              chooses AdapterHub's combination of the other options.",
    paper: "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019 (arXiv:1902.00751); Pfeiffer et al., \
            AdapterFusion, 2020 (arXiv:2005.00247); He et al., 2021 (arXiv:2110.04366)",
    roles: ROLES,
    mergeable: false,
    identity_at_init: false,
    sample_job: sample_job!("bottleneck", ", preset: double_seq_bn, reduction_factor: 16"),
    invalid: &[
        Invalid { options: r#"{"preset": "seq_bm"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"reduction_factor": 0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"reduction_factor": {"0": 16}}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"non_linearity": "step"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"scaling": "much"}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"dropout": 1.0}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"output_adapter": false}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"cross_adapter": true}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"init_weights_seed": 7}"#, code: code::METHOD_CONFIG },
        Invalid { options: r#"{"leave_out": [0, 1, 2, 3]}"#, code: code::TARGET_NOTHING },
        Invalid { options: r#"{"reduction_faktor": 16}"#, code: code::UNKNOWN_KEY },
    ],
    ..Card::ADAPTER
};

impl<K: Kind> Options for Of<K> {
    const CARD: &'static Card = K::CARD;

    /// AdapterHub resets torch's generator to it for every adapter; no other generator gives those values.
    const LATER: &'static [crate::options::Later] =
        &[crate::options::Later::new("init_weights_seed"), crate::options::Later::new("architecture")];

    fn validate(&self) -> Result<()> {
        self.bn.validate()
    }
}

impl<K: Kind> AdapterConfig for Of<K> {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        plan::plan(&self.bn, self.modules_to_save.as_deref(), model)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn half(&self, tensor: &PlannedTensor) -> Option<Half> {
        let [down, up] = [0, 1].map(|end| [plan::WEIGHT[end], plan::BIAS[end]]);
        Half::of(tensor.part, &down, &up)
    }

    fn bottleneck(&self) -> Option<Bn> {
        Some(self.bn.clone())
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        let mut hooks = super::Hooks::new();
        if let Some(kind) = self.bn.inv_adapter {
            coupling::hooks(&self.bn, kind, parts, &mut hooks)?;
        }
        run::hooks(&self.bn, parts, &mut hooks)?;
        Ok(hooks)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &crate::plan::PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        Ok(run::cut_normal(&tensor.shape, key, base.device()))
    }
}
