//! Small models of the product's own families, drawn, and after their pretraining written again with what was trained.

use std::collections::BTreeMap;
use std::path::Path;

use pleach_base::rng::Key;
use pleach_base::{Result, ResultExt as _, code};
use pleach_methods::Adapter;
use pleach_nn::{
    Backbone, Found, HeadKind, HeadOptions, ModelDir, OutTensor, Precision, Role, TensorInfo, in_folder, open,
    tensor_from_entry, write_drawn, write_tensors,
};
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};

use super::draws::normal;

/// A model and the folder that it was read from.
pub struct Tiny {
    /// The model.
    pub model: Box<dyn Backbone>,
    config: Map<String, Value>,
    folder: tempfile::TempDir,
}

/// A vision transformer for images of `channels` x `size` x `size` in patches of `patch`.
#[must_use]
pub fn vit(width: usize, blocks: usize, (channels, size, patch): (usize, usize, usize), classes: usize) -> Value {
    json!({"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": width,
           "num_attention_heads": 4, "intermediate_size": 2 * width, "num_hidden_layers": blocks, "image_size": size,
           "patch_size": patch, "num_channels": channels, "num_labels": classes})
}

/// An encoder of text with BERT's blocks, by default for masked language modelling: [`HeadOptions`] ask for other heads.
#[must_use]
pub fn bert(width: usize, blocks: usize, vocab: usize, positions: usize) -> Value {
    json!({"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": width, "num_attention_heads": 4,
           "intermediate_size": 2 * width, "num_hidden_layers": blocks, "vocab_size": vocab, "hidden_act": "gelu",
           "max_position_embeddings": positions, "type_vocab_size": 1, "tie_word_embeddings": false})
}

/// A causal model with GPT-2's blocks.
#[must_use]
pub fn gpt2(width: usize, blocks: usize, vocab: usize, positions: usize) -> Value {
    json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": width, "n_head": 4, "n_layer": blocks,
           "n_inner": 2 * width, "vocab_size": vocab, "n_positions": positions, "tie_word_embeddings": false})
}

/// A causal model with Llama's blocks.
#[must_use]
pub fn llama(width: usize, blocks: usize, vocab: usize, positions: usize) -> Value {
    json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "num_attention_heads": 4,
           "num_key_value_heads": 4, "intermediate_size": 2 * width, "num_hidden_layers": blocks, "vocab_size": vocab,
           "max_position_embeddings": positions, "tie_word_embeddings": false})
}

impl Tiny {
    /// A model of this configuration with drawn weights. Parameters that are no module's weight, such as the positions of
    /// an image's patches, are drawn large enough to be seen: they are never trained.
    ///
    /// # Errors
    /// `MODEL_CONFIG` for a configuration that the family refuses, `IO`.
    pub fn draw(config: &Value, head: Option<HeadKind>, key: Key, device: Device) -> Result<Self> {
        let bad = || code::INTERNAL.error("a model's configuration is an object");
        let config = config.as_object().cloned().ok_or_else(bad)?;
        let drawn = folder()?;
        write_drawn(&config, head, drawn.path(), key.value())?;
        let drawn = Self::read(config, drawn, &HeadOptions { kind: head, ..HeadOptions::default() }, device)?;
        let plain = |tensor: &TensorInfo| {
            let of_site = drawn.sites_tensors().any(|name| name == tensor.name);
            let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
            (!of_site && shape.len() > 1)
                .then(|| (tensor.name.clone(), normal(key.named(&tensor.name), &shape, Device::Cpu) * 0.3))
        };
        let values = drawn.model.config().tensors().iter().filter_map(plain).collect();
        drawn.rewritten(values, &[], head, None)
    }

    /// The same model with what an adapter has trained folded in.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when the method cannot be merged; `IO`.
    pub fn trained(&self, adapter: &Adapter) -> Result<Self> {
        self.rewritten(self.merged(adapter)?, &[], Some(self.model.config().info().head), None)
    }

    /// The same with a new head, of another kind or for other classes, whose weights begin anew.
    ///
    /// # Errors
    /// As [`Tiny::trained`].
    pub fn trained_below(&self, adapter: &Adapter, head: HeadKind, classes: Option<usize>) -> Result<Self> {
        let config = self.model.config();
        let heads = config.sites().with_role(Role::Head);
        let gone: Vec<String> = heads
            .flat_map(|site| site.weight.iter().map(|weight| weight.name.clone()).chain(site.bias.clone()))
            .collect();
        self.rewritten(self.merged(adapter)?, &gone, Some(head), classes)
    }

    /// Where it lies: a folder as a job names it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What an adapter makes of the weights, by name.
    fn merged(&self, adapter: &Adapter) -> Result<BTreeMap<String, Tensor>> {
        let sites = self.model.config().sites();
        let mut values = BTreeMap::new();
        for (id, merged) in adapter.merge(sites, &*self.model)? {
            let site = &sites[id];
            if let Some(weight) = &site.weight {
                values.insert(weight.name.clone(), merged.weight);
            }
            values.extend(site.bias.clone().zip(merged.bias));
        }
        Ok(values)
    }

    fn sites_tensors(&self) -> impl Iterator<Item = &str> {
        let sites = self.model.config().sites().iter();
        sites.flat_map(|site| site.weight.iter().map(|weight| weight.name.as_str()).chain(site.bias.as_deref()))
    }

    /// Writes the model to a folder of its own with some values changed and some gone, and reads it again.
    fn rewritten(
        &self,
        values: BTreeMap<String, Tensor>,
        gone: &[String],
        kind: Option<HeadKind>,
        num_labels: Option<usize>,
    ) -> Result<Self> {
        let folder = folder()?;
        let failed = || format!("{}: cannot be written", folder.path().display());
        let config = Value::Object(self.config.clone()).to_string();
        std::fs::write(folder.path().join("config.json"), config).or_code(code::IO, failed)?;
        let (dir, model) = (ModelDir::open(self.folder.path())?, self.model.config());
        let mut tensors = BTreeMap::new();
        for TensorInfo { name, .. } in model.tensors().iter().filter(|tensor| !gone.contains(&tensor.name)) {
            let value = match (values.get(name), in_folder(model, name, &dir)?) {
                (Some(value), _) => value.to_device(Device::Cpu),
                (None, Found::Whole(entry)) => tensor_from_entry(&entry)?,
                // A new head that was not trained begins anew once more.
                (None, _) => continue,
            };
            tensors.insert(name.clone(), OutTensor::of(&value.contiguous()));
        }
        write_tensors(&folder.path().join("model.safetensors"), tensors)?;
        let options = HeadOptions { kind, num_labels, ..HeadOptions::default() };
        Self::read(self.config.clone(), folder, &options, self.model.device())
    }

    fn read(
        config: Map<String, Value>,
        folder: tempfile::TempDir,
        options: &HeadOptions,
        device: Device,
    ) -> Result<Self> {
        let (dir, described) = open(folder.path(), options)?;
        let model = described.build(&dir, device, Precision::Fp32)?;
        Ok(Self { model, config, folder })
    }
}

fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().or_code(code::IO, || "no folder for a small model can be made".to_owned())
}
