//! DistilBERT: BERT's shape, smaller, without kinds of tokens (Sanh et al., *DistilBERT, a distilled version of BERT*,
//! 2019).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Activation, Count, Draft, Encoder, EncoderNames, Names, NormKind, NormShape, even_heads};
use crate::model::{Config, ModelDir};

pub(super) static FAMILY: DistilBert = DistilBert;

pub(super) struct DistilBert;

const NAMES: Names = Names::encoder("distilbert", "DistilBert", "distilbert");

const MODULES: EncoderNames = EncoderNames {
    blocks: "transformer.layer",
    maps: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    core: "attention",
    attention: ("attention", "sa_layer_norm"),
    mlp: ["ffn.lin1", "ffn.lin2"],
    output: ("ffn", "output_layer_norm"),
};

impl Family for DistilBert {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"], "dim": 32, "n_heads": 4,
            "hidden_dim": 48, "n_layers": 2, "vocab_size": 270, "max_position_embeddings": 64, "num_labels": 3,
            "pad_token_id": 0}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let encoder = read(draft.config)?;
        // Positions of sines and cosines are in the files, like learnt ones.
        let trunk = encoder.trunk(&mut draft, &MODULES, Count::From(0));
        let head = match head {
            HeadKind::SequenceClassification => {
                encoder.classes(&mut draft, ("pre_classifier", Activation::Relu), "classifier")?
            }
            HeadKind::TokenClassification => encoder.token_classes(&mut draft)?,
            HeadKind::Embedding => draft.vectors(None)?,
            _ => {
                let names = ["vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"];
                encoder.masked_lm(&mut draft, names.map(str::to_owned), encoder.activation)?
            }
        };
        Ok(draft.finish(trunk, head, encoder.sizes()))
    }
}

fn read(config: Config<'_>) -> Result<Encoder> {
    let width = config.size("dim")?;
    Ok(Encoder {
        inner: config.size("hidden_dim")?,
        blocks: config.size("n_layers")?,
        vocab: config.size("vocab_size")?,
        max_positions: config.size("max_position_embeddings")?,
        types: None,
        heads: even_heads(("dim", width), ("n_heads", config.size("n_heads")?))?,
        norm: NormShape { kind: NormKind::Layer, width, eps: 1e-12 },
        activation: Activation::read(config, "activation", "gelu")?,
        distances: None,
    })
}
