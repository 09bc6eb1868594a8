//! The options of AdapterHub's bottleneck adapters, their names and defaults as in its `BnConfig`, and its presets.

use indexmap::IndexMap;
use pleach_base::Result;
use pleach_nn::BackboneConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::{Activation, refuse, share};

/// A bottleneck adapter. Defaults are those of the preset `seq_bn`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bn {
    /// Put one behind attention.
    pub mh_adapter: bool,
    /// Put one behind the feed-forward part.
    pub output_adapter: bool,
    /// Put one behind attention to the encoder, in decoders that have it.
    pub cross_adapter: bool,
    /// Width of the hidden states divided by the width of the bottleneck; or a map from block numbers to that, with
    /// `default` for the others. Below 1 the bottleneck is wider.
    pub reduction_factor: Reduction,
    /// Activation in the bottleneck.
    pub non_linearity: String,
    /// Add the block's residual and run the block's own normalisation before the adapter.
    pub original_ln_before: bool,
    /// Add the block's residual and run the block's own normalisation after the adapter.
    pub original_ln_after: bool,
    /// A new normalisation before the bottleneck.
    pub ln_before: bool,
    /// A new normalisation after the bottleneck.
    pub ln_after: bool,
    /// How weights begin: `bert` (normal, 0.02), `mam_adapter` (second map at zero), `houlsby` (normal, 0.01, cut off).
    pub init_weights: InitWeights,
    /// Feed the block's residual to the adapter and add the result, instead of standing behind the part.
    pub is_parallel: bool,
    /// Factor of the adapter's result: a number, `learned` (one number) or `channel` (one for each channel).
    pub scaling: Scaling,
    /// A trained gate between 0 and 1 for each sequence: the mean over its tokens.
    pub use_gating: bool,
    /// Where the adapter's own residual is taken when `original_ln_before` is on: `true` before anything, `post_add`
    /// after the sum, `false` after the normalisation.
    pub residual_before_ln: Residual,
    /// Add the adapter's own residual before `ln_after` rather than after it.
    pub adapter_residual_before_ln: bool,
    /// An invertible map behind the embeddings, its inverse before the output head: `nice` or `glow`.
    pub inv_adapter: Option<Coupling>,
    /// Width of half the hidden states divided by that of the invertible map's inner layer.
    pub inv_adapter_reduction_factor: Option<f64>,
    /// Numbers of blocks without an adapter.
    pub leave_out: Vec<u32>,
    /// Share of the result that is dropped in training.
    pub dropout: f64,
    /// Share of samples for which an adapter is left out in training.
    pub stochastic_depth: f64,
    /// Make the maps of Kronecker products (Compacter).
    pub phm_layer: bool,
    /// Number of products, and size of the small factor.
    pub phm_dim: usize,
    /// The large factors are products of two thin ones.
    #[serde(rename = "factorized_phm_W")]
    pub factorized_phm_w: bool,
    /// One set of large factors for all blocks.
    #[serde(rename = "shared_W_phm")]
    pub shared_w_phm: bool,
    /// One set of small factors for all blocks.
    pub shared_phm_rule: bool,
    /// The small factors are products of two vectors.
    pub factorized_phm_rule: bool,
    /// How small factors begin: `normal` or `uniform`.
    pub phm_c_init: RuleInit,
    /// Standard deviation of `normal` for shared small factors.
    pub phm_init_range: f64,
    /// Train the small factors.
    pub learn_phm: bool,
    /// Distribution of the large factors. AdapterHub draws them by `glorot-normal` whatever this says, and so does this
    /// build.
    pub hypercomplex_nonlinearity: String,
    /// Rank of the large factors.
    pub phm_rank: usize,
    /// A bias behind each map.
    pub phm_bias: bool,
}

/// `reduction_factor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Reduction {
    /// For all blocks.
    All(f64),
    /// By block.
    Blocks(IndexMap<String, f64>),
}

/// `init_weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitWeights {
    /// Normal, standard deviation 0.02.
    Bert,
    /// First map uniform, second at zero.
    MamAdapter,
    /// Normal, standard deviation 0.01, within two of them.
    Houlsby,
}

/// `scaling`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scaling {
    /// A constant.
    Factor(f64),
    /// Trained.
    Trained(TrainedScaling),
}

/// A trained `scaling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainedScaling {
    /// One number.
    Learned,
    /// One for each channel.
    Channel,
}

/// `residual_before_ln`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Residual {
    /// Before anything, or after the normalisation.
    Before(bool),
    /// Between sum and normalisation.
    Between(PostAdd),
}

/// The third value of `residual_before_ln`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PostAdd {
    /// Between sum and normalisation.
    PostAdd,
}

/// `inv_adapter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Coupling {
    /// Additive (Dinh et al. 2014).
    Nice,
    /// Affine (Kingma and Dhariwal 2018).
    Glow,
}

/// `phm_c_init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleInit {
    /// Normal.
    Normal,
    /// Uniform.
    Uniform,
}

impl Default for Bn {
    fn default() -> Self {
        Self {
            mh_adapter: false,
            output_adapter: true,
            cross_adapter: false,
            reduction_factor: Reduction::All(16.0),
            non_linearity: "relu".to_owned(),
            original_ln_before: true,
            original_ln_after: true,
            ln_before: false,
            ln_after: false,
            init_weights: InitWeights::Bert,
            is_parallel: false,
            scaling: Scaling::Factor(1.0),
            use_gating: false,
            residual_before_ln: Residual::Before(true),
            adapter_residual_before_ln: false,
            inv_adapter: None,
            inv_adapter_reduction_factor: None,
            leave_out: Vec::new(),
            dropout: 0.0,
            stochastic_depth: 0.0,
            phm_layer: false,
            phm_dim: 4,
            factorized_phm_w: true,
            shared_w_phm: false,
            shared_phm_rule: true,
            factorized_phm_rule: false,
            phm_c_init: RuleInit::Normal,
            phm_init_range: 0.0001,
            learn_phm: true,
            hypercomplex_nonlinearity: "glorot-uniform".to_owned(),
            phm_rank: 1,
            phm_bias: true,
        }
    }
}

impl Bn {
    /// AdapterHub's preset of this name.
    pub(crate) fn preset(name: &str) -> Option<Self> {
        let inverse =
            |bn: Self| Self { inv_adapter: Some(Coupling::Nice), inv_adapter_reduction_factor: Some(2.0), ..bn };
        let products = |bn: Self| Self {
            phm_layer: true,
            reduction_factor: Reduction::All(32.0),
            non_linearity: "gelu".to_owned(),
            ..bn
        };
        Some(match name {
            "seq_bn" | "pfeiffer" => Self::default(),
            "double_seq_bn" | "houlsby" => Self::double(),
            "par_bn" | "parallel" => Self::parallel(),
            "scaled_par_bn" | "scaled_parallel" => {
                Self { scaling: Scaling::Trained(TrainedScaling::Learned), ..Self::parallel() }
            }
            "seq_bn_inv" | "pfeiffer+inv" => inverse(Self::default()),
            "double_seq_bn_inv" | "houlsby+inv" => inverse(Self::double()),
            "adapter_plus" => Self::plus(),
            "compacter" => products(Self::double()),
            "compacter++" => products(Self::default()),
            _ => return None,
        })
    }

    fn double() -> Self {
        Self { mh_adapter: true, original_ln_before: false, non_linearity: "swish".to_owned(), ..Self::default() }
    }

    fn parallel() -> Self {
        Self {
            original_ln_before: false,
            reduction_factor: Reduction::All(2.0),
            init_weights: InitWeights::MamAdapter,
            is_parallel: true,
            scaling: Scaling::Factor(4.0),
            ..Self::default()
        }
    }

    fn plus() -> Self {
        Self {
            original_ln_after: false,
            residual_before_ln: Residual::Before(false),
            stochastic_depth: 0.1,
            init_weights: InitWeights::Houlsby,
            scaling: Scaling::Trained(TrainedScaling::Channel),
            reduction_factor: Reduction::All(96.0),
            non_linearity: "gelu".to_owned(),
            ..Self::default()
        }
    }

    /// Refuses values that no model could use.
    pub(crate) fn validate(&self) -> Result<()> {
        Activation::parse("non_linearity", &self.non_linearity)?;
        let factors: Vec<f64> = match &self.reduction_factor {
            Reduction::All(factor) => vec![*factor],
            Reduction::Blocks(map) => map.values().copied().collect(),
        };
        if factors.is_empty() || !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
            return Err(refuse("reduction_factor", "must be a positive number, or a map to such"));
        }
        if self.inv_adapter_reduction_factor.is_some_and(|factor| !(factor.is_finite() && factor > 0.0)) {
            return Err(refuse("inv_adapter_reduction_factor", "must be a positive number"));
        }
        if matches!(self.scaling, Scaling::Factor(factor) if !factor.is_finite()) {
            return Err(refuse("scaling", "must be a number, `learned` or `channel`"));
        }
        share("dropout", self.dropout)?;
        share("stochastic_depth", self.stochastic_depth)?;
        if self.is_parallel && self.stochastic_depth > 0.0 {
            return Err(refuse("stochastic_depth", "is for adapters behind a part: set is_parallel to false"));
        }
        if !(self.mh_adapter || self.output_adapter || self.cross_adapter || self.inv_adapter.is_some()) {
            return Err(refuse(
                "mh_adapter",
                "all of mh_adapter, output_adapter, cross_adapter and inv_adapter are off",
            ));
        }
        if self.phm_layer { self.validate_products() } else { Ok(()) }
    }

    fn validate_products(&self) -> Result<()> {
        for (field, value) in [("phm_dim", self.phm_dim), ("phm_rank", self.phm_rank)] {
            if value == 0 {
                return Err(refuse(field, "must be at least 1"));
            }
        }
        if self.init_weights != InitWeights::Bert {
            return Err(refuse(
                "init_weights",
                "products begin in their own way: `bert` is the only choice with phm_layer",
            ));
        }
        if self.shared_w_phm && !matches!(self.reduction_factor, Reduction::All(_)) {
            return Err(refuse("shared_W_phm", "needs one reduction_factor for all blocks"));
        }
        Ok(())
    }

    /// Width of the bottleneck in block `block` of a model that is `hidden` wide.
    pub(crate) fn width(&self, hidden: usize, block: u32) -> Result<usize> {
        let factor = match &self.reduction_factor {
            Reduction::All(factor) => *factor,
            Reduction::Blocks(map) => {
                let found = map.get(&block.to_string()).or_else(|| map.get("default"));
                *found.ok_or_else(|| refuse("reduction_factor", &format!("has neither block {block} nor `default`")))?
            }
        };
        // AdapterHub stops where products do not divide the width; the next width that they do divide is near.
        let step = if self.phm_layer { self.phm_dim } else { 1 };
        let width = (hidden as f64 / factor).floor() as usize;
        Ok(width.max(1).next_multiple_of(step))
    }

    /// Refuses widths that AdapterHub would refuse.
    pub(crate) fn check_widths(&self, model: &dyn BackboneConfig) -> Result<()> {
        let plain = Self { phm_layer: false, ..self.clone() };
        for site in super::plan::sublayers(self, model)? {
            let (hidden, block) = (site.dims.output, site.block.unwrap_or_default());
            if self.width(hidden, block)? != plain.width(hidden, block)? {
                let why =
                    format!("AdapterHub wants a width that phm_dim {} divides; `{}` has none", self.phm_dim, site.path);
                return Err(refuse("reduction_factor", &why));
            }
        }
        Ok(())
    }
}
