//! CLIP: a causal tower of text and a tower of images, whose ends are compared (Radford et al., *Learning Transferable
//! Visual Models From Natural Language Supervision*, 2021). A text's vector is that of its end token, an image's that of
//! its class token.

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::blocks::{
    Activation, BodySpec, Builder, ConvSpec, Count, Draft, EmbedSpec, EndSpec, FrontSpec, LinearSpec, Mark, Names,
    NormKind, NormShape, Order, PROJ, PartNames, Patches, PositionSpec, SamplesSpec, Sizes, Stage, StageNames,
    TowerSpec, Window, even_heads,
};
use crate::model::{Config, ModelDir, bad};
use crate::reads::{Reads, Source};
use crate::site::Part;

pub(super) static FAMILY: Clip = Clip;

pub(super) struct Clip;

const NAMES: Names = Names {
    family: "clip",
    class: "CLIP",
    heads: &[(HeadKind::Contrastive, "Model"), (HeadKind::ImageClassification, "ForImageClassification")],
    base: "clip",
    causal: false,
    renames: &[],
};

const BLOCK: StageNames = StageNames {
    attention: PartNames { module: "self_attn", norm: "layer_norm1", maps: PROJ },
    cross: None,
    mlp: ("mlp", "layer_norm2"),
    maps: (None, "mlp.fc1", "mlp.fc2"),
};

const IMAGE: &str = "pixel_values";
const POST_NORM: &str = "vision_model.post_layernorm";

impl Family for Clip {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 24,
            "logit_scale_init_value": 2.6592,
            "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "vocab_size": 270, "max_position_embeddings": 64, "eos_token_id": 269,
                "pad_token_id": 1, "bos_token_id": 268},
            "vision_config": {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "image_size": 16, "patch_size": 8, "num_channels": 3}}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        let part = |field: &str| config.object(field)?.ok_or_else(|| bad(field, "is missing"));
        let (words, pictures) = (part("text_config")?, part("vision_config")?);
        let (image, patches) = (stage(pictures, false)?, Patches::read(pictures, 32)?);
        let blocks = pictures.size("num_hidden_layers")?;
        match head {
            HeadKind::ImageClassification => classifier(draft, &image, patches, blocks),
            _ => compared(draft, words, &image, patches, blocks),
        }
    }
}

/// Both towers and their comparison.
fn compared(
    mut draft: Draft<'_>,
    words: Config<'_>,
    image: &Stage,
    patches: Patches,
    blocks: usize,
) -> Result<Box<dyn BackboneConfig>> {
    let text = stage(words, true)?;
    let (vocab, max_positions) = (words.size("vocab_size")?, words.opt_size("max_position_embeddings")?.unwrap_or(77));
    let first = words.size("num_hidden_layers")?;
    let width = draft.config.opt_size("projection_dim")?.unwrap_or(512);
    let b = &mut draft.b;
    let text_tower = text_tower(b, &text, (vocab, max_positions), first);
    let mut image_tower = image_tower(b, image, patches, (first, blocks));
    image_tower.last_norm = Some(image.norm.at(b, POST_NORM));
    let map = |b: &mut Builder, name: &str, from: &Stage| {
        LinearSpec::new(b, name.to_owned(), Part::Other, from.norm.width, width, false)
    };
    let (text, image) = (map(b, "text_projection", &text), map(b, "visual_projection", image));
    let scale = "logit_scale".to_owned();
    b.parameter(&scale, &[]);
    // Configurations of the first files name a wrong end token; the right one is the largest there.
    let mark = match words.opt_count("eos_token_id")?.unwrap_or(49_407) {
        2 => Mark::Largest,
        end => Mark::First(end as i64),
    };
    let reads = Reads { first: Source::Tokens { name: "input_ids" }, second: Some(source(patches)), shift: None };
    let sizes = Sizes { hidden: width, vocab, max_positions };
    Ok(draft.towers((text_tower, Some(image_tower)), EndSpec::Compare { mark, text, image, scale }, sizes, reads))
}

/// The tower of images alone, whose patches' mean is classified. Its last normalisation is there and never runs.
fn classifier(mut draft: Draft<'_>, image: &Stage, patches: Patches, blocks: usize) -> Result<Box<dyn BackboneConfig>> {
    let width = image.norm.width;
    let tower = image_tower(&mut draft.b, image, patches, (0, blocks));
    draft.idle(|draft| image.norm.at(&mut draft.b, POST_NORM));
    let end = EndSpec::Rest(draft.labels("classifier", width, true)?);
    let sizes = Sizes { hidden: width, vocab: 0, max_positions: patches.count() + 1 };
    Ok(draft.towers((tower, None), end, sizes, Reads::only(source(patches))))
}

fn source(patches: Patches) -> Source {
    Source::Fixed { name: IMAGE, shape: patches.shape(), tokens: patches.count() + 1 }
}

fn stage(config: Config<'_>, causal: bool) -> Result<Stage> {
    let width = config.size("hidden_size")?;
    Ok(Stage {
        inner: config.size("intermediate_size")?,
        heads: even_heads(("hidden_size", width), ("num_attention_heads", config.size("num_attention_heads")?))?,
        causal,
        order: Order::Pre,
        norm: NormShape { kind: NormKind::Layer, width, eps: config.float("layer_norm_eps", 1e-5)? },
        activation: Activation::read(config, "hidden_act", "quick_gelu")?,
        biases: [true; 5],
        distances: None,
        names: BLOCK,
    })
}

fn text_tower(b: &mut Builder, stage: &Stage, (vocab, positions): (usize, usize), count: usize) -> TowerSpec {
    let width = stage.norm.width;
    let tokens = EmbedSpec::new(b, "text_model.embeddings.token_embedding", vocab, width);
    let table = EmbedSpec::new(b, "text_model.embeddings.position_embedding", positions, width);
    let positions = Some(PositionSpec { table, count: Count::From(0) });
    let (layers, relative) = stage.blocks(b, "text_model.encoder.layers", (0, count));
    b.enter(Some(count as u32));
    let last_norm = Some(stage.norm.at(b, "text_model.final_layer_norm"));
    let front = FrontSpec { input: "input_ids", body: BodySpec::Tokens(tokens), positions, norm: None };
    TowerSpec { front, relative, layers, last_norm }
}

fn image_tower(b: &mut Builder, stage: &Stage, patches: Patches, blocks: (usize, usize)) -> TowerSpec {
    let (width, at) = (stage.norm.width, |name: &str| format!("vision_model.{name}"));
    let special = at("embeddings.class_embedding");
    b.parameter(&special, &[width]);
    let window = Window::patches(patches.patch, patches.patch);
    let convs = vec![ConvSpec::new(b, at("embeddings.patch_embedding"), (patches.channels, width), window, false)];
    let table = EmbedSpec::new(b, &at("embeddings.position_embedding"), patches.count() + 1, width);
    let positions = Some(PositionSpec { table, count: Count::From(0) });
    // The name is spelt like this in all files.
    let norm = Some(stage.norm.at(b, at("pre_layrnorm")));
    let (layers, relative) = stage.blocks(b, &at("encoder.layers"), blocks);
    b.enter(None);
    let samples = SamplesSpec { turned: false, convs, activation: None, special: vec![special], added: None };
    let front = FrontSpec { input: IMAGE, body: BodySpec::Samples(samples), positions, norm };
    TowerSpec { front, relative, layers, last_norm: None }
}
