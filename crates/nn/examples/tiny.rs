//! Writes the tiny model of every family with every head that it has, for other programs to read: `tiny OUT` makes
//! `OUT/FAMILY-HEAD/{config.json, model.safetensors}`. `record_families.py` and `record_towers.py` of `tests/interop/py`
//! run them with transformers.

use std::error::Error;
use std::path::{Path, PathBuf};

use pleach_nn::{HeadKind, HeadOptions, ModelDir, configure, families, write_tiny};

/// Heads and how folders name them.
const HEADS: [(HeadKind, &str); 9] = [
    (HeadKind::CausalLm, "lm"),
    (HeadKind::MaskedLm, "mlm"),
    (HeadKind::SequenceClassification, "sequence"),
    (HeadKind::TokenClassification, "token"),
    (HeadKind::Embedding, "bare"),
    (HeadKind::Seq2SeqLm, "seq2seq"),
    (HeadKind::ImageClassification, "image"),
    (HeadKind::AudioClassification, "audio"),
    (HeadKind::Contrastive, "pair"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::env::args().nth(1).ok_or("give the folder to write to")?;
    let out = PathBuf::from(out);
    for family in families() {
        for (head, name) in HEADS {
            let folder = out.join(format!("{}-{name}", family.name()));
            match write_tiny(*family, Some(head), &folder, 7) {
                Ok(()) => name_class(&folder, head)?,
                Err(error) if error.message().contains("has no head") => std::fs::remove_dir_all(&folder)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Writes the class of the head into `config.json`.
fn name_class(folder: &Path, head: HeadKind) -> Result<(), Box<dyn Error>> {
    let dir = ModelDir::open(folder)?;
    let options = HeadOptions { kind: Some(head), ..HeadOptions::default() };
    let class = configure(&dir, &options)?.info().class.clone();
    let mut config = dir.config().clone();
    config.insert("architectures".to_owned(), serde_json::json!([class]));
    Ok(std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?)
}
