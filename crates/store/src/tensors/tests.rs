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

/// A file with this header and this many bytes of data.
fn file(header: &str, data: usize) -> Bytes {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes.into()
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

#[test]
fn damage_is_named() {
    let one = |text: &str| format!(r#"{{"x":{text}}}"#);
    let cases = [
        (Bytes::from_static(b"abc"), "header"),
        (Bytes::copy_from_slice(&u64::MAX.to_le_bytes()), "header"),
        (Bytes::copy_from_slice(&9_u64.to_le_bytes()), "header"),
        (file("[]", 0), "header"),
        (file("{", 0), "header"),
        (file(r#"{"__metadata__":{"a":1}}"#, 0), "header"),
        (file("{}", 4), "data"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 5), "data"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 3), "tensor `x`"),
        (file(&one(r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), 8), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#), 0), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}"#), 4), "tensor `x`"),
    ];
    for (bytes, part) in cases {
        let error = read(&bytes).expect_err(&format!("{:?}", String::from_utf8_lossy(&bytes)));
        assert_eq!(error.code(), code::SAFETENSORS);
        assert!(error.chain().contains(part), "{} does not name {part}", error.chain());
    }
}

#[test]
fn overlaps_and_twins_are_named() {
    let info = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let twice = read(&file(&format!(r#"{{"x":{info},"x":{info}}}"#), 4)).expect_err("twice");
    assert!(twice.chain().contains("tensor `x`: listed twice"), "{}", twice.chain());
    let overlap = read(&file(&format!(r#"{{"x":{info},"y":{info}}}"#), 4)).expect_err("overlap");
    assert!(overlap.message().contains("tensor `y`") && overlap.message().contains("overlaps"), "{overlap}");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes.into());
    }

    #[test]
    fn random_headers_never_panic(text in r#"[\{\}\[\]",:0-9a-zFx_]{0,120}"#, data in 0_usize..64) {
        let _ = read(&file(&text, data));
    }

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
