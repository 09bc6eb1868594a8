//! Recorded cases, adapters, batches.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_methods::{Adapter, AdapterConfig, MethodKind, Modalities, Room, find, import};
use pleach_nn::{
    Backbone, BackboneConfig, Forward, Group, HeadOptions, Inputs, Layout, ModelDir, Output, Precision, Reads, Segment,
    Source, TensorFile, configure, tensor_from_entry,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

pub(crate) fn case(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/parity")).join(name)
}

pub(crate) fn tensors(path: &std::path::Path) -> BTreeMap<String, Tensor> {
    let file = TensorFile::open(path).unwrap();
    let names: Vec<_> = file.names().map(str::to_owned).collect();
    names.into_iter().map(|n| (n.clone(), tensor_from_entry(&file.get(&n).unwrap()).unwrap())).collect()
}

pub(crate) struct Model {
    pub(crate) config: Box<dyn BackboneConfig>,
    pub(crate) backbone: Box<dyn Backbone>,
}

pub(crate) fn model(name: &str, precision: Precision) -> Model {
    model_at(&case(name).join("model"), precision)
}

pub(crate) fn model_at(folder: &std::path::Path, precision: Precision) -> Model {
    tch::set_num_threads(1);
    let dir = ModelDir::open(folder).unwrap();
    let config = configure(&dir, &HeadOptions::default()).unwrap();
    let backbone = config.build(&dir, Device::Cpu, precision).unwrap();
    Model { config, backbone }
}

impl Model {
    pub(crate) fn run(&self, batch: &Batch, groups: &[Group<'_>]) -> Tensor {
        self.run_at(batch, groups, false, 0)
    }

    pub(crate) fn run_at(&self, batch: &Batch, groups: &[Group<'_>], train: bool, step: u64) -> Tensor {
        let cx = Forward::eval(self.config.sites(), &batch.layout, groups).beside(batch.second.as_ref());
        match self.backbone.forward(&Forward { train, step, ..cx }, &batch.inputs) {
            // Row by row, where similarities would couple the batch; products, as vectors of length one have a constant
            // sum of squares. Large enough to be seen.
            Output::Pair(pair) => pair.text * pair.image * 30.0,
            output => output.tensor().shallow_clone(),
        }
    }
}

pub(crate) struct Batch {
    pub(crate) layout: Layout,
    pub(crate) second: Option<Layout>,
    pub(crate) inputs: Inputs,
    pub(crate) reads: Reads,
}

impl Batch {
    /// A recorded batch, padded: whatever the model reads, a decoder's input from its labels.
    pub(crate) fn recorded(model: &Model, io: &BTreeMap<String, Tensor>, part: &str) -> Self {
        let of = |name: &str| io.get(&format!("{part}.{name}"));
        let reads = model.config.info().reads.clone();
        let mut inputs = Inputs::default();
        let mut read = |source: &Source| {
            let shift = reads.shift.filter(|_| source.name() == "decoder_input_ids");
            let tensor = of(if shift.is_some() { "labels" } else { source.name() }).unwrap();
            let rows = tensor.size()[0] as usize;
            let samples: Vec<u64> = (0..rows as u64).collect();
            let layout = source.layout(samples.clone(), false, Device::Cpu).unwrap_or_else(|| {
                let width = tensor.size()[1] as usize;
                let mask = of("attention_mask").filter(|_| shift.is_none());
                let lengths = mask.map_or(vec![width as i64; rows], |mask| {
                    mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).try_into().unwrap()
                });
                Layout::padded(lengths.into_iter().map(|n| n as usize).collect(), width, samples, Device::Cpu)
            });
            let tensor = shift.map_or_else(|| tensor.shallow_clone(), |shift| shift.shift_right(tensor, &layout));
            inputs.0.insert(source.name().to_owned(), tensor);
            layout
        };
        let layout = read(&reads.first);
        // A decoder without labels of its own reads what the encoder reads.
        let decodes = of("labels").is_some_and(|labels| labels.dim() == 2);
        let second = reads.second.as_ref().filter(|source| source.fixed_tokens().is_some() || decodes);
        let second = second.map(&mut read);
        Self { layout, second, inputs, reads }
    }

    /// A padded batch from ids and mask, samples numbered from 0.
    pub(crate) fn padded(ids: &Tensor, mask: &Tensor) -> Self {
        let lengths: Vec<i64> = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).try_into().unwrap();
        let lengths: Vec<usize> = lengths.into_iter().map(|n| n as usize).collect();
        let samples = (0..lengths.len() as u64).collect();
        let layout = Layout::padded(lengths, mask.size()[1] as usize, samples, Device::Cpu);
        Self::text(layout, ids.shallow_clone())
    }

    /// Sequences of these lengths, padded to `width` or packed; tokens depend on sample and position alone, the second
    /// is 0 in all.
    pub(crate) fn of(lengths: &[usize], samples: &[u64], width: Option<usize>) -> Self {
        let token = |sample: u64, at: usize| match at {
            1 => 0,
            _ => ((sample as usize * 37 + at * 11 + 5) % 250) as i64 + 1,
        };
        let ids = lengths.iter().zip(samples).flat_map(|(length, sample)| {
            (0..width.unwrap_or(*length)).map(move |at| if at < *length { token(*sample, at) } else { 3 })
        });
        let ids: Vec<i64> = ids.collect();
        let ids = Tensor::from_slice(&ids);
        let (lengths, samples) = (lengths.to_vec(), samples.to_vec());
        match width {
            Some(width) => {
                let ids = ids.reshape([lengths.len() as i64, width as i64]);
                Self::text(Layout::padded(lengths, width, samples, Device::Cpu), ids)
            }
            None => Self::text(Layout::packed(lengths, samples, Device::Cpu), ids),
        }
    }

    fn text(layout: Layout, ids: Tensor) -> Self {
        Self { layout, second: None, inputs: Inputs::ids(ids), reads: Reads::TEXT }
    }

    /// The same batch with room for an adapter's virtual tokens.
    pub(crate) fn room(&self, config: &dyn AdapterConfig) -> Self {
        let tokens = config.virtual_tokens();
        let first = Room::same(&self.layout, tokens.in_first(self.second.is_some()));
        let inputs = first.inputs(&self.inputs, &[self.reads.first.name()]);
        let second = self.second.as_ref().map(|second| Room::same(second, tokens.in_second()).into_layout());
        Self { inputs, layout: first.into_layout(), second, reads: self.reads.clone() }.told(config)
    }

    /// The same with what the adapter wants to know of tokens: two rows are one document each, and one item of each
    /// modality lies behind the second token of each row.
    fn told(mut self, config: &dyn AdapterConfig) -> Self {
        if config.segments().is_some() {
            let segment = |row: usize| Segment { index: row % 2, sees: row % 2 };
            let segments = (0..self.layout.sequences()).map(segment).collect();
            self.layout = self.layout.segmented(segments);
        }
        let Some(Modalities { tokens, width }) = config.modalities() else { return self };
        let mut shape = self.layout.shape();
        let cells = shape.iter().product::<i64>() as usize;
        let (mut numbers, mut features) = (vec![0i64; cells], vec![0f32; cells * width]);
        for (sequence, sample) in self.layout.samples().iter().enumerate() {
            let mut at = self.layout.token_range(sequence).start + 2;
            for (number, each) in tokens.iter().enumerate().skip(1) {
                for token in at..at + each {
                    numbers[token] = number as i64;
                    let feature = |i: usize| (0.7 * (*sample as usize + token - at + i * 3) as f32).sin();
                    (0..width).for_each(|i| features[token * width + i] = feature(i));
                }
                at += each;
            }
        }
        self.layout = self.layout.with_modality(Some(Tensor::from_slice(&numbers).reshape(&shape)));
        shape.push(width as i64);
        self.inputs = self.inputs.with("features", Tensor::from_slice(&features).reshape(&shape));
        self
    }

    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        let cut = |(name, tensor): (&String, &Tensor)| {
            let of = |source: &Source| source.name() == name.as_str();
            let part = match (self.reads.sources().find(|source| of(source)), &self.second) {
                (Some(Source::Fixed { .. }), _) => tensor.narrow(0, rows.start as i64, rows.len() as i64),
                (_, Some(second)) if !of(&self.reads.first) => second.narrow(tensor, rows.clone()),
                _ => self.layout.narrow(tensor, rows.clone()),
            };
            (name.clone(), part)
        };
        Self {
            inputs: Inputs(self.inputs.0.iter().map(cut).collect()),
            layout: self.layout.rows(rows.clone()),
            second: self.second.as_ref().map(|second| second.rows(rows.clone())),
            reads: self.reads.clone(),
        }
    }

    /// The rows of real tokens (those of the decoder, where there is one), in order; one row a sequence as it is.
    pub(crate) fn real(&self, output: &Tensor) -> Tensor {
        let layout = self.second.as_ref().filter(|_| self.reads.shift.is_some()).unwrap_or(&self.layout);
        let per_token = output.size()[..output.dim() - 1] == layout.shape();
        if !per_token {
            return output.shallow_clone();
        }
        let flat = if output.dim() == 3 { output.flatten(0, 1) } else { output.shallow_clone() };
        let rows = (0..layout.sequences()).flat_map(|i| layout.token_range(i)).map(|t| t as i64);
        flat.index_select(0, &Tensor::from_slice(&rows.collect::<Vec<_>>()))
    }
}

pub(crate) fn parse(method: &str, options: &Value) -> Arc<dyn AdapterConfig> {
    let method = find(MethodKind::Adapter, method).unwrap();
    method.parse(options.as_object().unwrap(), "adapter").unwrap().into()
}

pub(crate) fn fresh(model: &Model, config: &Arc<dyn AdapterConfig>, key: Key) -> Adapter {
    let plan = Arc::new(config.plan(&*model.config).unwrap());
    Adapter::build(Arc::clone(config), plan, &*model.backbone, key, None).unwrap()
}

/// The adapter moved off its beginning, so that nothing is zero.
pub(crate) fn moved(model: &Model, config: &Arc<dyn AdapterConfig>, seed: u64) -> Adapter {
    let adapter = fresh(model, config, Key::seed(seed));
    let mut rng = Key::seed(seed).named("moved").rng();
    let noise: Vec<f32> = (0..adapter.params().numel()).map(|_| 0.05 * rng.normal()).collect();
    adapter.params().unflatten(&(adapter.params().flatten() + Tensor::from_slice(&noise))).unwrap();
    adapter
}

pub(crate) fn imported(model: &Model, folder: &std::path::Path) -> Adapter {
    let imported = import(folder).unwrap();
    let plan = Arc::new(imported.config.plan(&*model.config).unwrap());
    imported.check(&plan).unwrap();
    let values = imported.values().unwrap();
    Adapter::build(Arc::clone(&imported.config), plan, &*model.backbone, Key::seed(0), Some(&values)).unwrap()
}

pub(crate) fn all<'a>(batch: &Batch, adapter: &'a Adapter) -> [Group<'a>; 1] {
    [Group { rows: 0..batch.layout.sequences(), hooks: adapter }]
}

pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    if a.numel() == 0 {
        return 0.0;
    }
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[track_caller]
pub(crate) fn assert_near(a: &Tensor, b: &Tensor, most: f64) {
    let found = distance(a, b);
    assert!(found <= most, "off by {found:e}, at most {most:e} allowed");
}
