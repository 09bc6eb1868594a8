//! Page 6, Generative Adapter: one adapted map over segments of documents, and whole models of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::{Forward, Group, Inputs, Layout, Segment};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::model::Model;
use super::recording::{Recording, bad, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::adapter::generative::state::{Generator, Sum, feeding};
use crate::adapter::generative::{Config, Goal};
use crate::adapter::{Adapter, AdapterConfig as _, Options as _};
use crate::options::typed;

pub(super) const PAGE: Page = Page { number: 6, tolerances: &[], repeat };

/// The options of the case that are not the method's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    model: Option<Map<String, Value>>,
}

const AROUND: &[&str] = &["model"];
/// Parts of a generator, as the recording names them and in the order of [`Config::generator`].
const PARTS: [&str; 5] = ["A1", "A2", "A3", "B", "norm"];

fn repeat(recording: &Recording, _: &dyn Train, compared: &mut Compared) -> Result<()> {
    let (around, rest): (Around, Map<String, Value>) = recording.split(AROUND)?;
    let config: Config = typed(&rest, "config", &[])?;
    config.validate()?;
    if config.dropout > 0.0 {
        return Err(wrong("config.dropout: what was dropped is not recorded"));
    }
    // Without `tasks` the release's default mode was recorded: every segment knows of those before it.
    let windows = rest.contains_key("tasks") && config.wants(Goal::Reconstruction);
    match (recording.kind.as_str(), around.model) {
        ("module", None) => module(recording, &config, windows, compared)?,
        ("model", Some(model)) => whole(recording, config, model, windows, compared)?,
        ("model", None) => return Err(wrong("config.model is missing")),
        (other, _) => return Err(wrong(format!("kind: page 6 has no {other} like this"))),
    }
    compared.check_used(recording);
    Ok(())
}

/// `[documents, segments]` of a recording.
fn axes(tensor: &Tensor) -> Result<[i64; 2]> {
    match tensor.size()[..] {
        [documents, segments, ..] => Ok([documents, segments]),
        _ => Err(bad("there is no axis of segments")),
    }
}

/// The segments of every document; with windows the second half are those, window `i` of the first `i + 1` chunks.
fn segments([documents, each]: [i64; 2], windows: bool) -> Result<Vec<Segment>> {
    let (each, chunks) = (each as usize, (each / 2) as usize);
    if windows && each % 2 != 0 {
        return Err(bad("segments are not as many windows as chunks"));
    }
    let sees = |index: usize| if windows && index >= chunks { index + 1 - chunks } else { index };
    let one = (0..each).map(|index| Segment { index, sees: sees(index) });
    Ok((0..documents).flat_map(|_| one.clone()).collect())
}

/// One target by itself, in the precision of the recording.
fn module(recording: &Recording, config: &Config, windows: bool, compared: &mut Compared) -> Result<()> {
    let leaves: Vec<Tensor> =
        PARTS.iter().map(|part| recording.leaf(&format!("param.{part}"))).collect::<Result<_>>()?;
    let parts = <[Tensor; 5]>::try_from(leaves.iter().map(Tensor::shallow_clone).collect::<Vec<_>>());
    let generator = config.generator(parts.map_err(|_| bad("a generator has five tensors"))?);
    let (x, hidden) = (recording.leaf("input.x")?, recording.leaf("input.hidden")?);
    let (mask, w0) = (recording.get("input.mask")?, recording.get("frozen.W0")?);
    let shape = axes(&x)?;
    let list = segments(shape, windows)?;
    let chunks = generator.chunk(&hidden, Some(&mask)); // [b, s, q, r]
    let states = chunks.flatten(0, 1).unbind(0);
    let needed = feeding(&list).into_iter().map(|i| (i, states[i].shallow_clone())).collect();
    let maps = generator.maps(&list, &needed, None, (true, Key::seed(0)));
    let map = match maps {
        Some(maps) => maps.table.index_select(0, &Tensor::from_slice(&maps.index)),
        None => chunks.flatten(0, 1).zeros_like(),
    };
    let added = generator.added(&x.flatten(0, 1), &map).unflatten(0, shape);
    let output = x.linear::<Tensor>(&w0, None) + added;
    (&output * recording.get("input.cotangent")?).sum(output.kind()).backward();
    compared.if_recorded("chunk_state", || Ok(chunks.detach()))?;
    compared.if_recorded("S_hat", || Ok(map.unflatten(0, shape)))?;
    compared.tensor("output", &output)?;
    for (name, leaf) in PARTS.iter().zip(&leaves).chain([(&"x", &x), (&"hidden", &hidden)]) {
        compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
    }
    let _no_grad = tch::no_grad_guard();
    let read = if windows { shape[1] / 2 } else { shape[1] };
    written(recording, &generator, (&chunks.narrow(1, 0, read), &w0), compared)
}

/// The adapters that the generator writes from whole documents.
fn written(
    recording: &Recording,
    generator: &Generator,
    (chunks, w0): (&Tensor, &Tensor),
    compared: &mut Compared,
) -> Result<()> {
    let (mut state, mut lora_a, mut lora_b) = (Vec::new(), Vec::new(), Vec::new());
    for document in chunks.unbind(0) {
        let mut sum: Option<Sum> = None;
        for chunk in document.unbind(0) {
            sum = Some(sum.map_or_else(|| Sum::of(&chunk), |sum| sum.and(&chunk)));
        }
        let sum = sum.ok_or_else(|| bad("a document has no chunk"))?;
        let (a, b) = generator.pair(&generator.map(&sum, Key::seed(0)));
        state.push(sum.state);
        lora_a.push(a);
        lora_b.push(b);
    }
    let [state, a, b] = [state, lora_a, lora_b].map(|list| Tensor::stack(&list, 0));
    compared.if_recorded("query_output", || {
        let query = recording.get("input.query")?;
        let low = query.matmul(&a.transpose(1, 2)).matmul(&b.transpose(1, 2));
        Ok(query.linear::<Tensor>(w0, None) + low * generator.scale)
    })?;
    compared.if_recorded("state", || Ok(state))?;
    compared.if_recorded("lora_A", || Ok(a))?;
    compared.if_recorded("lora_B", || Ok(b))
}

/// Real tokens of each segment, which stand first.
fn lengths(mask: &Tensor) -> Result<Vec<usize>> {
    let mask = mask.flatten(0, 1).to_kind(Kind::Int64); // [n, l]
    let lengths = Vec::try_from(mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64));
    let lengths: Vec<i64> = lengths.map_err(|_| bad("input.mask: has not one sum a segment"))?;
    let first = Tensor::arange(mask.size()[1], (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let expected = first.lt_tensor(&Tensor::from_slice(&lengths).unsqueeze(1)).to_kind(Kind::Int64);
    if expected != mask || lengths.contains(&0) {
        return Err(bad("input.mask: real tokens are not the first of a segment, or there are none"));
    }
    Ok(lengths.into_iter().map(|length| length as usize).collect())
}

/// A whole model with the hooks of the product; its logits, loss and gradients.
fn whole(
    recording: &Recording,
    config: Config,
    model: Map<String, Value>,
    windows: bool,
    compared: &mut Compared,
) -> Result<()> {
    let frozen: Vec<String> = recording.under("frozen.").map(str::to_owned).collect();
    let frozen = frozen.into_iter().map(|name| Ok((name.clone(), recording.get(&format!("frozen.{name}"))?)));
    let model = Model::causal(model, &frozen.collect::<Result<_>>()?)?;
    let plan = Arc::new(config.plan(model.config.as_ref())?);
    let named = |site, part: &str| {
        let layer = model.config.sites()[site].block.unwrap_or_default();
        format!("{layer}.{}", part.trim_start_matches("fastlora_"))
    };
    let value = |tensor: &crate::plan::PlannedTensor| {
        Ok((tensor.name.clone(), recording.get(&format!("param.{}", named(tensor.site, tensor.part)))?))
    };
    let values: BTreeMap<_, _> = plan.tensors.iter().map(value).collect::<Result<_>>()?;
    let adapter =
        Adapter::build(Arc::new(config), Arc::clone(&plan), model.backbone.as_ref(), Key::seed(0), Some(&values))?;
    let (ids, mask, labels) =
        (recording.get("input.ids")?, recording.get("input.mask")?, recording.get("input.labels")?);
    let shape = axes(&ids)?;
    let (rows, width) = ((shape[0] * shape[1]) as usize, ids.size()[2]);
    let layout = Layout::padded(lengths(&mask)?, width as usize, (0..rows as u64).collect(), Device::Cpu)
        .segmented(segments(shape, windows)?);
    let groups = [Group { rows: 0..rows, hooks: &adapter }];
    let cx = Forward::eval(model.config.sites(), &layout, &groups);
    let output = model.backbone.forward(&Forward { train: true, ..cx }, &Inputs::ids(ids.flatten(0, 1)));
    let logits = output.tensor();
    let vocabulary = logits.size()[2];
    let predicted = logits.narrow(1, 0, width - 1).reshape([-1, vocabulary]);
    let targets = labels.flatten(0, 1).narrow(1, 1, width - 1).reshape([-1]);
    let loss = predicted.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Mean, -100, 0.0);
    loss.backward();
    // What is computed at padding means nothing, in the recording neither.
    let expected = recording.get("expected.logits")?;
    let real = mask.to_kind(Kind::Bool).unsqueeze(-1);
    let found = logits.unflatten(0, shape).to_kind(expected.kind());
    compared.tensor("logits", &found.where_self(&real, &expected))?;
    compared.tensor("loss", &loss.detach())?;
    for tensor in &plan.tensors {
        if let Some(leaf) = adapter.params().get(&tensor.name) {
            compared.if_recorded(&format!("grad.{}", named(tensor.site, tensor.part)), || Ok(gradient(leaf)))?;
        }
    }
    Ok(())
}
