//! Room for virtual tokens in a batch: see [`Virtual`].

use pleach_nn::{Form, Inputs, Layout};
use tch::Tensor;

use super::Virtual;

/// A batch with placeholders in front of every sequence whose adapter puts tokens there, and with positions that begin
/// behind prefixes. Sequences of one batch may have different numbers of them.
///
/// With encoder and decoder, placeholders belong before the first layout's sequences and prefixes before the second's:
/// [`Virtual::in_first`], [`Virtual::in_second`].
#[derive(Debug)]
pub struct Room {
    layout: Layout,
    /// For every token of `layout` the token it is of the old one, plus one; 0 for those that are new. `None` when there
    /// are none.
    from: Option<Tensor>,
}

impl Virtual {
    /// What the sequences of the only or first stack get. `two`: the model has a second one.
    #[must_use]
    pub fn in_first(self, two: bool) -> Self {
        if two { Self { prefix: 0, ..self } } else { self }
    }

    /// What the sequences of the second stack get.
    #[must_use]
    pub fn in_second(self) -> Self {
        Self { prompt: 0, ..self }
    }
}

impl Room {
    /// Makes room in `layout`: `tokens[i]` for sequence `i`.
    ///
    /// # Panics
    /// When there is not one entry a sequence: a defect of the caller.
    #[must_use]
    pub fn new(layout: &Layout, tokens: &[Virtual]) -> Self {
        assert_eq!(tokens.len(), layout.sequences(), "one entry a sequence");
        let shift = tokens.iter().map(|tokens| tokens.prefix).collect();
        let most = tokens.iter().map(|tokens| tokens.prompt).max().unwrap_or(0);
        let lengths = layout.lengths().iter().zip(tokens).map(|(length, tokens)| length + tokens.prompt).collect();
        let (samples, device) = (layout.samples().to_vec(), layout.device());
        let mut from = Vec::new();
        let longer = match layout.form() {
            Form::Padded { width } => {
                for (row, tokens) in tokens.iter().enumerate() {
                    from.extend(std::iter::repeat_n(0, tokens.prompt));
                    from.extend((row * width..(row + 1) * width).map(|token| token as i64 + 1));
                    from.extend(std::iter::repeat_n(0, most - tokens.prompt));
                }
                Layout::padded(lengths, width + most, samples, device)
            }
            Form::Packed { offsets } => {
                for (ends, tokens) in offsets.windows(2).zip(tokens) {
                    from.extend(std::iter::repeat_n(0, tokens.prompt));
                    from.extend((ends[0]..ends[1]).map(|token| token as i64 + 1));
                }
                Layout::packed(lengths, samples, device)
            }
        };
        let from = (most > 0).then(|| Tensor::from_slice(&from).to_device(device));
        let mut room = Self { layout: longer.shifted(shift).segmented(layout.segments().to_vec()), from };
        room.layout = room.layout.of_tasks(layout.tasks().to_vec());
        let modality = layout.modality().map(|modality| room.tokens(modality, 0));
        room.layout = room.layout.with_modality(modality);
        room
    }

    /// The same room before every sequence.
    #[must_use]
    pub fn same(layout: &Layout, tokens: Virtual) -> Self {
        Self::new(layout, &vec![tokens; layout.sequences()])
    }

    /// The layout with room.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The layout with room, by value.
    #[must_use]
    pub fn into_layout(self) -> Layout {
        self.layout
    }

    /// A tensor over the old layout's tokens, such as ids (`fill` 0) or labels (-100), with `fill` where there are new
    /// ones. Others than `[batch, width]` or `[tokens]` are returned as they are.
    pub fn tokens(&self, tensor: &Tensor, fill: i64) -> Tensor {
        let per_token = tensor.dim() == self.layout.shape().len();
        match &self.from {
            Some(from) if per_token => {
                let filler = Tensor::from_slice(&[fill]).to_device(tensor.device()).to_kind(tensor.kind());
                let all = Tensor::cat(&[filler, tensor.reshape([-1])], 0);
                all.index_select(0, from).reshape(self.layout.shape())
            }
            _ => tensor.shallow_clone(),
        }
    }

    /// The inputs whose names are given, with placeholders; the others as they are.
    #[must_use]
    pub fn inputs(&self, inputs: &Inputs, names: &[&str]) -> Inputs {
        let fit = |(name, tensor): (&String, &Tensor)| {
            let tensor = if names.contains(&name.as_str()) { self.tokens(tensor, 0) } else { tensor.shallow_clone() };
            (name.clone(), tensor)
        };
        Inputs(inputs.0.iter().map(fit).collect())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn of(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1]).to_kind(Kind::Int64)).unwrap()
    }

    #[test]
    fn placeholders_stand_before_each_sequence_and_padding_behind() {
        let both = [Virtual { prompt: 2, prefix: 0 }, Virtual { prompt: 1, prefix: 3 }];
        let padded = Layout::padded(vec![2, 1], 2, vec![7, 8], Device::Cpu);
        let room = Room::new(&padded, &both);
        let ids = Tensor::from_slice(&[5i64, 6, 9, 0]).reshape([2, 2]);
        assert_eq!(of(&room.tokens(&ids, -100)), [-100, -100, 5, 6, -100, 9, 0, -100]);
        assert_eq!((room.layout().shape(), room.layout().lengths()), (vec![2, 4], [4, 2].as_slice()));
        assert_eq!(of(room.layout().positions()), [0, 1, 2, 3, 3, 4, 5, 6], "behind the prefix");

        let packed = Layout::packed(vec![2, 1], vec![7, 8], Device::Cpu);
        let room = Room::new(&packed, &both);
        let inputs = Inputs::ids(Tensor::from_slice(&[5i64, 6, 9])).with("kept", Tensor::from_slice(&[1i64, 2, 3]));
        let inputs = room.inputs(&inputs, &["input_ids"]);
        assert_eq!(of(inputs.get("input_ids").unwrap()), [0, 0, 5, 6, 0, 9]);
        assert_eq!(of(inputs.get("kept").unwrap()), [1, 2, 3]);
        assert_eq!(of(room.layout().positions()), [0, 1, 2, 3, 3, 4]);
    }

    #[test]
    fn without_virtual_tokens_nothing_moves() {
        let layout = Layout::padded(vec![2, 1], 2, vec![7, 8], Device::Cpu);
        let ids = Tensor::from_slice(&[5i64, 6, 9, 0]).reshape([2, 2]);
        let room = Room::same(&layout, Virtual { prompt: 0, prefix: 4 });
        assert_eq!(of(&room.tokens(&ids, -100)), [5, 6, 9, 0]);
        assert_eq!(of(room.layout().positions()), [4, 5]);
        assert_eq!(Virtual { prompt: 2, prefix: 3 }.in_first(true), Virtual { prompt: 2, prefix: 0 });
        assert_eq!(Virtual { prompt: 2, prefix: 3 }.in_second(), Virtual { prompt: 0, prefix: 3 });
    }
}
