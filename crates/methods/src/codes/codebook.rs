//! Codes for normally distributed numbers, in ascending order, and the thresholds between their cells.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gauss::{below, density, quantile};

/// Rounds of the alternation. The released method stops here whether it has come to rest or not: for 8 bits it has not,
/// and files are read with these codes.
const ROUNDS: usize = 500;

/// The threshold in the middle, which is 0 but for rounding: in the released files a zero belongs to the lower code where
/// there are more than two.
const HAIR: f64 = 1.4e-16;

/// Widths whose codes are known.
const BITS: [u32; 4] = [1, 2, 4, 8];

/// What the codes make smallest, over standard normal numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The mean absolute error.
    #[default]
    L1Gauss,
    /// The mean squared error.
    MseGauss,
}

/// `2^bit` codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// Ascending.
    pub codes: Vec<f64>,
    /// One fewer: between a code and the next.
    pub thresholds: Vec<f64>,
}

impl Codebook {
    /// The codes of this width, worked out once; `None` for a width that is none of 1, 2, 4 and 8.
    #[must_use]
    pub fn of(bit: u32, measure: Measure) -> Option<&'static Self> {
        static BOOKS: [[LazyLock<Codebook>; 4]; 2] = [
            [
                LazyLock::new(|| Codebook::fit(1, Measure::L1Gauss)),
                LazyLock::new(|| Codebook::fit(2, Measure::L1Gauss)),
                LazyLock::new(|| Codebook::fit(4, Measure::L1Gauss)),
                LazyLock::new(|| Codebook::fit(8, Measure::L1Gauss)),
            ],
            [
                LazyLock::new(|| Codebook::fit(1, Measure::MseGauss)),
                LazyLock::new(|| Codebook::fit(2, Measure::MseGauss)),
                LazyLock::new(|| Codebook::fit(4, Measure::MseGauss)),
                LazyLock::new(|| Codebook::fit(8, Measure::MseGauss)),
            ],
        ];
        let width = BITS.iter().position(|known| *known == bit)?;
        Some(&BOOKS[usize::from(measure == Measure::MseGauss)][width])
    }

    /// Alternates between the thresholds in the middle of the codes and the codes in the (absolute or squared) middle of
    /// their cells. The absolute one begins with all codes at 0; the squared one, for which a cell must have a width,
    /// where the absolute one ends. The thresholds are those of the last round: codes that are not at rest have moved on
    /// since.
    fn fit(bit: u32, measure: Measure) -> Self {
        let n = 1usize << bit;
        let mut book = match measure {
            Measure::L1Gauss => Self { codes: vec![0.0; n], thresholds: Vec::new() },
            Measure::MseGauss => Self::fit(bit, Measure::L1Gauss),
        };
        for _ in 0..ROUNDS {
            book.thresholds = book.codes.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
            book.codes = book.middles(measure);
        }
        if measure == Measure::L1Gauss && bit > 1 {
            book.thresholds[n / 2 - 1] = HAIR;
        }
        book
    }

    fn middles(&self, measure: Measure) -> Vec<f64> {
        let n = self.codes.len();
        let edge = |at: usize| match at {
            0 => (0.0, 0.0),
            at if at == n => (1.0, 0.0),
            at => (below(self.thresholds[at - 1]), density(self.thresholds[at - 1])),
        };
        // Cells mirror each other: half of them are enough.
        let upper = (n / 2..n).map(|cell| {
            let ((p, d), (q, e)) = (edge(cell), edge(cell + 1));
            match measure {
                Measure::L1Gauss => quantile(0.5 * (p + q), self.codes[cell]),
                Measure::MseGauss => (d - e) / (q - p),
            }
        });
        let upper: Vec<f64> = upper.collect();
        upper.iter().rev().map(|code| -code).chain(upper.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 5e-5), "{found:?}");
    }

    #[test]
    fn codes_to_four_digits() {
        let book = Codebook::of(1, Measure::L1Gauss).unwrap();
        near(&book.codes, &[-0.6745, 0.6745]);
        near(&book.thresholds, &[0.0]);
        let book = Codebook::of(2, Measure::L1Gauss).unwrap();
        near(&book.codes, &[-1.2657, -0.3778, 0.3778, 1.2657]);
        near(&book.thresholds, &[-0.8217, 0.0, 0.8217]);
        near(&Codebook::of(1, Measure::MseGauss).unwrap().codes, &[-0.7979, 0.7979]);
        // Lloyd 1957, Max 1960.
        near(&Codebook::of(2, Measure::MseGauss).unwrap().codes, &[-1.5104, -0.4528, 0.4528, 1.5104]);
        assert!(Codebook::of(3, Measure::L1Gauss).is_none());
    }

    /// The mean absolute error, by a fine sum: 0.473 and 0.266 in the paper.
    #[test]
    fn errors_are_the_papers() {
        for (bit, error) in [(1, 0.473), (2, 0.266)] {
            let book = Codebook::of(bit, Measure::L1Gauss).unwrap();
            let nearest = |x: f64| book.codes.iter().map(|code| (x - code).abs()).fold(f64::INFINITY, f64::min);
            let sum: f64 = (-80_000..80_000).map(|i| f64::from(i) * 1e-4).map(|x| nearest(x) * density(x) * 1e-4).sum();
            assert!((sum - error).abs() < 5e-4, "{bit}: {sum}");
        }
    }

    #[test]
    fn eight_bits_stop_before_they_rest() {
        let book = Codebook::of(8, Measure::L1Gauss).unwrap();
        assert!((book.codes[255] - 2.8095).abs() < 5e-5, "{}", book.codes[255]);
        assert!((book.thresholds[254] - 0.5 * (book.codes[254] + book.codes[255])).abs() > 1e-5);
    }
}
