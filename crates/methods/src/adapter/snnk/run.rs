//! The layer at its sites.

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook, to_le_bytes};
use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

use super::features::{Features, Numbers};
use super::{Config, G, K, Kernel, NORM, SCALE, UP, Y, draws};
use crate::adapter::common::{at_sites, sizes};
use crate::adapter::{Hooks, Parts, SiteMethod};
use crate::plan::PlannedTensor;

/// What stands behind the layer.
pub(crate) enum Behind {
    /// A factor for every channel.
    Scale(Tensor),
    /// A map to the hidden width, with its bias.
    Up(Tensor, Tensor),
}

/// An adapter.
pub(crate) struct Snnk {
    pub(crate) norm: Option<[Tensor; 2]>,
    pub(crate) features: Features,
    pub(crate) y: Numbers,
    pub(crate) behind: Behind,
}

impl Snnk {
    /// What goes into the features.
    pub(crate) fn before(&self, h: &Tensor) -> Tensor {
        let Some([weight, bias]) = &self.norm else { return h.shallow_clone() };
        h.layer_norm(weight.size(), Some(weight), Some(bias), 1e-5, true)
    }

    /// `h` `[.., d]` with what the adapter adds, in the precision of its tensors.
    pub(crate) fn adapt(&self, h: &Tensor) -> Tensor {
        let layer = self.features.phi(&self.before(h)).times(&self.y); // [.., out]
        match &self.behind {
            Behind::Scale(scale) => h + layer * scale,
            Behind::Up(weight, bias) => h + layer.linear(weight, Some(bias)),
        }
    }
}

pub(super) fn hooks(config: &Config, parts: &Parts<'_>) -> Result<Hooks> {
    if let Some(expected) = &config.projection_checksum {
        let found = checksum(parts)?;
        if found != *expected {
            return Err(code::ADAPTER_FORMAT
                .error(format!("projection_checksum: the random matrices have {found}, not {expected}"))
                .hint("the adapter was trained with others: it means nothing with these"));
        }
    }
    at_sites(parts, |site| {
        let part = |name: &str| parts.part(site.id, name).map(Tensor::shallow_clone);
        let norm = if config.ln_before { Some([part(NORM[0])?, part(NORM[1])?]) } else { None };
        let fourier = config.kernel != Kernel::Relu;
        let k = if fourier { Some(part(K)?) } else { None };
        let im = if fourier { Some(part(Y[1])?) } else { None };
        let behind = match config.down_sample {
            None => Behind::Scale(part(SCALE)?),
            Some(_) => Behind::Up(part(UP[0])?, part(UP[1])?),
        };
        let features = Features::new(config, part(G)?, k)?;
        Ok(Snnk { norm, features, y: Numbers { re: part(Y[0])?, im }, behind })
    })
}

/// sha256 of the random tensors, in the plan's order.
pub(super) fn checksum(parts: &Parts<'_>) -> Result<String> {
    let mut hash = Sha256::new();
    for tensor in parts.plan.tensors.iter().filter(|tensor| [G, K].contains(&tensor.part)) {
        let own = parts.get(&tensor.name)?.to_kind(Kind::Float);
        own.size().iter().for_each(|size| hash.update(size.to_le_bytes()));
        hash.update(to_le_bytes(&own).bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The random matrix `[m, d]` of the layer at the site with this path.
pub(crate) fn random_matrix(config: &Config, path: &str, d: usize) -> Tensor {
    Tensor::from_slice(&draws::projection(config, draws::key(config, path), d)).reshape([-1, d as i64])
}

/// First values. Those of `Y` are the features of drawn weights: both parts of a complex one by the same draws.
pub(super) fn initial(config: &Config, tensor: &PlannedTensor, site: &Site, key: Key) -> Result<Tensor> {
    let d = site.dims.output;
    let own = draws::key(config, &site.path);
    let g = || random_matrix(config, &site.path, d);
    let k = || (config.kernel != Kernel::Relu).then(|| Tensor::from_slice(&draws::frequencies(config, own)));
    let value = match tensor.part {
        G => Some(g()),
        K => k(),
        part => {
            let psi = psi_of(config, (g(), k()), &first_weights(config, tensor, own, key, d))?;
            if part == Y[0] { Some(psi.re) } else { psi.im }
        }
    };
    let missing = || code::INTERNAL.error(format!("tensor `{}` has no value to begin with", tensor.name));
    Ok(value.ok_or_else(missing)?.reshape(sizes(tensor)))
}

fn psi_of(config: &Config, (g, k): (Tensor, Option<Tensor>), weights: &Tensor) -> Result<Numbers> {
    Ok(Features::new(config, g, k)?.psi(weights, None))
}

/// The real and the imaginary part of `Y` are tensors with keys of their own, and must be of the same weights: those of
/// Fourier kernels are drawn from the layer's key.
fn first_weights(config: &Config, tensor: &PlannedTensor, own: Key, key: Key, d: usize) -> Tensor {
    let key = if config.kernel == Kernel::Relu { key } else { own };
    Tensor::from_slice(&draws::weights(config, key, tensor.shape[0], d)).reshape([-1, d as i64])
}

impl SiteHook for Snnk {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let adapted = self.adapt(&x[0].to_kind(Kind::Float)).to_kind(x[0].kind());
        base.run(&[adapted, x[1].shallow_clone()])
    }
}

impl SiteMethod for Snnk {
    fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
        None
    }
}
