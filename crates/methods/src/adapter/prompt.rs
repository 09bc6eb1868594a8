//! Prompt tuning: trained rows in front of every sequence's token embeddings: `[P; E(tokens)]`. They count as tokens in
//! everything but the labels.
//!
//! With encoder and decoder the rows stand before the encoder's tokens; PEFT's table then has a second half for the
//! decoder, which it does not use. Classification models that read their last token read the last real one here.
//!
//! Lester et al., *The Power of Scale for Parameter-Efficient Prompt Tuning*, 2021.

use serde_json::json;

use super::Virtual;
use super::prelude::*;
use super::prompting::{self, Prompting};

/// Options of prompt tuning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Virtual tokens.
    #[serde(flatten)]
    pub prompting: Prompting,
    /// How the rows begin: `RANDOM`, `SAMPLE_VOCAB` for rows of the token table that are drawn, `TEXT` for those of
    /// `prompt_tuning_init_ids`.
    pub prompt_tuning_init: Beginning,
    /// The text of `TEXT`, for readers; it is not tokenized here.
    pub prompt_tuning_init_text: Option<String>,
    /// Ids of that text, repeated or cut to the number of virtual tokens.
    #[serde(skip_serializing)]
    pub prompt_tuning_init_ids: Option<Vec<u32>>,
    /// The tokenizer of the text, for readers.
    pub tokenizer_name_or_path: Option<String>,
    /// Options of that tokenizer, for readers.
    pub tokenizer_kwargs: Option<Map<String, Value>>,
    /// Read from a file: the rows are there.
    #[serde(skip)]
    imported: bool,
}

/// `prompt_tuning_init`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Beginning {
    /// Normal numbers.
    #[default]
    Random,
    /// Rows of the token table that are drawn.
    SampleVocab,
    /// Rows of the token table that are given.
    Text,
}

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "prompt",
        title: "Prompt tuning",
        summary: "Puts trained rows in front of the token embeddings of every sequence.",
        formula: "`[P; E(tokens)]` at the token table; `P` is `[num_virtual_tokens, hidden]`.",
        paper: "Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021 (arXiv:2104.08691)",
        roles: &[Role::Embed],
        mergeable: false,
        identity_at_init: false,
        peft_type: Some("PROMPT_TUNING"),
        sample_job: sample_job!("prompt", ", num_virtual_tokens: 16, prompt_tuning_init: SAMPLE_VOCAB"),
        invalid: &[
            Invalid { options: r#"{"num_virtual_tokens": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"token_dim": 7}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"prompt_tuning_init": "ONES"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"prompt_tuning_init": "TEXT"}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"prompt_tuning_init": "TEXT", "prompt_tuning_init_ids": []}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid {
                options: r#"{"prompt_tuning_init": "TEXT", "prompt_tuning_init_ids": [9999999]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"tokenizer_kwargs": {"use_fast": true}}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"num_virtual_token": 5}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    fn imported(self) -> Self {
        Self { imported: true, ..self }
    }

    fn validate(&self) -> Result<()> {
        let has_options = self.tokenizer_kwargs.as_ref().is_some_and(|options| !options.is_empty());
        if has_options && self.prompt_tuning_init != Beginning::Text {
            return Err(refuse("tokenizer_kwargs", "has no effect without `prompt_tuning_init: TEXT`"));
        }
        self.prompting.validate()
    }
}

impl Config {
    /// The ids whose rows are the first ones, if they are given.
    fn ids(&self, vocabulary: usize) -> Result<&[u32]> {
        let ids = self.prompt_tuning_init_ids.as_deref().unwrap_or_default();
        if ids.is_empty() {
            return Err(refuse("prompt_tuning_init", "`TEXT` needs the text's ids")
                .hint("give them as prompt_tuning_init_ids, or choose RANDOM or SAMPLE_VOCAB"));
        }
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(id) => Err(refuse("prompt_tuning_init_ids", &format!("{id} is not below {vocabulary}"))),
            None => Ok(ids),
        }
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (site, sizes) = (prompting::token_table(model)?, prompting::token_sizes(model)?);
        self.prompting.check(&sizes, model)?;
        if self.prompt_tuning_init == Beginning::Text && !self.imported {
            self.ids(site.dims.input)?;
        }
        let init = match self.prompt_tuning_init {
            Beginning::Random => Init::Normal { std: 1.0 },
            Beginning::SampleVocab | Beginning::Text => Init::Derived,
        };
        let rows = self.prompting.tokens() * prompting::submodules(model);
        self.prompting.plan(model, &[site], vec![prompting::table(site, [rows, sizes.width], init)])
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let Ok(sizes) = prompting::token_sizes(model) else { return Map::new() };
        let mut fields = self.prompting.adapter_config(self, &sizes, (model, plan, export));
        // PEFT refuses the word without a text and its tokenizer.
        let said = self.prompt_tuning_init_text.is_some() && self.tokenizer_name_or_path.is_some();
        if self.prompt_tuning_init == Beginning::Text && !said {
            fields.insert("prompt_tuning_init".to_owned(), json!(Beginning::Random));
            fields.insert("tokenizer_kwargs".to_owned(), Value::Null);
        }
        fields
    }

    fn virtual_tokens(&self) -> Virtual {
        Virtual { prompt: self.prompting.tokens(), prefix: 0 }
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &crate::plan::PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        let missing = || code::INTERNAL.error("the token table has no weight");
        let table = &base.weights(tensor.site).ok_or_else(missing)?.weight;
        let (vocabulary, rows) = (table.size()[0], tensor.shape[0]);
        let ids: Vec<i64> = if self.prompt_tuning_init == Beginning::Text {
            let ids = self.ids(usize::try_from(vocabulary).unwrap_or_default())?;
            ids.iter().map(|id| i64::from(*id)).cycle().take(rows).collect()
        } else {
            let mut rng = key.rng();
            (0..rows).map(|_| ((f64::from(rng.uniform()) * vocabulary as f64) as i64).min(vocabulary - 1)).collect()
        };
        Ok(table.index_select(0, &tch::Tensor::from_slice(&ids).to_device(table.device())))
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        // By its part: among the adapters of several tasks it has another name.
        let planned = parts.plan.tensors.iter().find(|tensor| tensor.part == prompting::TABLE);
        let table = parts.get(planned.map_or(prompting::TABLE, |tensor| &tensor.name))?.shallow_clone();
        Ok(prompting::prepend(parts, self.prompting.tokens(), Box::new(move |_| table.shallow_clone())))
    }
}
