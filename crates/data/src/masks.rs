//! Masked language modelling: which tokens of a row are predicted, and what the model reads in their place.
//!
//! Draws depend on the key, the epoch and the row alone: whoever encodes a row for an epoch masks it alike, and for an
//! evaluation alike every time.

use std::collections::BTreeSet;

use pleach_base::rng::Key;
use pleach_spec::job::Masking;

use crate::batch::IGNORE;
use crate::example::Encoded;
use crate::marks::Marks;

/// Masks tokens.
#[derive(Clone, Debug)]
pub struct Masks {
    /// How many, and what becomes of them.
    pub masking: Masking,
    /// The id that stands for a masked token.
    pub token: u32,
    /// Ids that are never predicted.
    pub special: BTreeSet<u32>,
    /// Drawn tokens are below this number.
    pub vocab_size: u32,
    /// The root of all draws.
    pub key: Key,
}

impl Masks {
    /// The tokens as the model reads them in an epoch, or in an evaluation, and what is predicted: the label of every
    /// other token is [`IGNORE`].
    #[must_use]
    pub fn draw(&self, row: u64, epoch: Option<u64>, tokens: &Encoded) -> (Encoded, Marks) {
        let key = match epoch {
            Some(epoch) => self.key.named("epoch").with(epoch),
            None => self.key.named("evaluation"),
        };
        let mut rng = key.with(row).rng();
        let [mask, keep, _] = self.masking.mix;
        let (mut ids, mut labels) = (tokens.ids.clone(), vec![IGNORE; tokens.len()]);
        for (id, label) in ids.iter_mut().zip(&mut labels) {
            // As many draws for each token, whatever it is: those of one do not move with another's.
            let (chosen, how, other) =
                (f64::from(rng.uniform()), f64::from(rng.uniform()), rng.below(u64::from(self.vocab_size)));
            if *id == self.token || self.special.contains(id) || chosen >= self.masking.probability {
                continue;
            }
            *label = i64::from(*id);
            if how < mask {
                *id = self.token;
            } else if how >= mask + keep {
                *id = other as u32;
            }
        }
        (Encoded { ids, type_ids: tokens.type_ids.clone() }, Marks { labels, ..Marks::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(probability: f64, mix: [f64; 3]) -> Masks {
        let masking = Masking { probability, mix };
        Masks { masking, token: 3, special: BTreeSet::from([0, 1, 2]), vocab_size: 100, key: Key::seed(5) }
    }

    /// A sequence between two special tokens, of the tokens 50 to 99.
    fn text() -> Encoded {
        let ids: Vec<u32> = std::iter::once(1).chain((0..1000).map(|at| 50 + at % 50)).chain([2]).collect();
        Encoded { type_ids: vec![0; ids.len()], ids }
    }

    #[test]
    fn shares_are_those_that_were_asked_for() {
        let (mut chosen, mut mask, mut kept, mut drawn) = (0, 0, 0, 0);
        for row in 0..20 {
            let (read, marks) = masks(0.15, [0.85, 0.10, 0.05]).draw(row, Some(0), &text());
            for ((label, read), own) in marks.labels.iter().zip(&read.ids).zip(&text().ids) {
                if *label == IGNORE {
                    assert_eq!(read, own);
                    continue;
                }
                assert_eq!(*label, i64::from(*own));
                assert!(*own > 2, "special tokens are never predicted");
                chosen += 1;
                match *read {
                    3 => mask += 1,
                    id if id == *own => kept += 1,
                    _ => drawn += 1,
                }
            }
        }
        let share = |part: i32, of: i32| f64::from(part) / f64::from(of);
        assert!((share(chosen, 20_000) - 0.15).abs() < 0.01, "{chosen} of 20000");
        assert!((share(mask, chosen) - 0.85).abs() < 0.03, "{mask} of {chosen}");
        assert!((share(kept, chosen) - 0.10).abs() < 0.03, "{kept} of {chosen}");
        assert!((share(drawn, chosen) - 0.05).abs() < 0.02, "{drawn} of {chosen}");
    }

    #[test]
    fn draws_know_the_row_and_the_epoch_and_nothing_else() {
        let draw = |row, epoch| masks(0.15, [0.8, 0.1, 0.1]).draw(row, epoch, &text()).1.labels;
        assert_eq!(draw(4, Some(2)), draw(4, Some(2)));
        assert_eq!(draw(4, None), draw(4, None));
        for other in [draw(5, Some(2)), draw(4, Some(3)), draw(4, None)] {
            assert_ne!(draw(4, Some(2)), other);
        }
        let mut cut = text();
        cut.ids.truncate(100);
        cut.type_ids.truncate(100);
        let short = masks(0.15, [0.8, 0.1, 0.1]).draw(4, Some(2), &cut).1.labels;
        assert_eq!(short, draw(4, Some(2))[..100], "nor the length");
    }
}
