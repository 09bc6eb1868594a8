//! SNNK adapters: a layer of random features behind parts of a block, `h + s * (Phi(h) Y^T)`, or
//! `h + U (Phi(h) Y^T) + u` where it is narrower than the hidden states.
//!
//! `Phi(x) = max(G x, c) / sqrt(m)` with a random matrix `G` `[m, d]` that is drawn once and never trained (see
//! `features` for Fourier kernels). `Y` begins as the features `Psi(W0)` of drawn weights `W0` `[out, d]`, which are then
//! forgotten: `out * m` numbers are trained in place of `out * d`. `s` or `U` begin at zero, which leaves the model
//! unchanged (`U` does not with `init_weights: bert`). Stands between the part and the sum behind it, on the part's
//! result. Computed in float32 whatever the base is.
//!
//! Deviates from the released code: `G` is of unit variance, of the seed, and in the file or checked by its sum; orthogonal
//! rows are uniform, not of one sign in their first place; lengths are over channels; `d_quarter` scales inputs and weights alike; the complex `Y` of Fourier kernels is trained as real
//! and imaginary part.
//!
//! Sehanobish, Choromanski, Zhao, Dubey, Likhosherstov, *Scalable Neural Network Kernels*, 2024.

#[cfg(feature = "torch")]
pub mod closed_form;
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "tensors are drawn with it"))]
pub(crate) mod draws;
#[cfg(feature = "torch")]
pub(crate) mod features;
mod options;
#[cfg(feature = "torch")]
pub(crate) mod run;
#[cfg(test)]
mod tests;

use pleach_nn::Part;

pub use options::{Config, Generator, InitWeights, Kernel, Normalize, Position};

use super::common::own_config;
use super::prelude::*;
use super::saved;
use crate::plan::Keep;

const NORM: [&str; 2] = ["ln.weight", "ln.bias"];
const Y: [&str; 2] = ["Y", "Y_im"];
const SCALE: &str = "s";
const UP: [&str; 2] = ["up.weight", "up.bias"];
pub(crate) const G: &str = "G";
pub(crate) const K: &str = "k";

impl Options for Config {
    const CARD: &'static Card = &Card {
        name: "snnk",
        title: "SNNK adapter",
        summary: "Puts a layer of random features behind attention and the feed-forward part of every block.",
        formula: "`h + s * (Phi(h) Y^T)`, `Phi(x) = max(G x, c) / sqrt(m)`; `G` `[m, d]` is random and frozen, `Y` begins as \
                  `Phi` of drawn weights, `s` at zero. `kernel` chooses Fourier features of `cos`, `sin` or a table in their \
                  place, `down_sample` a narrower layer with a map back.",
        paper: "Sehanobish et al., Scalable Neural Network Kernels, 2024 (arXiv:2310.13225)",
        roles: &[Role::SublayerOut, Role::Head],
        sync: &[Sync::MeanGrads, Sync::SharedSeed],
        mergeable: false,
        sample_job: sample_job!("snnk", ", num_rfs: 16"),
        invalid: &[
            Invalid { options: r#"{"num_rfs": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"down_sample": 0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"M": 0.5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"kernel": "cos", "M": -1.0}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"kernel": "cos", "constant": 0.5}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"kernel": "custom_fourier"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"kernel": "tanh"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"fourier_table": [[0.5, 1.0, 0.0]]}"#, code: code::METHOD_CONFIG },
            Invalid {
                options: r#"{"kernel": "custom_fourier", "fourier_table": [[-1.0, 1.0, 0.0]]}"#,
                code: code::METHOD_CONFIG,
            },
            Invalid { options: r#"{"orthogonal": true, "generator": "torch"}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"positions": []}"#, code: code::METHOD_CONFIG },
            Invalid { options: r#"{"positions": ["cross"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"modules_to_save": ["no_such_module"]}"#, code: code::TARGET_NOTHING },
            Invalid { options: r#"{"num_rf": 8}"#, code: code::UNKNOWN_KEY },
        ],
        ..Card::ADAPTER
    };

    const EXAMPLE: &'static str = r#"{"num_rfs": 4}"#;

    fn validate(&self) -> Result<()> {
        self.check()
    }
}

impl Config {
    fn stands_at(&self, site: &Site) -> bool {
        let position = match site.part {
            Part::Attention => Position::Attn,
            Part::FeedForward => Position::Ffn,
            Part::CrossAttention => Position::Cross,
            _ => return false,
        };
        site.role == Role::SublayerOut && site.block.is_some() && self.positions.contains(&position)
    }

    fn tensors(&self, site: &Site) -> Vec<PlannedTensor> {
        let (d, m) = (site.dims.output, self.num_rfs as usize);
        let tensor = |part: &'static str, shape: Vec<usize>, init| {
            let name = format!("base_model.model.{}.snnk.{part}", site.path.replace('@', "."));
            PlannedTensor::trained(name, site.id, part, shape, init)
        };
        let mut all = Vec::new();
        if self.ln_before {
            all.push(tensor(NORM[0], vec![d], Init::Ones));
            all.push(tensor(NORM[1], vec![d], Init::Zeros));
        }
        let out = self.down_sample.map_or(d, |width| width as usize);
        let parts = if self.kernel == Kernel::Relu { 1 } else { 2 };
        all.extend(Y[..parts].iter().map(|part| tensor(part, vec![out, self.columns()], Init::Derived)));
        if self.down_sample.is_some() {
            let init = match self.init_weights {
                InitWeights::Mam => Init::Zeros,
                InitWeights::Bert => Init::Normal { std: 0.02 },
            };
            all.push(tensor(UP[0], vec![d, out], init));
            all.push(tensor(UP[1], vec![d], Init::Zeros));
        } else {
            all.push(tensor(SCALE, vec![d], Init::Zeros));
        }
        let keep = if self.save_projection { Keep::Saved } else { Keep::Derived };
        all.push(tensor(G, vec![m, d], Init::Derived).keep(keep));
        if self.kernel != Kernel::Relu {
            all.push(tensor(K, vec![m], Init::Derived).keep(keep));
        }
        all
    }

    /// What inputs of unit variance would give must be within the range of float32.
    fn check_range(&self, site: &Site) -> Result<()> {
        let most = self.waves().iter().map(|wave| wave.k * std::f64::consts::TAU).fold(0.0, f64::max);
        let largest = most.powi(2) * site.dims.output as f64 / 2.0;
        if self.scaling() != Normalize::None || largest <= 80.0 {
            return Ok(());
        }
        let why = format!("without it the features of `{}` are as large as exp({largest:.0})", site.path);
        Err(refuse("normalize", &why).hint("`d_quarter` or `l2`"))
    }
}

impl AdapterConfig for Config {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let (saved, whole) = saved::plan(self.modules_to_save.as_deref(), model)?;
        let mut plan = Plan { saved, ..Plan::default() };
        for site in model.sites().iter().filter(|site| self.stands_at(site)) {
            self.check_range(site)?;
            plan.tensors.extend(self.tensors(site));
            plan.sites.push(site.id);
            if self.columns() >= site.dims.output && plan.notes.is_empty() {
                plan.notes.push("num_rfs: the features are as many as the channels, and save no parameters".to_owned());
            }
        }
        if plan.sites.is_empty() {
            return Err(code::TARGET_NOTHING
                .error("positions: no block of the model has such a part")
                .hint("attn, ffn; cross where a decoder attends to an encoder"));
        }
        plan.tensors.extend(whole);
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, _: &Plan, export: &Export<'_>) -> Map<String, Value> {
        own_config(self, model, export)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &super::Parts<'_>) -> Result<super::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: pleach_base::rng::Key,
    ) -> Result<tch::Tensor> {
        run::initial(self, tensor, &base.config().sites()[tensor.site], key).map(|value| value.to_device(base.device()))
    }

    #[cfg(feature = "torch")]
    fn exported_config(&self, parts: &super::Parts<'_>) -> Result<Map<String, Value>> {
        let sum = run::checksum(parts)?;
        Ok(Map::from_iter([("projection_checksum".to_owned(), Value::String(sum))]))
    }
}
