//! Recorded cases and small hooks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pleach_nn::{
    Backbone, BackboneConfig, BaseOp, Forward, Group, HeadKind, HeadOptions, HookSet, Inputs, Layout, ModelDir,
    Precision, SiteCx, SiteHook, SiteId, TensorFile, configure, families, tensor_from_entry, write_tiny,
};
use tch::{Device, Kind, Tensor};

pub(crate) fn case(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/parity")).join(name)
}

pub(crate) fn io(name: &str) -> BTreeMap<String, Tensor> {
    tensors(&case(name).join("io.safetensors"))
}

/// All tensors of a file.
pub(crate) fn tensors(path: &std::path::Path) -> BTreeMap<String, Tensor> {
    let file = TensorFile::open(path).unwrap();
    let names: Vec<_> = file.names().map(str::to_owned).collect();
    names.into_iter().map(|n| (n.clone(), tensor_from_entry(&file.get(&n).unwrap()).unwrap())).collect()
}

pub(crate) struct Model {
    pub(crate) config: Box<dyn BackboneConfig>,
    pub(crate) backbone: Box<dyn Backbone>,
}

pub(crate) fn model(name: &str, kind: Option<HeadKind>, precision: Precision) -> Model {
    tch::set_num_threads(1);
    let dir = ModelDir::open(&case(name).join("model")).unwrap();
    let config = configure(&dir, &HeadOptions { kind, ..HeadOptions::default() }).unwrap();
    let backbone = config.build(&dir, Device::Cpu, precision).unwrap();
    Model { config, backbone }
}

/// The tiny model of a family.
pub(crate) fn tiny(family: &str, kind: Option<HeadKind>) -> Model {
    tch::set_num_threads(1);
    let family = families().iter().find(|known| known.name() == family).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_tiny(*family, kind, folder.path(), 7).unwrap();
    open(folder.path(), &HeadOptions { kind, ..HeadOptions::default() })
}

pub(crate) fn open(folder: &std::path::Path, options: &HeadOptions) -> Model {
    let dir = ModelDir::open(folder).unwrap();
    let config = configure(&dir, options).unwrap();
    let backbone = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    Model { config, backbone }
}

/// A batch in both layouts: the same sequences, padded with junk and packed.
pub(crate) struct Batch {
    pub(crate) padded: (Layout, Inputs),
    pub(crate) packed: (Layout, Inputs),
}

pub(crate) fn batch(lengths: &[usize]) -> Batch {
    let width = *lengths.iter().max().unwrap();
    let samples: Vec<u64> = (0..lengths.len() as u64).map(|i| 100 + i).collect();
    let token = |row: usize, at: usize| ((row * 37 + at * 11 + 5) % 250) as i64 + 1;
    let mut rows = Vec::new();
    let mut tokens = Vec::new();
    for (row, length) in lengths.iter().enumerate() {
        rows.extend((0..width).map(|at| if at < *length { token(row, at) } else { 7 }));
        tokens.extend((0..*length).map(|at| token(row, at)));
    }
    let shape = [lengths.len() as i64, width as i64];
    let padded = Layout::padded(lengths.to_vec(), width, samples.clone(), Device::Cpu);
    let packed = Layout::packed(lengths.to_vec(), samples, Device::Cpu);
    Batch {
        padded: (padded, Inputs::ids(Tensor::from_slice(&rows).reshape(shape))),
        packed: (packed, Inputs::ids(Tensor::from_slice(&tokens))),
    }
}

pub(crate) fn run(model: &Model, (layout, inputs): &(Layout, Inputs), groups: &[Group<'_>]) -> Tensor {
    let cx = Forward::eval(model.config.sites(), layout, groups);
    model.backbone.forward(&cx, inputs).tensor().shallow_clone()
}

/// The rows of real tokens, in order, whatever the layout.
pub(crate) fn real(layout: &Layout, tokens: &Tensor) -> Tensor {
    let flat = if tokens.dim() == 3 { tokens.flatten(0, 1) } else { tokens.shallow_clone() };
    let rows: Vec<i64> = (0..layout.sequences()).flat_map(|i| layout.token_range(i)).map(|t| t as i64).collect();
    flat.index_select(0, &Tensor::from_slice(&rows))
}

pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[track_caller]
pub(crate) fn assert_near(a: &Tensor, b: &Tensor, most: f64) {
    let found = distance(a, b);
    assert!(found <= most, "off by {found:e}, at most {most:e} allowed");
}

/// Hooks at a few sites.
#[derive(Default)]
pub(crate) struct Hooks(pub(crate) BTreeMap<SiteId, Box<dyn SiteHook>>);

impl Hooks {
    pub(crate) fn with(mut self, site: SiteId, hook: impl SiteHook + 'static) -> Self {
        self.0.insert(site, Box::new(hook));
        self
    }
}

impl HookSet for Hooks {
    fn at(&self, site: SiteId) -> Option<&dyn SiteHook> {
        self.0.get(&site).map(|hook| hook.as_ref())
    }
}

/// `y + x V` with a matrix of its own: the simplest additive method.
pub(crate) struct Additive(pub(crate) Tensor);

impl SiteHook for Additive {
    fn after(&self, _: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        vec![&y[0] + x[0].matmul(&self.0)]
    }
}

/// Keys and values in front of every sequence.
pub(crate) struct Prefix {
    pub(crate) key: Tensor,   // [p, kv heads, d]
    pub(crate) value: Tensor, // [p, kv heads, d]
}

impl SiteHook for Prefix {
    fn shares_base(&self) -> bool {
        false
    }

    fn around(&self, cx: &SiteCx<'_>, x: Vec<Tensor>, base: &BaseOp<'_>) -> Vec<Tensor> {
        let front = |own: &Tensor, prefix: &Tensor| {
            if own.dim() == 4 {
                let n = own.size()[0];
                let prefix = prefix.unsqueeze(0).expand([n, -1, -1, -1], false);
                return Tensor::cat(&[&prefix, own], 1);
            }
            let parts: Vec<_> = (0..cx.keys.sequences())
                .flat_map(|i| [prefix.shallow_clone(), cx.keys.narrow(own, i..i + 1)])
                .collect();
            Tensor::cat(&parts, 0)
        };
        base.run(&[x[0].shallow_clone(), front(&x[1], &self.key), front(&x[2], &self.value)])
    }
}

/// Raises the weights of attention to a power and normalises them again; 1 changes nothing.
pub(crate) struct Sharpen(pub(crate) f64);

impl SiteHook for Sharpen {
    fn after(&self, cx: &SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        assert_eq!(x[0].size(), y[0].size());
        assert_eq!(x[0].size()[0] as usize, cx.layout.sequences());
        let raised = y[0].pow_tensor_scalar(self.0);
        vec![&raised / raised.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)]
    }
}
