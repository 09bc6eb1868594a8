//! A backbone of one or two stacks, each with a front of its own: an encoder with its decoder, two towers that are
//! compared, or one stack of images or spectrograms.
//!
//! Blocks are counted through: those of the first stack, then those of the second. The second stack's first block ends
//! the first stack, embeds its own input and keeps the first stack's output in [`State::carry`](crate::State), so that
//! backward can be driven block by block as in any other backbone.

use super::{EndSpec, FrontSpec, LayerSpec, NormSpec, RelativeSpec};
use crate::backbone::{BackboneConfig, ModelInfo, TensorInfo};
use crate::site::Sites;

/// A configured backbone.
#[derive(Clone, Debug)]
pub(crate) struct Towers {
    pub(crate) info: ModelInfo,
    pub(crate) sites: Sites,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) first: TowerSpec,
    pub(crate) second: Option<TowerSpec>,
    pub(crate) end: EndSpec,
}

/// One stack.
#[derive(Clone, Debug)]
pub(crate) struct TowerSpec {
    pub(crate) front: FrontSpec,
    /// The bias by distance that all its blocks share; it belongs to the first.
    pub(crate) relative: Option<RelativeSpec>,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) last_norm: Option<NormSpec>,
}

impl BackboneConfig for Towers {
    super::alike::described!(Loaded);
}

#[cfg(feature = "torch")]
mod imp {
    use std::collections::BTreeMap;

    use pleach_base::Result;
    use tch::{Device, Tensor};

    use super::{TowerSpec, Towers};
    use crate::backbone::Precision;
    use crate::blocks::core::Given;
    use crate::blocks::end::End;
    use crate::blocks::front::Front;
    use crate::blocks::layer::Layer;
    use crate::blocks::norm::Norm;
    use crate::blocks::relative::Relative;
    use crate::model::ModelDir;
    use crate::run::{Backbone, Forward, Inputs, OpWeights, Output, State, Weights};
    use crate::site::{SiteId, Sites};

    /// A loaded backbone.
    pub(super) struct Loaded {
        config: Towers,
        device: Device,
        first: Tower,
        second: Option<Tower>,
        end: End,
        weights: BTreeMap<SiteId, OpWeights>,
    }

    /// A loaded stack.
    struct Tower {
        front: Front,
        relative: Option<Relative>,
        layers: Vec<Layer>,
        last_norm: Option<Norm>,
    }

    impl Tower {
        fn load(spec: &TowerSpec, sites: &Sites, weights: &Weights<'_>) -> Result<Self> {
            Ok(Self {
                front: Front::load(&spec.front, sites, weights)?,
                relative: spec.relative.map(|spec| Relative::load(spec, sites, weights)).transpose()?,
                layers: spec.layers.iter().map(|spec| Layer::load(spec, sites, weights)).collect::<Result<_>>()?,
                last_norm: spec.last_norm.map(|spec| Norm::load(spec, sites, weights)).transpose()?,
            })
        }

        /// One block. The bias by distance is made by the first and then stands last in `carry` where an adapter changes
        /// it, else last in `tables`. `memory` is the first of `carry` in a stack that attends to another.
        fn block(&self, index: usize, cx: &Forward<'_>, state: State) -> State {
            let State { hidden, mut carry, mut tables } = state;
            let active = self.relative.as_ref().is_some_and(|relative| relative.is_active(cx));
            if let Some(relative) = self.relative.as_ref().filter(|_| index == 0) {
                if active { &mut carry } else { &mut tables }.push(relative.values(cx));
            }
            let layer = &self.layers[index];
            let bias = self.relative.as_ref().and_then(|_| if active { &carry } else { &tables }.last());
            let memory = carry.first().filter(|_| layer.has_cross());
            let hidden = layer.run(cx, hidden, Given { rotary: &[], bias, memory });
            State { hidden, carry, tables }
        }

        fn finish(&self, cx: &Forward<'_>, hidden: Tensor) -> Tensor {
            match &self.last_norm {
                Some(norm) => norm.run(cx, &hidden),
                None => hidden,
            }
        }

        fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            self.front.visit(see);
            if let Some(relative) = &self.relative {
                relative.visit(see);
            }
            self.layers.iter().for_each(|layer| layer.visit(see));
            if let Some(norm) = &self.last_norm {
                norm.visit(see);
            }
        }
    }

    impl Loaded {
        pub(super) fn load(config: &Towers, dir: &ModelDir, device: Device, precision: Precision) -> Result<Self> {
            let _no_grad = tch::no_grad_guard();
            let (config, sites) = (config.clone(), &config.sites);
            let weights = Weights::new(&config.info, &config.tensors, dir, device, precision);
            let first = Tower::load(&config.first, sites, &weights)?;
            let second = config.second.as_ref().map(|spec| Tower::load(spec, sites, &weights)).transpose()?;
            let end = End::load(&config.end, sites, &weights)?;
            let mut all = BTreeMap::new();
            let mut see = |site, weights: &OpWeights| {
                all.insert(site, weights.shallow_clone());
            };
            first.visit(&mut see);
            second.iter().for_each(|tower| tower.visit(&mut see));
            end.visit(&mut see);
            // Modules that only lend their weight to others.
            for site in sites.iter().filter(|site| !site.runs && site.weight.is_some()) {
                all.insert(site.id, weights.of(site)?);
            }
            drop(weights);
            Ok(Self { device, first, second, end, weights: all, config })
        }

        /// What the second stack begins with, at its first block.
        fn turn(&self, second: &Tower, cx: &Forward<'_>, across: &Forward<'_>, state: State) -> State {
            let memory = self.first.finish(cx, state.hidden);
            let hidden = second.front.run(across, &state.tables[0]);
            State { hidden, carry: vec![memory], tables: state.tables }
        }
    }

    fn input<'a>(inputs: &'a Inputs, front: &Front) -> &'a Tensor {
        inputs.get(front.input).unwrap_or_else(|| panic!("a batch of this model has `{}`", front.input))
    }

    impl Backbone for Loaded {
        crate::blocks::alike::kept!();

        fn embed(&self, cx: &Forward<'_>, inputs: &Inputs) -> State {
            cx.check();
            let first = input(inputs, &self.first.front);
            let hidden = self.first.front.run(cx, first);
            // A decoder without an input of its own reads what the encoder reads, shifted.
            let shift = self.config.info.reads.shift.filter(|_| inputs.get("decoder_input_ids").is_none());
            let second = self.second.iter().map(|tower| match shift {
                Some(shift) => shift.shift_right(first, cx.layout),
                None => input(inputs, &tower.front).shallow_clone(),
            });
            // It waits here, and behind it what the end wants to know of the first's.
            let tables = second.chain(self.end.marks(cx, first)).collect();
            State { hidden, carry: Vec::new(), tables }
        }

        fn block(&self, index: usize, cx: &Forward<'_>, state: State) -> State {
            let (first, Some(second)) = (self.first.layers.len(), &self.second) else {
                return self.first.block(index, cx, state);
            };
            if index < first {
                return self.first.block(index, cx, state);
            }
            let across = cx.across();
            let state = if index == first { self.turn(second, cx, &across, state) } else { state };
            second.block(index - first, &across, state)
        }

        fn finish(&self, cx: &Forward<'_>, state: State) -> State {
            let hidden = match &self.second {
                Some(second) => second.finish(&cx.across(), state.hidden),
                None => self.first.finish(cx, state.hidden),
            };
            State { hidden, ..state }
        }

        fn head(&self, cx: &Forward<'_>, state: &State) -> Output {
            let marks = state.tables.get(usize::from(self.second.is_some()));
            match self.second {
                Some(_) => self.end.run(cx, &cx.across(), state, marks),
                None => self.end.run(cx, cx, state, marks),
            }
        }
    }
}
