//! The gradients of what takes part in a step, side by side: the rest has none, and nothing of it is exchanged.

use tch::{Kind, Tensor};

use crate::optim::Span;

/// Which parts of the flat buffer take part: those of spans that move.
pub(super) struct Packed<'a> {
    spans: &'a [Span],
}

impl<'a> Packed<'a> {
    pub(super) fn new(spans: &'a [Span]) -> Self {
        Self { spans }
    }

    /// Numbers that move.
    pub(super) fn numel(&self) -> i64 {
        self.spans.iter().filter(|span| span.moves).map(|span| span.length).sum()
    }

    fn all_move(&self) -> bool {
        self.spans.iter().all(|span| span.moves)
    }

    /// Places and lengths of the parts that move.
    fn parts(&self) -> impl Iterator<Item = (i64, i64)> {
        let mut at = 0;
        self.spans.iter().filter_map(move |span| {
            let start = at;
            at += span.length;
            span.moves.then_some((start, span.length))
        })
    }

    /// What moves of `flat` `[n]`.
    pub(super) fn pack(&self, flat: &Tensor) -> Tensor {
        let parts: Vec<_> = self.parts().map(|(at, length)| flat.narrow(0, at, length)).collect();
        match parts.is_empty() {
            _ if self.all_move() => flat.shallow_clone(),
            true => flat.narrow(0, 0, 0),
            false => Tensor::cat(&parts, 0),
        }
    }

    /// The way back to `[n]`: zero where nothing moves.
    pub(super) fn unpack(&self, packed: Tensor) -> Tensor {
        if self.all_move() {
            return packed;
        }
        let n: i64 = self.spans.iter().map(|span| span.length).sum();
        let flat = Tensor::zeros([n], (Kind::Float, packed.device()));
        let mut from = 0;
        for (at, length) in self.parts() {
            flat.narrow(0, at, length).copy_(&packed.narrow(0, from, length));
            from += length;
        }
        flat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(moves: &[bool]) -> Vec<Span> {
        moves.iter().map(|moves| Span { length: 2, scale: 1.0, moves: *moves }).collect()
    }

    #[test]
    fn what_moves_comes_back_and_the_rest_is_zero() {
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        for (moves, packed, unpacked) in [
            ([true, false, true], vec![1.0f32, 2.0, 5.0, 6.0], vec![1.0f32, 2.0, 0.0, 0.0, 5.0, 6.0]),
            ([false, false, false], vec![], vec![0.0; 6]),
            ([true, true, true], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ] {
            let spans = spans(&moves);
            let all = Packed::new(&spans);
            let found = all.pack(&flat);
            assert_eq!(all.numel(), packed.len() as i64);
            assert_eq!(Vec::<f32>::try_from(&found).unwrap(), packed);
            assert_eq!(Vec::<f32>::try_from(all.unpack(found)).unwrap(), unpacked);
        }
    }
}
