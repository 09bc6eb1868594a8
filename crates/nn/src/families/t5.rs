//! T5: an encoder and a decoder with root-mean-square normalisation before each part and a bias by distance that all
//! blocks of a stack share (Raffel et al., *Exploring the Limits of Transfer Learning with a Unified Text-to-Text
//! Transformer*, 2020). Scores are not scaled.

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{
    Activation, BodySpec, Distances, Draft, EmbedSpec, EndSpec, FrontSpec, LinearSpec, Names, NormKind, NormShape,
    Order, PartNames, Sizes, Stage, StageNames, TowerSpec,
};
use crate::model::{Config, ModelDir, bad};
use crate::reads::{Reads, Source};
use crate::site::Heads;

pub(super) static FAMILY: T5 = T5;

pub(super) struct T5;

const NAMES: Names = Names {
    family: "t5",
    class: "T5",
    heads: &[(HeadKind::Seq2SeqLm, "ForConditionalGeneration"), (HeadKind::Embedding, "EncoderModel")],
    base: "transformer",
    causal: false,
    renames: &[],
};

const MAPS: [&str; 4] = ["q", "k", "v", "o"];

const ENCODER: StageNames = StageNames {
    attention: PartNames { module: "layer.0.SelfAttention", norm: "layer.0.layer_norm", maps: MAPS },
    cross: None,
    mlp: ("layer.1", "layer.1.layer_norm"),
    maps: (None, "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"),
};

const DECODER: StageNames = StageNames {
    cross: Some(PartNames { module: "layer.1.EncDecAttention", norm: "layer.1.layer_norm", maps: MAPS }),
    mlp: ("layer.2", "layer.2.layer_norm"),
    maps: (None, "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo"),
    ..ENCODER
};

impl Family for T5 {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 32, "d_kv": 8, "d_ff": 48,
            "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20, "feed_forward_proj": "gated-gelu", "vocab_size": 270,
            "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "tie_word_embeddings": true}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        let (encoder, vocab) = (stage(config)?, config.size("vocab_size")?);
        let width = encoder.norm.width;
        let blocks = config.size("num_layers")?;
        draft.idle(|draft| EmbedSpec::new(&mut draft.b, "shared", vocab, width));
        let first = stack(&mut draft, &encoder, ("encoder", "input_ids"), (0, blocks), vocab);
        let sizes = Sizes { hidden: width, vocab, max_positions: config.opt_size("n_positions")?.unwrap_or(512) };
        if head == HeadKind::Embedding {
            draft.b.enter(None);
            let (end, reads) = (EndSpec::Plain(draft.vectors(None)?), Reads::TEXT);
            let first = closed(&mut draft, first, &encoder, "encoder");
            return Ok(draft.towers((first, None), end, sizes, reads));
        }
        draft.b.enter(Some(blocks as u32));
        let first = closed(&mut draft, first, &encoder, "encoder");
        let decoder = decoder(encoder);
        let more = config.opt_size("num_decoder_layers")?.unwrap_or(blocks);
        let second = stack(&mut draft, &decoder, ("decoder", "decoder_input_ids"), (blocks, more), vocab);
        draft.b.enter(None);
        let second = closed(&mut draft, second, &decoder, "decoder");
        let tied = dir.get("lm_head.weight").is_none();
        let tied = tied.then_some("shared.weight");
        let out = LinearSpec::head(&mut draft.b, "lm_head", (width, vocab), false, tied);
        // Models of version 1.1 say by an untied table that they do not scale.
        let scaled = config.flag("scale_decoder_outputs", config.flag("tie_word_embeddings", true)?)?;
        let end = EndSpec::Language { out, scale: scaled.then(|| (width as f64).powf(-0.5)), bias: None };
        let reads = Reads::encoder_decoder(Source::Tokens { name: "input_ids" }, draft.shift_ids()?);
        Ok(draft.towers((first, Some(second)), end, sizes, reads))
    }
}

/// The blocks of the encoder.
fn stage(config: Config<'_>) -> Result<Stage> {
    let (width, count) = (config.size("d_model")?, config.size("num_heads")?);
    let form = config.text("feed_forward_proj")?.unwrap_or("relu");
    let (gated, activation) = match form.split_once('-') {
        Some(("gated", "gelu")) => (true, "gelu_new"),
        Some(("gated", activation)) => (true, activation),
        Some(_) => return Err(bad("feed_forward_proj", &format!("`{form}` is neither `gated-..` nor an activation"))),
        None => (false, form),
    };
    let names = if gated {
        StageNames {
            maps: (Some("layer.1.DenseReluDense.wi_0"), "layer.1.DenseReluDense.wi_1", ENCODER.maps.2),
            ..ENCODER
        }
    } else {
        ENCODER
    };
    Ok(Stage {
        inner: config.size("d_ff")?,
        heads: Heads { query: count, kv: count, dim: config.size("d_kv")? },
        causal: false,
        order: Order::Pre,
        norm: NormShape { kind: NormKind::Rms, width, eps: config.float("layer_norm_epsilon", 1e-6)? },
        activation: Activation::named("feed_forward_proj", activation)?,
        biases: [false; 5],
        distances: Some(Distances {
            buckets: config.opt_size("relative_attention_num_buckets")?.unwrap_or(32),
            farthest: config.opt_size("relative_attention_max_distance")?.unwrap_or(128),
            both_ways: true,
        }),
        names,
    })
}

/// The decoder's, by the encoder's.
fn decoder(encoder: Stage) -> Stage {
    let gated = encoder.names.maps.0.is_some();
    let maps = if gated {
        (Some("layer.2.DenseReluDense.wi_0"), "layer.2.DenseReluDense.wi_1", DECODER.maps.2)
    } else {
        DECODER.maps
    };
    let distances = encoder.distances.map(|distances| Distances { both_ways: false, ..distances });
    Stage { causal: true, distances, names: StageNames { maps, ..DECODER }, ..encoder }
}

/// A stack up to its last block.
fn stack(
    draft: &mut Draft<'_>,
    stage: &Stage,
    (path, input): (&str, &'static str),
    blocks: (usize, usize),
    vocab: usize,
) -> TowerSpec {
    let b = &mut draft.b;
    let tokens = EmbedSpec::tied(b, &format!("{path}.embed_tokens"), (vocab, stage.norm.width), "shared.weight");
    let front = FrontSpec { input, body: BodySpec::Tokens(tokens), positions: None, norm: None };
    let (layers, relative) = stage.blocks(b, &format!("{path}.block"), blocks);
    TowerSpec { front, relative, layers, last_norm: None }
}

/// The stack with its last normalisation.
fn closed(draft: &mut Draft<'_>, tower: TowerSpec, stage: &Stage, path: &str) -> TowerSpec {
    TowerSpec { last_norm: Some(stage.norm.at(&mut draft.b, format!("{path}.final_layer_norm"))), ..tower }
}
