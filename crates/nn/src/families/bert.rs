//! BERT: an encoder with learnt positions and normalisation after each sum
//! (Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers*, 2018).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Activation, BERT, Count, Draft, Encoder, Names};
use crate::model::ModelDir;

pub(super) static FAMILY: Bert = Bert;

pub(super) struct Bert;

const NAMES: Names = Names::encoder("bert", "Bert", "bert");

impl Family for Bert {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 32,
            "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "type_vocab_size": 2, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let encoder = Encoder::read(draft.config)?;
        let trunk = encoder.trunk(&mut draft, &BERT, Count::From(0));
        let pooler = draft.path("pooler.dense");
        let head = match head {
            HeadKind::SequenceClassification => {
                encoder.classes(&mut draft, (&pooler, Activation::Tanh), "classifier")?
            }
            HeadKind::TokenClassification => encoder.token_classes(&mut draft)?,
            HeadKind::Embedding => encoder.vectors(&mut draft, &pooler)?,
            _ => {
                let names = ["transform.dense", "transform.LayerNorm", "decoder", "bias"];
                encoder.masked_lm(
                    &mut draft,
                    names.map(|name| format!("cls.predictions.{name}")),
                    encoder.activation,
                )?
            }
        };
        Ok(draft.finish(trunk, head, encoder.sizes()))
    }
}
