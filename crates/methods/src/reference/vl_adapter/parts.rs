//! The tensors of page 8 as parts of adapters.

use std::collections::BTreeMap;

use pleach_base::Result;
use tch::Tensor;

use super::super::recording::Recording;
use crate::adapter::bottleneck::{Affine, Factor, Net, Pair, Products, finished};
use crate::adapter::common::Activation;
use crate::strategy::vl_multitask::Config;
use crate::strategy::vl_multitask::hyper::Generator;

/// Names that an adapter's own normalisations may have.
const BEFORE: [&str; 3] = ["ln_before", "pre_layer_norm", "layer_norm_before"];
const AFTER: [&str; 3] = ["ln_after", "post_layer_norm", "layer_norm_after"];

/// Parameters, each made a leaf once.
pub(super) struct Leaves<'a> {
    recording: &'a Recording,
    leaves: BTreeMap<String, Tensor>,
}

impl<'a> Leaves<'a> {
    pub(super) fn new(recording: &'a Recording) -> Self {
        Self { recording, leaves: BTreeMap::new() }
    }

    /// All that were asked for.
    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.leaves.iter()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.recording.under("param.").any(|param| param == name)
    }

    pub(super) fn get(&mut self, name: &str) -> Result<Tensor> {
        if let Some(leaf) = self.leaves.get(name) {
            return Ok(leaf.shallow_clone());
        }
        let leaf = self.recording.leaf(&format!("param.{name}"))?;
        self.leaves.insert(name.to_owned(), leaf.shallow_clone());
        Ok(leaf)
    }

    /// Weight and bias.
    pub(super) fn pair(&mut self, name: &str) -> Result<[Tensor; 2]> {
        Ok([self.get(&format!("{name}.weight"))?, self.get(&format!("{name}.bias"))?])
    }

    pub(super) fn affine(&mut self, name: &str) -> Result<Affine> {
        let [weight, bias] = self.pair(name)?;
        Ok(Affine::Plain { weight, bias })
    }

    pub(super) fn generator(&mut self, name: &str) -> Result<Generator> {
        let (weight, bias) = (format!("{name}.weight_generator"), format!("{name}.bias_generator"));
        Ok(Generator { weight: self.pair(&weight)?, bias: self.pair(&bias)? })
    }

    /// A map of Kronecker products.
    pub(super) fn products(&mut self, end: &str) -> Result<Products> {
        let factor = |leaves: &mut Self, letter: &str| -> Result<Factor> {
            let (left, right) = (format!("{end}.{letter}_left"), format!("{end}.{letter}_right"));
            match leaves.has(&left) {
                true => Ok(Factor::Two(leaves.get(&left)?, leaves.get(&right)?)),
                false => {
                    // Small factors may be shared by all maps.
                    let names = [format!("{end}.{letter}"), letter.to_owned(), "phm_rule".to_owned()];
                    let name = names.iter().find(|name| leaves.has(name)).unwrap_or(&names[0]).clone();
                    Ok(Factor::Whole(leaves.get(&name)?))
                }
            }
        };
        let (rule, large) = (factor(self, "C")?, factor(self, "W")?);
        let bias = format!("{end}.b");
        let bias = if self.has(&bias) { Some(self.get(&bias)?) } else { None };
        Ok(Products { rule, large, bias })
    }

    /// The adapter's own normalisations, below `at`.
    pub(super) fn norms(&mut self, config: &Config, at: &str) -> Result<(Option<Pair>, Option<Pair>)> {
        let mut norm = |on: bool, names: [&str; 3]| -> Result<Option<Pair>> {
            if !on {
                return Ok(None);
            }
            let there = names.iter().find(|name| self.has(&format!("{at}{name}.weight")));
            let name = there.unwrap_or(&names[0]);
            let [weight, bias] = self.pair(&format!("{at}{name}"))?;
            Ok(Some(Pair(weight, bias)))
        };
        let before = norm(config.add_layer_norm_before_adapter, BEFORE)?;
        Ok((before, norm(config.add_layer_norm_after_adapter, AFTER)?))
    }
}

/// A whole adapter.
pub(super) struct Adapter {
    net: Net,
    norm_after: Option<Pair>,
}

impl Adapter {
    /// `h + U act(D h + b) + c`.
    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        finished(&self.net.run(x), x, self.norm_after.as_ref())
    }
}

/// The adapter with the two maps of these names and the normalisations below `at`.
pub(super) fn bottleneck(leaves: &mut Leaves<'_>, config: &Config, [down, up]: [&str; 2], at: &str) -> Result<Adapter> {
    let (down, up) = (leaves.affine(down)?, leaves.affine(up)?);
    let (norm_before, norm_after) = leaves.norms(config, at)?;
    let activation = Activation::parse("non_linearity", &config.non_linearity)?;
    Ok(Adapter { net: Net { norm_before, down, activation, up }, norm_after })
}
