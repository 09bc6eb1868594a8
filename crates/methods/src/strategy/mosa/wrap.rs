//! The wrapped adapter: which tensors it has instead of those that are split, and what becomes of them.

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{BackboneConfig, Init};
use serde_json::{Map, Value};

use super::{Config, MaskMode, Shared};
use crate::adapter::common::refuse;
use crate::adapter::{AdapterConfig, Export, Half, HasCard, Passes, StepInfo, Virtual};
use crate::card::Card;
use crate::plan::{Keep, Plan, PlannedTensor};

/// Before the number of an expert, behind the name of the tensor that it is of.
const EXPERT: &str = ".expert_";
/// Behind the name of a split tensor: who owns its entries, and what they begin with.
pub(super) const BANDS: &str = ".mosa_bands";
pub(super) const START: &str = ".mosa_start";

/// An adapter whose projections are split.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) options: Config,
    pub(super) inner: Box<dyn AdapterConfig>,
}

/// What a tensor of the plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kin {
    /// An expert of this number.
    Expert(usize),
    Bands,
    Start,
    /// The wrapped adapter's own, or what experts are merged into.
    Own,
}

/// The name of the wrapped adapter's tensor, and what this one is of it.
pub(super) fn kin(name: &str) -> (&str, Kin) {
    let numbered = name.rsplit_once(EXPERT).and_then(|(own, number)| Some((own, Kin::Expert(number.parse().ok()?))));
    let marked = || {
        let bands = name.strip_suffix(BANDS).map(|own| (own, Kin::Bands));
        bands.or_else(|| name.strip_suffix(START).map(|own| (own, Kin::Start)))
    };
    numbered.or_else(marked).unwrap_or((name, Kin::Own))
}

/// The name of an expert's tensor.
pub(super) fn expert(own: &str, number: usize) -> String {
    format!("{own}{EXPERT}{number}")
}

impl Split {
    pub(super) fn experts(&self) -> usize {
        self.options.expert_num as usize
    }

    /// The half that a tensor of the wrapped adapter belongs to, if that half is split.
    pub(super) fn half(&self, own: &PlannedTensor) -> Option<Half> {
        let shared = match self.options.share {
            Shared::Down => Some(Half::Down),
            Shared::Up => Some(Half::Up),
            Shared::None => None,
        };
        let half = if own.keep == Keep::Trained { self.inner.half(own) } else { None };
        half.filter(|half| Some(*half) != shared)
    }

    /// Whether each expert has its own entries of a split tensor.
    fn masked(&self, own: &PlannedTensor) -> bool {
        own.shape.len() > 1 || !self.options.bias_shared
    }

    fn check(&self, own: &PlannedTensor) -> Result<()> {
        if (own.numel() as usize) < self.experts() {
            let why = format!("`{}` has only {} entries", own.name, own.numel());
            return Err(refuse("expert_num", &why).hint("fewer experts, a wider adapter, or `bias_shared: true`"));
        }
        if own.shape.len() > 2 && self.options.mask_mode != MaskMode::All {
            return Err(refuse("mask_mode", &format!("`{}` is no matrix: only `all` is defined", own.name)));
        }
        Ok(())
    }

    /// What there is instead of a split tensor: its experts, what they are merged into, and their masks.
    fn tensors(&self, own: &PlannedTensor) -> Result<Vec<PlannedTensor>> {
        let mut all: Vec<_> = (0..self.experts())
            .map(|number| PlannedTensor { name: expert(&own.name, number), ..own.clone() })
            .collect();
        all.push(own.clone().keep(Keep::State));
        if self.masked(own) {
            self.check(own)?;
            let beside = |suffix: &str, part, init| {
                let name = format!("{}{suffix}", own.name);
                PlannedTensor { name, part, init, keep: Keep::Derived, ..own.clone() }
            };
            all.push(beside(BANDS, "mosa_bands", Init::Derived));
            if own.init != Init::Zeros {
                all.push(beside(START, own.part, own.init));
            }
        }
        Ok(all)
    }

    /// A tensor of the plan as the wrapped adapter planned it.
    fn own(&self, tensor: &PlannedTensor) -> PlannedTensor {
        let (name, kin) = kin(&tensor.name);
        let keep = if kin == Kin::Own { tensor.keep } else { Keep::Trained };
        PlannedTensor { name: name.to_owned(), keep, ..tensor.clone() }
    }

    /// Passes of a step.
    pub(super) fn count(&self) -> u32 {
        if self.options.additional_forward { 2 } else { 1 }
    }
}

impl HasCard for Split {
    fn card(&self) -> &'static Card {
        self.inner.card()
    }
}

impl AdapterConfig for Split {
    fn plan(&self, model: &dyn BackboneConfig) -> Result<Plan> {
        let inner = self.inner.plan(model)?;
        let mut tensors = Vec::new();
        for own in &inner.tensors {
            if self.half(own).is_some() {
                tensors.extend(self.tensors(own)?);
            } else {
                tensors.push(own.clone());
            }
        }
        if tensors.len() == inner.tensors.len() {
            let name = self.inner.card().name;
            return Err(refuse("share", &format!("the adapter `{name}` has no projection to split"))
                .hint("MoSA is for bottlenecks: `visual_adapter`, `bottleneck`, `lora`"));
        }
        let mut notes = inner.notes.clone();
        notes.push(format!("merged, the adapter has {} parameters", inner.params()));
        Ok(Plan { tensors, notes, children: vec![inner.clone()], ..inner })
    }

    fn adapter_config(&self, model: &dyn BackboneConfig, plan: &Plan, export: &Export<'_>) -> Map<String, Value> {
        self.inner.adapter_config(model, plan.children.first().unwrap_or(plan), export)
    }

    fn virtual_tokens(&self) -> Virtual {
        self.inner.virtual_tokens()
    }

    fn lr_scale(&self, tensor: &PlannedTensor) -> f64 {
        self.inner.lr_scale(&self.own(tensor))
    }

    fn drawn_as<'t>(&self, tensor: &'t PlannedTensor) -> &'t str {
        match kin(&tensor.name) {
            (_, Kin::Bands) => &tensor.name,
            (own, _) => own,
        }
    }

    fn partial(&self) -> bool {
        true
    }

    fn takes_part(&self, tensor: &PlannedTensor, step: StepInfo, key: Key) -> bool {
        let own = self.own(tensor);
        match (kin(&tensor.name).1, self.half(&own)) {
            (Kin::Expert(number), Some(half)) => {
                let which = usize::from(half == Half::Up);
                let done = step.step.saturating_sub(1);
                let drawn = |pass| super::draw::draw(key, done, pass, tensor.site, self.options.expert_num)[which];
                (0..self.count()).any(|pass| drawn(pass) == number)
            }
            _ => true,
        }
    }

    fn passes(&self) -> Passes {
        if !self.options.additional_forward {
            return Passes::default();
        }
        Passes { weights: vec![1.0, self.options.add_weight], symmetric_kl: self.options.reg_weight }
    }

    fn shapes_gradients(&self) -> bool {
        true
    }

    #[cfg(feature = "torch")]
    fn before_update(&self, parts: &crate::adapter::Parts<'_>, _: StepInfo) -> Result<()> {
        super::run::mask(parts)
    }

    #[cfg(feature = "torch")]
    fn after_step(&self, parts: &crate::adapter::Parts<'_>, _: StepInfo) -> Result<()> {
        super::run::settle(self, parts)
    }

    #[cfg(feature = "torch")]
    fn initial(
        &self,
        tensor: &PlannedTensor,
        base: &dyn pleach_nn::Backbone,
        key: Key,
    ) -> Result<tch::Tensor> {
        match kin(&tensor.name).1 {
            Kin::Bands => Ok(super::run::drawn_bands(self, tensor, key).to_device(base.device())),
            _ => self.inner.initial(&self.own(tensor), base, key),
        }
    }

    #[cfg(feature = "torch")]
    fn exported(&self, parts: &crate::adapter::Parts<'_>) -> Result<Option<Vec<(String, tch::Tensor)>>> {
        super::run::exported(self, parts).map(Some)
    }

    #[cfg(feature = "torch")]
    fn exported_config(&self, parts: &crate::adapter::Parts<'_>) -> Result<Map<String, Value>> {
        self.inner.exported_config(&super::run::merged_parts(parts)?)
    }

    #[cfg(feature = "torch")]
    fn hooks(&self, parts: &crate::adapter::Parts<'_>) -> Result<crate::adapter::Hooks> {
        super::run::hooks(self, parts)
    }
}
