//! A model of one layer of attention whose weights are given with the input: a graph.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{
    Backbone, BackboneConfig, Dims, Forward, HeadKind, Heads, Inputs, Layout, ModelDir, ModelInfo, OpWeights, Output,
    Part, Precision, Reads, Role, Site, SiteId, SiteWeight, Sites, Source, State, TensorInfo, WeightLayout,
};
use tch::{Device, Kind, Tensor};

use crate::kit::normal;

/// Tokens of a row, and width of a token's features.
pub(super) const TOKENS: i64 = 32;
pub(super) const WIDTH: i64 = 32;
const HEADS: usize = 2;
const INPUT: &str = "features";

/// The model: `x + W_o (graph (W_v x))`, and a head that labels tokens.
#[derive(Debug)]
pub(super) struct GraphModel {
    config: Config,
    weights: BTreeMap<SiteId, OpWeights>,
    device: Device,
}

#[derive(Clone, Debug)]
struct Config {
    info: ModelInfo,
    sites: Sites,
    value: SiteId,
    kv: SiteId,
    scores: SiteId,
    out: SiteId,
    head: SiteId,
    tensors: Vec<TensorInfo>,
}

impl Config {
    fn new(labels: usize) -> Self {
        let width = WIDTH as usize;
        let first = Source::Fixed {
            name: INPUT,
            shape: vec![TOKENS as usize, (WIDTH + TOKENS) as usize],
            tokens: TOKENS as usize,
        };
        let info = ModelInfo {
            family: "graph",
            class: "Graph".to_owned(),
            base_prefix: "",
            head: HeadKind::TokenClassification,
            num_labels: labels,
            hidden_size: width,
            vocab_size: 0,
            num_blocks: 1,
            max_positions: TOKENS as usize,
            causal: false,
            mixing: pleach_nn::Mixing::None,
            normalized: false,
            pad_token: None,
            reads: Reads::only(first),
            renames: &[],
        };
        let (mut sites, mut tensors) = (Sites::default(), Vec::new());
        let map = |path: &str, role: Role, part: Part, output: usize| {
            let block = (role != Role::Head).then_some(0);
            let (name, shape) = (format!("{path}.weight"), vec![output, width]);
            let weight = Some(SiteWeight { name, shape, layout: WeightLayout::OutIn });
            let dims = Dims { input: width, output, heads: None };
            let path = path.to_owned();
            Site { id: SiteId(0), path, role, part, block, dims, weight, bias: None, scale: 1.0, runs: true }
        };
        let place = |path: &str, role: Role| {
            let heads = Some(Heads { query: HEADS, kv: HEADS, dim: width / HEADS });
            let dims = Dims { input: width, output: width, heads };
            let (path, part) = (path.to_owned(), Part::Attention);
            Site {
                id: SiteId(0),
                path,
                role,
                part,
                block: Some(0),
                dims,
                weight: None,
                bias: None,
                scale: 1.0,
                runs: true,
            }
        };
        let mut add = |site: Site| {
            if let Some(weight) = &site.weight {
                tensors.push(TensorInfo {
                    name: weight.name.clone(),
                    shape: weight.shape.clone(),
                    fresh: None,
                    pieces: None,
                });
            }
            sites.push(site)
        };
        let value = add(map("attention.value", Role::Linear, Part::Value, width));
        let kv = add(place("attention@kv", Role::AttnKv));
        let scores = add(place("attention@scores", Role::AttnScores));
        let out = add(map("attention.out", Role::Linear, Part::AttnOut, width));
        let head = add(map("classifier", Role::Head, Part::Other, labels));
        Self { info, sites, value, kv, scores, out, head, tensors }
    }
}

impl BackboneConfig for Config {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sites(&self) -> &Sites {
        &self.sites
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn build(&self, _: &ModelDir, _: Device, _: Precision) -> Result<Box<dyn Backbone>> {
        Err(code::INTERNAL.error("the model is drawn, not read"))
    }
}

impl GraphModel {
    /// With drawn weights.
    pub(super) fn draw(labels: usize, key: Key, device: Device) -> Self {
        let config = Config::new(labels);
        let draw = |site: &Site| {
            let weight =
                normal(key.named(&site.path), &[site.dims.output as i64, WIDTH], device) / (WIDTH as f64).sqrt();
            (site.id, OpWeights { weight, bias: None })
        };
        let weights = config.sites.iter().filter(|site| site.weight.is_some()).map(draw).collect();
        Self { config, weights, device }
    }

    fn map(&self, cx: &Forward<'_>, site: SiteId, x: &Tensor) -> Tensor {
        let frozen = &self.weights[&site];
        cx.at_one(site, x.shallow_clone(), Some(frozen), &|_, x, own| {
            let OpWeights { weight, bias } = own.unwrap_or(frozen);
            vec![x[0].linear(weight, bias.as_ref())]
        })
    }

    /// Attention with the weights of `graph` `[n, TOKENS, TOKENS]`; `values` `[n, TOKENS, heads, dim]`.
    fn attend(&self, cx: &Forward<'_>, graph: &Tensor, values: Tensor) -> Tensor {
        let softmax = |_: &Layout, x: &[Tensor], _: Option<&OpWeights>| vec![x[0].softmax(-1, Kind::Float)];
        let op = |layout: &Layout, x: &[Tensor], _: Option<&OpWeights>| {
            let rows: Vec<i64> = layout.numbers().iter().map(|row| *row as i64).collect();
            let own = graph.index_select(0, &Tensor::from_slice(&rows).to_device(graph.device()));
            let scores = own.log().unsqueeze(1).expand([-1, HEADS as i64, -1, -1], false);
            let within = Forward { layout, ..*cx };
            let weights = within.at(self.config.scores, vec![scores], None, &softmax).remove(0);
            vec![weights.matmul(&x[2].transpose(1, 2)).transpose(1, 2)]
        };
        let x = vec![values.shallow_clone(), values.shallow_clone(), values];
        cx.at(self.config.kv, x, None, &op).remove(0)
    }
}

impl Backbone for GraphModel {
    fn config(&self) -> &dyn BackboneConfig {
        &self.config
    }

    fn weights(&self, site: SiteId) -> Option<&OpWeights> {
        self.weights.get(&site)
    }

    fn device(&self) -> Device {
        self.device
    }

    fn embed(&self, _: &Forward<'_>, inputs: &Inputs) -> State {
        let empty = || Tensor::zeros([0, TOKENS, WIDTH + TOKENS], (Kind::Float, self.device));
        let given = inputs.get(INPUT).map_or_else(empty, Tensor::shallow_clone);
        let (hidden, graph) = (given.narrow(2, 0, WIDTH), given.narrow(2, WIDTH, TOKENS));
        State { hidden, carry: Vec::new(), tables: vec![graph] }
    }

    fn block(&self, _: usize, cx: &Forward<'_>, state: State) -> State {
        let values = self.map(cx, self.config.value, &state.hidden).unflatten(-1, [HEADS as i64, -1]);
        let context = self.attend(cx, &state.tables[0], values).flatten(-2, -1);
        State { hidden: &state.hidden + self.map(cx, self.config.out, &context), ..state }
    }

    fn finish(&self, _: &Forward<'_>, state: State) -> State {
        state
    }

    fn head(&self, cx: &Forward<'_>, state: &State) -> Output {
        Output::Tokens(self.map(cx, self.config.head, &state.hidden))
    }
}
