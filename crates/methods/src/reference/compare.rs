//! Distances to what was recorded: `|a - b| <= abs + rel * |b|`, element by element.

use std::collections::{BTreeMap, BTreeSet};

use pleach_base::Result;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::Outcome;
use super::recording::{Recording, bad, wrong};

/// What is allowed and what was found.
pub struct Compared {
    outcome: Outcome,
    expected: BTreeMap<String, Tensor>,
    missing: BTreeSet<String>,
    unused: Vec<String>,
    tolerances: BTreeMap<String, f64>,
}

impl Compared {
    /// For a recording; `known` are the page's own keys of `tolerance` beside `abs` and `rel`.
    pub(super) fn new(recording: &Recording, known: &[&str]) -> Result<Self> {
        let mut tolerances = BTreeMap::new();
        for (key, value) in &recording.tolerance {
            if !["abs", "rel"].contains(&key.as_str()) && !known.contains(&key.as_str()) {
                return Err(wrong(format!("tolerance.{key}: page {} does not know it", recording.page)));
            }
            let number = match value {
                Value::String(word) if word == "exact" => Some(0.0),
                other => other.as_f64(),
            };
            let number = number.ok_or_else(|| wrong(format!("tolerance.{key}: neither a number nor `exact`")))?;
            tolerances.insert(key.clone(), number);
        }
        let mut expected = BTreeMap::new();
        for name in recording.under("expected.") {
            expected.insert(name.to_owned(), recording.get(&format!("expected.{name}"))?);
        }
        let outcome = Outcome {
            case: recording.case.clone(),
            method: recording.method.clone(),
            kind: recording.kind.clone(),
            compared: 0,
            worst: 0.0,
            at: String::new(),
            within: true,
        };
        let missing = expected.keys().cloned().collect();
        Ok(Self { outcome, expected, missing, unused: Vec::new(), tolerances })
    }

    /// Compares `found` with `expected.NAME` to `abs` and `rel`.
    ///
    /// # Errors
    /// `PARITY_CASE` when there is no such tensor.
    pub fn tensor(&mut self, name: &str, found: &Tensor) -> Result<()> {
        self.to(name, found, "abs", "rel")
    }

    /// The same to other keys of `tolerance`; a key that the case does not give counts as `abs` or `rel`.
    ///
    /// # Errors
    /// As [`Compared::tensor`].
    pub fn to(&mut self, name: &str, found: &Tensor, abs: &str, rel: &str) -> Result<()> {
        let limit = |key: &str, usual: &str| {
            self.tolerances.get(key).or_else(|| self.tolerances.get(usual)).copied().unwrap_or(0.0)
        };
        let (abs, rel) = (limit(abs, "abs"), limit(rel, "rel"));
        let expected = self.expected.get(name).ok_or_else(|| bad(format!("expected.{name} is missing")))?;
        let share = share(found, expected, abs, rel);
        self.note(name, share);
        Ok(())
    }

    /// The same to these limits, where the recording's notes set closer ones than its `tolerance`.
    ///
    /// # Errors
    /// As [`Compared::tensor`].
    pub(super) fn within(&mut self, name: &str, found: &Tensor, abs: f64, rel: f64) -> Result<()> {
        let expected = self.expected.get(name).ok_or_else(|| bad(format!("expected.{name} is missing")))?;
        let share = share(found, expected, abs, rel);
        self.note(name, share);
        Ok(())
    }

    /// Compares `found` with `expected.NAME` where `mask`, which extends to both, is one.
    ///
    /// # Errors
    /// As [`Compared::tensor`].
    pub(super) fn masked(&mut self, name: &str, found: &Tensor, mask: &Tensor) -> Result<()> {
        let expected = self.expected.get(name).ok_or_else(|| bad(format!("expected.{name} is missing")))?;
        let masked = expected * mask.to_kind(expected.kind());
        self.expected.insert(name.to_owned(), masked);
        self.tensor(name, &(found * mask.to_kind(found.kind())))
    }

    /// Compares `found` with `expected.NAME` where that was recorded.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn if_recorded(&mut self, name: &str, found: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if self.expected.contains_key(name) { self.tensor(name, &found()?) } else { Ok(()) }
    }

    /// Whether `expected.NAME` was recorded.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    fn note(&mut self, name: &str, share: f64) {
        self.missing.remove(name);
        let Outcome { compared, worst, at, within, .. } = &mut self.outcome;
        *compared += 1;
        if !worst.is_nan() && (share.is_nan() || share > *worst) {
            (*worst, *at) = (share, format!("expected.{name}"));
        }
        *within &= share <= 1.0;
    }

    /// The parameters that the page's code did not use: part of what is checked at the end.
    pub(super) fn check_used(&mut self, recording: &Recording) {
        self.unused = recording.unused_parameters();
    }

    /// # Errors
    /// `PARITY_CASE` when something recorded was not compared, or a parameter not used.
    pub(super) fn finish(self) -> Result<Outcome> {
        if let Some(name) = self.missing.first() {
            return Err(bad(format!("expected.{name} was not compared"))
                .hint("this build does not know what it is: the case cannot count as repeated"));
        }
        if let Some(name) = self.unused.first() {
            return Err(bad(format!("{name} was not used")));
        }
        Ok(self.outcome)
    }
}

/// The largest deviation in parts of what is allowed.
fn share(found: &Tensor, expected: &Tensor, abs: f64, rel: f64) -> f64 {
    if found.size() != expected.size() {
        return f64::NAN;
    }
    if expected.numel() == 0 {
        return 0.0;
    }
    let (found, expected) = (found.detach().to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let off = (&found - &expected).abs();
    let allowed = expected.abs() * rel + abs;
    // Equal numbers, infinities among them, are no deviation, and where nothing is allowed any other is too large.
    let same = found.eq_tensor(&expected);
    let parts = (off / allowed).masked_fill(&same, 0.0);
    parts.max().double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_parts_of_what_is_allowed() {
        let t = |values: &[f64]| Tensor::from_slice(values);
        assert!((share(&t(&[1.0, 2.1]), &t(&[1.0, 2.0]), 0.1, 0.05) - 0.5).abs() < 1e-9);
        assert_eq!(share(&t(&[1.0]), &t(&[1.0]), 0.0, 0.0), 0.0);
        assert!(share(&t(&[1.0]), &t(&[2.0]), 0.0, 0.0).is_infinite());
        assert!(share(&t(&[f64::NAN]), &t(&[2.0]), 1.0, 1.0).is_nan());
        assert!(share(&t(&[1.0]), &t(&[1.0, 1.0]), 1.0, 1.0).is_nan());
        assert_eq!(share(&t(&[f64::INFINITY]), &t(&[f64::INFINITY]), 1.0, 0.0), 0.0);
    }
}
