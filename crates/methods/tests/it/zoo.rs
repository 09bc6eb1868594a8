//! Every method on every family: tiny models with drawn weights, and batches of whatever they read.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pleach_methods::{AdapterConfig, Method, MethodKind, methods};
use pleach_nn::{Family, HeadOptions, Inputs, Layout, ModelDir, Precision, Source, configure, families, write_tiny};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{Batch, Model};

/// A method on a family that it can work on.
pub(crate) struct Pair<'a> {
    pub(crate) method: &'static dyn Method,
    pub(crate) model: &'a Model,
}

/// The adapter methods of the registry, and routers, which are adapters too once they have experts.
pub(crate) fn adapters() -> impl Iterator<Item = &'static dyn Method> {
    methods().filter(|method| matches!(method.card().kind, MethodKind::Adapter | MethodKind::Router))
}

/// The method with its example options.
pub(crate) fn example(method: &dyn Method) -> Arc<dyn AdapterConfig> {
    let options: Value = serde_json::from_str(method.example()).unwrap();
    method.parse(options.as_object().unwrap(), "adapter").unwrap().into()
}

/// A tiny model of the family.
pub(crate) fn backbone(family: &dyn Family) -> Model {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    write_tiny(family, None, folder.path(), 7).unwrap();
    let dir = ModelDir::open(folder.path()).unwrap();
    let config = configure(&dir, &HeadOptions::default()).unwrap();
    let backbone = config.build(&dir, Device::Cpu, Precision::Fp32).unwrap();
    Model { config, backbone }
}

/// Runs a test on every pair that plans, and tells of all that fail.
pub(crate) fn each(test: impl Fn(&Pair<'_>)) {
    let mut failed = Vec::new();
    for family in families() {
        let model = backbone(*family);
        for method in adapters().filter(|method| example(*method).plan(&*model.config).is_ok()) {
            let pair = Pair { method, model: &model };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&pair))) {
                failed.push(format!("{} on {}: {}", method.card().name, family.name(), reason(panic.as_ref())));
            }
        }
    }
    assert!(failed.is_empty(), "{} pairs fail:\n{}", failed.len(), failed.join("\n"));
}

fn reason(panic: &dyn Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

impl Model {
    /// Sequences of these lengths, padded to `width` or packed, as this model reads them. Values depend on sample and
    /// position alone; samples are numbered from 11.
    pub(crate) fn batch(&self, lengths: &[usize], width: Option<usize>) -> Batch {
        let samples: Vec<u64> = (11..11 + lengths.len() as u64).collect();
        let reads = self.config.info().reads.clone();
        let (layout, first) = self.read(&reads.first, lengths, &samples, width);
        let mut inputs = Inputs::default().with(reads.first.name(), first);
        let mut second = None;
        if let Some(source) = &reads.second {
            let lengths: Vec<_> = lengths.iter().map(|length| length / 2 + 2).collect();
            let (layout, tensor) = self.read(source, &lengths, &samples, width.map(|width| width / 2 + 3));
            inputs = inputs.with(source.name(), tensor);
            second = Some(layout);
        }
        Batch { layout, second, inputs, reads }
    }

    fn read(&self, source: &Source, lengths: &[usize], samples: &[u64], width: Option<usize>) -> (Layout, Tensor) {
        if let Source::Fixed { shape, .. } = source {
            let layout = source.layout(samples.to_vec(), width.is_none(), Device::Cpu).unwrap();
            let size: i64 = shape.iter().product::<usize>() as i64;
            let rows: Vec<_> = samples
                .iter()
                .map(|sample| (Tensor::arange(size, (Kind::Float, Device::Cpu)) * (0.37 + *sample as f64 * 0.01)).sin())
                .collect();
            let mut full = vec![samples.len() as i64];
            full.extend(shape.iter().map(|n| *n as i64));
            return (layout, Tensor::stack(&rows, 0).reshape(full));
        }
        let batch = Batch::of(lengths, samples, width);
        let ids = batch.inputs.get("input_ids").unwrap().shallow_clone();
        // A text tower pools at the token with the largest id, which ends a text.
        let last = Tensor::from_slice(
            &(0..lengths.len()).map(|i| batch.layout.token_range(i).end as i64 - 1).collect::<Vec<_>>(),
        );
        let end = self.config.info().vocab_size as i64 - 1;
        let ids = ids.reshape([-1]).index_fill(0, &last, end).reshape(ids.size());
        (batch.layout, ids)
    }
}
