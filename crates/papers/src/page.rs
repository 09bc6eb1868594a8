//! What a page says: a claim, arms, measures, margins, and how one seed is run.

use indexmap::IndexMap;
use pleach_base::Result;
use pleach_base::rng::Key;
use tch::Device;

/// One page.
pub struct Page {
    /// Its number.
    pub number: u32,
    /// The method, for people.
    pub title: &'static str,
    /// The citation.
    pub paper: &'static str,
    /// What the paper claims, in a sentence.
    pub claim: &'static str,
    /// What is trained on what: Markdown, a paragraph or a few.
    pub setup: &'static str,
    /// Seeds 0, 1, .. of this number: 5, or 10 where the page says so.
    pub seeds: u64,
    /// The method and its baselines.
    pub arms: &'static [Arm],
    /// What is measured of each.
    pub measures: &'static [Measure],
    /// What must hold.
    pub margins: &'static [Margin],
    /// Trains all arms of a seed.
    pub run: fn(&Cx) -> Result<Scores>,
}

/// Seeds of a page that does not ask for more.
pub const SEEDS: u64 = 5;

/// One way of doing it.
#[derive(Clone, Copy, Debug)]
pub struct Arm {
    /// Its name, also in [`Scores`].
    pub name: &'static str,
    /// What it is, in a few words.
    pub what: &'static str,
}

/// One number of an arm.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Its name, also in [`Scores`].
    pub name: &'static str,
    /// What stands behind the number, such as `%`; empty for none.
    pub unit: &'static str,
    /// Digits behind the point.
    pub digits: usize,
}

/// A number of an arm.
#[derive(Clone, Copy, Debug)]
pub struct At(
    /// The arm.
    pub &'static str,
    /// The measure.
    pub &'static str,
);

/// What a number is held against.
#[derive(Clone, Copy, Debug)]
pub enum Than {
    /// Another one.
    Arm(At),
    /// This one.
    Number(f64),
}

/// How `of` must stand to `than`. Each holds of the means over all seeds; and at least four of five seeds must have its sign:
/// where something must be better by some margin, they must be better; where it may be worse by some margin, they must keep
/// that margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Need {
    /// `of - than >= number`.
    AtLeast(f64),
    /// `of - than <= number`.
    AtMost(f64),
    /// `of >= number * than`.
    AtLeastTimes(f64),
    /// `of <= number * than`.
    AtMostTimes(f64),
}

/// What must hold.
#[derive(Clone, Copy, Debug)]
pub struct Margin {
    /// In words, with the number.
    pub says: &'static str,
    /// The number that is judged.
    pub of: At,
    /// What it is held against.
    pub than: Than,
    /// How they must stand.
    pub need: Need,
    /// Why it does not hold here, if it is known not to: the page then says so, and the command does not fail.
    pub reason: Option<&'static str>,
}

impl Margin {
    /// A margin that is expected to hold.
    #[must_use]
    pub const fn new(says: &'static str, of: At, than: Than, need: Need) -> Self {
        Self { says, of, than, need, reason: None }
    }

    /// The same, known not to hold on these small models for this reason.
    #[must_use]
    pub const fn but(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

/// What a seed runs with.
#[derive(Clone, Copy, Debug)]
pub struct Cx {
    /// The seed.
    pub seed: u64,
    /// Where tensors are.
    pub device: Device,
    /// A run at a twentieth of the steps, which shows that the page runs and nothing else.
    pub reduced: bool,
}

impl Cx {
    /// The key of something drawn: data, weights, order. Arms that must see the same use one name.
    #[must_use]
    pub fn key(&self, name: &str) -> Key {
        Key::seed(self.seed).named("papers").named(name)
    }

    /// So many steps, or fewer in a reduced run.
    #[must_use]
    pub fn steps(&self, steps: u64) -> u64 {
        if self.reduced { (steps / 20).max(2) } else { steps }
    }
}

/// What a seed gave.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// By arm and measure.
    pub values: IndexMap<(&'static str, &'static str), f64>,
    /// Trained parameters by arm, where a page says them.
    pub params: IndexMap<&'static str, u64>,
}

impl Scores {
    /// Notes a number.
    pub fn set(&mut self, arm: &'static str, measure: &'static str, value: f64) {
        self.values.insert((arm, measure), value);
    }

    /// Notes how many parameters an arm trains.
    pub fn params(&mut self, arm: &'static str, params: u64) {
        self.params.insert(arm, params);
    }

    /// A number that was noted.
    #[must_use]
    pub fn get(&self, arm: &str, measure: &str) -> Option<f64> {
        self.values.iter().find(|((a, m), _)| (*a, *m) == (arm, measure)).map(|(_, value)| *value)
    }
}
