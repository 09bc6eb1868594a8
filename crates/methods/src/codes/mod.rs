//! Weights in 1 to 8 bits: standardised, each replaced by the nearest of a few codes for normal numbers, and scaled back:
//! `W~ = sigma Q((W - mu) / (sigma + 1e-5)) + mu` with the mean and the deviation of the whole matrix or of each row.
//!
//! In training only `Q` is passed straight through: `mu` and `sigma` have gradients. Stored, a matrix is its packed code
//! numbers, then `mu`, then `sigma`, which is the byte format of the reference (little endian, matrices in module order).
//!
//! Jie, Wang, Deng, *Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy*, 2023.

mod codebook;
mod gauss;
mod pack;
#[cfg(feature = "torch")]
mod record;
#[cfg(feature = "torch")]
mod weights;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use codebook::{Codebook, Measure};
pub use pack::{pack, packed_len, unpack};
#[cfg(feature = "torch")]
pub use record::Record;

/// What has one mean and one deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// The whole matrix.
    #[default]
    Tensor,
    /// Each row.
    Row,
}

/// How matrices are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    /// Bits a weight: 1, 2, 4, 8, or 32 for weights as they are.
    pub bit: u32,
    /// What its codes make smallest.
    pub codebook: Measure,
    /// What has a mean and a deviation.
    pub per: Per,
}

impl Codec {
    /// The codes; `None` where weights are stored as they are.
    #[must_use]
    pub fn book(&self) -> Option<&'static Codebook> {
        Codebook::of(self.bit, self.codebook)
    }

    /// Bytes of a matrix in a file.
    #[must_use]
    pub fn bytes(&self, rows: usize, columns: usize) -> usize {
        let count = rows * columns;
        if self.book().is_none() {
            return 4 * count;
        }
        packed_len(count, self.bit) + 8 * self.groups(rows)
    }

    /// Means (and deviations) of a matrix.
    pub(crate) fn groups(&self, rows: usize) -> usize {
        if self.per == Per::Row { rows } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Codec = Codec { bit: 1, codebook: Measure::L1Gauss, per: Per::Tensor };

    /// The sizes of the released files, ViT-B/16 with 8 classes.
    #[test]
    fn files_are_as_large_as_the_released_ones() {
        let (d, classes, blocks) = (768, 8, 12);
        let pair = |h| ONE.bytes(h, d) + ONE.bytes(d, h);
        let head = ONE.bytes(classes, d);
        assert_eq!(blocks * pair(32), 73_920);
        assert_eq!(blocks * pair(32) + head, 74_696);
        assert_eq!(blocks * pair(32) + 4 * (d * classes + classes), 98_528);
        assert_eq!(blocks * pair(1) + head, 3_272);
        assert_eq!(2 * blocks * pair(32) + head, 148_616);
    }

    #[test]
    fn odd_sizes_are_filled_up() {
        assert_eq!(ONE.bytes(5, 7), 5 + 8);
        assert_eq!(Codec { per: Per::Row, ..ONE }.bytes(5, 7), 5 + 5 * 8);
        assert_eq!(Codec { bit: 32, ..ONE }.bytes(5, 7), 140);
    }
}
