//! Whether an adapter's files give the adapter: they are read back as anyone would read them, and both run on the same
//! probe.

use std::path::Path;
use std::sync::Arc;

use pleach_base::rng::Key;
use pleach_base::{Result, ResultExt as _, code};
use pleach_methods::{Adapter, import};
use pleach_nn::{Backbone, Inputs, Layout, Source};
use pleach_store::{ADAPTER_CONFIG, ADAPTER_MODEL, SnapshotFile};
use tch::{Device, Kind, Tensor};

use super::front::with_virtual;
use super::pass::{Mode, PassInput, forward};

/// Lengths of the probe's sequences.
const LENGTHS: [usize; 2] = [5, 3];

/// How far outputs may be apart, relative to the largest. Files that hold the tensors themselves give the same bits; those
/// that hold other ones with the same product do not.
fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 1e-4 } else { 3e-2 }
}

/// What is wrong with `files`, the state of `adapter`; `None` when they give the same outputs.
///
/// # Errors
/// `IO` when there is no place for temporary files.
pub(super) fn fault(adapter: &Adapter, model: &dyn Backbone, files: &[SnapshotFile]) -> Result<Option<String>> {
    let folder = tempfile::tempdir().or_code(code::IO, || "no place for temporary files".to_owned())?;
    for file in files.iter().filter(|file| [ADAPTER_CONFIG, ADAPTER_MODEL].contains(&file.name.as_str())) {
        let path = folder.path().join(&file.name);
        std::fs::write(&path, &file.bytes).or_code(code::IO, || format!("{}: cannot be written", path.display()))?;
    }
    let again = match read(folder.path(), model) {
        Ok(again) => again,
        Err(error) => {
            // The folder's name is another each time, and the manifest is to be the same.
            let place = format!("{}: ", folder.path().display());
            let why = error.message().replace(&place, "").replace(&format!("{}/", folder.path().display()), "");
            return Ok(Some(format!("its files cannot be read back: {why}")));
        }
    };
    let mut probe = probe(model);
    // What is saved may be what one of the tasks of rows is left with.
    if let (Some(tasks), Some(_)) = (adapter.config().row_tasks(), again.config().row_tasks()) {
        let named: Vec<u32> = (0..probe.layout.sequences() as u32).map(|row| row % tasks.count.max(1)).collect();
        probe.second = probe.second.map(|second| second.of_tasks(named.clone()));
        probe.layout = probe.layout.of_tasks(named);
    }
    let input = with_virtual(probe, adapter.config().virtual_tokens(), &model.config().info().reads);
    let run = |adapter: &Adapter| tch::no_grad(|| forward(model, adapter, &input, Mode::EVAL).tensor().detach());
    let (before, after) = (run(adapter), run(&again));
    let largest = |tensor: &Tensor| tensor.abs().max().to_kind(Kind::Double).double_value(&[]);
    let apart = largest(&(&before - &after));
    let allowed = tolerance(before.kind()) * largest(&before).max(1e-3);
    // Not "greater": what is not a number is not near anything.
    let near = apart <= allowed;
    Ok((!near).then(|| format!("read back, its outputs are off by {apart:.1e}")))
}

fn read(folder: &Path, model: &dyn Backbone) -> Result<Adapter> {
    let imported = import(folder)?;
    let plan = Arc::new(imported.config.plan(model.config())?);
    imported.check(&plan)?;
    let values = imported.values()?;
    // Another key than the task's: whoever reads the files does not know that one.
    Adapter::build(Arc::clone(&imported.config), plan, model, Key::seed(0), Some(&values))
}

/// Two samples that the model can read: any will do, since both adapters get the same.
fn probe(model: &dyn Backbone) -> PassInput {
    let reads = &model.config().info().reads;
    let mut inputs = Inputs::default();
    let layout = add(&mut inputs, &reads.first, model);
    let second = reads.second.as_ref().map(|source| add(&mut inputs, source, model));
    PassInput { inputs, layout, second }
}

fn add(inputs: &mut Inputs, source: &Source, model: &dyn Backbone) -> Layout {
    let samples = vec![0, 1];
    let (value, layout) = match source {
        Source::Tokens { .. } => {
            let others = model.config().info().vocab_size.saturating_sub(1).max(1);
            let tokens: usize = LENGTHS.iter().sum();
            let ids: Vec<i64> = (0..tokens).map(|at| (1 + (at * 37 + 11) % others) as i64).collect();
            (Tensor::from_slice(&ids), Layout::packed(LENGTHS.to_vec(), samples, model.device()))
        }
        Source::Fixed { shape, tokens, .. } => {
            let shape: Vec<i64> = std::iter::once(2).chain(shape.iter().map(|n| *n as i64)).collect();
            let count: i64 = shape.iter().product();
            let value = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin().view(shape.as_slice());
            (value, Layout::packed(vec![*tokens; 2], samples, model.device()))
        }
    };
    inputs.0.insert(source.name().to_owned(), value.to_device(model.device()));
    layout
}
