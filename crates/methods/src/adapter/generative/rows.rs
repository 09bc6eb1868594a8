//! Packed sequences as rows of one width: many short segments are one product of matrices, not one each.

use pleach_nn::Layout;
use tch::{Kind, Tensor};

/// Where tokens of the packed form lie in rows that are filled up to the longest.
pub(super) struct Rows {
    /// Number of each cell's token, `[rows * width]`; that of the row's first where there is none.
    cells: Tensor,
    /// Which cells are tokens, `[rows, width]`.
    pub(super) real: Tensor,
    /// Number of each token's cell, in the rows' order.
    back: Tensor,
}

impl Rows {
    /// These sequences, in this order: one at least.
    pub(super) fn new(layout: &Layout, sequences: &[usize]) -> Self {
        let ranges: Vec<_> = sequences.iter().map(|sequence| layout.token_range(*sequence)).collect();
        let width = ranges.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let (mut cells, mut back) = (Vec::with_capacity(ranges.len() * width), Vec::new());
        for tokens in ranges {
            back.extend((cells.len()..cells.len() + tokens.len()).map(|cell| cell as i64));
            let first = tokens.start;
            cells.extend((first..first + width).map(|token| if token < tokens.end { token } else { first } as i64));
        }
        let count = cells.len() as i64;
        let index = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(layout.device());
        let back = index(&back);
        let real = Tensor::zeros([count], (Kind::Bool, layout.device())).index_fill(0, &back, 1);
        Self { cells: index(&cells), real: real.reshape([sequences.len() as i64, width as i64]), back }
    }

    /// `[tokens, ..]` to `[rows, width, ..]`.
    pub(super) fn of(&self, tokens: &Tensor) -> Tensor {
        tokens.index_select(0, &self.cells).unflatten(0, self.real.size())
    }

    /// `[rows, width, ..]` to the rows' tokens, one row behind the other.
    pub(super) fn tokens(&self, rows: &Tensor) -> Tensor {
        rows.flatten(0, 1).index_select(0, &self.back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn rows_are_filled_up_and_cut_again() {
        let layout = Layout::packed(vec![2, 3, 1], vec![0, 1, 2], Device::Cpu);
        let tokens = Tensor::arange(6, (Kind::Float, Device::Cpu)).unsqueeze(1);
        let rows = Rows::new(&layout, &[0, 1, 2]);
        assert_eq!(rows.of(&tokens).size(), [3, 3, 1]);
        assert!(rows.tokens(&rows.of(&tokens)).equal(&tokens));
        let some = Rows::new(&layout, &[2, 0]);
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        assert_eq!(values(&some.of(&tokens)), [5.0, 5.0, 0.0, 1.0], "the first token stands in where there is none");
        assert_eq!(values(&some.real.to_kind(Kind::Float)), [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(values(&some.tokens(&some.of(&tokens))), [5.0, 0.0, 1.0]);
    }
}
