//! RoBERTa: BERT's shape with positions counted behind the padding token (Liu et al., *RoBERTa: A Robustly Optimized BERT
//! Pretraining Approach*, 2019).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Names, roberta};
use crate::model::ModelDir;

pub(super) static FAMILY: Roberta = Roberta;

pub(super) struct Roberta;

const NAMES: Names = Names::encoder("roberta", "Roberta", "roberta");

impl Family for Roberta {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"], "hidden_size": 32,
            "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "type_vocab_size": 1, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 1}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        roberta(NAMES, dir, head, options)
    }
}
