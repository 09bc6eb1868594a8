use proptest::prelude::*;

use super::*;

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> StoredTensor {
    let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + name.len()) as u8).collect();
    StoredTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
}

fn sample() -> Vec<StoredTensor> {
    vec![
        tensor("b.lora_A.weight", Dtype::F32, &[2, 3]),
        tensor("a.lora_B.weight", Dtype::BF16, &[3, 2]),
        tensor("count", Dtype::I64, &[]),
        tensor("empty", Dtype::F32, &[0, 4]),
    ]
}

#[test]
fn what_was_written_is_read_whatever_the_order() {
    let mut tensors = sample();
    let bytes = write(&tensors).unwrap();
    tensors.reverse();
    assert_eq!(bytes, write(&tensors).unwrap(), "the caller's order does not reach the file");
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(read(&bytes).unwrap(), tensors);
    let header = String::from_utf8_lossy(&bytes).into_owned();
    assert!(header.contains(r#""__metadata__":{"format":"pt"}"#), "{header}");
}

#[test]
fn the_reference_library_reads_what_we_write() {
    let bytes = write(&sample()).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for tensor in sample() {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!((view.dtype(), view.shape(), view.data()), (tensor.dtype, &tensor.shape[..], &tensor.bytes[..]));
    }
}

#[test]
fn a_wrong_tensor_is_not_written() {
    let mut short = tensor("x", Dtype::F32, &[2]);
    short.bytes = short.bytes.slice(..7);
    for bad in [vec![short], vec![tensor("x", Dtype::F32, &[1]); 2], vec![tensor(METADATA, Dtype::F32, &[1])]] {
        let error = write(&bad).expect_err("wrong");
        assert_eq!(error.code(), code::INTERNAL);
        assert!(error.message().contains(&format!("`{}`", bad[0].name)), "{error}");
    }
}

proptest! {
    #[test]
    fn a_changed_file_is_refused_or_read_within_bounds(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let whole = write(&sample()).unwrap();
        let mut bytes = whole.to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(tensors) = read(&Bytes::from(bytes.clone())) {
            prop_assert_eq!(tensors.len(), 4);
        }
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(read(&bytes.into()).is_err(), "a truncated file is never whole");
    }
}
