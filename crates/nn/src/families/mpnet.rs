//! MPNet: BERT's shape without kinds of tokens, with positions counted as RoBERTa does and a bias by distance that all
//! blocks share (Song et al., *MPNet: Masked and Permuted Pre-training for Language Understanding*, 2020).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{Count, Distances, Draft, Encoder, EncoderNames, Names, RelativeSpec};
use crate::model::{ModelDir, bad};

pub(super) static FAMILY: MpNet = MpNet;

pub(super) struct MpNet;

const NAMES: Names = Names::encoder("mpnet", "MPNet", "mpnet");

const MODULES: EncoderNames = EncoderNames {
    blocks: "encoder.layer",
    maps: ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
    core: "attention.attn",
    attention: ("attention", "attention.LayerNorm"),
    mlp: ["intermediate.dense", "output.dense"],
    output: ("output", "output.LayerNorm"),
};

/// The padding token, whatever the configuration says.
const PAD: usize = 1;

/// Classes of distances, whatever the configuration says.
const DISTANCES: Distances = Distances { buckets: 32, farthest: 128, both_ways: true };

impl Family for MpNet {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "mpnet", "architectures": ["MPNetForSequenceClassification"], "hidden_size": 32,
            "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 270,
            "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 1}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let buckets = draft.config.opt_size("relative_attention_num_buckets")?.unwrap_or(DISTANCES.buckets);
        if buckets != DISTANCES.buckets {
            return Err(bad("relative_attention_num_buckets", "must be 32: the model counts distances so"));
        }
        let encoder = Encoder { types: None, distances: Some(DISTANCES), ..Encoder::read(draft.config)? };
        let mut trunk = encoder.trunk(&mut draft, &MODULES, Count::Behind(PAD));
        let table = draft.path("encoder.relative_attention_bias");
        trunk.relative = Some(RelativeSpec::new(&mut draft.b, &table, encoder.heads.query, DISTANCES));
        let head = encoder.roberta_head(&mut draft)?;
        Ok(draft.finish(trunk, head, encoder.sizes_behind(PAD)))
    }
}
