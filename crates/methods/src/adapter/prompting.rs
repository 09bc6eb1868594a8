//! What the methods of prompt learning share: virtual tokens before every sequence, their options, and PEFT's files, in
//! which the whole adapter is one table `prompt_embeddings` whatever it was made by.

use std::collections::BTreeSet;

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, HeadKind, Init, Part, Role, Site, Sites};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::common::{peft_config, positive, refuse};
use super::{Export, Options, saved};
use crate::plan::{Plan, PlannedTensor};

/// Key of the table in `adapter_model.safetensors`.
pub(super) const TABLE: &str = "prompt_embeddings";

/// What PEFT puts before the names of modules that are saved whole: prompt learning wraps no module of the model.
const MODEL: &str = "base_model";

/// Options that all of them have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Prompting {
    /// Virtual tokens before every sequence. PEFT wants a number; 20 when left out.
    pub num_virtual_tokens: u32,
    /// Width of a virtual token. Known from the model; another value is refused.
    pub token_dim: Option<u32>,
    /// 2 for models with encoder and decoder, else 1. Known from the model; another value is refused.
    pub num_transformer_submodules: Option<u32>,
    /// Heads of attention. Known from the model; the value is not used.
    pub num_attention_heads: Option<u32>,
    /// Blocks of the model. Known from the model; another value is refused.
    pub num_layers: Option<u32>,
    /// Modules that are trained and saved whole. Classification adds its head by itself.
    pub modules_to_save: Option<Vec<String>>,
}

impl Default for Prompting {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            token_dim: None,
            num_transformer_submodules: None,
            num_attention_heads: None,
            num_layers: None,
            modules_to_save: None,
        }
    }
}

/// The sizes that PEFT writes into its file.
pub(super) struct Sizes {
    /// Width of a virtual token, or of the keys of one.
    pub(super) width: usize,
    /// Heads of `width`.
    pub(super) heads: usize,
    /// Blocks.
    pub(super) layers: usize,
}

impl Prompting {
    pub(super) fn validate(&self) -> Result<()> {
        positive("num_virtual_tokens", self.num_virtual_tokens)
    }

    pub(super) fn tokens(&self) -> usize {
        self.num_virtual_tokens as usize
    }

    /// Compares what the user says of the model with the model.
    pub(super) fn check(&self, sizes: &Sizes, model: &dyn BackboneConfig) -> Result<()> {
        let said = [
            ("token_dim", self.token_dim, sizes.width),
            ("num_transformer_submodules", self.num_transformer_submodules, submodules(model)),
            ("num_layers", self.num_layers, sizes.layers),
        ];
        for (field, value, known) in said {
            if value.is_some_and(|value| value as usize != known) {
                return Err(refuse(field, &format!("is {known} for this model")).hint("leave it out"));
            }
        }
        Ok(())
    }

    /// The plan: tensors of the method, then those of modules that are saved whole.
    pub(super) fn plan(
        &self,
        model: &dyn BackboneConfig,
        sites: &[&Site],
        tensors: Vec<PlannedTensor>,
    ) -> Result<Plan> {
        let (saved, whole) = saved::plan_under(MODEL, self.modules_to_save.as_deref(), model)?;
        let tensors = tensors.into_iter().chain(whole).collect();
        Ok(Plan { tensors, sites: sites.iter().map(|site| site.id).collect(), saved, ..Plan::default() })
    }

    /// `adapter_config.json`.
    pub(super) fn adapter_config<C: Options + Serialize>(
        &self,
        config: &C,
        sizes: &Sizes,
        (model, plan, export): (&dyn BackboneConfig, &Plan, &Export<'_>),
    ) -> Map<String, Value> {
        let mut fields = peft_config(config, None, model, plan, export);
        let saved = saved::names(self.modules_to_save.as_deref(), model);
        let known = [
            ("modules_to_save", if saved.is_empty() { Value::Null } else { json!(saved) }),
            ("num_attention_heads", json!(sizes.heads)),
            ("num_layers", json!(sizes.layers)),
            ("num_transformer_submodules", json!(submodules(model))),
            ("token_dim", json!(sizes.width)),
        ];
        fields.extend(known.map(|(name, value)| (name.to_owned(), value)));
        if fields.get("encoder_hidden_size").is_some_and(Value::is_null) {
            fields.insert("encoder_hidden_size".to_owned(), json!(sizes.width));
        }
        fields
    }
}

/// PEFT's number of transformers in the model.
pub(super) fn submodules(model: &dyn BackboneConfig) -> usize {
    if model.info().head == HeadKind::Seq2SeqLm { 2 } else { 1 }
}

/// The place of the attention of a sequence on itself in each block; with encoder and decoder, in the decoder.
///
/// # Errors
/// `TARGET_NOTHING` when there is none, `METHOD_CONFIG` for models that read no tokens or have two towers, and when
/// blocks differ in their heads.
pub(super) fn attentions(model: &dyn BackboneConfig) -> Result<Vec<&Site>> {
    let sites = model.sites();
    let reads = &model.info().reads;
    let last = reads.second.as_ref().unwrap_or(&reads.first);
    let towers = reads.second.is_some() && !has_cross(sites);
    if towers || last.fixed_tokens().is_some() {
        return Err(refuse(
            "num_virtual_tokens",
            "prefixes are defined for models of text with one stack or a decoder",
        ));
    }
    let crossed: BTreeSet<_> = crosses(sites).map(|site| site.block).collect();
    let chosen: Vec<_> = sites
        .with_role(Role::AttnKv)
        .filter(|site| site.runs && site.part != Part::CrossAttention)
        .filter(|site| crossed.is_empty() || crossed.contains(&site.block))
        .collect();
    let Some(first) = chosen.first() else {
        return Err(code::TARGET_NOTHING.error("num_virtual_tokens: the model has no attention to put keys before"));
    };
    if chosen.iter().any(|site| site.dims.heads != first.dims.heads) {
        return Err(refuse("num_virtual_tokens", "the blocks differ in their heads, one table cannot serve them"));
    }
    Ok(chosen)
}

fn crosses(sites: &Sites) -> impl Iterator<Item = &Site> {
    sites.with_role(Role::AttnKv).filter(|site| site.part == Part::CrossAttention)
}

/// Whether blocks look at an encoder's output.
pub(super) fn has_cross(sites: &Sites) -> bool {
    crosses(sites).next().is_some()
}

/// The tables of token embeddings, run or not.
pub(super) fn token_tables(model: &dyn BackboneConfig) -> impl Iterator<Item = &Site> {
    let rows = model.info().vocab_size;
    model.sites().with_role(Role::Embed).filter(move |site| site.dims.input == rows)
}

/// The table of token embeddings that the only or first stack runs.
///
/// # Errors
/// `TARGET_NOTHING` when that reads no tokens.
pub(super) fn token_table(model: &dyn BackboneConfig) -> Result<&Site> {
    let reads = model.info().reads.first.fixed_tokens().is_none();
    token_tables(model).find(|site| site.runs && reads).ok_or_else(|| {
        code::TARGET_NOTHING.error("num_virtual_tokens: the model reads no tokens to put virtual ones before")
    })
}

/// Sizes for tables of virtual tokens as wide as the model's own.
pub(super) fn token_sizes(model: &dyn BackboneConfig) -> Result<Sizes> {
    let table = token_table(model)?;
    let own = |site: &&Site| site.runs && site.part != Part::CrossAttention;
    let places: Vec<_> = model.sites().with_role(Role::AttnKv).filter(own).collect();
    let heads = places.first().and_then(|site| site.dims.heads).map_or(1, |heads| heads.query);
    Ok(Sizes { width: table.dims.output, heads, layers: places.len() / submodules(model) })
}

/// The table itself as a parameter.
pub(super) fn table(site: &Site, shape: [usize; 2], init: Init) -> PlannedTensor {
    PlannedTensor::trained(TABLE.to_owned(), site.id, TABLE, shape, init)
}

/// An affine map of a small network that makes the table: weight `[output, input]` and bias, begun as torch does.
pub(super) fn affine(
    site: &Site,
    name: &str,
    parts: [&'static str; 2],
    input: usize,
    output: usize,
) -> [PlannedTensor; 2] {
    let init = Init::Uniform { bound: 1.0 / (input as f32).sqrt() };
    let tensor = |kind: &str, part, shape: Vec<usize>| {
        PlannedTensor::trained(format!("prompt_encoder.{name}.{kind}"), site.id, part, shape, init)
    };
    [tensor("weight", parts[0], vec![output, input]), tensor("bias", parts[1], vec![output])]
}

#[cfg(feature = "torch")]
pub(super) use imp::{exported, prepend};

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use pleach_base::rng::Key;
    use pleach_nn::{Form, Layout, OpWeights, Site, SiteCx, SiteHook, SiteId};
    use tch::{Kind, Tensor};

    use super::TABLE;
    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// Makes a table of virtual tokens, `[tokens or more, width]`; given a key, with the noise of a training step.
    pub(crate) type Table = Box<dyn Fn(Option<Key>) -> Tensor + Send>;

    /// Fills the placeholders in front of every sequence with rows of a table.
    struct Prepend {
        tokens: i64,
        table: Table,
        key: Key,
    }

    /// The hook at the token table, the plan's only site.
    pub(crate) fn prepend(parts: &Parts<'_>, tokens: usize, table: Table) -> Hooks {
        let hook = Prepend { tokens: tokens as i64, table, key: parts.key.named(TABLE) };
        let hook = |id: &SiteId| (*id, Box::new(hook) as Box<dyn SiteMethod>);
        parts.plan.sites.first().map(hook).into_iter().collect()
    }

    impl SiteHook for Prepend {
        fn after(&self, cx: &SiteCx<'_>, _: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            let noise = cx.train.then(|| self.key.with(cx.step).with(u64::from(cx.pass)));
            let table = (self.table)(noise).narrow(0, 0, self.tokens); // [n, d]
            y.iter().map(|y| front(cx.layout, y, &table.to_kind(y.kind()))).collect()
        }
    }

    impl SiteMethod for Prepend {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            None
        }
    }

    /// `y` `[.., d]` with `table` `[n, d]` in place of the first `n` rows of every sequence.
    fn front(layout: &Layout, y: &Tensor, table: &Tensor) -> Tensor {
        let (count, tokens) = (layout.sequences() as i64, table.size()[0]);
        match layout.form() {
            Form::Padded { width } => {
                let table = table.unsqueeze(0).expand([count, -1, -1], false);
                let rest = y.narrow(1, tokens, *width as i64 - tokens);
                Tensor::cat(&[&table, &rest], 1)
            }
            Form::Packed { offsets } => {
                let starts = offsets[..offsets.len() - 1].iter().map(|start| *start as i64);
                let rows: Vec<i64> = starts.flat_map(|start| start..start + tokens).collect();
                let rows = Tensor::from_slice(&rows).to_device(y.device());
                y.index_copy(0, &rows, &table.repeat([count, 1]))
            }
        }
    }

    /// The file of an adapter whose table is made by a network: the table and the modules that are saved whole.
    pub(crate) fn exported(parts: &Parts<'_>, table: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let saved = parts.plan.trained().filter(|tensor| parts.plan.saved.contains(&tensor.site));
        let mut file = vec![(TABLE.to_owned(), table.detach().to_kind(Kind::Float))];
        for tensor in saved {
            file.push((tensor.name.clone(), parts.get(&tensor.name)?.detach()));
        }
        Ok(file)
    }
}
