//! Page 21, binary adapters: codes, coded linear maps, published files, and trainings with coded weights.

mod training;

use pleach_base::Result;
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::recording::{Recording, bad, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::codes::{Codebook, Codec, Measure, Per, Record};

pub(super) const PAGE: Page = Page { number: 21, tolerances: &["mu_sigma_rel"], repeat };

/// Of means and deviations.
const SPREAD_REL: f64 = 1e-6;

/// The options of cases without a training.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Coded {
    bit: Bits,
    #[serde(default)]
    codebook: Measure,
    #[serde(default)]
    per: Per,
    /// Of published files.
    #[serde(default)]
    bihead: bool,
    /// The same; the shapes say it too.
    #[serde(default, rename = "dim")]
    _dim: Option<u32>,
    #[serde(default, rename = "wraps")]
    _wraps: Option<String>,
    #[serde(default, rename = "scale")]
    _scale: Option<f64>,
}

/// One width or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bits {
    One(u32),
    Many(Vec<u32>),
}

impl Coded {
    fn bits(&self) -> Vec<u32> {
        match &self.bit {
            Bits::One(bit) => vec![*bit],
            Bits::Many(bits) => bits.clone(),
        }
    }

    fn codec(&self, bit: u32) -> Codec {
        Codec { bit, codebook: self.codebook, per: self.per }
    }

    fn book(&self, bit: u32) -> Result<&'static Codebook> {
        self.codec(bit).book().ok_or_else(|| wrong(format!("config.bit: {bit} bits have no codes")))
    }
}

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    match recording.kind.as_str() {
        "training" => training::repeat(recording, train, compared)?,
        "module" => module(recording, &coded(recording)?, compared)?,
        "codec" if recording.find("input.bytes").is_some() => file(recording, &coded(recording)?, compared)?,
        "codec" => codebooks(recording, &coded(recording)?, compared)?,
        other => return Err(wrong(format!("kind: page 21 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}

fn coded(recording: &Recording) -> Result<Coded> {
    let all: Vec<_> = recording.config.keys().map(String::as_str).collect();
    Ok(recording.split(&all)?.0)
}

fn codebooks(recording: &Recording, coded: &Coded, compared: &mut Compared) -> Result<()> {
    let standard = recording.get("input.standardised")?;
    for bit in coded.bits() {
        let book = coded.book(bit)?;
        compared.tensor(&format!("codebook.{bit}"), &Codebook::tensor(&book.codes, &standard))?;
        compared.tensor(&format!("threshold.{bit}"), &Codebook::tensor(&book.thresholds, &standard))?;
        compared.tensor(&format!("quantised.{bit}"), &book.nearest(&standard))?;
    }
    Ok(())
}

fn module(recording: &Recording, coded: &Coded, compared: &mut Compared) -> Result<()> {
    for bit in coded.bits() {
        let codec = coded.codec(bit);
        let name = |what: &str| format!("{what}.{bit}bit");
        let double = |name: &str| Ok::<_, pleach_base::Error>(recording.get(name)?.to_kind(Kind::Double));
        let (w, x) = (double("param.weight")?.set_requires_grad(true), double("input.x")?.set_requires_grad(true));
        let output = x.linear(&codec.coded(&w), None::<&Tensor>);
        (&output * double("input.cotangent")?).sum(Kind::Double).backward();
        compared.tensor(&name("output"), &output)?;
        compared.tensor(&format!("grad.{bit}bit.weight"), &gradient(&w))?;
        compared.tensor(&format!("grad.{bit}bit.x"), &gradient(&x))?;
        let record = Record::of(codec, &recording.get("param.weight")?);
        stored(&record, &name, recording, compared)?;
    }
    Ok(())
}

/// What a file holds of a map, and what is read back.
fn stored(
    record: &Record,
    name: &dyn Fn(&str) -> String,
    recording: &Recording,
    compared: &mut Compared,
) -> Result<()> {
    compared.tensor(&name("index"), &Tensor::from_slice(&record.index))?;
    let mut packed = record.packed();
    if let Some(bytes) = recording.find(&format!("expected.{}", name("bytes"))) {
        // The release leaves out a last byte that is not full.
        let full = record.index.len() * record.codec().bit as usize / 8;
        if bytes.numel() == full {
            packed.truncate(full);
        }
        compared.tensor(&name("bytes"), &Tensor::from_slice(&packed))?;
    }
    let spread = [record.mu.as_slice(), record.sigma.as_slice()].concat();
    let spread = Tensor::from_slice(&spread);
    compared.within(&name("mu_sigma"), &spread, 0.0, SPREAD_REL)?;
    let mut bytes = Vec::new();
    record.write(&mut bytes);
    let shape = recording.get("param.weight")?.size();
    let read = Record::read(record.codec(), [shape[0] as usize, shape[1] as usize], &mut bytes.as_slice())?.weight();
    compared.if_recorded(&name("dequantised"), || Ok(read.shallow_clone()))?;
    compared.if_recorded(&name("output_loaded"), || {
        Ok(recording.get("input.x")?.to_kind(Kind::Float).linear(&read, None::<&Tensor>))
    })
}

/// A published file: maps in order, then a head as it is unless that is coded too.
fn file(recording: &Recording, coded: &Coded, compared: &mut Compared) -> Result<()> {
    let bytes = Vec::<u8>::try_from(recording.get("input.bytes")?).unwrap_or_default();
    let mut shapes: Vec<[usize; 2]> = recording.shape("linear_shapes")?;
    let bit = coded.bits().first().copied().ok_or_else(|| wrong("config.bit is empty"))?;
    let codec = coded.codec(bit);
    let size = |shapes: &[[usize; 2]]| shapes.iter().map(|[rows, columns]| codec.bytes(*rows, *columns)).sum::<usize>();
    // A head that is not coded may be among the shapes.
    let last = shapes.last().copied().unwrap_or_default();
    let whole_head = |head: [usize; 2]| 4 * (head[0] * head[1] + head[0]);
    let listed = !coded.bihead
        && size(&shapes) != bytes.len()
        && size(&shapes[..shapes.len().saturating_sub(1)]) + whole_head(last) == bytes.len();
    if listed {
        shapes.pop();
    }
    let mut rest = bytes.as_slice();
    let records: Vec<Record> =
        shapes.iter().map(|shape| Record::read(codec, *shape, &mut rest)).collect::<Result<_>>()?;
    let mut sums: Vec<Tensor> = records.iter().map(Record::weight).collect();
    let spread: Vec<f32> = records.iter().flat_map(|record| record.mu.iter().chain(&record.sigma).copied()).collect();
    compared.tensor("mu_sigma", &Tensor::from_slice(&spread).reshape([records.len() as i64, -1]))?;
    for (at, weight) in sums.iter().enumerate() {
        compared.if_recorded(&format!("dequantised.{at}"), || Ok(weight.shallow_clone()))?;
    }
    if !coded.bihead {
        let width = if listed { last[1] } else { recording.shape::<usize>("d").unwrap_or(768) };
        let classes = rest.len() / 4 / (width + 1);
        let plain = Codec { bit: 32, ..codec };
        let weight = Record::read(plain, [classes, width], &mut rest)?.weight();
        let bias = Record::read(plain, [1, classes], &mut rest)?.weight().reshape([-1]);
        compared.if_recorded(&format!("dequantised.{}", records.len()), || Ok(weight.shallow_clone()))?;
        compared.if_recorded("head.weight", || Ok(weight.shallow_clone()))?;
        compared.if_recorded("head.bias", || Ok(bias))?;
        sums.push(weight);
    }
    if !rest.is_empty() {
        return Err(bad(format!("input.bytes: {} bytes are left", rest.len())));
    }
    for (name, of) in [("sum", Tensor::shallow_clone as fn(&Tensor) -> Tensor), ("abs_sum", Tensor::abs)] {
        let count = recording.find(&format!("expected.{name}")).map_or(0, |tensor| tensor.numel());
        let all: Vec<_> = sums.iter().take(count).map(|weight| of(weight).sum(Kind::Double)).collect();
        compared.if_recorded(name, || Ok(Tensor::stack(&all, 0)))?;
    }
    Ok(())
}
