//! An adapter whose matrices are coded, in training too or only outside of it.

#[cfg(feature = "torch")]
mod run;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use indexmap::IndexMap;
use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{BackboneConfig, Init, SiteId};
use serde_json::{Map, Value, json};

use crate::adapter::common::refuse;
use crate::adapter::{AdapterConfig, Export, Half, HasCard, Modalities, Passes, Segments, StepInfo, Virtual};
use crate::around::INNER;
use crate::card::Card;
use crate::codes::Codec;
use crate::plan::{Keep, Plan, PlannedTensor};

/// Matrices by name, in order: rows and columns.
pub(super) type Shapes = IndexMap<String, [usize; 2]>;

/// Behind the name of a matrix in the file.
#[cfg_attr(not(feature = "torch"), allow(dead_code))]
const ENDING: &str = ".coded";
/// Behind the name of a matrix that was read: the means and deviations of its file.
const SPREAD: &str = ".spread";

/// When the wrapped adapter runs with coded matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// In every pass.
    Always,
    /// Outside of training.
    Afterwards,
}

/// A wrapped adapter.
#[derive(Clone, Debug)]
pub(super) struct Coded {
    pub(super) card: &'static Card,
    /// The wrapping method's options.
    pub(super) options: Value,
    pub(super) codec: Codec,
    pub(super) when: When,
    /// Whether a classification head is coded too.
    pub(super) bihead: bool,
    /// Deviation of what begins at zero otherwise; 0 leaves it there.
    pub(super) init_std: f64,
    /// It was read from a file: its matrices have the values of codes already.
    pub(super) read: bool,
    pub(super) inner: Arc<dyn AdapterConfig>,
}

impl HasCard for Coded {
    fn card(&self) -> &'static Card {
        self.card
    }
}

impl Coded {
    /// The wrapped adapter's tensors among those of a plan.
    fn own<'p>(&self, plan: &'p Plan) -> &'p Plan {
        plan.children.first().unwrap_or(plan)
    }

    /// A coded head has one bit a weight, whatever the others have.
    fn codec_of(&self, plan: &Plan, tensor: &PlannedTensor) -> Codec {
        if self.is_head(plan, tensor) { Codec { bit: 1, ..self.codec } } else { self.codec }
    }

    fn is_head(&self, plan: &Plan, tensor: &PlannedTensor) -> bool {
        self.bihead && self.own(plan).saved.contains(&tensor.site)
    }

    /// The matrices that are coded, in order.
    fn matrices<'p>(&self, plan: &'p Plan) -> impl Iterator<Item = &'p PlannedTensor> {
        let saved = self.own(plan).saved.clone();
        let (all, bihead) = (self.codec.bit != 32, self.bihead);
        plan.trained()
            .filter(move |tensor| tensor.shape.len() == 2 && if saved.contains(&tensor.site) { bihead } else { all })
    }

    /// Bytes of all coded matrices in the file.
    pub(super) fn bytes(&self, plan: &Plan) -> usize {
        self.matrices(plan).map(|tensor| self.codec_of(plan, tensor).bytes(tensor.shape[0], tensor.shape[1])).sum()
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        let other = |tensor: &&PlannedTensor| tensor.shape.len() != 2 && !plan.saved.contains(&tensor.site);
        if let (When::Always, true, Some(tensor)) = (self.when, self.codec.bit != 32, plan.trained().find(other)) {
            let why = format!("`{}` is no matrix and cannot be coded", tensor.name);
            return Err(refuse("bit", &why).hint("train the adapter without biases, such as `bias: false`"));
        }
        if self.bihead && plan.saved.is_empty() {
            return Err(refuse("bihead", "there is no classification head that is trained"));
        }
        Ok(())
    }

    /// A tensor as it is trained here.
    fn trained(&self, tensor: &PlannedTensor, saved: &[SiteId]) -> PlannedTensor {
        let ours = tensor.keep == Keep::Trained && tensor.shape.len() == 2 && !saved.contains(&tensor.site);
        let zero = ours && tensor.init == Init::Zeros && self.codec.bit != 32 && self.init_std > 0.0;
        PlannedTensor { init: if zero { Init::Derived } else { tensor.init }, ..tensor.clone() }
    }
}

impl AdapterConfig for Coded {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let inner = self.inner.plan(model)?;
        self.check(&inner)?;
        let headless =
            |tensor: &&PlannedTensor| !(self.bihead && inner.saved.contains(&tensor.site) && tensor.part == "bias");
        let tensors = inner.tensors.iter().filter(headless).map(|tensor| self.trained(tensor, &inner.saved)).collect();
        let mut plan = Plan { tensors, children: vec![inner.clone()], ..inner };
        if self.bihead {
            plan.sites.append(&mut plan.saved);
            plan.sites.sort_unstable();
        }
        if self.read {
            let spread = |tensor: &PlannedTensor| PlannedTensor {
                name: format!("{}{SPREAD}", tensor.name),
                part: "spread",
                shape: vec![2, self.codec.groups(tensor.shape[0])],
                init: Init::Zeros,
                keep: Keep::Saved,
                ..tensor.clone()
            };
            let spreads: Vec<_> = self.matrices(&plan).map(spread).collect();
            plan.tensors.extend(spreads);
        }
        if self.matrices(&plan).next().is_some() {
            let (bytes, count) = (self.bytes(&plan), self.matrices(&plan).count());
            plan.notes.push(format!("{count} matrices take {bytes} bytes in the file"));
        }
        Ok(plan)
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        let mut fields = self.options.as_object().cloned().unwrap_or_default();
        let inner = self.inner.adapter_config(model, self.own(plan), export);
        let shapes: Shapes =
            self.matrices(plan).map(|tensor| (tensor.name.clone(), [tensor.shape[0], tensor.shape[1]])).collect();
        let shared = [
            ("pleach_method", json!(self.card.name)),
            ("base_model_name_or_path", json!(export.base)),
            ("task_type", json!(model.info().head.task_type())),
            ("coded", json!(shapes)),
            (INNER, Value::Object(inner)),
        ];
        fields.extend(shared.map(|(name, value)| (name.to_owned(), value)));
        fields.sort_keys();
        fields
    }

    fn bottleneck(&self) -> Option<crate::adapter::bottleneck::Bn> {
        None
    }

    fn virtual_tokens(&self) -> Virtual {
        self.inner.virtual_tokens()
    }

    fn segments(&self) -> Option<Segments> {
        self.inner.segments()
    }

    fn modalities(&self) -> Option<Modalities> {
        self.inner.modalities()
    }

    fn half(&self, tensor: &PlannedTensor) -> Option<Half> {
        self.inner.half(tensor)
    }

    fn drawn_as<'t>(&self, tensor: &'t PlannedTensor) -> &'t str {
        self.inner.drawn_as(tensor)
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        self.inner.lr_scale(tensor)
    }

    fn phases(&self, total: u64) -> Vec<u64> {
        self.inner.phases(total)
    }

    fn fits(&self, total: u64) -> Result<()> {
        self.inner.fits(total)
    }

    fn partial(&self) -> bool {
        self.inner.partial()
    }

    fn updates(&self, tensor: &PlannedTensor, step: StepInfo) -> bool {
        self.inner.updates(tensor, step)
    }

    fn takes_part(&self, tensor: &PlannedTensor, step: StepInfo, key: Key) -> bool {
        self.inner.takes_part(tensor, step, key)
    }

    fn shapes_gradients(&self) -> bool {
        self.inner.shapes_gradients()
    }

    fn passes(&self) -> Passes {
        self.inner.passes()
    }

    fn encodes(&self) -> bool {
        true
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        run::hooks(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(&self, tensor: &PlannedTensor, base: &dyn pleach_nn::Backbone, key: Key) -> Result<tch::Tensor> {
        let inner = self.inner.plan(base.config())?;
        match inner.named(&tensor.name) {
            Some(own) if own.init == Init::Zeros => {
                Ok(run::cut_normal(self.init_std, &tensor.shape, key, base.device()))
            }
            _ => self.inner.initial(tensor, base, key),
        }
    }

    #[cfg(feature = "torch")]
    fn regulariser(&self, parts: &crate::adapter::Parts<'_>) -> Option<tch::Tensor> {
        self.inner.regulariser(&run::own_parts(parts))
    }

    #[cfg(feature = "torch")]
    fn before_update(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.inner.before_update(&run::own_parts(parts), step)
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.inner.after_step(&run::own_parts(parts), step)
    }

    #[cfg(feature = "torch")]
    fn end_phase(&self, parts: &crate::adapter::Parts<'_>, step: StepInfo) -> Result<()> {
        self.inner.end_phase(&run::own_parts(parts), step)
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &crate::adapter::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        run::exported(self, parts).map(Some)
    }

    #[cfg(feature = "torch")]
    fn decoded(
        &self,
        plan: &Plan,
        file: &std::collections::BTreeMap<String, tch::Tensor>,
    ) -> Result<Option<std::collections::BTreeMap<String, tch::Tensor>>> {
        run::decoded(self, plan, file).map(Some)
    }
}
