//! Distances, and the largest of them.

use pleach_base::{Result, code};
use pleach_methods::first_name;
use pleach_store::ADAPTER_MODEL;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::case::Case;
use crate::engine::Saved;
use crate::flat::read_tensors;

/// The largest deviation of some numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// The largest; NaN (in JSON null) when a number is none or the shapes differ.
    pub deviation: f64,
    /// What is allowed.
    pub tolerance: f64,
    /// Whether every deviation was allowed.
    pub within: bool,
    /// Where the largest is: a step, a row, a tensor.
    pub at: String,
}

impl Measure {
    pub(super) fn new(tolerance: f64) -> Self {
        Self { deviation: 0.0, tolerance, within: true, at: String::new() }
    }

    /// Notes a deviation, NaN being the largest of all.
    fn note(&mut self, deviation: f64, at: impl FnOnce() -> String) {
        if !self.deviation.is_nan() && (deviation.is_nan() || deviation > self.deviation) {
            (self.deviation, self.at) = (deviation, at());
        }
        self.within = self.deviation <= self.tolerance;
    }

    /// Notes how far `found` is from `expected`, as a part of that.
    pub(super) fn relative(&mut self, found: f64, expected: f64, at: impl FnOnce() -> String) {
        let off = (found - expected).abs();
        self.note(if off == 0.0 { 0.0 } else { off / expected.abs() }, at);
    }

    /// Notes the largest difference of elements.
    pub(super) fn absolute(&mut self, found: &Tensor, expected: &Tensor, at: &str) {
        if found.size() != expected.size() {
            self.note(f64::NAN, || format!("{at}: shape {:?} for {:?}", found.size(), expected.size()));
        } else if found.numel() > 0 {
            let off = found.to_kind(Kind::Double) - expected.to_kind(Kind::Double);
            // The maximum of libtorch is NaN when an element is.
            self.note(off.abs().max().double_value(&[]), || at.to_owned());
        }
    }
}

/// Compares the trained adapter with the recorded one, tensor by tensor. Copies of frozen weights that PEFT stores
/// beside an adapter are not part of it.
pub(super) fn trained(case: &Case, saved: &Saved) -> Result<Measure> {
    let file = saved.files.iter().find(|file| file.name == ADAPTER_MODEL);
    let file = file.ok_or_else(|| code::INTERNAL.error(format!("{ADAPTER_MODEL} was not saved")))?;
    let (found, expected) = (read_tensors(&file.bytes)?, case.adapter("trained")?);
    let before = case.adapter("adapter")?;
    let mut measure = Measure::new(case.tolerance.trained_abs);
    for (name, expected) in &expected {
        match found.get(name).or_else(|| found.get(&first_name(name)?)) {
            Some(found) => measure.absolute(found, expected, name),
            None if before.get(name).is_some_and(|before| before == expected) => {}
            None => measure.note(f64::NAN, || format!("{name} is missing")),
        }
    }
    for name in found.keys().filter(|name| !expected.contains_key(*name)) {
        measure.note(f64::NAN, || format!("{name} was not recorded"));
    }
    Ok(measure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_deviation_decides_and_nan_is_larger_than_any() {
        let mut measure = Measure::new(0.1);
        measure.relative(1.05, 1.0, || "a".into());
        measure.relative(-2.0, -2.0, || "b".into());
        assert!(measure.within && measure.at == "a");
        measure.absolute(&Tensor::from_slice(&[1.0f32, 5.0]), &Tensor::from_slice(&[1.0f32, 4.5]), "c");
        assert!(!measure.within && measure.at == "c" && (measure.deviation - 0.5).abs() < 1e-9);
        measure.absolute(&Tensor::from_slice(&[f32::NAN, 0.0]), &Tensor::from_slice(&[0.0f32, 0.0]), "d");
        measure.relative(1.0, 1.0, || "e".into());
        assert!(measure.deviation.is_nan() && !measure.within && measure.at == "d");
        let mut measure = Measure::new(1.0);
        measure.absolute(&Tensor::from_slice(&[1.0f32]), &Tensor::from_slice(&[1.0f32, 1.0]), "f");
        assert!(!measure.within, "another shape is another thing");
    }
}
