//! A backbone whose tokens go through one stack of blocks: what most families are.

use super::{EmbedSpec, FeedSpec, HeadSpec, LayerSpec, NormSpec, PositionSpec, RelativeSpec, RotarySpec};
use crate::backbone::{BackboneConfig, Mixing, ModelInfo, TensorInfo};
use crate::site::Sites;

/// A configured stack.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint {
    pub(crate) info: ModelInfo,
    pub(crate) sites: Sites,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) trunk: Trunk,
    pub(crate) head: HeadSpec,
}

/// A stack without its head.
#[derive(Clone, Debug)]
pub(crate) struct Trunk {
    pub(crate) tokens: EmbedSpec,
    pub(crate) types: Option<EmbedSpec>,
    pub(crate) positions: Option<PositionSpec>,
    pub(crate) embed_norm: Option<NormSpec>,
    pub(crate) rotary: Option<RotarySpec>,
    /// A bias by distance that all blocks share.
    pub(crate) relative: Option<RelativeSpec>,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) last_norm: Option<NormSpec>,
}

impl Trunk {
    /// Tokens alone, no blocks.
    pub(crate) fn new(tokens: EmbedSpec) -> Self {
        let (types, positions, embed_norm, rotary, relative) = (None, None, None, None, None);
        Self { tokens, types, positions, embed_norm, rotary, relative, layers: Vec::new(), last_norm: None }
    }

    /// What a sequence knows of the others in its batch. Functions of single numbers within attention and over logits,
    /// and experts that get few tokens, round by what stands beside.
    pub(crate) fn mixing(&self, head: &HeadSpec) -> Mixing {
        let rounds = |layer: &LayerSpec| {
            layer.attention.part.core.cap.is_some() || matches!(layer.mlp.part, FeedSpec::Sparse(_))
        };
        match () {
            () if self.rotary.as_ref().is_some_and(RotarySpec::sees_the_farthest) => Mixing::Lengths,
            () if self.layers.iter().any(rounds) => Mixing::Rounding,
            () if matches!(head, HeadSpec::Tokens { cap: Some(_), .. }) => Mixing::Rounding,
            () => Mixing::None,
        }
    }
}

impl BackboneConfig for Blueprint {
    super::alike::described!(Stack);
}

#[cfg(feature = "torch")]
mod imp {
    use std::collections::BTreeMap;

    use pleach_base::Result;
    use tch::{Device, Kind, Tensor};

    use super::Blueprint;
    use crate::backbone::Precision;
    use crate::blocks::core::Given;
    use crate::blocks::embedding::{Embed, Positions};
    use crate::blocks::head::Head;
    use crate::blocks::layer::Layer;
    use crate::blocks::norm::Norm;
    use crate::blocks::relative::Relative;
    use crate::model::ModelDir;
    use crate::run::{Backbone, Forward, Inputs, OpWeights, Output, State, Weights};
    use crate::site::SiteId;

    /// A loaded stack.
    pub(super) struct Stack {
        config: Blueprint,
        device: Device,
        kind: Kind,
        tokens: Embed,
        types: Option<Embed>,
        positions: Option<Positions>,
        embed_norm: Option<Norm>,
        relative: Option<Relative>,
        layers: Vec<Layer>,
        last_norm: Option<Norm>,
        head: Head,
        weights: BTreeMap<SiteId, OpWeights>,
    }

    impl Stack {
        pub(super) fn load(config: &Blueprint, dir: &ModelDir, device: Device, precision: Precision) -> Result<Self> {
            let _no_grad = tch::no_grad_guard();
            let (config, sites) = (config.clone(), &config.sites);
            let weights = Weights::new(&config.info, &config.tensors, dir, device, precision);
            let norm = |spec: Option<_>| spec.map(|spec| Norm::load(spec, sites, &weights)).transpose();
            let trunk = &config.trunk;
            let mut stack = Self {
                device,
                kind: precision.kind(),
                tokens: Embed::load(trunk.tokens, sites, &weights)?,
                types: trunk.types.map(|spec| Embed::load(spec, sites, &weights)).transpose()?,
                positions: trunk.positions.map(|spec| Positions::load(spec, sites, &weights)).transpose()?,
                embed_norm: norm(trunk.embed_norm)?,
                relative: trunk.relative.map(|spec| Relative::load(spec, sites, &weights)).transpose()?,
                layers: trunk.layers.iter().map(|spec| Layer::load(spec, sites, &weights)).collect::<Result<_>>()?,
                last_norm: norm(trunk.last_norm)?,
                head: Head::load(&config.head, sites, &weights)?,
                weights: BTreeMap::new(),
                config,
            };
            let mut all = BTreeMap::new();
            stack.visit(&mut |site, weights| {
                all.insert(site, weights.shallow_clone());
            });
            stack.weights = all;
            Ok(stack)
        }

        fn visit<'a>(&'a self, see: &mut dyn FnMut(SiteId, &'a OpWeights)) {
            for table in self.types.iter().chain([&self.tokens]) {
                table.visit(see);
            }
            if let Some(positions) = &self.positions {
                positions.visit(see);
            }
            if let Some(relative) = &self.relative {
                relative.visit(see);
            }
            for norm in self.embed_norm.iter().chain(&self.last_norm) {
                norm.visit(see);
            }
            for layer in &self.layers {
                layer.visit(see);
            }
            self.head.visit(see);
        }
    }

    impl Backbone for Stack {
        crate::blocks::alike::kept!();

        fn embed(&self, cx: &Forward<'_>, inputs: &Inputs) -> State {
            cx.check();
            let ids = inputs.get("input_ids").expect("a batch has `input_ids`"); // [b, w] or [t]
            assert_eq!(ids.size(), cx.layout.shape(), "`input_ids` have the layout's shape");
            let mut hidden = self.tokens.run_beside(cx, ids, inputs.get("features"));
            if let Some(types) = &self.types {
                let zeros = || Tensor::zeros_like(ids);
                hidden += types.run(cx, &inputs.get("token_type_ids").map_or_else(zeros, Tensor::shallow_clone));
            }
            if let Some(positions) = &self.positions {
                hidden += positions.run(cx, ids);
            }
            if let Some(norm) = &self.embed_norm {
                hidden = norm.run(cx, &hidden);
            }
            let tables = self.config.trunk.rotary.as_ref().map(|rotary| rotary.tables(cx.layout, self.kind));
            // Gradients flow through the bias only where an adapter changes its table.
            let bias: Vec<_> = self.relative.iter().map(|relative| relative.values(cx)).collect();
            State { hidden, carry: bias, tables: tables.unwrap_or_default() }
        }

        fn block(&self, index: usize, cx: &Forward<'_>, state: State) -> State {
            let bias = self.relative.as_ref().and_then(|_| state.carry.first());
            let given = Given { rotary: &state.tables, bias, memory: None };
            let hidden = self.layers[index].run(cx, state.hidden, given);
            State { hidden, ..state }
        }

        fn finish(&self, cx: &Forward<'_>, state: State) -> State {
            match &self.last_norm {
                Some(norm) => State { hidden: norm.run(cx, &state.hidden), ..state },
                None => state,
            }
        }

        fn head(&self, cx: &Forward<'_>, state: &State) -> Output {
            self.head.run(cx, &state.hidden)
        }
    }
}
