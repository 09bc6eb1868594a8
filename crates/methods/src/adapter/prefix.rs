//! Prefix tuning: trained keys and values in front of every sequence's own, in each block:
//! `attention(q, [P_k; k], [P_v; v])`. Every token sees them; positions of real tokens begin behind them; prefix keys
//! are not rotated.
//!
//! The table is `[num_virtual_tokens, blocks * 2 * heads * head_dim]`, with heads those of keys: for block `i` columns
//! `2i` (key) and `2i + 1` (value) of width `heads * head_dim`. With encoder and decoder PEFT acts on the decoder's
//! attention on itself, and hands out the table in steps of four columns, wrapped around: `4i` and `4i + 1` modulo
//! `2 * blocks`. Its numbers are the reference, so this does the same.
//!
//! With `prefix_projection` the table is `W2 tanh(W1 e + b1) + b2` and those tensors are trained; the file has the table
//! alone, and an adapter that is read from a file trains the table.
//!
//! Li and Liang, *Prefix-Tuning: Optimizing Continuous Prompts for Generation*, 2021.

use super::Virtual;
use super::prelude::*;
use super::prompting::{self, Prompting, Sizes};

/// Options of prefix tuning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Virtual tokens.
    #[serde(flatten)]
    pub prompting: Prompting,
    /// Make the table by a small network in training.
    pub prefix_projection: bool,
    /// Width of that network; the width of a virtual token when left out.
    pub encoder_hidden_size: Option<u32>,
    /// `zero` for keys and values that begin at zero; drawn when left out.
    pub init_weights: Option<InitWeights>,
    /// Read from a file, which has the table whatever it was made by.
    #[serde(skip)]
    imported: bool,
}

/// `init_weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitWeights {
    /// All zero.
    Zero,
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "prefix",
        title: "Prefix tuning",
        summary: "Puts trained keys and values in front of those of every sequence, in each block.",
        formula: "`softmax(q [P_k; k]^T) [P_v; v]` in every attention of a sequence on itself.",
        paper: "Li and Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation, 2021 (arXiv:2101.00190)",
        roles: &[Role::AttnKv],
        mergeable: false,
        identity_at_init: false,
        peft_type: Some("PREFIX_TUNING"),
        sample_job: sample_job!("prefix", ", num_virtual_tokens: 16"),
        invalid: &[
            Invalid { options: r#"{"num_virtual_tokens": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"encoder_hidden_size": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"init_weights": "ones"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"token_dim": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_layers": 9}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_transformer_submodules": 3}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"modules_to_save": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"num_virtual_token": 5}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn imported(self) -> Self {
        Self { imported: true, ..self }
    }

    fn validate(&self) -> Result<()> {
        self.prompting.validate()?;
        self.encoder_hidden_size.map_or(Ok(()), |size| positive("encoder_hidden_size", size))
    }
}

impl Config {
    fn projects(&self) -> bool {
        self.prefix_projection && !self.imported
    }

    fn tensors(&self, site: &Site, sizes: &Sizes) -> Vec<PlannedTensor> {
        let (tokens, columns) = (self.prompting.tokens(), sizes.layers * 2 * sizes.width);
        let normal = Init::Normal { std: 1.0 };
        let zero = self.init_weights.is_some();
        if !self.projects() {
            let init = if zero { Init::Zeros } else { normal };
            return vec![prompting::table(site, [tokens, columns], init)];
        }
        let hidden = self.encoder_hidden_size.map_or(sizes.width, |size| size as usize);
        let name = "prompt_encoder.embedding.weight".to_owned();
        let mut tensors = vec![PlannedTensor::trained(name, site.id, "embedding", [tokens, sizes.width], normal)];
        tensors.extend(prompting::affine(site, "transform.0", ["inner", "inner_bias"], sizes.width, hidden));
        let outer = prompting::affine(site, "transform.2", ["outer", "outer_bias"], hidden, columns);
        tensors.extend(outer.map(|tensor| if zero { PlannedTensor { init: Init::Zeros, ..tensor } } else { tensor }));
        tensors
    }
}

fn sizes(attentions: &[&Site]) -> Sizes {
    let heads = attentions[0].dims.heads;
    let (heads, dim) = heads.map_or((1, attentions[0].dims.output), |heads| (heads.kv, heads.dim));
    Sizes { width: heads * dim, heads, layers: attentions.len() }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let attentions = prompting::attentions(model)?;
        let sizes = sizes(&attentions);
        self.prompting.check(&sizes, model)?;
        self.prompting.plan(model, &attentions, self.tensors(attentions[0], &sizes))
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let attentions: Vec<_> = plan.sites.iter().map(|id| &model.sites()[*id]).collect();
        self.prompting.adapter_config(self, &sizes(&attentions), (model, plan, export))
    }

    fn virtual_tokens(&self) -> Virtual {
        Virtual { prefix: self.prompting.tokens(), prompt: 0 }
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &super::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        if !self.projects() {
            return Ok(None);
        }
        prompting::exported(parts, &run::Source::of(self, parts)?.all()).map(Some)
    }
}

#[cfg(feature = "torch")]
pub(super) mod run {
    use pleach_base::Result;
    use pleach_nn::{BaseOp, Form, Layout, OpWeights, Site, SiteCx, SiteHook, SiteId};
    use tch::Tensor;

    use super::Config;
    use crate::adapter::prompting::{TABLE, has_cross};
    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// Where the table's columns come from.
    pub(super) enum Source {
        /// Themselves, `[n, columns]`.
        Table(Tensor),
        /// A network.
        Network { embedding: Tensor, inner: OpWeights, outer: OpWeights },
    }

    impl Source {
        pub(super) fn of(config: &Config, parts: &Parts<'_>) -> Result<Self> {
            let site = parts.plan.sites[0];
            let part = |name| parts.part(site, name).map(Tensor::shallow_clone);
            if !config.projects() {
                return Ok(Self::Table(part(TABLE)?));
            }
            Ok(Self::Network {
                embedding: part("embedding")?,
                inner: OpWeights { weight: part("inner")?, bias: Some(part("inner_bias")?) },
                outer: OpWeights { weight: part("outer")?, bias: Some(part("outer_bias")?) },
            })
        }

        /// `[n, length]` of the columns.
        fn columns(&self, start: i64, length: i64) -> Tensor {
            match self {
                Self::Table(table) => table.narrow(1, start, length),
                Self::Network { embedding, inner, outer } => {
                    let hidden = embedding.linear(&inner.weight, inner.bias.as_ref()).tanh();
                    let bias = outer.bias.as_ref().map(|bias| bias.narrow(0, start, length));
                    hidden.linear(&outer.weight.narrow(0, start, length), bias.as_ref())
                }
            }
        }

        /// The whole table.
        pub(super) fn all(&self) -> Tensor {
            let columns = match self {
                Self::Table(table) => table.size()[1],
                Self::Network { outer, .. } => outer.weight.size()[0],
            };
            self.columns(0, columns)
        }

        fn shallow_clone(&self) -> Self {
            match self {
                Self::Table(table) => Self::Table(table.shallow_clone()),
                Self::Network { embedding, inner, outer } => Self::Network {
                    embedding: embedding.shallow_clone(),
                    inner: inner.shallow_clone(),
                    outer: outer.shallow_clone(),
                },
            }
        }
    }

    struct Prefix {
        source: Source,
        /// First of the block's columns.
        start: i64,
        heads: i64,
        dim: i64,
    }

    pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
        let source = Source::of(config, parts)?;
        let sites = &parts.plan.sites;
        // See the module's header.
        let step = if has_cross(parts.sites) { 4 } else { 2 };
        let hook = |(number, id): (usize, &SiteId)| {
            let heads = parts.site(*id).dims.heads;
            let (heads, dim) = heads.map_or((1, parts.site(*id).dims.output), |heads| (heads.kv, heads.dim));
            let start = (step * number % (2 * sites.len()) * heads * dim) as i64;
            let (heads, dim) = (heads as i64, dim as i64);
            let hook = Prefix { source: source.shallow_clone(), start, heads, dim };
            (*id, Box::new(hook) as Box<dyn SiteMethod>)
        };
        Ok(sites.iter().enumerate().map(hook).collect())
    }

    impl SiteHook for Prefix {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, cx: &SiteCx<'_>, mut x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let width = self.heads * self.dim;
            let both = self.source.columns(self.start, 2 * width); // [n, 2 heads dim]
            for (i, own) in x.iter_mut().skip(1).enumerate() {
                let front = both.narrow(1, i as i64 * width, width).unflatten(-1, [self.heads, self.dim]);
                *own = prepend(cx.layout, &front.to_kind(own.kind()), own);
            }
            base.run(&x)
        }
    }

    impl SiteMethod for Prefix {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }

    /// `front` `[n, heads, dim]` before every sequence of `x` `[.., heads, dim]`.
    pub(crate) fn prepend(layout: &Layout, front: &Tensor, x: &Tensor) -> Tensor {
        let tokens = front.size()[0];
        match layout.form() {
            Form::Padded { .. } => {
                let front = front.unsqueeze(0).expand([layout.sequences() as i64, -1, -1, -1], false);
                Tensor::cat(&[&front, x], 1)
            }
            Form::Packed { offsets } => {
                let own = offsets.windows(2).map(|ends| ends[0] as i64 + tokens..ends[1] as i64 + tokens);
                let rows: Vec<i64> = own.flat_map(|own| (0..tokens).chain(own)).collect();
                let rows = Tensor::from_slice(&rows).to_device(x.device());
                Tensor::cat(&[front, x], 0).index_select(0, &rows)
            }
        }
    }
}
