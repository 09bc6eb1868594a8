//! Two adapters or models, tensor by tensor.

use std::collections::BTreeSet;
use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use pleach_nn::{Entry, ModelDir, TensorFile, tensor_from_entry};
use serde::Serialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

/// How a tensor of the one relates to that of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Equal: in every bit, or within what was allowed.
    Same,
    /// Of one shape, with other values or another element kind.
    Changed,
    /// Of different shapes.
    Shape,
    /// Only in the first.
    OnlyA,
    /// Only in the second.
    OnlyB,
}

/// One tensor name. Numbers are Euclidean, taken in float64; absent where one side is missing or shapes differ, and
/// where a value is not finite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name in the files.
    pub name: String,
    /// How the two relate.
    pub state: State,
    /// Shape in the first.
    pub shape_a: Option<Vec<usize>>,
    /// Shape in the second.
    pub shape_b: Option<Vec<usize>>,
    /// Norm of the first.
    pub norm_a: Option<f64>,
    /// Norm of the second.
    pub norm_b: Option<f64>,
    /// Norm of the difference.
    pub distance: Option<f64>,
    /// Largest absolute difference of two elements.
    pub max_abs: Option<f64>,
    /// Cosine of the angle between the two; absent too where one is all zero.
    pub cosine: Option<f64>,
}

/// What differs.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// One row a name, in order.
    pub tensors: Vec<Row>,
    /// Fields of `adapter_config.json` or `config.json` that differ: `[in the first, in the second]`.
    pub config: Map<String, Value>,
    /// Norm of the difference over all tensors that both have in one shape.
    pub distance: Option<f64>,
    /// Whether nothing differs.
    pub same: bool,
}

/// Compares two adapter folders, model folders or safetensors files. Elements that differ by at most `atol` are equal;
/// with `atol` 0 the bits decide.
///
/// # Errors
/// `ADAPTER_FORMAT` when a path is none of these, `SAFETENSORS` for a damaged file or elements that are not read.
pub fn diff(a: &Path, b: &Path, atol: f64) -> Result<Diff> {
    let (left, right) = (Source::open(a)?, Source::open(b)?);
    let names: BTreeSet<String> = left.names().chain(right.names()).collect();
    let rows = names.iter().map(|name| row(name, left.get(name), right.get(name), atol));
    let tensors: Vec<Row> = rows.collect::<Result<_>>()?;
    let config = changed_fields(&left.config, &right.config);
    let comparable = || tensors.iter().filter(|row| matches!(row.state, State::Same | State::Changed));
    let squares: Option<f64> = comparable().map(|row| row.distance.map(|d| d * d)).sum();
    let same = config.is_empty() && tensors.iter().all(|row| row.state == State::Same);
    Ok(Diff { tensors, config, distance: squares.map(f64::sqrt), same })
}

/// Where tensors come from.
struct Source {
    from: From,
    config: Map<String, Value>,
}

enum From {
    File(TensorFile),
    Model(ModelDir),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let adapter = path.join("adapter_model.safetensors");
        if adapter.is_file() {
            return Ok(Self { from: From::File(TensorFile::open(&adapter)?), config: config(path)? });
        }
        if path.join("config.json").is_file() {
            let dir = ModelDir::open(path)?;
            let config = dir.config().clone();
            return Ok(Self { from: From::Model(dir), config });
        }
        if path.is_file() {
            return Ok(Self { from: From::File(TensorFile::open(path)?), config: Map::new() });
        }
        Err(code::ADAPTER_FORMAT
            .error(format!("{}: neither an adapter folder, nor a model folder, nor a safetensors file", path.display()))
            .hint("an adapter folder has adapter_model.safetensors, a model folder config.json"))
    }

    fn names(&self) -> Box<dyn Iterator<Item = String> + '_> {
        match &self.from {
            From::File(file) => Box::new(file.names().map(str::to_owned)),
            From::Model(dir) => Box::new(dir.names().map(str::to_owned)),
        }
    }

    fn get(&self, name: &str) -> Option<Entry<'_>> {
        match &self.from {
            From::File(file) => file.get(name),
            From::Model(dir) => dir.get(name),
        }
    }
}

/// The adapter's configuration; empty when there is none.
fn config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("adapter_config.json");
    match std::fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).or_code(code::ADAPTER_FORMAT, || format!("{}: not JSON", path.display()))
        }
        Err(_) => Ok(Map::new()),
    }
}

fn changed_fields(a: &Map<String, Value>, b: &Map<String, Value>) -> Map<String, Value> {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let of = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
    let pairs = keys.into_iter().map(|key| (key, of(a, key), of(b, key)));
    pairs.filter(|(_, a, b)| a != b).map(|(key, a, b)| (key.clone(), Value::Array(vec![a, b]))).collect()
}

fn row(name: &str, a: Option<Entry<'_>>, b: Option<Entry<'_>>, atol: f64) -> Result<Row> {
    let shape = |entry: &Option<Entry<'_>>| entry.as_ref().map(|entry| entry.shape.to_vec());
    let mut row = Row {
        name: name.to_owned(),
        state: State::Same,
        shape_a: shape(&a),
        shape_b: shape(&b),
        norm_a: a.as_ref().map(norm).transpose()?.flatten(),
        norm_b: b.as_ref().map(norm).transpose()?.flatten(),
        distance: None,
        max_abs: None,
        cosine: None,
    };
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, _) => {
            row.state = if a.is_some() { State::OnlyA } else { State::OnlyB };
            return Ok(row);
        }
    };
    if a.shape != b.shape {
        row.state = State::Shape;
        return Ok(row);
    }
    let (x, y) = (wide(&a)?, wide(&b)?);
    let apart = &x - &y;
    row.distance = finite(apart.norm().double_value(&[]));
    row.max_abs = if apart.numel() == 0 { Some(0.0) } else { finite(apart.abs().max().double_value(&[])) };
    let lengths = row.norm_a.zip(row.norm_b).map(|(a, b)| a * b).filter(|product| *product > 0.0);
    row.cosine = lengths.and_then(|lengths| finite(x.dot(&y).double_value(&[]) / lengths));
    let near = atol > 0.0 && row.max_abs.is_some_and(|found| found <= atol);
    if !(near || (a.dtype == b.dtype && a.bytes == b.bytes)) {
        row.state = State::Changed;
    }
    Ok(row)
}

fn norm(entry: &Entry<'_>) -> Result<Option<f64>> {
    Ok(finite(wide(entry)?.norm().double_value(&[])))
}

/// `[n]` in float64.
fn wide(entry: &Entry<'_>) -> Result<Tensor> {
    Ok(tensor_from_entry(entry)?.to_kind(Kind::Double).reshape([-1]))
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}
