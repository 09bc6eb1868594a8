//! A plain multi-layer perceptron as a backbone: the smallest model on which methods act. Each layer is a block: a linear map,
//! an activation, and behind it the place where bottleneck adapters stand, whose residual is zero. Rows are one token long.

use std::collections::BTreeMap;

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{
    Backbone, BackboneConfig, Dims, Forward, HeadKind, Inputs, ModelDir, ModelInfo, OpWeights, Output, Part, Precision,
    Reads, Role, Site, SiteId, SiteWeight, Sites, Source, State, TensorInfo, WeightLayout, tensor_from_entry,
};
use tch::{Device, Kind, Tensor};

use super::draws::normal;

/// The input's name.
const INPUT: &str = "features";

/// What stands behind every map but the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing: all is linear.
    None,
    /// `max(x, 0)`.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

/// The sizes of a model.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Width of the input.
    pub input: usize,
    /// Widths of the layers, whose paths are `layers.0.fc`, `layers.1.fc`, ..
    pub hidden: Vec<usize>,
    /// Behind each of them.
    pub act: Act,
    /// Whether maps have biases.
    pub bias: bool,
    /// Classes of a head `classifier`; without, the last layer's result is the output.
    pub classes: Option<usize>,
}

/// A model with its weights in memory.
#[derive(Debug)]
pub struct Mlp {
    config: Config,
    /// By site.
    weights: BTreeMap<SiteId, OpWeights>,
    device: Device,
}

/// Its description.
#[derive(Clone, Debug)]
struct Config {
    shape: Shape,
    info: ModelInfo,
    sites: Sites,
    tensors: Vec<TensorInfo>,
    /// The map of every layer, and the place behind it.
    layers: Vec<(SiteId, SiteId)>,
    head: Option<SiteId>,
}

impl Config {
    fn new(shape: Shape) -> Self {
        let head = if shape.classes.is_some() { HeadKind::ImageClassification } else { HeadKind::Embedding };
        let width = shape.hidden.last().copied().unwrap_or(shape.input);
        let first = Source::Fixed { name: INPUT, shape: vec![shape.input], tokens: 1 };
        let info = ModelInfo {
            family: "mlp",
            class: "Mlp".to_owned(),
            base_prefix: "",
            head,
            num_labels: shape.classes.unwrap_or(0),
            hidden_size: width,
            vocab_size: 0,
            num_blocks: shape.hidden.len(),
            max_positions: 1,
            causal: false,
            mixing: pleach_nn::Mixing::None,
            normalized: false,
            pad_token: None,
            reads: Reads::only(first),
            renames: &[],
        };
        let mut config =
            Self { shape: shape.clone(), info, sites: Sites::default(), tensors: vec![], layers: vec![], head: None };
        let mut input = shape.input;
        for (index, output) in shape.hidden.iter().enumerate() {
            let (path, block) = (format!("layers.{index}"), Some(index as u32));
            let fc = config.map(format!("{path}.fc"), Role::Linear, Part::Down, block, (input, *output));
            let out = config.place(format!("{path}@sublayer"), block, *output);
            config.layers.push((fc, out));
            input = *output;
        }
        config.head = shape
            .classes
            .map(|classes| config.map("classifier".to_owned(), Role::Head, Part::Other, None, (input, classes)));
        config
    }

    fn map(
        &mut self,
        path: String,
        role: Role,
        part: Part,
        block: Option<u32>,
        (input, output): (usize, usize),
    ) -> SiteId {
        let mut tensor = |part: &str, shape: Vec<usize>| {
            let name = format!("{path}.{part}");
            self.tensors.push(TensorInfo { name: name.clone(), shape, fresh: None, pieces: None });
            name
        };
        let shape = vec![output, input];
        let weight = SiteWeight { name: tensor("weight", shape.clone()), shape, layout: WeightLayout::OutIn };
        let bias = self.shape.bias.then(|| tensor("bias", vec![output]));
        let dims = Dims { input, output, heads: None };
        let weight = Some(weight);
        self.sites.push(Site { id: SiteId(0), path, role, part, block, dims, weight, bias, scale: 1.0, runs: true })
    }

    fn place(&mut self, path: String, block: Option<u32>, width: usize) -> SiteId {
        let dims = Dims { input: width, output: width, heads: None };
        let (role, part) = (Role::SublayerOut, Part::FeedForward);
        self.sites.push(Site {
            id: SiteId(0),
            path,
            role,
            part,
            block,
            dims,
            weight: None,
            bias: None,
            scale: 1.0,
            runs: true,
        })
    }

    /// The sites with weights, in order.
    fn maps(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|site| site.weight.is_some())
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

    fn build(&self, dir: &ModelDir, device: Device, _: Precision) -> Result<Box<dyn Backbone>> {
        let get = |name: &str| {
            let missing =
                || code::MODEL_MISMATCH.error(format!("tensor `{name}`: found none in {}", dir.path().display()));
            Ok(tensor_from_entry(&dir.get(name).ok_or_else(missing)?)?.to_device(device))
        };
        let mut weights = BTreeMap::new();
        for site in self.maps() {
            let weight = get(&format!("{}.weight", site.path))?;
            weights.insert(site.id, OpWeights { weight, bias: site.bias.as_deref().map(get).transpose()? });
        }
        Ok(Box::new(Mlp { config: self.clone(), weights, device }))
    }
}

impl Mlp {
    /// A model with drawn weights, of the deviation `sqrt(2 / inputs)` behind a rectifier and `sqrt(1 / inputs)` elsewhere,
    /// and biases at zero.
    #[must_use]
    pub fn draw(shape: &Shape, key: Key, device: Device) -> Self {
        let config = Config::new(shape.clone());
        let gain = if shape.act == Act::Relu { 2.0f64 } else { 1.0 };
        let draw = |site: &Site| {
            let (input, output) = (site.dims.input as i64, site.dims.output as i64);
            let std = (gain / site.dims.input.max(1) as f64).sqrt();
            let weight = normal(key.named(&site.path), &[output, input], device) * std;
            let bias = site.bias.as_ref().map(|_| Tensor::zeros([output], (Kind::Float, device)));
            (site.id, OpWeights { weight, bias })
        };
        let weights = config.maps().map(draw).collect();
        Self { config, weights, device }
    }

    /// The same model with these weights at some of its sites, such as those of a merged adapter.
    #[must_use]
    pub fn with(&self, weights: BTreeMap<SiteId, OpWeights>) -> Self {
        let mut all: BTreeMap<_, _> = self.weights.iter().map(|(id, own)| (*id, own.shallow_clone())).collect();
        all.extend(weights);
        Self { config: self.config.clone(), weights: all, device: self.device }
    }

    /// The same model with what an adapter has trained folded in.
    ///
    /// # Errors
    /// `METHOD_CONFIG` when the method cannot be merged.
    pub fn trained(&self, adapter: &pleach_methods::Adapter) -> Result<Self> {
        Ok(self.with(adapter.merge(&self.config.sites, self)?))
    }

    /// The same layers below a new head.
    #[must_use]
    pub fn with_head(&self, classes: usize, key: Key) -> Self {
        let new = Self::draw(&Shape { classes: Some(classes), ..self.config.shape.clone() }, key, self.device);
        let layers = self.config.layers.iter().filter_map(|(id, _)| Some((*id, self.weights.get(id)?.shallow_clone())));
        new.with(layers.collect())
    }

    /// The site of layer `index`'s map.
    #[must_use]
    pub fn layer(&self, index: usize) -> SiteId {
        self.config.layers[index].0
    }

    fn run(&self, cx: &Forward<'_>, site: SiteId, x: Tensor) -> Tensor {
        let frozen = &self.weights[&site];
        cx.at_one(site, x, Some(frozen), &|_, x, own| {
            let OpWeights { weight, bias } = own.unwrap_or(frozen);
            vec![x[0].linear(weight, bias.as_ref())]
        })
    }
}

impl Backbone for Mlp {
    fn config(&self) -> &dyn BackboneConfig {
        &self.config
    }

    fn weights(&self, site: SiteId) -> Option<&OpWeights> {
        self.weights.get(&site)
    }

    fn device(&self) -> Device {
        self.device
    }

    fn embed(&self, cx: &Forward<'_>, inputs: &Inputs) -> State {
        let width = self.config.shape.input as i64;
        let shape = [cx.layout.shape(), vec![width]].concat();
        let x = inputs.get(INPUT).map(|x| x.reshape(shape.as_slice()));
        let hidden = x.unwrap_or_else(|| Tensor::zeros(shape.as_slice(), (Kind::Float, self.device)));
        State { hidden, carry: Vec::new(), tables: Vec::new() }
    }

    fn block(&self, index: usize, cx: &Forward<'_>, state: State) -> State {
        let (fc, out) = self.config.layers[index];
        let mapped = self.run(cx, fc, state.hidden);
        let active = match self.config.shape.act {
            Act::None => mapped,
            Act::Relu => mapped.relu(),
            Act::Tanh => mapped.tanh(),
        };
        let residual = active.zeros_like();
        let mut hidden = cx.at(out, vec![active, residual], None, &|_, x, _| vec![x[0].g_add(&x[1])]);
        State { hidden: hidden.swap_remove(0), ..state }
    }

    fn finish(&self, _: &Forward<'_>, state: State) -> State {
        state
    }

    fn head(&self, cx: &Forward<'_>, state: &State) -> Output {
        let rows = cx.layout.pick(&state.hidden, |_| 0); // [n, d]
        let Some(head) = self.config.head else { return Output::Vectors(rows) };
        let layout = cx.layout.one_each();
        let cx = Forward { layout: &layout, ..*cx };
        Output::Classes(self.run(&cx, head, rows))
    }
}
