//! Where a key of another trainer, or a key in the wrong section, belongs.

use pleach_base::suggest;
use serde_json::Value;

/// Keys of axolotl, LLaMA-Factory, Hugging Face's `TrainingArguments` and PEFT scripts, and what Pleach calls them.
const FOREIGN: &[(&str, &str)] = &[
    ("adapter", "spec.tasks[].adapter.method"),
    ("adam_beta1", "spec.train.optimizer.betas"),
    ("adam_beta2", "spec.train.optimizer.betas"),
    ("adam_epsilon", "spec.train.optimizer.eps"),
    ("base_model", "spec.backbone.path"),
    ("batch_size", "spec.train.global_batch"),
    ("bf16", "spec.backbone.dtype"),
    ("cutoff_len", "spec.data.max_length"),
    ("dataset", "spec.data.source"),
    ("datasets", "spec.data.source"),
    ("eval_steps", "spec.eval.every"),
    ("fp16", "spec.backbone.dtype"),
    ("gradient_accumulation_steps", "spec.train.micro_batch"),
    ("learning_rate", "spec.train.optimizer.lr"),
    ("logging_steps", "spec.train.log_every"),
    ("lora_alpha", "spec.tasks[].adapter.lora_alpha"),
    ("lora_dropout", "spec.tasks[].adapter.lora_dropout"),
    ("lora_r", "spec.tasks[].adapter.r"),
    ("lora_rank", "spec.tasks[].adapter.r"),
    ("lora_target", "spec.tasks[].adapter.target_modules"),
    ("lora_target_modules", "spec.tasks[].adapter.target_modules"),
    ("lr", "spec.train.optimizer.lr"),
    ("lr_scheduler", "spec.train.schedule.name"),
    ("lr_scheduler_type", "spec.train.schedule.name"),
    ("max_seq_length", "spec.data.max_length"),
    ("micro_batch_size", "spec.train.micro_batch"),
    ("model", "spec.backbone.path"),
    ("model_name_or_path", "spec.backbone.path"),
    ("nproc_per_node", "spec.workers.max"),
    ("num_epochs", "spec.train.epochs"),
    ("num_processes", "spec.workers.max"),
    ("num_train_epochs", "spec.train.epochs"),
    ("output_dir", "spec.checkpoint.store"),
    ("per_device_train_batch_size", "spec.train.micro_batch"),
    ("r", "spec.tasks[].adapter.r"),
    ("save_steps", "spec.checkpoint.every"),
    ("save_total_limit", "spec.checkpoint.retention.last"),
    ("sequence_len", "spec.data.max_length"),
    ("target_modules", "spec.tasks[].adapter.target_modules"),
    ("torch_dtype", "spec.backbone.dtype"),
    ("train_batch_size", "spec.train.global_batch"),
    ("val_set_size", "spec.eval.source"),
    ("warmup_steps", "spec.train.schedule.warmup_steps"),
    ("weight_decay", "spec.train.optimizer.weight_decay"),
];

/// What Pleach calls another trainer's key.
pub(crate) fn foreign(key: &str) -> Option<&'static str> {
    FOREIGN.iter().find(|(theirs, _)| *theirs == key).map(|(_, ours)| *ours)
}

/// The same for a misspelt key of another trainer.
pub(crate) fn foreign_slip(key: &str) -> Option<&'static str> {
    let names = FOREIGN.iter().map(|(theirs, _)| *theirs).filter(|theirs| theirs.len() > 4);
    suggest::nearest(key, names).filter(|name| name.len().abs_diff(key.len()) <= 2).and_then(foreign)
}

/// The path of the one place in the job's schema where `key` is known; none when there are none or several.
pub(crate) fn home_of(schema: &Value, key: &str) -> Option<String> {
    let mut found = Vec::new();
    search(schema, schema, key, String::new(), 0, &mut found);
    // Data and optimiser stand in tasks too; the job-wide place is the one to name.
    found.retain(|path| !path.starts_with("spec.tasks[].data") && !path.starts_with("spec.tasks[].optimizer"));
    if found.len() == 1 { found.pop() } else { None }
}

fn search(root: &Value, schema: &Value, key: &str, path: String, depth: usize, found: &mut Vec<String>) {
    if depth > 12 {
        return;
    }
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) {
        if let Some(target) = root.get("$defs").and_then(|defs| defs.get(name)) {
            search(root, target, key, path, depth + 1, found);
        }
        return;
    }
    for choice in schema.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
        search(root, choice, key, path.clone(), depth + 1, found);
    }
    if let Some(items) = schema.get("items") {
        search(root, items, key, format!("{path}[]"), depth + 1, found);
    }
    for (name, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if name == key {
            found.push(at.clone());
        }
        search(root, below, key, at, depth + 1, found);
    }
}

/// The first sentence of a field's documentation, without its full stop.
pub(crate) fn first_sentence(text: &str) -> String {
    text.split(['\n', ';']).next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_foreign_key_leads_to_a_key_that_exists() {
        for (theirs, ours) in FOREIGN {
            if let Some(option) = ours.strip_prefix("spec.tasks[].adapter.") {
                assert!(
                    ["method", "r", "lora_alpha", "lora_dropout", "target_modules"].contains(&option),
                    "{theirs} -> {ours}"
                );
                continue;
            }
            let key = ours.rsplit('.').next().unwrap_or_default();
            let mut found = Vec::new();
            let schema = crate::schema::job();
            search(schema, schema, key, String::new(), 0, &mut found);
            assert!(found.iter().any(|path| path == ours), "{theirs} -> {ours}: {found:?}");
        }
    }

    #[test]
    fn a_misplaced_key_finds_its_home() {
        assert_eq!(home_of(crate::schema::job(), "max_steps").as_deref(), Some("spec.train.max_steps"));
        assert_eq!(home_of(crate::schema::job(), "source"), None, "data and eval both have one");
    }
}
