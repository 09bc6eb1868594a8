//! PEFT's options of LoRA that this build does not have.

use crate::options::Later;

/// By name, with PEFT's defaults.
pub(crate) const LATER: &[Later] = &[
    Later::new("alora_invocation_tokens"),
    Later::new("arrow_config"),
    Later::new("corda_config"),
    Later::off("ensure_weight_tying", "false"),
    Later::new("eva_config"),
    Later::new("kasa_config"),
    Later::new("layer_replication"),
    Later::off("loftq_config", "{}"),
    Later::new("lora_ga_config"),
    Later::new("megatron_config"),
    Later::off("megatron_core", "\"megatron.core\""),
    Later::new("monteclora_config"),
    Later::off("qalora_group_size", "16"),
    Later::new("use_bdlora"),
    Later::off("use_qalora", "false"),
    Later::new("velora_config"),
];
