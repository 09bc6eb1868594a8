//! Vision transformer: an image is cut into patches, each a vector, and a class token stands before them
//! (Dosovitskiy et al., *An Image is Worth 16x16 Words*, 2020).

use pleach_base::Result;

use super::Family;
use crate::backbone::{BackboneConfig, HeadKind, HeadOptions, Pooling};
use crate::blocks::{
    ConvSpec, Draft, EndSpec, HeadSpec, LinearSpec, Names, Patches, SamplesSpec, Sizes, Window, vision,
};
use crate::model::ModelDir;
use crate::reads::{Reads, Source};
use crate::site::Part;

pub(super) static FAMILY: Vit = Vit;

pub(super) struct Vit;

const NAMES: Names = Names {
    family: "vit",
    class: "ViT",
    heads: &[(HeadKind::ImageClassification, "ForImageClassification"), (HeadKind::Embedding, "Model")],
    base: "vit",
    causal: false,
    renames: vision::RENAMES,
};

const INPUT: &str = "pixel_values";

impl Family for Vit {
    fn name(&self) -> &'static str {
        NAMES.family
    }

    fn tiny(&self) -> &'static str {
        r#"{"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 32,
            "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "image_size": 16,
            "patch_size": 8, "num_channels": 3, "num_labels": 3}"#
    }

    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
        let mut draft = Draft::new(NAMES, dir, head, options)?;
        let config = draft.config;
        let (patches, stage) = (Patches::read(config, 16)?, vision::stage(config)?);
        let (width, tokens) = (stage.norm.width, patches.count() + 1);
        let special = vec![draft.parameter("embeddings.cls_token", &[1, 1, width])];
        let added = Some(draft.parameter("embeddings.position_embeddings", &[1, tokens, width]));
        let path = draft.path("embeddings.patch_embeddings.projection");
        let window = Window::patches(patches.patch, patches.patch);
        let convs = vec![ConvSpec::new(&mut draft.b, path, (patches.channels, width), window, true)];
        let samples = SamplesSpec { turned: false, convs, activation: None, special, added };
        let tower = vision::tower(&mut draft, INPUT, samples, &stage)?;
        let end = match head {
            HeadKind::ImageClassification => {
                let out = draft.labels("classifier", width, true)?;
                HeadSpec::Classes { pooling: Pooling::Cls, pooler: None, out }
            }
            _ => {
                let inner = config.opt_size("pooler_output_size")?.unwrap_or(width);
                let pooler = draft.path("pooler.dense");
                let pooler =
                    draft.idle(|draft| draft.fresh(|b| LinearSpec::new(b, pooler, Part::Other, width, inner, true)))?;
                draft.vectors(Some(pooler))?
            }
        };
        let reads = Reads::only(Source::Fixed { name: INPUT, shape: patches.shape(), tokens });
        let sizes = Sizes { hidden: width, vocab: 0, max_positions: tokens };
        Ok(draft.towers((tower, None), EndSpec::Plain(end), sizes, reads))
    }
}
