//! Collects sites and tensors while a family describes itself.

use indexmap::IndexMap;

use crate::backbone::{Init, Pieces, TensorInfo};
use crate::site::{Dims, Heads, Part, Role, Site, SiteId, SiteWeight, Sites, WeightLayout};

/// Sites and tensors so far.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    sites: Sites,
    tensors: IndexMap<String, TensorInfo>,
    block: Option<u32>,
    idle: bool,
    fresh: Option<Init>,
}

/// A module with a weight.
pub(crate) struct Module<'a> {
    pub(crate) path: String,
    pub(crate) role: Role,
    pub(crate) part: Part,
    pub(crate) dims: Dims,
    pub(crate) layout: WeightLayout,
    /// The tensor of the weight where that is not `path.weight`, such as the one it is tied to.
    pub(crate) weight: Option<&'a str>,
    pub(crate) bias: bool,
    /// The tensor of the bias where that is not `path.bias`.
    pub(crate) bias_name: Option<&'a str>,
    /// How many such weights lie one behind the other in one tensor, and how files may hold them.
    pub(crate) stacked: Option<(usize, Pieces)>,
}

impl Module<'_> {
    /// A module with a weight of its own and no bias.
    pub(crate) fn new(path: impl Into<String>, role: Role, part: Part, dims: Dims, layout: WeightLayout) -> Self {
        Self { path: path.into(), role, part, dims, layout, weight: None, bias: false, bias_name: None, stacked: None }
    }
}

impl Builder {
    /// What follows belongs to this block.
    pub(crate) fn enter(&mut self, block: Option<u32>) {
        self.block = block;
    }

    /// From now on modules exist but are never run, or are; returns what was so before.
    pub(crate) fn set_idle(&mut self, idle: bool) -> bool {
        std::mem::replace(&mut self.idle, idle)
    }

    /// Weights that `describe` adds may be missing from the files and then begin like this, biases at zero.
    pub(crate) fn fresh<T>(&mut self, init: Init, describe: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.fresh.replace(init);
        let result = describe(self);
        self.fresh = before;
        result
    }

    /// A module with a weight, its tensors and its site.
    pub(crate) fn module(&mut self, module: Module<'_>) -> SiteId {
        self.windowed(module, &[])
    }

    /// A module whose weight has more axes: the window of a convolution.
    pub(crate) fn windowed(&mut self, module: Module<'_>, window: &[usize]) -> SiteId {
        let Module { path, role, part, dims, layout, weight, bias, bias_name, stacked } = module;
        let mut shape = match layout {
            WeightLayout::OutIn => vec![dims.output, dims.input],
            WeightLayout::InOut => vec![dims.input, dims.output],
            WeightLayout::Plain if role == Role::Embed => vec![dims.input, dims.output],
            WeightLayout::Plain => vec![dims.output],
            WeightLayout::Conv => [vec![dims.output, dims.input], window.to_vec()].concat(),
        };
        let (count, pieces) = stacked.unzip();
        shape.splice(0..0, count);
        let name = weight.map_or_else(|| format!("{path}.weight"), str::to_owned);
        let bias = bias.then(|| bias_name.map_or_else(|| format!("{path}.bias"), str::to_owned));
        self.tensor(&name, shape.clone(), self.fresh, pieces);
        if let Some(bias) = &bias {
            self.tensor(bias, vec![dims.output], self.fresh.map(|_| Init::Zeros), None);
        }
        self.push(path, role, part, dims, Some(SiteWeight { name, shape, layout }), bias)
    }

    /// A place without a weight of its own.
    pub(crate) fn place(&mut self, path: String, role: Role, part: Part, dims: Dims) -> SiteId {
        self.push(path, role, part, dims, None, None)
    }

    fn push(
        &mut self,
        path: String,
        role: Role,
        part: Part,
        dims: Dims,
        weight: Option<SiteWeight>,
        bias: Option<String>,
    ) -> SiteId {
        let (block, runs) = (self.block, !self.idle);
        self.sites.push(Site { id: SiteId(0), path, role, part, block, dims, weight, bias, scale: 1.0, runs })
    }

    /// Says that the module at a site multiplies its rows.
    pub(crate) fn scale(&mut self, site: SiteId, by: f64) {
        self.sites.scale(site, by);
    }

    /// A tensor that is no module's weight.
    pub(crate) fn parameter(&mut self, name: &str, shape: &[usize]) {
        self.tensor(name, shape.to_vec(), self.fresh, None);
    }

    fn tensor(&mut self, name: &str, shape: Vec<usize>, fresh: Option<Init>, pieces: Option<Pieces>) {
        let info = TensorInfo { name: name.to_owned(), shape, fresh, pieces };
        self.tensors.entry(name.to_owned()).or_insert(info);
    }

    pub(crate) fn finish(self) -> (Sites, Vec<TensorInfo>) {
        (self.sites, self.tensors.into_values().collect())
    }
}

/// Sizes of a place that keeps the width.
pub(crate) fn same(width: usize) -> Dims {
    Dims { input: width, output: width, heads: None }
}

/// Sizes of a place within attention.
pub(crate) fn heads(heads: Heads) -> Dims {
    Dims { input: heads.kv * heads.dim, output: heads.query * heads.dim, heads: Some(heads) }
}
