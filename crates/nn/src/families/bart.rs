//! BART: an encoder and a decoder with learnt positions and normalisation after each sum (Lewis et al., *BART: Denoising
//! Sequence-to-Sequence Pre-training*, 2019). A sequence is classified by what the decoder makes of its last end token
//! when it reads the same sequence, shifted.

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Init};
use crate::blocks::{
    Activation, BodySpec, Count, Draft, EmbedSpec, EndSpec, FrontSpec, LinearSpec, MappedSpec, Mark, Names, Order,
    PositionSpec, Sizes, Stage, TowerSpec,
};
use crate::model::ModelDir;
use crate::reads::{Reads, Source};
use crate::site::Part;

pub(super) static FAMILY: Bart = Bart;

pub(super) struct Bart;

const NAMES: Names = Names {
    family: "bart",
    class: "Bart",
    heads: &[
        (HeadKind::Seq2SeqLm, "ForConditionalGeneration"),
        (HeadKind::SequenceClassification, "ForSequenceClassification"),
    ],
    base: "model",
    causal: false,
    renames: &[],
};

/// Rows of the table of positions before that of the first token.
const OFFSET: usize = 2;

impl Family for Bart {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "d_model": 32,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 270, "max_position_embeddings": 64,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
            "scale_embedding": true, "num_labels": 3}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        let [encoder, decoder] = Stage::encoder_decoder(config, Order::Post)?;
        let (width, vocab) = (encoder.norm.width, config.size("vocab_size")?);
        let (first, more) = (config.size("encoder_layers")?, config.size("decoder_layers")?);
        let max_positions = config.opt_size("max_position_embeddings")?.unwrap_or(1024);
        let scale = config.flag("scale_embedding", false)?.then(|| (width as f64).sqrt());
        draft.idle(|draft| draft.table("shared", vocab, width));
        let tables = Tables { vocab, max_positions, scale };
        let encoder = tables.stack(&mut draft, &encoder, ("encoder", "input_ids"), (0, first));
        draft.b.enter(Some(first as u32));
        let decoder = tables.stack(&mut draft, &decoder, ("decoder", "decoder_input_ids"), (first, more));
        draft.b.enter(None);
        let shared = draft.path("shared.weight");
        let end = match head {
            HeadKind::Seq2SeqLm => {
                let tied = config.flag("tie_word_embeddings", true)?.then_some(shared.as_str());
                let out = LinearSpec::head(&mut draft.b, "lm_head", (width, vocab), false, tied);
                let bias = "final_logits_bias";
                draft.b.fresh(Init::Zeros, |b| b.parameter(bias, &[1, vocab]));
                EndSpec::Language { out, scale: None, bias: Some(bias.to_owned()) }
            }
            _ => {
                let dense = |b: &mut _| {
                    LinearSpec::new(b, "classification_head.dense".to_owned(), Part::Other, width, width, true)
                };
                let pooler = MappedSpec { map: draft.fresh(dense)?, activation: Activation::Tanh };
                let mark = Mark::Last(config.opt_count("eos_token_id")?.unwrap_or(2) as i64);
                EndSpec::Marked { mark, pooler, out: draft.labels("classification_head.out_proj", width, true)? }
            }
        };
        let reads = Reads::encoder_decoder(Source::Tokens { name: "input_ids" }, draft.shift_ids()?);
        let sizes = Sizes { hidden: width, vocab, max_positions };
        Ok(draft.towers((encoder, Some(decoder)), end, sizes, reads))
    }
}

/// What both stacks' tables have in common.
struct Tables {
    vocab: usize,
    max_positions: usize,
    scale: Option<f64>,
}

impl Tables {
    fn stack(
        &self,
        draft: &mut Draft<'_>,
        stage: &Stage,
        (path, input): (&str, &'static str),
        blocks: (usize, usize),
    ) -> TowerSpec {
        let (width, shared, path) = (stage.norm.width, draft.path("shared.weight"), draft.path(path));
        let at = |name: &str| format!("{path}.{name}");
        let b = &mut draft.b;
        let tokens = EmbedSpec::tied(b, &at("embed_tokens"), (self.vocab, width), &shared).times(b, self.scale);
        let table = EmbedSpec::new(b, &at("embed_positions"), self.max_positions + OFFSET, width);
        let positions = Some(PositionSpec { table, count: Count::From(OFFSET) });
        let norm = Some(stage.norm.at(b, at("layernorm_embedding")));
        let (layers, relative) = stage.blocks(b, &at("layers"), blocks);
        let front = FrontSpec { input, body: BodySpec::Tokens(tokens), positions, norm };
        TowerSpec { front, relative, layers, last_norm: None }
    }
}
