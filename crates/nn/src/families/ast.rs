//! Audio spectrogram transformer: a spectrogram is cut into overlapping patches, a class token and a distillation token
//! stand before them, and their mean is classified (Gong, Chung and Glass, *AST: Audio Spectrogram Transformer*, 2021).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{ConvSpec, Draft, EndSpec, Names, SamplesSpec, Sizes, Window, vision};
use crate::model::{Config, ModelDir, bad};
use crate::reads::{Reads, Source};

pub(super) static FAMILY: Ast = Ast;

pub(super) struct Ast;

const NAMES: Names = Names {
    family: "audio-spectrogram-transformer",
    class: "AST",
    heads: &[(HeadKind::AudioClassification, "ForAudioClassification"), (HeadKind::Embedding, "Model")],
    base: "audio_spectrogram_transformer",
    causal: false,
    renames: vision::RENAMES,
};

const INPUT: &str = "input_values";

/// Bins and time of a spectrogram, and the patches along each.
struct Spectrogram {
    bins: usize,
    length: usize,
    patch: usize,
    strides: [usize; 2],
}

impl Spectrogram {
    fn read(config: Config<'_>) -> Result<Self> {
        let size = |field: &str, default| Ok(config.opt_size(field)?.unwrap_or(default));
        let (bins, length) = (size("num_mel_bins", 128)?, size("max_length", 1024)?);
        let (patch, strides) = (size("patch_size", 16)?, [size("frequency_stride", 10)?, size("time_stride", 10)?]);
        if patch > bins.min(length) {
            return Err(bad("patch_size", &format!("{patch} is larger than a spectrogram of {bins} x {length}")));
        }
        Ok(Self { bins, length, patch, strides })
    }

    fn patches(&self) -> usize {
        let along = |axis: usize, length: usize| (length - self.patch) / self.strides[axis] + 1;
        along(0, self.bins) * along(1, self.length)
    }
}

impl Family for Ast {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "audio-spectrogram-transformer", "architectures": ["ASTForAudioClassification"],
            "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2,
            "patch_size": 8, "frequency_stride": 6, "time_stride": 5, "max_length": 18, "num_mel_bins": 14,
            "num_labels": 3}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let (sound, stage) = (Spectrogram::read(draft.config)?, vision::stage(draft.config)?);
        let (width, tokens) = (stage.norm.width, sound.patches() + 2);
        let special = ["cls_token", "distillation_token"];
        let special = special.map(|name| draft.parameter(&format!("embeddings.{name}"), &[1, 1, width])).to_vec();
        let added = Some(draft.parameter("embeddings.position_embeddings", &[1, tokens, width]));
        let path = draft.path("embeddings.patch_embeddings.projection");
        let window = Window::patches([sound.patch; 2], sound.strides);
        let convs = vec![ConvSpec::new(&mut draft.b, path, (1, width), window, true)];
        let samples = SamplesSpec { turned: true, convs, activation: None, special, added };
        let tower = vision::tower(&mut draft, INPUT, samples, &stage)?;
        let end = match head {
            HeadKind::AudioClassification => {
                let norm = draft.fresh_norm(stage.norm, "classifier.layernorm");
                EndSpec::FirstTwo { norm, out: draft.labels("classifier.dense", width, true)? }
            }
            _ => EndSpec::Plain(draft.vectors(None)?),
        };
        let reads = Reads::only(Source::Fixed { name: INPUT, shape: vec![sound.length, sound.bins], tokens });
        let sizes = Sizes { hidden: width, vocab: 0, max_positions: tokens };
        Ok(draft.towers((tower, None), end, sizes, reads))
    }
}
