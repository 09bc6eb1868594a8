//! The bottleneck adapters of vision transformers, in the three styles that MoSA's authors compare and split.
//!
//! With `a` the result of a part of a block and `h` its residual, `A(x) = s U act(D x)`:
//! `adaptformer`: `h + a + A(LN h)` with GELU and `s = scalar`, beside the feed-forward part;
//! `pfeiffer`: `h + a + A(LN a)` with ReLU and `s = 1`, behind it;
//! `houlsby`: `y + A(y)` for `y = h + a` with SiLU and `s = 1`, behind both parts and without a norm of its own.
//! In blocks that normalise after the sum, `y` is what comes out of that.
//!
//! `LN` is trained. `D` begins uniform (Kaiming, `a = sqrt(5)`), `U` and all biases at zero, which leaves the model
//! unchanged. Dropout acts between the two maps.
//!
//! Chen et al., *AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition*, 2022; Zhang et al., *Split &
//! Merge: Unlocking the Potential of Visual Adapters via Sparse Training*, 2023.

use pleach_nn::Part;

use super::common::{own_config, usual_init};
use super::prelude::*;
use super::saved;

options! {
    /// Options of visual adapters.
    pub struct Config {
        /// Where the adapter stands: `adaptformer` beside the feed-forward part, `pfeiffer` behind it, `houlsby` behind
        /// attention and behind it.
        style: Style = Style::Adaptformer,
        /// Width of the bottleneck.
        bottleneck_size: u32 = 64,
        /// What the result is multiplied with; of no effect in the styles `pfeiffer` and `houlsby`.
        scalar: f64 = 0.1,
        /// Share of the bottleneck's values that is dropped in training.
        dropout: f64 = 0.1,
        /// Modules that are trained and saved whole. Classification adds its head by itself.
        modules_to_save: Option<Vec<String>> = None,
    }
}

/// Where the adapter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// Beside the feed-forward part.
    Adaptformer,
    /// Behind the feed-forward part, before the sum.
    Pfeiffer,
    /// Behind attention and the feed-forward part, after the sum.
    Houlsby,
}

const ROLES: &[Role] = &[Role::SublayerOut];

const NORM: [&str; 2] = ["adapter_norm.weight", "adapter_norm.bias"];
const DOWN: [&str; 2] = ["adapter_down.weight", "adapter_down.bias"];
const UP: [&str; 2] = ["adapter_up.weight", "adapter_up.bias"];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "visual_adapter",
        title: "Visual adapter",
        summary: "Adds a scaled bottleneck beside the feed-forward part of every block, with a norm of its own.",
        formula: "`h + FFN(h) + s U gelu(D LN(h))`; `U` and biases begin at zero. `style` moves it behind the part.",
        paper: "Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, 2022 \
                (arXiv:2205.13535)",
        roles: ROLES,
        mergeable: false,
        sample_job: sample_job!("visual_adapter", ", bottleneck_size: 16"),
        invalid: &[
            Invalid { options: r#"{"bottleneck_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"style": "lora"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"scalar": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"modules_to_save": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"scale": 0.1}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"bottleneck_size": 6}"#;

    fn validate(&self) -> Result<()> {
        positive("bottleneck_size", self.bottleneck_size)?;
        if !(self.scalar.is_finite() && self.scalar != 0.0) {
            return Err(refuse("scalar", "must be a number other than 0"));
        }
        share("dropout", self.dropout)
    }
}

impl Config {
    fn stands_at(&self, site: &Site) -> bool {
        site.role == Role::SublayerOut
            && match site.part {
                Part::FeedForward => true,
                Part::Attention => self.style == Style::Houlsby,
                _ => false,
            }
    }

    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let (d, r) = (site.dims.output, self.bottleneck_size as usize);
        let named = |part: &'static str, shape: Vec<usize>, init: Init| {
            let name = format!("base_model.model.{}.adapters.{part}", site.path.replace('@', "."));
            PlannedTensor::trained(name, site.id, part, shape, init)
        };
        let mut all = Vec::new();
        if self.style != Style::Houlsby {
            all.extend([named(NORM[0], vec![d], Init::Ones), named(NORM[1], vec![d], Init::Zeros)]);
        }
        all.extend([named(DOWN[0], vec![r, d], usual_init(d)), named(DOWN[1], vec![r], Init::Zeros)]);
        all.extend([named(UP[0], vec![d, r], Init::Zeros), named(UP[1], vec![d], Init::Zeros)]);
        all
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let sites: Vec<_> = model.sites().iter().filter(|site| self.stands_at(site)).collect();
        if sites.is_empty() {
            return Err(code::TARGET_NOTHING.error("style: the model has no such part of a block"));
        }
        let (saved, whole) = saved::plan(self.modules_to_save.as_deref(), model)?;
        let mut tensors: Vec<_> = sites.iter().flat_map(|site| self.tensors(site)).collect();
        tensors.extend(whole);
        Ok(Plan { tensors, sites: sites.iter().map(|site| site.id).collect(), saved, ..Plan::default() })
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    fn half(&self, tensor: &PlannedTensor) -> Option<Half> {
        Half::of(tensor.part, &DOWN, &UP)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(feature = "torch")]
pub(crate) mod run {
    use pleach_base::Result;
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook, SiteId};
    use tch::{Kind, Tensor};

    use super::{Config, DOWN, NORM, Style, UP};
    use crate::adapter::common::{Activation, Dropout, at_sites, keep_mask};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// Weight and bias.
    pub(crate) type Pair = (Tensor, Tensor);

    /// `s U act(D LN(x))`.
    pub(crate) struct Branch {
        pub(crate) norm: Option<Pair>, // [d], [d]
        pub(crate) down: Pair,         // [r, d], [r]
        pub(crate) up: Pair,           // [d, r], [d]
    }

    impl Style {
        fn activation(self) -> Activation {
            match self {
                Self::Adaptformer => Activation::Gelu,
                Self::Pfeiffer => Activation::Relu,
                Self::Houlsby => Activation::Silu,
            }
        }

        /// A part's `output` and the `residual`, both `[.., d]`, joined by `sum` and the adapter. `keep` is what
        /// dropout leaves, `[.., r]`.
        pub(crate) fn join(
            self,
            branch: &Branch,
            scalar: f64,
            [output, residual]: [&Tensor; 2],
            keep: Option<&Tensor>,
            sum: impl Fn(&Tensor) -> Tensor,
        ) -> Tensor {
            let run = |x: &Tensor| branch.run(x, self.activation(), keep);
            match self {
                Self::Adaptformer => sum(&(output + run(residual) * scalar)),
                Self::Pfeiffer => sum(&(output + run(output))),
                Self::Houlsby => {
                    let y = sum(output);
                    let added = run(&y);
                    y + added
                }
            }
        }
    }

    impl Branch {
        fn run(&self, x: &Tensor, activation: Activation, keep: Option<&Tensor>) -> Tensor {
            let normed = self.norm.as_ref().map(|(weight, bias)| {
                x.layer_norm(weight.size(), Some(weight), Some(bias), 1e-6, true) // as vision transformers have it
            });
            let x = normed.as_ref().unwrap_or(x);
            let low = activation.run(&x.linear(&self.down.0, Some(&self.down.1)));
            let low = keep.map_or_else(|| low.shallow_clone(), |keep| &low * keep);
            low.linear(&self.up.0, Some(&self.up.1))
        }
    }

    struct Adapter {
        style: Style,
        scalar: f64,
        branch: Branch,
        dropout: Dropout,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let pair = |site: SiteId, names: [&str; 2]| -> Result<Pair> {
            let [weight, bias] = names.map(|name| parts.part(site, name).map(Tensor::shallow_clone));
            Ok((weight?, bias?))
        };
        at_sites(parts, |site| {
            let normed = config.style != Style::Houlsby;
            let norm = if normed { Some(pair(site.id, NORM)?) } else { None };
            Ok(Adapter {
                style: config.style,
                scalar: config.scalar,
                branch: Branch { norm, down: pair(site.id, DOWN)?, up: pair(site.id, UP)? },
                dropout: Dropout::new(config.dropout, parts.key, "visual_adapter", &site.path),
            })
        })
    }

    impl SiteHook for Adapter {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let kind = x[0].kind();
            let width = usize::try_from(self.branch.down.0.size()[0]).unwrap_or_default();
            let keep = self.dropout.is_on(cx);
            let keep = keep.then(|| keep_mask(cx.layout, width, self.dropout.p, self.dropout.now(cx)));
            let [output, residual] = [0, 1].map(|i: usize| x[i].to_kind(Kind::Float));
            let sum = |output: &Tensor| base.run(&[output.to_kind(kind), x[1].shallow_clone()])[0].to_kind(Kind::Float);
            let y = self.style.join(&self.branch, self.scalar, [&output, &residual], keep.as_ref(), sum);
            vec![y.to_kind(kind)]
        }
    }

    impl SiteMethod for Adapter {
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
    fn the_count_of_the_paper() {
        let vit = json!({"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 768, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 16});
        let Value::Object(vit) = vit else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(vit), &HeadOptions::default()).unwrap();
        let params = |config: &Config| config.plan(model.as_ref()).unwrap().params();
        assert_eq!(params(&Config::default()), 1_208_064);
        let pfeiffer = Config { style: Style::Pfeiffer, ..Config::default() };
        assert_eq!(params(&pfeiffer), 1_208_064);
        let houlsby = Config { style: Style::Houlsby, ..Config::default() };
        assert_eq!(params(&houlsby), 2 * (1_208_064 - 12 * 2 * 768), "twice, without norms");
    }
}
