//! Scores of all seeds against the margins of a page.

use pleach_base::{Result, code};
use serde::{Deserialize, Serialize};

use crate::page::{At, Margin, Need, Page, Scores, Than};

/// What came of a page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its number.
    pub page: u32,
    /// The method, for people.
    pub title: String,
    /// What the paper claims.
    pub claim: String,
    /// Where it ran: `cpu` or `cuda`.
    pub device: String,
    /// Seeds 0, 1, .. of this number.
    pub seeds: u64,
    /// A run at a twentieth of the steps, whose margins mean nothing.
    pub reduced: bool,
    /// Seconds of the whole page, and on how many threads.
    pub seconds: f64,
    /// See `seconds`.
    pub threads: usize,
    /// Seconds of processor time: what it takes on a machine that does nothing else, times its cores.
    #[serde(default)]
    pub work: f64,
    /// Every number of every seed.
    pub scores: Vec<Row>,
    /// What became of the margins.
    pub margins: Vec<Verdict>,
}

/// One measure of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The arm.
    pub arm: String,
    /// The measure.
    pub measure: String,
    /// By seed.
    pub values: Vec<f64>,
    /// Trained parameters, where they are known.
    pub params: Option<u64>,
}

/// What became of a margin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What must hold.
    pub says: String,
    /// What was measured: a difference, or a quotient where `times`.
    pub margin: f64,
    /// Its standard deviation over seeds.
    pub spread: f64,
    /// Whether `margin` is a quotient.
    pub times: bool,
    /// Seeds that have its sign.
    pub signs: usize,
    /// Whether it holds.
    pub holds: bool,
    /// Why it does not hold here.
    pub reason: Option<String>,
}

impl Outcome {
    /// Whether every margin holds.
    #[must_use]
    pub fn shown(&self) -> bool {
        self.margins.iter().all(|verdict| verdict.holds)
    }

    /// Whether every margin holds, or says why it does not.
    #[must_use]
    pub fn explained(&self) -> bool {
        self.margins.iter().all(|verdict| verdict.holds || verdict.reason.is_some())
    }
}

/// Mean and standard deviation (of the sample) of some numbers.
#[must_use]
pub fn mean_and_spread(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// Of so many seeds, how many must have a margin's sign.
#[must_use]
pub fn signs_needed(seeds: usize) -> usize {
    (seeds * 4).div_ceil(5)
}

/// Every number of every seed, arms and measures in the page's order.
///
/// # Errors
/// `INTERNAL` when seeds differ in what they measured, or a number is of no arm or measure of the page, or is not finite.
pub fn rows(page: &Page, seeds: &[Scores]) -> Result<Vec<Row>> {
    let bad = |what: String| code::INTERNAL.error(format!("page {}: {what}", page.number));
    let arm = |name: &str| page.arms.iter().position(|arm| arm.name == name);
    let measure = |name: &str| page.measures.iter().position(|measure| measure.name == name);
    let first = seeds.first().ok_or_else(|| bad("no seed was run".to_owned()))?;
    let mut rows = Vec::new();
    for (name, _) in &first.values {
        let place = (arm(name.0), measure(name.1));
        let (Some(arm), Some(measure)) = place else { return Err(bad(format!("{name:?} is of no arm or measure"))) };
        let values = values(seeds, At(name.0, name.1)).map_err(|error| bad(error.message().to_owned()))?;
        let params = first.params.get(name.0).copied();
        rows.push(((measure, arm), Row { arm: name.0.to_owned(), measure: name.1.to_owned(), values, params }));
    }
    rows.sort_by_key(|(place, _)| *place);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// A number of every seed.
fn values(seeds: &[Scores], At(arm, measure): At) -> Result<Vec<f64>> {
    let of = |scores: &Scores| scores.get(arm, measure).filter(|value| value.is_finite());
    let missing = || code::INTERNAL.error(format!("a seed has no finite {measure} of {arm}"));
    seeds.iter().map(|scores| of(scores).ok_or_else(missing)).collect()
}

/// Holds the scores of all seeds against a margin.
///
/// # Errors
/// `INTERNAL` when a seed lacks a number, or one is not finite.
pub fn judge(margin: &Margin, seeds: &[Scores]) -> Result<Verdict> {
    let of = values(seeds, margin.of)?;
    let than = match margin.than {
        Than::Arm(at) => values(seeds, at)?,
        Than::Number(number) => vec![number; seeds.len()],
    };
    let pairs = || of.iter().copied().zip(than.iter().copied());
    let differences: Vec<f64> = pairs().map(|(of, than)| of - than).collect();
    let quotients: Vec<f64> = pairs().map(|(of, than)| of / than).collect();
    let (mean_of, mean_than) = (mean_and_spread(&of).0, mean_and_spread(&than).0);
    let times = matches!(margin.need, Need::AtLeastTimes(_) | Need::AtMostTimes(_));
    let (found, spread) = match times {
        true => (mean_of / mean_than, mean_and_spread(&quotients).1),
        false => mean_and_spread(&differences),
    };
    let signs = if times { &quotients } else { &differences };
    let signs = signs.iter().filter(|value| has_sign(margin.need, **value)).count();
    Ok(Verdict {
        says: margin.says.to_owned(),
        margin: found,
        spread,
        times,
        signs,
        holds: holds(margin.need, found) && signs >= signs_needed(seeds.len()),
        reason: margin.reason.map(str::to_owned),
    })
}

/// Whether a difference or quotient is as it must be.
fn holds(need: Need, found: f64) -> bool {
    match need {
        Need::AtLeast(number) | Need::AtLeastTimes(number) => found >= number,
        Need::AtMost(number) | Need::AtMostTimes(number) => found <= number,
    }
}

/// The same for one seed: of a lead that is asked for the sign counts, of a lag that is allowed the whole of it.
fn has_sign(need: Need, found: f64) -> bool {
    match need {
        Need::AtLeast(number) if number > 0.0 => found > 0.0,
        Need::AtMost(number) if number < 0.0 => found < 0.0,
        Need::AtLeastTimes(number) if number > 1.0 => found > 1.0,
        Need::AtMostTimes(number) if number < 1.0 => found < 1.0,
        need => holds(need, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(pairs: &[(f64, f64)]) -> Vec<Scores> {
        let seed = |(a, b): &(f64, f64)| {
            let mut scores = Scores::default();
            scores.set("a", "m", *a);
            scores.set("b", "m", *b);
            scores
        };
        pairs.iter().map(seed).collect()
    }

    fn verdict(need: Need, pairs: &[(f64, f64)]) -> Verdict {
        judge(&Margin::new("", At("a", "m"), Than::Arm(At("b", "m")), need), &seeds(pairs)).unwrap()
    }

    #[test]
    fn a_lead_needs_its_mean_and_four_of_five_signs() {
        let lead = |pairs: &[(f64, f64)]| verdict(Need::AtLeast(2.0), pairs);
        let good = lead(&[(5.0, 1.0), (4.0, 2.0), (3.5, 3.0), (8.0, 3.0), (2.0, 2.5)]);
        assert!(good.holds && good.signs == 4, "{good:?}");
        let one_wonder = lead(&[(30.0, 0.0), (1.0, 1.5), (1.0, 1.5), (2.0, 1.0), (2.0, 1.0)]);
        assert!(!one_wonder.holds && one_wonder.margin > 2.0 && one_wonder.signs == 3, "{one_wonder:?}");
        let too_little = lead(&[(2.0, 1.0); 5]);
        assert!(!too_little.holds && too_little.signs == 5);
    }

    #[test]
    fn a_lag_that_is_allowed_counts_whole() {
        let lag = |pairs: &[(f64, f64)]| verdict(Need::AtLeast(-1.5), pairs);
        assert!(lag(&[(1.0, 2.0); 5]).holds);
        let seldom = lag(&[(9.0, 2.0), (9.0, 2.0), (9.0, 2.0), (1.0, 3.0), (1.0, 3.0)]);
        assert!(!seldom.holds && seldom.signs == 3);
    }

    #[test]
    fn quotients_are_of_the_means() {
        let found = verdict(Need::AtMostTimes(0.6), &[(1.0, 2.0), (1.0, 4.0), (3.0, 4.0), (1.0, 2.0), (1.0, 2.0)]);
        assert!(found.holds && found.times && (found.margin - 0.5).abs() < 1e-12, "{found:?}");
        assert!(!verdict(Need::AtMostTimes(0.6), &[(2.0, 3.0); 5]).holds);
        assert!(!verdict(Need::AtLeastTimes(3.0), &[(2.0, 1.0); 5]).holds);
    }

    #[test]
    fn what_is_not_finite_is_no_score() {
        let error = judge(
            &Margin::new("", At("a", "m"), Than::Number(1.0), Need::AtLeast(0.0)),
            &seeds(&[(1.0, 1.0), (f64::NAN, 1.0)]),
        );
        assert!(error.is_err());
    }
}
