//! Whisper: an encoder of spectrograms behind two convolutions and a decoder of text, with normalisation before each
//! part (Radford et al., *Robust Speech Recognition via Large-Scale Weak Supervision*, 2022).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{
    Activation, BodySpec, ConvSpec, Count, Draft, EmbedSpec, EndSpec, FrontSpec, LinearSpec, Names, Order,
    PositionSpec, SamplesSpec, Sizes, Stage, TowerSpec, Window,
};
use crate::model::ModelDir;
use crate::reads::{Reads, Source};

pub(super) static FAMILY: Whisper = Whisper;

pub(super) struct Whisper;

const NAMES: Names = Names {
    family: "whisper",
    class: "Whisper",
    heads: &[(HeadKind::Seq2SeqLm, "ForConditionalGeneration")],
    base: "model",
    causal: false,
    renames: &[],
};

const INPUT: &str = "input_features";

impl Family for Whisper {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 32,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "num_mel_bins": 6, "max_source_positions": 9,
            "max_target_positions": 64, "vocab_size": 270, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
            "decoder_start_token_id": 1}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        let [encoder, decoder] = Stage::encoder_decoder(config, Order::Pre)?.map(without_key_bias);
        let (width, vocab) = (encoder.norm.width, config.size("vocab_size")?);
        let (first, more) = (config.size("encoder_layers")?, config.size("decoder_layers")?);
        let bins = config.opt_size("num_mel_bins")?.unwrap_or(80);
        let source = config.opt_size("max_source_positions")?.unwrap_or(1500);
        let target = config.opt_size("max_target_positions")?.unwrap_or(448);

        let at = |name: &str| format!("{}.{name}", NAMES.base);
        let b = &mut draft.b;
        let window = |stride| Window { first: (3, stride), second: None, padding: 1 };
        let convs = vec![
            ConvSpec::new(b, at("encoder.conv1"), (bins, width), window(1), true),
            ConvSpec::new(b, at("encoder.conv2"), (width, width), window(2), true),
        ];
        let activation = Some(Activation::Gelu);
        let samples = SamplesSpec { turned: false, convs, activation, special: Vec::new(), added: None };
        let table = EmbedSpec::new(b, &at("encoder.embed_positions"), source, width);
        let front = (INPUT, BodySpec::Samples(samples), table);
        let encoder_path = at("encoder");
        let encoder = stack(&mut draft, &encoder, front, &encoder_path, (0, first), Some(first as u32));

        let b = &mut draft.b;
        let tokens = EmbedSpec::new(b, &at("decoder.embed_tokens"), vocab, width);
        let table = EmbedSpec::new(b, &at("decoder.embed_positions"), target, width);
        let front = ("decoder_input_ids", BodySpec::Tokens(tokens), table);
        let decoder = stack(&mut draft, &decoder, front, &at("decoder"), (first, more), None);

        let table = at("decoder.embed_tokens.weight");
        let tied = config.flag("tie_word_embeddings", true)?.then_some(table.as_str());
        let out = LinearSpec::head(&mut draft.b, "proj_out", (width, vocab), false, tied);
        let sound = Source::Fixed { name: INPUT, shape: vec![bins, 2 * source], tokens: source };
        let reads = Reads::encoder_decoder(sound, draft.shift_ids()?);
        let sizes = Sizes { hidden: width, vocab, max_positions: target };
        let end = EndSpec::Language { out, scale: None, bias: None };
        Ok(draft.towers((encoder, Some(decoder)), end, sizes, reads))
    }
}

fn without_key_bias(stage: Stage) -> Stage {
    Stage { biases: [true, false, true, true, true], ..stage }
}

/// Blocks and last normalisation, which belongs to the block `after`.
fn stack(
    draft: &mut Draft<'_>,
    stage: &Stage,
    (input, body, table): (&'static str, BodySpec, EmbedSpec),
    path: &str,
    blocks: (usize, usize),
    after: Option<u32>,
) -> TowerSpec {
    let (layers, relative) = stage.blocks(&mut draft.b, &format!("{path}.layers"), blocks);
    draft.b.enter(after);
    let last_norm = Some(stage.norm.at(&mut draft.b, format!("{path}.layer_norm")));
    let positions = Some(PositionSpec { table, count: Count::From(0) });
    TowerSpec { front: FrontSpec { input, body, positions, norm: None }, relative, layers, last_norm }
}
