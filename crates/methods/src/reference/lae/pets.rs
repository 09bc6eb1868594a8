//! The modules, by their names in the recordings, and a block with one of them.

use std::collections::BTreeMap;

use pleach_base::Result;
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::adapter::lae_pet::{Kind as PetKind, Kwargs, Mode};
use crate::continual::pet::{Bottleneck, Low};
use crate::reference::Compared;
use crate::reference::recording::{Recording, wrong};
use crate::reference::timm::{Around, Bare, Block, Extra, double, double_leaf};
use crate::reference::training::gradient;

/// Where an adapter stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum At {
    #[default]
    Attn,
    Mlp,
}

/// What a recording says of a module.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    pet_cls: PetKind,
    #[serde(default)]
    pet_kwargs: Kwargs,
    #[serde(default)]
    site: At,
}

impl Spec {
    pub(super) fn new(pet_cls: PetKind, pet_kwargs: Kwargs) -> Self {
        Self { pet_cls, pet_kwargs, site: At::Attn }
    }
}

enum What {
    Adapter(Bottleneck, Mode, At),
    Lora([Low; 2]),
    Prefix { tables: [Tensor; 2], scales: [Tensor; 2], compensatory: bool },
}

/// A module with its trained tensors by name.
pub(super) struct Pet {
    what: What,
    pub(super) leaves: Vec<(String, Tensor)>,
}

impl Pet {
    /// The module whose parameters `get` gives by name, those whose names begin with `at`.
    pub(super) fn read(spec: &Spec, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<Self> {
        let mut leaves = Vec::new();
        let mut leaf = |name: &str| -> Result<Tensor> {
            let tensor = get(name)?;
            leaves.push((name.to_owned(), tensor.shallow_clone()));
            Ok(tensor)
        };
        let kwargs = &spec.pet_kwargs;
        kwargs.check(spec.pet_cls)?;
        let fixed = |scale: f64| Tensor::from(scale);
        let what = match spec.pet_cls {
            PetKind::Adapter => {
                let (down, down_bias) = (leaf("layer.0.weight")?, leaf("layer.0.bias")?);
                let (up, up_bias) = (leaf("layer.2.weight")?, leaf("layer.2.bias")?);
                let scale = kwargs.scale.map_or_else(|| leaf("layer.3.scale"), |scale| Ok(fixed(scale)))?;
                let mode = kwargs.mode.unwrap_or_default();
                What::Adapter(Bottleneck { down, down_bias, up, up_bias, scale }, mode, spec.site)
            }
            PetKind::LoRA => {
                let mut low = |index: usize| -> Result<Low> {
                    let (a, b) = (leaf(&format!("lora_A.{index}"))?, leaf(&format!("lora_B.{index}"))?);
                    let trained = || leaf(&format!("scale.{index}.scale"));
                    let scale = kwargs.scale.map_or_else(trained, |scale| Ok(fixed(scale)))?;
                    Ok(Low { a, b, scale })
                };
                What::Lora([low(0)?, low(1)?])
            }
            PetKind::Prefix => {
                let mut side = |name: &str| -> Result<(Tensor, Tensor)> {
                    let table = leaf(&format!("{name}.tokens"))?;
                    let trained = || leaf(&format!("{name}.scaler.scale"));
                    Ok((table, kwargs.scale.map_or_else(trained, |scale| Ok(fixed(scale)))?))
                };
                let ((keys, key_scale), (values, value_scale)) = (side("key")?, side("val")?);
                let compensatory = kwargs.compensatory.unwrap_or(true);
                What::Prefix { tables: [keys, values], scales: [key_scale, value_scale], compensatory }
            }
        };
        Ok(Self { what, leaves })
    }
}

impl Pet {
    pub(super) fn attention(&self, u: &Tensor, attend: &dyn Fn(&Tensor, &Extra<'_>) -> Tensor) -> Tensor {
        let bare = Extra::default();
        match &self.what {
            What::Adapter(adapter, mode, At::Attn) => mode.around(adapter, u, &|u| attend(u, &bare)),
            What::Adapter(..) => attend(u, &bare),
            What::Lora(low) => attend(u, &Extra { low: Some(low), ..bare }),
            What::Prefix { tables, scales, compensatory } => {
                let [keys, values] = [0, 1].map(|side: usize| &tables[side] * &scales[side]);
                attend(u, &Extra { prefix: Some((keys, values, *compensatory)), ..bare })
            }
        }
    }

    pub(super) fn mlp(&self, u: &Tensor, mlp: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        match &self.what {
            What::Adapter(adapter, mode, At::Mlp) => mode.around(adapter, u, mlp),
            _ => mlp(u),
        }
    }
}

impl Around for Pet {
    fn attention(&self, _: usize, u: &Tensor, attend: &dyn Fn(&Tensor, &Extra<'_>) -> Tensor) -> Tensor {
        self.attention(u, attend)
    }

    fn mlp(&self, _: usize, _: &Tensor, u: &Tensor, mlp: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        self.mlp(u, mlp)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variants {
    variants: BTreeMap<String, Spec>,
}

pub(super) fn repeat(recording: &Recording, compared: &mut Compared) -> Result<()> {
    let Variants { variants } = serde_json::from_value(Value::Object(recording.config.clone()))
        .map_err(|error| wrong("config: cannot be used").caused_by(error))?;
    let block = Block::read(recording, "frozen.", recording.shape("heads")?)?;
    let cotangent = double(recording, "input.cotangent")?;
    let x = double(recording, "input.x")?;
    compared.if_recorded("output.frozen", || Ok(block.run(0, &x, &Bare)))?;
    for (name, spec) in variants {
        let pet = Pet::read(&spec, &|part| double_leaf(recording, &format!("param.{name}.{part}")))?;
        let x = x.detach().copy().set_requires_grad(true);
        let output = block.run(0, &x, &pet);
        (&output * &cotangent).sum(Kind::Double).backward();
        compared.tensor(&format!("output.{name}"), &output)?;
        compared.if_recorded(&format!("grad.{name}.input.x"), || Ok(gradient(&x)))?;
        for (part, leaf) in &pet.leaves {
            compared.if_recorded(&format!("grad.{name}.{part}"), || Ok(gradient(leaf)))?;
        }
    }
    Ok(())
}
