//! Scores of a model with an adapter on labelled rows.

use std::sync::Arc;

use pleach_base::{Result, SystemClock, code};
use pleach_methods::Adapter;
use pleach_nn::{Backbone, NoHooks};
use pleach_train::loss::IGNORE;
use pleach_train::{Engine, Mode, Objective, Silent, forward};
use tch::{Kind, Reduction, Tensor};

use super::data::Data;
use super::train::{Recipe, objective, task};

/// Rows that go through the model at once.
const ROWS: usize = 256;

/// What the model gives for every row with an adapter, the adapter's virtual tokens in front.
///
/// # Errors
/// Those of the engine.
pub fn outputs(model: &dyn Backbone, adapter: &Adapter, data: &Data) -> Result<Tensor> {
    let group = pleach_comm::local(model.device());
    let mut engine = Engine::new(model, group.as_ref(), Arc::new(Silent), SystemClock::shared());
    engine.add_task(Recipe::new(1, 1, 0.0).setup(adapter.alias()?, objective(model)))?;
    chunked(model, data, |input| Ok(engine.output(&task(), input)?.tensor().shallow_clone()))
}

/// What the bare model gives for every row.
///
/// # Errors
/// `INTERNAL` for a model with two inputs.
pub fn bare(model: &dyn Backbone, data: &Data) -> Result<Tensor> {
    chunked(model, data, |input| {
        Ok(tch::no_grad(|| forward(model, &NoHooks, &input, Mode::EVAL).tensor().shallow_clone()))
    })
}

fn chunked(
    model: &dyn Backbone,
    data: &Data,
    run: impl Fn(pleach_train::PassInput) -> Result<Tensor>,
) -> Result<Tensor> {
    let reads = &model.config().info().reads;
    let rows: Vec<i64> = (0..data.len() as i64).collect();
    let parts: Result<Vec<_>> = rows.chunks(ROWS).map(|rows| run(data.batch(reads, rows)?.0)).collect();
    Ok(Tensor::cat(&parts?, 0))
}

/// Labels that `logits` put first, in per cent of those that count: one a row, or one a token. For a causal model the
/// labels are the tokens themselves, each predicted by those before it.
///
/// # Errors
/// `INTERNAL` when there are no labels.
pub fn accuracy(model: &dyn Backbone, adapter: &Adapter, data: &Data) -> Result<f64> {
    let (logits, labels) = aligned(objective(model), outputs(model, adapter, data)?, &data.y);
    let counted = labels.not_equal(IGNORE);
    let right = logits.argmax(-1, false).eq_tensor(&labels).logical_and(&counted);
    let number = |flags: &Tensor| flags.sum(Kind::Int64).int64_value(&[]) as f64;
    match number(&counted) {
        0.0 => Err(code::INTERNAL.error("there are no labels to be right about")),
        count => Ok(100.0 * number(&right) / count),
    }
}

/// The mean loss over what it counts: labels, or numbers of vectors.
///
/// # Errors
/// Those of the engine.
pub fn loss(model: &dyn Backbone, adapter: &Adapter, data: &Data) -> Result<f64> {
    let objective = objective(model);
    let found = outputs(model, adapter, data)?;
    if objective == Objective::Regression {
        return Ok((found - &data.y).square().mean(Kind::Double).double_value(&[]));
    }
    let (logits, labels) = aligned(objective, found, &data.y);
    let classes = logits.size().last().copied().unwrap_or(1);
    let logits = logits.reshape([-1, classes]).to_kind(Kind::Float);
    let mean = logits.cross_entropy_loss::<Tensor>(&labels.reshape([-1]), None, Reduction::Mean, IGNORE, 0.0);
    Ok(mean.double_value(&[]))
}

/// Predictions beside what they predict.
fn aligned(objective: Objective, logits: Tensor, labels: &Tensor) -> (Tensor, Tensor) {
    if objective != Objective::CausalLm {
        return (logits, labels.shallow_clone());
    }
    let width = labels.size()[1];
    // Behind an adapter's prompt the rows are longer: their last `width` predictions are the tokens'.
    let front = logits.size()[1] - width;
    (logits.narrow(1, front, width - 1), labels.narrow(1, 1, width - 1))
}
