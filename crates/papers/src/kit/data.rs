//! Labelled rows, and batches of them as a model reads them.

use pleach_base::rng::Key;
use pleach_base::{Result, code};
use pleach_nn::{Inputs, Layout, Reads, Source};
use pleach_train::PassInput;
use tch::{Device, Kind, Tensor};

use super::draws::order;

/// Labelled rows.
#[derive(Debug)]
pub struct Data {
    /// Images, vectors or token ids, `[n, ..]`.
    pub x: Tensor,
    /// Classes `[n]`, labels of tokens `[n, width]` (-100 where none is wanted), or vectors to come near to `[n, d]`.
    pub y: Tensor,
    /// Real tokens of each row of ids; all of them when absent.
    pub lengths: Option<Vec<usize>>,
}

impl Data {
    /// Rows that are whole.
    #[must_use]
    pub fn new(x: Tensor, y: Tensor) -> Self {
        Self { x, y, lengths: None }
    }

    /// The number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.x.size().first().map_or(0, |n| *n as usize)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A second handle to the same rows.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { x: self.x.shallow_clone(), y: self.y.shallow_clone(), lengths: self.lengths.clone() }
    }

    /// These rows, in this order.
    #[must_use]
    pub fn select(&self, rows: &[i64]) -> Self {
        let index = Tensor::from_slice(rows).to_device(self.x.device());
        let lengths = self.lengths.as_ref().map(|all| rows.iter().map(|row| all[*row as usize]).collect());
        Self { x: self.x.index_select(0, &index), y: self.y.index_select(0, &index), lengths }
    }

    /// The rows of these classes, relabelled `0, 1, ..` in the order in which they are named.
    #[must_use]
    pub fn only(&self, classes: &[i64]) -> Self {
        let labels = self.classes();
        let place = |label: &i64| classes.iter().position(|class| class == label);
        let rows: Vec<i64> =
            (0..labels.len()).filter(|row| place(&labels[*row]).is_some()).map(|row| row as i64).collect();
        let relabelled: Vec<i64> = labels.iter().filter_map(|label| place(label).map(|place| place as i64)).collect();
        Self { y: Tensor::from_slice(&relabelled).to_device(self.y.device()), ..self.select(&rows) }
    }

    /// A drawn `count` of rows, and the others.
    #[must_use]
    pub fn split(&self, key: Key, count: usize) -> (Self, Self) {
        let order = order(key, self.len());
        let (some, others) = order.split_at(count.min(order.len()));
        (self.select(some), self.select(others))
    }

    /// So many drawn rows of every class, and the others.
    #[must_use]
    pub fn per_class(&self, key: Key, count: usize) -> (Self, Self) {
        let labels = self.classes();
        let (mut some, mut others, mut taken) = (Vec::new(), Vec::new(), std::collections::BTreeMap::new());
        for row in order(key, labels.len()) {
            let taken: &mut usize = taken.entry(labels[row as usize]).or_default();
            if *taken < count {
                some.push(row)
            } else {
                others.push(row)
            }
            *taken += 1;
        }
        (self.select(&some), self.select(&others))
    }

    /// The same rows with inputs made anew, such as images as vectors.
    #[must_use]
    pub fn map_x(&self, change: impl FnOnce(&Tensor) -> Tensor) -> Self {
        Self { x: change(&self.x), ..self.shallow_clone() }
    }

    /// The same rows with every input as one vector.
    #[must_use]
    pub fn flat(&self) -> Self {
        self.map_x(|x| x.flatten(1, -1))
    }

    /// Some rows as a model that reads so takes them, and their labels.
    ///
    /// # Errors
    /// `INTERNAL` for a model with two inputs: whoever trains one makes its batches.
    pub fn batch(&self, reads: &Reads, rows: &[i64]) -> Result<(PassInput, Tensor)> {
        if reads.second.is_some() {
            return Err(code::INTERNAL.error("a model with two inputs needs batches of its own"));
        }
        let part = self.select(rows);
        let samples: Vec<u64> = rows.iter().map(|row| *row as u64).collect();
        let layout = match &reads.first {
            fixed @ Source::Fixed { .. } => fixed.layout(samples, false, part.x.device()),
            Source::Tokens { .. } => Some(part.token_layout(samples)),
        };
        let layout = layout.ok_or_else(|| code::INTERNAL.error("the model's rows have no layout"))?;
        Ok((PassInput::new(Inputs::default().with(reads.first.name(), part.x), layout), part.y))
    }

    fn token_layout(&self, samples: Vec<u64>) -> Layout {
        let width = self.x.size()[1] as usize;
        let lengths = self.lengths.clone().unwrap_or_else(|| vec![width; samples.len()]);
        Layout::padded(lengths, width, samples, self.x.device())
    }

    /// The labels as numbers.
    #[must_use]
    pub fn classes(&self) -> Vec<i64> {
        Vec::try_from(self.y.to_kind(Kind::Int64).to_device(Device::Cpu).reshape([-1])).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered() -> Data {
        let labels = Tensor::from_slice(&[3i64, 1, 3, 2, 1, 2, 3, 1]);
        Data::new(Tensor::arange(8, (Kind::Float, Device::Cpu)).reshape([8, 1]), labels)
    }

    #[test]
    fn classes_are_chosen_and_numbered_anew() {
        let some = numbered().only(&[3, 1]);
        assert_eq!(some.classes(), [0, 1, 0, 1, 0, 1]);
        assert_eq!(Vec::<f32>::try_from(some.x.reshape([-1])).unwrap(), [0.0, 1.0, 2.0, 4.0, 6.0, 7.0]);
    }

    #[test]
    fn a_split_has_every_row_once() {
        let key = Key::seed(1);
        let (few, rest) = numbered().per_class(key, 2);
        let mut labels = few.classes();
        labels.sort_unstable();
        assert_eq!((labels, rest.len()), (vec![1, 1, 2, 2, 3, 3], 2));
        let (some, others) = numbered().split(key, 3);
        let mut all: Vec<f32> = Vec::try_from(Tensor::cat(&[some.x, others.x], 0).reshape([-1])).unwrap();
        all.sort_by(f32::total_cmp);
        assert_eq!(all, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
