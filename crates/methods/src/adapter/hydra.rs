//! Hydra: two linear low-rank branches around a frozen linear map, one beside it and one behind it:
//! `y0 = W0 x + b0`, `y = y0 + s (Bp (Ap x + ap) + bp) + s (Bs (As y0 + as) + bs)`.
//!
//! Neither branch has a non-linearity, so both fold into the weight: with `P = Bp Ap` and `S = Bs As`,
//! `W = W0 + s P + s S W0` and `b = b0 + s S b0 + s (Bp ap + bp) + s (Bs as + bs)`. All `B` and all biases begin at zero,
//! which leaves the model unchanged. Dropout acts between the two maps of a branch. `r_seq: 0` is LoRA with
//! `lora_alpha / r = scale`, `r_par: 0` its sequential form. The branches are computed in the precision of their tensors
//! and the sum is rounded to the base's.
//!
//! Kim, Yang, Kim, Hong, Park, *Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning*, 2023.

use pleach_nn::Part;

use super::common::{LINEAR, Selection, own_config, usual_init};
use super::prelude::*;

options! {
    /// Options of Hydra.
    pub struct Config {
        /// Rank of the branch beside the frozen map; 0 leaves it out.
        r_par: u32 = 2,
        /// Rank of the branch behind it; 0 leaves it out.
        r_seq: u32 = 2,
        /// What both branches are multiplied with: a number, or `learnable`, one trained number a branch that begins at 1.
        scale: Scale = Scale::Fixed(1.0),
        /// Share of a branch's inner values that is dropped in training.
        dropout: f64 = 0.0,
        /// Whether the maps of the branches have biases.
        bias: bool = true,
        /// How the first maps begin.
        init: First = First::Xavier,
        /// Modules: the last map of every feed-forward part when left out.
        #[serde(flatten)]
        targets: Targets = Targets::default(),
        /// Blocks.
        #[serde(flatten)]
        layers: Layers = Layers::default(),
    }
}

/// What a branch is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scale {
    /// This number.
    Fixed(f64),
    /// A trained one.
    Trained(Learnable),
}

/// The word for a trained scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Learnable {
    /// One trained number a branch.
    Learnable,
}

/// How the first map of a branch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum First {
    /// Uniform, Xavier.
    Xavier,
    /// Normal with deviation 0.02.
    Normal,
    /// Uniform, Kaiming with `a = sqrt(5)`.
    Kaiming,
}

impl First {
    fn init(self, input: usize, r: usize) -> Init {
        match self {
            Self::Xavier => Init::Uniform { bound: (6.0 / (input + r) as f32).sqrt() },
            Self::Normal => Init::Normal { std: 0.02 },
            Self::Kaiming => usual_init(input),
        }
    }
}

/// A branch: the names of its tensors, and the stream of its dropout.
#[derive(Debug)]
struct Names {
    a: &'static str,
    a_bias: &'static str,
    b: &'static str,
    b_bias: &'static str,
    scale: &'static str,
    #[cfg_attr(not(feature = "torch"), allow(dead_code))]
    dropout: &'static str,
}

const PAR: Names = Names {
    a: "hydra_par_A",
    a_bias: "hydra_par_a",
    b: "hydra_par_B",
    b_bias: "hydra_par_b",
    scale: "hydra_par_scale",
    dropout: "hydra_par",
};
const SEQ: Names = Names {
    a: "hydra_seq_A",
    a_bias: "hydra_seq_a",
    b: "hydra_seq_B",
    b_bias: "hydra_seq_b",
    scale: "hydra_seq_scale",
    dropout: "hydra_seq",
};

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "hydra",
        title: "Hydra",
        summary: "Adds a low-rank branch beside a frozen linear map and another behind it.",
        formula: "`y0 = W0 x + b0`, `y = y0 + s (Bp (Ap x + ap) + bp) + s (Bs (As y0 + as) + bs)`; `B` and biases begin \
                  at zero.",
        paper: "Kim et al., Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning, 2023 \
                (arXiv:2309.06922)",
        roles: LINEAR,
        sample_job: sample_job!("hydra", ", r_par: 2, r_seq: 2"),
        invalid: &[
            Invalid { options: r#"{"r_par": 0, "r_seq": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"scale": "free"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"scale": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"dropout": 1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"target_modules": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"target_modules": ".*(embed_tokens|word_embeddings)"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"r": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn validate(&self) -> Result<()> {
        if self.r_par == 0 && self.r_seq == 0 {
            return Err(refuse("r_par", "both ranks are 0, which leaves nothing to train"));
        }
        if let Scale::Fixed(scale) = self.scale
            && !(scale.is_finite() && scale != 0.0)
        {
            return Err(refuse("scale", "must be a number other than 0, or `learnable`"));
        }
        share("dropout", self.dropout)
    }
}

impl Config {
    /// The tensors of both branches at a site.
    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let (input, output) = (site.dims.input, site.dims.output);
        let mut all = self.branch(site, &PAR, self.r_par as usize, input, output);
        all.extend(self.branch(site, &SEQ, self.r_seq as usize, output, output));
        all
    }

    fn branch(&self, site: &Site, names: &Names, r: usize, input: usize, output: usize) -> Vec<PlannedTensor> {
        if r == 0 {
            return Vec::new();
        }
        let mut all = vec![parameter(site, names.a, [r, input], self.init.init(input, r))];
        if self.bias {
            all.push(parameter(site, names.a_bias, [r], Init::Zeros));
        }
        all.push(parameter(site, names.b, [output, r], Init::Zeros));
        if self.bias {
            all.push(parameter(site, names.b_bias, [output], Init::Zeros));
        }
        if matches!(self.scale, Scale::Trained(_)) {
            all.push(parameter(site, names.scale, [1], Init::Ones));
        }
        all
    }

    fn note(&self, plan: &mut Plan, model: &dyn BackboneConfig) {
        let sites = model.sites();
        let narrow = plan.sites.iter().map(|id| &sites[*id]).find(|site| {
            let most = site.dims.input.min(site.dims.output);
            self.r_par as usize >= most || self.r_seq as usize >= site.dims.output
        });
        if let Some(site) = narrow {
            plan.notes.push(format!("a rank is not below the width of `{}`: the branch is no shorter way", site.path));
        }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let default = |site: &Site| site.part == Part::Down;
        let selection = Selection { targets: &self.targets, layers: Some(&self.layers), roles: LINEAR, default };
        let mut plan = selection.plan(model, |site| Ok(self.tensors(site)))?;
        self.note(&mut plan, model);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }
}

#[cfg(feature = "torch")]
pub(crate) mod run {
    use pleach_base::Result;
    use pleach_nn::{OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use super::{Config, Names, PAR, SEQ, Scale};
    use crate::adapter::common::{Dropout, at_sites, dense, keep_mask, restored};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// One branch.
    pub(crate) struct Branch {
        pub(crate) a: Tensor,              // [r, in]
        pub(crate) a_bias: Option<Tensor>, // [r]
        pub(crate) b: Tensor,              // [out, r]
        pub(crate) b_bias: Option<Tensor>, // [out]
        pub(crate) scale: Tensor,          // [] or [1]
    }

    impl Branch {
        /// `s (B (keep * (A x + a)) + b)` for `x` `[.., in]`, in the precision of its tensors.
        pub(crate) fn run(&self, x: &Tensor, keep: Option<&Tensor>) -> Tensor {
            let low = x.to_kind(self.a.kind()).linear(&self.a, self.a_bias.as_ref());
            let low = keep.map_or_else(|| low.shallow_clone(), |keep| &low * keep);
            low.linear(&self.b, self.b_bias.as_ref()) * &self.scale
        }

        /// `s B A` `[out, in]`.
        fn product(&self) -> Tensor {
            self.b.matmul(&self.a) * &self.scale
        }

        /// `s (B a + b)` `[out]`.
        fn shift(&self) -> Option<Tensor> {
            let inner = self.a_bias.as_ref().map(|a| self.b.matmul(a));
            let sum = match (inner, &self.b_bias) {
                (Some(inner), Some(b)) => inner + b,
                (Some(inner), None) => inner,
                (None, Some(b)) => b.shallow_clone(),
                (None, None) => return None,
            };
            Some(sum * &self.scale)
        }
    }

    /// Both branches of a site.
    pub(crate) struct Branches {
        pub(crate) par: Option<Branch>,
        pub(crate) seq: Option<Branch>,
    }

    impl Branches {
        /// `y0 + par(x) + seq(y0)`.
        pub(crate) fn around(&self, x: &Tensor, y0: &Tensor, keep: [Option<&Tensor>; 2]) -> Tensor {
            let par = self.par.as_ref().map(|par| par.run(x, keep[0]));
            let seq = self.seq.as_ref().map(|seq| seq.run(y0, keep[1]));
            [par, seq].into_iter().flatten().fold(y0.shallow_clone(), |y, added| y + added)
        }

        /// The frozen weight `[out, in]` and bias with both branches folded in.
        pub(crate) fn merged(&self, weight: &Tensor, bias: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
            let (mut merged, mut shift) = (weight.shallow_clone(), bias.map(Tensor::shallow_clone));
            let mut add = |more: Option<Tensor>| {
                shift = match (shift.take(), more) {
                    (Some(shift), Some(more)) => Some(shift + more),
                    (shift, more) => shift.or(more),
                };
            };
            if let Some(par) = &self.par {
                merged = merged.g_add(&par.product());
                add(par.shift());
            }
            if let Some(seq) = &self.seq {
                let product = seq.product();
                merged = merged.g_add(&product.matmul(weight));
                add(bias.map(|bias| product.matmul(bias)));
                add(seq.shift());
            }
            (merged, shift)
        }
    }

    struct Hydra {
        branches: Branches,
        dropout: [Dropout; 2],
        ranks: [usize; 2],
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let ranks = [config.r_par as usize, config.r_seq as usize];
        at_sites(parts, |site| {
            let branch = |names, r| if r == 0 { Ok(None) } else { branch(config, parts, site, names).map(Some) };
            let dropout = |names: &Names| Dropout::new(config.dropout, parts.key, names.dropout, &site.path);
            Ok(Hydra {
                branches: Branches { par: branch(&PAR, ranks[0])?, seq: branch(&SEQ, ranks[1])? },
                dropout: [dropout(&PAR), dropout(&SEQ)],
                ranks,
            })
        })
    }

    fn branch(config: &Config, parts: &Parts<'_>, site: &Site, names: &Names) -> Result<Branch> {
        let part = |name| parts.part(site.id, name).map(Tensor::shallow_clone);
        let biased = |name| if config.bias { part(name).map(Some) } else { Ok(None) };
        let a = part(names.a)?;
        let scale = match config.scale {
            Scale::Fixed(scale) => Tensor::from(scale as f32).to_device(a.device()),
            Scale::Trained(_) => part(names.scale)?,
        };
        Ok(Branch { a_bias: biased(names.a_bias)?, b: part(names.b)?, b_bias: biased(names.b_bias)?, scale, a })
    }

    impl Hydra {
        fn keep(&self, cx: &SiteCx<'_>, index: usize) -> Option<Tensor> {
            let dropout = &self.dropout[index];
            let drops = dropout.is_on(cx) && self.ranks[index] > 0;
            drops.then(|| keep_mask(cx.layout, self.ranks[index], dropout.p, dropout.now(cx)))
        }
    }

    impl SiteHook for Hydra {
        fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            let keep = [self.keep(cx, 0), self.keep(cx, 1)];
            let one =
                |y: &Tensor| self.branches.around(&x[0], y, [keep[0].as_ref(), keep[1].as_ref()]).to_kind(y.kind());
            y.iter().map(one).collect()
        }
    }

    impl SiteMethod for Hydra {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            let bias = base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float));
            let (weight, bias) = self.branches.merged(&dense(site, base), bias.as_ref());
            Some(OpWeights { weight: restored(site, &weight), bias })
        }
    }
}

#[cfg(test)]
mod tests {
    use pleach_nn::{HeadOptions, ModelDir, configure};
    use serde_json::json;

    use super::*;

    /// Parameters on a model of this configuration.
    fn params(config: &Config, model: Value) -> u64 {
        let Value::Object(model) = model else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap();
        config.plan(model.as_ref()).unwrap().params()
    }

    #[test]
    fn the_counts_of_the_paper() {
        let vit = json!({"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 768, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 16});
        let both = r#"{"target_modules": ["o_proj", "fc2"]}"#;
        let both = serde_json::from_str::<Config>(both).unwrap();
        assert_eq!(params(&both, vit.clone()), 239_712);
        assert_eq!(
            params(&Config::default(), vit),
            12 * (8_450 + 3_842),
            "the last maps of the feed-forward parts alone"
        );
        let roberta = json!({"model_type": "roberta", "architectures": ["RobertaModel"], "hidden_size": 768,
                             "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                             "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1});
        let language = Config { r_par: 4, r_seq: 8, bias: false, ..Config::default() };
        assert_eq!(params(&language, roberta), 331_776);
    }

    #[test]
    fn a_rank_that_is_no_shorter_way_is_noted() {
        let model = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
                           "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20});
        let Value::Object(model) = model else { panic!("a configuration is an object") };
        let model = configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap();
        let notes = |r_par, r_seq| Config { r_par, r_seq, ..Config::default() }.plan(model.as_ref()).unwrap().notes;
        assert!(notes(7, 7).is_empty());
        for (r_par, r_seq) in [(8, 2), (2, 8)] {
            assert!(notes(r_par, r_seq)[0].starts_with("a rank is not below the width of `model.layers.0.mlp.down_proj`"));
        }
    }

    #[test]
    fn scales_are_numbers_or_the_word() {
        let read = |text| serde_json::from_str::<Config>(text).map(|config| config.scale);
        assert_eq!(read(r#"{"scale": 1.5}"#).unwrap(), Scale::Fixed(1.5));
        assert_eq!(read(r#"{"scale": "learnable"}"#).unwrap(), Scale::Trained(Learnable::Learnable));
        assert!(read(r#"{"scale": "free"}"#).is_err());
        let error = Config { r_par: 0, r_seq: 0, ..Config::default() }.validate().unwrap_err();
        assert!(error.message().starts_with("r_par: both ranks"), "{error}");
    }
}
