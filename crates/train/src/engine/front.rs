//! Virtual tokens in front of a batch's sequences: placeholders for those of a prompt, which the adapter fills at the
//! token table, and positions that begin behind those of a prefix, which the adapter puts before keys and values.
//!
//! In a model with a decoder of its own a prompt stands in front of the encoder's sequences, a prefix in front of the
//! decoder's.

use pleach_data::IGNORE;
use pleach_methods::{Room, Virtual};
use pleach_nn::{Layout, Reads, Source};
use tch::Tensor;

use super::pass::PassInput;

/// Inputs with one entry a token.
const TOKENS: &[&str] = &["input_ids", "token_type_ids"];

/// The pass with an adapter's virtual tokens in front of every sequence.
pub(crate) fn with_virtual(input: PassInput, front: Virtual, reads: &Reads) -> PassInput {
    if front == Virtual::default() {
        return input;
    }
    let PassInput { inputs, layout, second } = input;
    let decoder = reads.shift.is_some();
    let mut first = front.in_first(decoder);
    if !matches!(reads.first, Source::Tokens { .. }) {
        first.prompt = 0;
    }
    let room = Room::same(&layout, first);
    let second = second.map(|second| match decoder {
        true => Room::same(&second, front.in_second()).into_layout(),
        false => second,
    });
    PassInput { inputs: room.inputs(&inputs, TOKENS), layout: room.into_layout(), second }
}

/// Labels of tokens that lie as `layout` says, without any for the prompt in front.
pub(crate) fn labels(labels: &Tensor, layout: &Layout, front: Virtual) -> Tensor {
    Room::same(layout, front).tokens(labels, IGNORE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_nn::{Inputs, ShiftIds};
    use tch::Device;

    fn list(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1])).unwrap()
    }

    #[test]
    fn a_prompt_goes_before_the_encoder_and_a_prefix_before_the_decoder() {
        let reads = Reads::encoder_decoder(Source::Tokens { name: "input_ids" }, ShiftIds { start: 0, pad: 0 });
        let pass = |reads: &Reads, front| {
            let ids = Tensor::from_slice(&[5i64, 6, 7, 8, 9]);
            let input = PassInput {
                inputs: Inputs::ids(ids),
                layout: Layout::packed(vec![3, 2], vec![1, 2], Device::Cpu),
                second: reads.shift.map(|_| Layout::packed(vec![1, 2], vec![1, 2], Device::Cpu)),
            };
            with_virtual(input, front, reads)
        };
        let (prompt, prefix) = (Virtual { prompt: 2, prefix: 0 }, Virtual { prompt: 0, prefix: 4 });
        let both = pass(&reads, prefix);
        assert_eq!(list(both.layout.positions()), [0, 1, 2, 0, 1]);
        assert_eq!(list(both.second.unwrap().positions()), [4, 4, 5]);
        let both = pass(&reads, prompt);
        assert_eq!((both.layout.lengths(), both.second.unwrap().lengths()), (&[5usize, 4][..], &[1usize, 2][..]));
        let one = pass(&Reads::TEXT, prefix);
        assert_eq!(list(one.layout.positions()), [4, 5, 6, 4, 5]);
        let one = pass(&Reads::TEXT, prompt);
        assert_eq!(list(one.inputs.get("input_ids").unwrap()), [0, 0, 5, 6, 7, 0, 0, 8, 9]);
    }
}
