//! Names of tensors in AdapterHub's files.

use pleach_base::{Error, Result, code};
use pleach_nn::{BackboneConfig, Part, Role, Site, SiteId};

use crate::plan::{Plan, PlannedTensor};

/// Where a planned tensor is in AdapterHub's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Among the adapter's tensors, under these names: more than one where the library's modules list a tensor twice.
    Adapter(Vec<String>),
    /// Among the head's.
    Head(String),
}

/// The families whose modules are known, by where adapters hang.
enum Hang {
    /// On the output modules of attention and of the feed-forward part.
    Outputs,
    /// On the block.
    Block,
    /// On the block behind attention, on the output module behind the feed-forward part.
    Mixed,
    /// On the block's numbered layers.
    Layers,
}

fn hang(family: &str) -> Option<Hang> {
    Some(match family {
        "bert" | "roberta" | "xlm-roberta" | "electra" => Hang::Outputs,
        "llama" | "mistral" | "qwen2" | "qwen3" | "gpt2" | "distilbert" | "bart" => Hang::Block,
        "vit" => Hang::Mixed,
        "t5" => Hang::Layers,
        _ => return None,
    })
}

/// The key of every tensor of a plan, in the plan's order, for an adapter called `name`.
///
/// # Errors
/// `METHOD_CONFIG` for families and tensors that the library does not have.
pub fn keys(model: &dyn BackboneConfig, plan: &Plan, name: &str) -> Result<Vec<Key>> {
    let norms: Vec<SiteId> =
        plan.tensors.iter().filter(|tensor| tensor.part.starts_with("adapter_norm_before.")).map(|t| t.site).collect();
    let key = |tensor: &PlannedTensor| {
        let site = &model.sites()[tensor.site];
        if plan.saved.contains(&tensor.site) {
            return Ok(Key::Head(format!("{}.{}", site.path, tensor.part)));
        }
        if let Some(part) = tensor.part.strip_prefix("lora_").map(|_| tensor.part) {
            return Ok(Key::Adapter(vec![format!("{}.loras.{name}.{part}", site.path)]));
        }
        if tensor.name.contains("shared_parameters.") {
            return shared(model, name, tensor.part).map(|key| Key::Adapter(vec![key]));
        }
        if site.role == Role::BlockIn {
            return Ok(Key::Adapter(vec![format!("{}invertible_adapters.{name}.{}", front(model), tensor.part)]));
        }
        let module = module(model, site)?;
        let of = |part: &str| format!("{module}adapters.{name}.{part}");
        // The first map stands in a sequence, behind the normalisation if there is one, which is in it as well.
        let number = usize::from(norms.contains(&tensor.site));
        Ok(Key::Adapter(match tensor.part.split_once('.') {
            Some(("adapter_down", rest)) => vec![of(&format!("adapter_down.{number}.{rest}"))],
            Some(("adapter_norm_before", rest)) => vec![of(tensor.part), of(&format!("adapter_down.0.{rest}"))],
            _ => vec![of(tensor.part)],
        }))
    };
    plan.tensors.iter().map(key).collect()
}

/// The module that holds the adapters of a site, with a dot behind it.
fn module(model: &dyn BackboneConfig, site: &Site) -> Result<String> {
    let family = model.info().family;
    let unknown = || {
        code::METHOD_CONFIG
            .error(format!("AdapterHub's `adapters` has no place like `{}` in models of the family {family}", site.path))
            .hint("known are bert, roberta, xlm-roberta, distilbert, llama, mistral, qwen2, qwen3, gpt2, t5, bart and vit")
    };
    let place = site.path.strip_suffix("@sublayer").ok_or_else(unknown)?;
    let block = block(place).ok_or_else(unknown)?;
    let attention = site.part == Part::Attention;
    Ok(match (hang(family).ok_or_else(unknown)?, site.part) {
        (_, part) if !matches!(part, Part::Attention | Part::FeedForward | Part::CrossAttention) => {
            return Err(unknown());
        }
        (Hang::Outputs, _) if attention => format!("{place}.output."),
        (Hang::Outputs, _) => format!("{place}."),
        (Hang::Mixed, Part::FeedForward) => format!("{block}.output.output_adapters."),
        (Hang::Block, Part::FeedForward) => format!("{block}.output_adapters."),
        (Hang::Block | Hang::Mixed, Part::CrossAttention) => format!("{block}.cross_attention_adapters."),
        (Hang::Block | Hang::Mixed, _) => format!("{block}.attention_adapters."),
        (Hang::Layers, _) => {
            let inside = place.get(block.len()..).unwrap_or_default(); // `.layer.1.EncDecAttention`
            let layer: Vec<_> = inside.split('.').take(3).collect();
            format!("{block}{}.", layer.join("."))
        }
    })
}

/// The path up to the block's number.
fn block(path: &str) -> Option<&str> {
    let mut end = 0;
    for part in path.split('.') {
        end += part.len();
        if part.parse::<u32>().is_ok() {
            return path.get(..end);
        }
        end += 1;
    }
    None
}

/// The bare model's name within the class, with a dot behind it; empty for bare models.
fn prefix(model: &dyn BackboneConfig) -> String {
    let prefix = format!("{}.", model.info().base_prefix);
    let inside = model.sites().iter().any(|site| site.path.starts_with(&prefix));
    if inside { prefix } else { String::new() }
}

/// The module that has the map behind the embeddings, with a dot behind it.
fn front(model: &dyn BackboneConfig) -> String {
    match model.info().family {
        "t5" => "encoder.".to_owned(),
        "bart" => format!("{}encoder.", prefix(model)),
        _ => prefix(model),
    }
}

fn shared(model: &dyn BackboneConfig, name: &str, part: &str) -> Result<String> {
    let prefix = prefix(model);
    if prefix.is_empty() {
        return Err(lost(part));
    }
    Ok(format!("{prefix}shared_parameters.{name}.{part}"))
}

fn lost(part: &str) -> Error {
    code::METHOD_CONFIG
        .error(format!(
            "AdapterHub's `adapters` does not save `{part}`, which all blocks share, in models of this class"
        ))
        .hint("use shared_phm_rule: false and shared_W_phm: false, or a class with a head")
}
