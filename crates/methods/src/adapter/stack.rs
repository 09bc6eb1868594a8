//! Adapters one behind the other: at a site where several act, each gets what the one before it gave.
//!
//! Adapters behind a part of a block feed each other before the block's residual sum, as AdapterHub's `Stack` does. At
//! other sites those that change inputs or weights come first, in order, then those that change the result, in order.
//!
//! Pfeiffer et al., *MAD-X*, 2020 (a task adapter on a language adapter).

use super::compose::{self, Child};
use super::prelude::*;

/// Options of a stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The adapters, the first nearest to the model's own result: each with `name`, `method`, the method's options, and
    /// perhaps `init_from` (a local folder of a saved adapter) and `frozen`.
    pub adapters: Vec<Child>,
}

/// Compositions act wherever their adapters do.
pub(crate) const ROLES: &[Role] = &[
    Role::Embed,
    Role::Linear,
    Role::Head,
    Role::Norm,
    Role::Conv,
    Role::AttnKv,
    Role::AttnScores,
    Role::SublayerOut,
    Role::BlockIn,
    Role::BlockOut,
];

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "stack",
        title: "Stack of adapters",
        summary: "Several adapters, each on what the one before it gave.",
        formula: "`y = a_n(.. a_2(a_1(x)))` at every site where several act.",
        paper: "Pfeiffer et al., MAD-X, 2020 (arXiv:2005.00052)",
        roles: ROLES,
        sample_job: sample_job!(
            "stack",
            ", adapters: [{name: language, method: bottleneck, preset: seq_bn_inv, frozen: true}, {name: task, method: bottleneck}]"
        ),
        invalid: &[
            Invalid { options: r#"{}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapters": [{"name": "a", "method": "lorra"}]}"#, code: code::METHOD_UNKNOWN },
            Invalid { options: r#"{"adapters": [{"name": "a.b", "method": "lora"}]}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"adapters": [{"name": "a", "method": "lora", "rr": 1}]}"#, code: code::UNKNOWN_KEY },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "lora"}, {"name": "a", "method": "lora"}]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"adapters": [{"name": "a", "method": "prefix", "num_virtual_tokens": 2}, {"name": "b", "method": "prefix", "num_virtual_tokens": 2}]}"#,
                code: code::METHOD_CONFIG,
            },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"adapters": [{"name": "a", "method": "lora", "r": 2},
        {"name": "b", "method": "lora", "r": 3, "target_modules": "all-linear"}]}"#;

    fn validate(&self) -> Result<()> {
        compose::validate(&self.adapters)
    }

    fn imported(self) -> Self {
        Self { adapters: self.adapters.into_iter().map(Child::read).collect() }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        compose::plan(&self.adapters, false, model)
    }

    compose::passed_on! {}

    compose::begins_and_regularises! {}

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        compose::hooks(&self.adapters, parts, |_| Ok(None))
    }
}
