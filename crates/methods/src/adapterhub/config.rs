//! Options in AdapterHub's files, and as this build's methods have them.

use pleach_base::{Error, Result, code};
use pleach_nn::{BackboneConfig, Part, Role};
use serde_json::{Map, Value, json};

use super::VERSION;
use crate::adapter::AdapterConfig;
use crate::adapter::bottleneck::Reduction;
use crate::adapter::common::number;
use crate::card::MethodKind;
use crate::plan::Plan;
use crate::registry::find;

/// The method and options that the `config` of an `adapter_config.json` means.
///
/// # Errors
/// `ADAPTER_FORMAT` for architectures that are not read; those of the method's options.
pub fn configure(map: &Map<String, Value>, model: &dyn BackboneConfig) -> Result<Box<dyn AdapterConfig>> {
    let missing = || code::ADAPTER_FORMAT.error("adapter_config.json: config is missing or no object");
    let config = map.get("config").and_then(Value::as_object).ok_or_else(missing)?;
    if let Some(family) = map.get("model_type").and_then(Value::as_str).filter(|name| *name != model.info().family) {
        return Err(code::ADAPTER_BASE
            .error(format!("adapter_config.json: model_type is `{family}`, the model is `{}`", model.info().family)));
    }
    match config.get("architecture").and_then(Value::as_str) {
        None => {
            let products = config.get("phm_layer").and_then(Value::as_bool).unwrap_or(false);
            find(MethodKind::Adapter, if products { "compacter" } else { "bottleneck" })?.import(config)
        }
        Some("lora") => find(MethodKind::Adapter, "lora")?.import(&lora(config, model)?),
        Some(other) => Err(code::ADAPTER_FORMAT
            .error(format!("adapter_config.json: architecture `{other}` is not one that this build reads"))
            .hint("bottleneck adapters and LoRA are read")),
    }
}

/// `adapter_config.json` for an adapter called `name`.
///
/// # Errors
/// `METHOD_CONFIG` for methods and options that AdapterHub does not have.
pub fn describe(
    config: &dyn AdapterConfig,
    model: &dyn BackboneConfig,
    plan: &Plan,
    base: &str,
    name: &str,
) -> Result<Map<String, Value>> {
    let options = match config.bottleneck() {
        Some(bn) => {
            bn.check_widths(model)?;
            if matches!(model.info().family, "qwen2" | "qwen3") && !bn.original_ln_after {
                return Err(refuse("original_ln_after", "AdapterHub wants it on in models that it hooks into"));
            }
            let mut options = serde_json::to_value(&bn).unwrap_or_default();
            options["init_weights_seed"] = Value::Null;
            // It makes sizes of it, which must not be floating-point numbers; `scaling` must be one.
            if let Reduction::All(factor) = bn.reduction_factor {
                options["reduction_factor"] = number(factor);
            }
            options
        }
        None if config.card().name == "lora" => lora_options(config, model, plan)?,
        None => {
            return Err(code::METHOD_CONFIG
                .error(format!("AdapterHub has no method like {}, or this build does not write it", config.card().name))
                .hint("bottleneck, compacter, invertible and lora can be written"));
        }
    };
    let mut map = about(model, base, Some(name));
    map.insert("config".to_owned(), options);
    map.sort_keys();
    Ok(map)
}

/// What the library says in every file.
pub(super) fn about(model: &dyn BackboneConfig, base: &str, name: Option<&str>) -> Map<String, Value> {
    let info = model.info();
    let fields = [
        ("config", Value::Null),
        ("hidden_size", json!(info.hidden_size)),
        ("model_class", json!(info.class)),
        ("model_name", json!(base)),
        ("model_type", json!(info.family)),
        ("name", json!(name)),
        ("version", json!(VERSION)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The parts of blocks that each of AdapterHub's switches for LoRA means.
fn switches(model: &dyn BackboneConfig) -> [(&'static str, Part); 5] {
    // In Llama and Mistral the library has the names of the feed-forward part's two maps the other way round.
    let turned = matches!(model.info().family, "llama" | "mistral");
    let (first, second) = if turned { (Part::Down, Part::Up) } else { (Part::Up, Part::Down) };
    [("q", Part::Query), ("k", Part::Key), ("v", Part::Value), ("intermediate_lora", first), ("output_lora", second)]
}

fn refuse(field: &str, why: &str) -> Error {
    code::METHOD_CONFIG.error(format!("{field}: {why}"))
}

/// PEFT's fields for AdapterHub's.
fn lora(config: &Map<String, Value>, model: &dyn BackboneConfig) -> Result<Map<String, Value>> {
    let on = |field: &str| config.get(field).and_then(Value::as_bool).unwrap_or(false);
    for (field, off) in [("use_gating", false), ("use_dora", false)] {
        if on(field) != off {
            return Err(refuse(&format!("adapter_config.json: config.{field}"), "is not read"));
        }
    }
    if config.get("composition_mode").and_then(Value::as_str).is_some_and(|mode| mode != "add") {
        return Err(refuse("adapter_config.json: config.composition_mode", "only `add` is read"));
    }
    let matrices: Vec<_> = config.get("attn_matrices").and_then(Value::as_array).into_iter().flatten().collect();
    let leave_out: Vec<u64> =
        config.get("leave_out").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64).collect();
    let chosen = |part: Part| {
        switches(model).iter().any(|(name, of)| {
            let wanted = match *name {
                "q" | "k" | "v" => on("selfattn_lora") && matrices.iter().any(|matrix| matrix.as_str() == Some(name)),
                switch => on(switch),
            };
            *of == part && wanted
        })
    };
    let targets = model.sites().iter().filter(|site| {
        let left_out = site.block.is_some_and(|block| leave_out.contains(&u64::from(block)));
        site.role == Role::Linear && chosen(site.part) && !left_out
    });
    let targets: Vec<_> = targets.map(|site| site.path.clone()).collect();
    if targets.is_empty() {
        return Err(code::TARGET_NOTHING.error("adapter_config.json: config chooses no map of this model"));
    }
    let number = |field: &str| config.get(field).cloned().unwrap_or_else(|| json!(8));
    let fields = json!({
        "r": number("r"), "lora_alpha": number("alpha"), "target_modules": targets,
        "lora_dropout": config.get("dropout").cloned().unwrap_or_else(|| json!(0.0)),
    });
    Ok(fields.as_object().cloned().unwrap_or_default())
}

/// AdapterHub's fields for PEFT's.
fn lora_options(config: &dyn AdapterConfig, model: &dyn BackboneConfig, plan: &Plan) -> Result<Value> {
    let fields = config.adapter_config(model, plan, &crate::Export { base: "" });
    for field in ["rank_pattern", "alpha_pattern", "use_dora", "target_parameters", "use_rslora", "lora_bias"] {
        let off = match fields.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        if !off {
            return Err(refuse(field, "AdapterHub's LoRA has nothing like it"));
        }
    }
    let sites = || plan.sites.iter().map(|id| &model.sites()[*id]);
    let blocks: Vec<u32> = sites().filter_map(|site| site.block).collect();
    let has = |part: Part| sites().any(|site| site.part == part);
    let known = switches(model);
    for site in sites() {
        let whole =
            blocks.iter().all(|block| sites().any(|other| other.part == site.part && other.block == Some(*block)));
        if !whole || site.block.is_none() || !known.iter().any(|(_, part)| *part == site.part) {
            return Err(refuse("target_modules", &format!("AdapterHub cannot say `{}` alone", site.path)));
        }
    }
    let matrices: Vec<_> = known[..3].iter().filter(|(_, part)| has(*part)).map(|(name, _)| *name).collect();
    let count = model.sites().iter().filter_map(|site| site.block).max().map_or(0, |last| last + 1);
    let leave_out: Vec<u32> = (0..count).filter(|block| !blocks.contains(block)).collect();
    Ok(json!({
        "architecture": "lora", "selfattn_lora": !matrices.is_empty(), "intermediate_lora": has(known[3].1),
        "output_lora": has(known[4].1), "leave_out": leave_out, "r": fields.get("r"), "alpha": fields.get("lora_alpha"),
        "dropout": fields.get("lora_dropout"), "attn_matrices": matrices, "composition_mode": "add",
        "init_weights": "lora", "init_weights_seed": null, "use_gating": false, "use_dora": false, "vera_d": null,
        "vera_b": null, "dtype": null,
    }))
}
