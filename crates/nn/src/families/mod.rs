//! The families of backbones: one file each, over the shared blocks. A new family is one file and one word below.

use pleach_base::{Result, code, suggest};

use crate::backbone::{BackboneConfig, HeadKind, HeadOptions};
use crate::model::{Config, ModelDir, bad};

/// A family of backbones.
pub trait Family: Sync {
    /// `model_type` in `config.json`.
    fn name(&self) -> &'static str;

    /// A tiny `config.json` of the family, for tests and examples: two blocks, widths of 32 to 64, a vocabulary of at
    /// most 300.
    fn tiny(&self) -> &'static str;

    /// Reads the configuration of a folder.
    ///
    /// # Errors
    /// `MODEL_CONFIG` naming the field.
    fn configure(&self, dir: &ModelDir, head: HeadKind, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>>;
}

/// Declares the files of this folder and their list.
macro_rules! registry {
    ($($family:ident),* $(,)?) => {
        $(mod $family;)*
        static FAMILIES: &[&dyn Family] = &[$(&$family::FAMILY),*];
    };
}

registry! {
    ast, bart, bert, clip, distilbert, gemma2, gpt2, gpt_neox, llama, mistral, mixtral, mpnet, phi3, qwen2, qwen3, roberta, t5, vit,
    whisper, xlm_roberta,
}

/// All families, in order of names.
#[must_use]
pub fn families() -> &'static [&'static dyn Family] {
    FAMILIES
}

/// Opens a model folder with its weights' headers and configures it.
///
/// # Errors
/// As [`ModelDir::open`] and [`configure`].
pub fn open(path: &std::path::Path, options: &HeadOptions) -> Result<(ModelDir, Box<dyn BackboneConfig>)> {
    let dir = ModelDir::open(path)?;
    let config = configure(&dir, options)?;
    Ok((dir, config))
}

/// Configures a model folder.
///
/// # Errors
/// `MODEL_CONFIG` for an unknown `model_type` (with the nearest), a missing or wrong field, or a head that the family
/// does not have.
pub fn configure(dir: &ModelDir, options: &HeadOptions) -> Result<Box<dyn BackboneConfig>> {
    let config = Config(dir.config());
    let known = || FAMILIES.iter().map(|family| family.name());
    let name = config.text("model_type")?.ok_or_else(|| {
        code::MODEL_CONFIG
            .error("config.json: model_type is missing")
            .hint(format!("one of {}", known().collect::<Vec<_>>().join(", ")))
    })?;
    let family = FAMILIES.iter().find(|family| family.name() == name).ok_or_else(|| {
        code::MODEL_CONFIG
            .error(format!("config.json: model_type `{name}` is not a family of this build"))
            .hint(suggest::did_you_mean(name, known().collect::<Vec<_>>()))
    })?;
    if config.get("quantization_config").is_some() {
        return Err(bad("quantization_config", "is not built: only whole weights are read"));
    }
    let head = options.kind.unwrap_or_else(|| head_of(config.architecture().unwrap_or_default()));
    family.configure(dir, head, options)
}

/// The head of a class of transformers, by its name.
fn head_of(class: &str) -> HeadKind {
    const ENDINGS: [(&str, HeadKind); 8] = [
        ("ForCausalLM", HeadKind::CausalLm),
        ("LMHeadModel", HeadKind::CausalLm),
        ("ForSequenceClassification", HeadKind::SequenceClassification),
        ("ForTokenClassification", HeadKind::TokenClassification),
        ("ForMaskedLM", HeadKind::MaskedLm),
        ("ForConditionalGeneration", HeadKind::Seq2SeqLm),
        ("ForImageClassification", HeadKind::ImageClassification),
        ("ForAudioClassification", HeadKind::AudioClassification),
    ];
    let found = ENDINGS.iter().find(|(ending, _)| class.ends_with(ending)).map(|(_, head)| *head);
    found.unwrap_or(if class == "CLIPModel" { HeadKind::Contrastive } else { HeadKind::Embedding })
}

mod tiny;

pub use tiny::{write_drawn, write_tiny};

#[cfg(test)]
mod tests;
