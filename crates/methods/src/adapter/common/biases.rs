//! `bias`: frozen biases that are trained beside the adapter, of all modules or of the targets alone.
//!
//! The trained bias stands in for the frozen one by its difference, so that whatever else a method does at the site
//! still starts from the frozen result. Saved under the names that PEFT gives them.

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, Init};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Keep, Plan, PlannedTensor};

/// Which biases are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No bias is trained.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of targets.
    LoraOnly,
}

impl Bias {
    /// What a method's option says: `none`, `all`, or the method's `own` word for the biases of targets.
    ///
    /// # Errors
    /// `METHOD_CONFIG`.
    pub(crate) fn named(text: &str, own: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            text if text == own => Ok(Self::LoraOnly),
            text => Err(code::METHOD_CONFIG
                .error(format!("bias: `{text}` is none of its values"))
                .hint(format!("one of none, all, {own}"))),
        }
    }
}

/// Adds the biases of `mode` to a plan whose `sites` and `saved` are complete.
///
/// # Errors
/// `METHOD_CONFIG` for a bias that belongs to no site.
pub(crate) fn plan(mode: Bias, model: &dyn BackboneConfig, plan: &mut Plan) -> Result<()> {
    if mode == Bias::None {
        return Ok(());
    }
    let sites = model.sites();
    if mode == Bias::All {
        let known = |name: &str| sites.iter().any(|site| site.bias.as_deref() == Some(name));
        let biases = model.tensors().iter().map(|tensor| tensor.name.as_str()).filter(|name| name.ends_with(".bias"));
        if let Some(lost) = biases.into_iter().find(|name| !known(name)) {
            return Err(
                code::METHOD_CONFIG.error(format!("bias: `{lost}` belongs to no place where it could be trained"))
            );
        }
    }
    for site in sites.iter().filter(|site| site.bias.is_some() && !plan.saved.contains(&site.id)) {
        let targeted = plan.sites.contains(&site.id);
        if !targeted && mode == Bias::LoraOnly {
            continue;
        }
        let layer = if targeted { ".base_layer" } else { "" };
        let name = format!("base_model.model.{}{layer}.bias", site.path);
        let tensor = |name| PlannedTensor::trained(name, site.id, "bias", [site.dims.output], Init::Base);
        plan.tensors.push(tensor(name.clone()));
        plan.tensors.push(tensor(frozen(&name)).keep(Keep::Derived));
    }
    Ok(())
}

/// The name of the frozen copy of a trained bias.
fn frozen(name: &str) -> String {
    format!("{name}#frozen")
}

#[cfg(feature = "torch")]
pub(crate) use imp::wrap;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::Result;
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use crate::adapter::{Hooks, Parts, SiteMethod};

    /// Puts the trained biases of a plan around the hooks of their sites.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    pub(crate) fn wrap(parts: &Parts<'_>, hooks: &mut Hooks) -> Result<()> {
        let own =
            parts.plan.trained().filter(|tensor| tensor.part == "bias" && !parts.plan.saved.contains(&tensor.site));
        for tensor in own {
            let trained = parts.get(&tensor.name)?.shallow_clone();
            let frozen = parts.get(&super::frozen(&tensor.name))?.to_kind(Kind::Float);
            let inner = hooks.remove(&tensor.site);
            hooks.insert(tensor.site, Box::new(Biased { inner, trained, frozen }));
        }
        Ok(())
    }

    struct Biased {
        inner: Option<Box<dyn SiteMethod>>,
        trained: Tensor, // [out]
        frozen: Tensor,  // [out]
    }

    impl Biased {
        fn shift(&self, site: &Site, y: Vec<Tensor>) -> Vec<Tensor> {
            let shift = &self.trained - &self.frozen;
            let shift = match &site.weight {
                // Channels are the second axis of a convolution's result.
                Some(weight) if site.role == pleach_nn::Role::Conv => {
                    let ones = weight.shape.iter().skip(2).map(|_| 1);
                    shift.reshape([-1].into_iter().chain(ones).collect::<Vec<i64>>())
                }
                _ => shift,
            };
            y.iter().map(|y| (y + &shift).to_kind(y.kind())).collect()
        }
    }

    impl SiteHook for Biased {
        fn shares_base(&self) -> bool {
            self.inner.as_ref().is_none_or(|inner| inner.shares_base())
        }

        fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
            let y = match &self.inner {
                Some(inner) => inner.after(cx, x, y),
                None => y,
            };
            self.shift(cx.site, y)
        }

        fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let y = match &self.inner {
                Some(inner) => inner.around(cx, x, base),
                None => base.run(&x),
            };
            self.shift(cx.site, y)
        }
    }

    impl SiteMethod for Biased {
        fn merged(&self, site: &Site, base: &OpWeights) -> Option<OpWeights> {
            let _no_grad = tch::no_grad_guard();
            let merged = match &self.inner {
                Some(inner) => inner.merged(site, base)?,
                None => OpWeights {
                    weight: base.weight.to_kind(Kind::Float),
                    bias: base.bias.as_ref().map(|bias| bias.to_kind(Kind::Float)),
                },
            };
            let bias = merged.bias.map(|bias| bias + &self.trained - &self.frozen);
            Some(OpWeights { weight: merged.weight, bias })
        }
    }
}
