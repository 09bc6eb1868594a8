//! `modules_to_save`: modules that are trained and saved whole beside the adapter, such as a classification head.

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, Init, Role, SiteId};

use crate::plan::PlannedTensor;

/// The tasks for which PEFT adds heads by itself.
const CLASSIFIED: [&str; 2] = ["SEQ_CLS", "TOKEN_CLS"];

/// What PEFT adds.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// The names as PEFT completes them for the model's task.
pub(crate) fn names(asked: Option<&[String]>, model: &dyn BackboneConfig) -> Vec<String> {
    let mut names = asked.unwrap_or_default().to_vec();
    if model.info().head.task_type().is_some_and(|task| CLASSIFIED.contains(&task)) {
        for name in CLASSIFIERS {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// The sites and tensors of these modules.
///
/// # Errors
/// `TARGET_NOTHING` when a name that the user gave matches no module.
pub(crate) fn plan(asked: Option<&[String]>, model: &dyn BackboneConfig) -> Result<(Vec<SiteId>, Vec<PlannedTensor>)> {
    plan_under("base_model.model", asked, model)
}

/// The same for methods whose files name the model otherwise.
///
/// # Errors
/// As [`plan`].
pub(crate) fn plan_under(
    prefix: &str,
    asked: Option<&[String]>,
    model: &dyn BackboneConfig,
) -> Result<(Vec<SiteId>, Vec<PlannedTensor>)> {
    let sites = model.sites();
    for name in asked.unwrap_or_default().iter().filter(|name| !CLASSIFIERS.contains(&name.as_str())) {
        if sites.saved_whole(std::slice::from_ref(name)).is_empty() {
            let paths: Vec<_> =
                sites.iter().filter(|site| site.weight.is_some()).map(|site| site.path.as_str()).collect();
            return Err(code::TARGET_NOTHING
                .error(format!("modules_to_save: `{name}` matches no module of the model"))
                .hint(format!("nearest: {}", pleach_base::suggest::nearest_few(name, paths, 4).join(", "))));
        }
    }
    let chosen = sites.saved_whole(&names(asked, model));
    let mut tensors = Vec::new();
    for id in &chosen {
        let site = &sites[*id];
        let Some(weight) = &site.weight else { continue };
        let mut add = |part: &'static str, shape: Vec<usize>| {
            let name = match site.role {
                // The path is the parameter's own.
                Role::Experts => format!("{prefix}.{}", site.path),
                _ => format!("{prefix}.{}.{part}", site.path),
            };
            tensors.push(PlannedTensor::trained(name, *id, part, shape, Init::Base));
        };
        add("weight", weight.shape.clone());
        if site.bias.is_some() {
            add("bias", vec![site.dims.output]);
        }
    }
    Ok((chosen, tensors))
}

#[cfg(feature = "torch")]
pub(crate) use imp::Saved;

#[cfg(feature = "torch")]
mod imp {
    use pleach_nn::{BaseOp, OpWeights, Site, SiteCx, SiteHook};
    use tch::{Kind, Tensor};

    use crate::adapter::SiteMethod;

    /// Runs a module with the trained copy of its weights, in float32.
    pub(crate) struct Saved(pub(crate) OpWeights);

    impl SiteHook for Saved {
        fn shares_base(&self) -> bool {
            false
        }

        fn around(&self, _: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
            let wide: Vec<_> = x
                .iter()
                .map(|x| if x.is_floating_point() { x.to_kind(Kind::Float) } else { x.shallow_clone() })
                .collect();
            let kind = base.weights().map_or(Kind::Float, |weights| weights.weight.kind());
            base.run_with(&self.0, &wide).iter().map(|y| y.to_kind(kind)).collect()
        }
    }

    impl SiteMethod for Saved {
        fn merged(&self, _: &Site, _: &OpWeights) -> Option<OpWeights> {
            let detached = |tensor: &Tensor| tensor.detach();
            Some(OpWeights { weight: detached(&self.0.weight), bias: self.0.bias.as_ref().map(detached) })
        }
    }
}
