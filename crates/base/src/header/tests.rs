use proptest::prelude::*;

use super::*;
use crate::mutate;
use crate::rng::Key;

/// A file with this header and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

const INFO: &str = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;

#[test]
fn a_whole_file_is_read() {
    let second = r#"{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]}"#;
    let text = format!(r#"{{"__metadata__":{{"format":"pt"}},"y":{second},"x":{INFO}}}"#);
    let (bytes, start) = (file(&text, 8), 8 + text.len());
    let listed = parse(&bytes).unwrap();
    assert_eq!(listed.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!((listed[1].dtype, listed[1].shape.as_slice()), (Dtype::BF16, &[2, 1][..]));
    assert_eq!(listed[1].bytes, start + 4..start + 8);
}

#[test]
fn damage_is_named() {
    let one = |text: &str| format!(r#"{{"x":{text}}}"#);
    let cases = [
        (b"abc".to_vec(), "header"),
        (u64::MAX.to_le_bytes().to_vec(), "header"),
        (9_u64.to_le_bytes().to_vec(), "header"),
        (file("[]", 0), "header"),
        (file("{", 0), "header"),
        (file(r#"{"__metadata__":{"a":1}}"#, 0), "header"),
        (file("{}", 4), "data"),
        (file(&one(INFO), 5), "data"),
        (file(&one(INFO), 3), "tensor `x`"),
        (file(&one(r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), 8), "a gap stands before it"),
        (file(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#), 0), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}"#), 4), "tensor `x`"),
        (file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}"#), 4), "tensor `x`"),
        (file(&format!(r#"{{"x":{INFO},"x":{INFO}}}"#), 4), "tensor `x`: listed twice"),
        (file(&format!(r#"{{"x":{INFO},"y":{INFO}}}"#), 4), "tensor `y`: it starts at byte 0, not 4: overlaps"),
    ];
    for (bytes, part) in cases {
        let error = parse(&bytes).expect_err(&format!("{:?}", String::from_utf8_lossy(&bytes)));
        assert_eq!(error.code(), code::SAFETENSORS);
        assert!(error.chain().contains(part), "{} does not name {part}", error.chain());
    }
}

/// `fuzz` holds over a corpus of whole files and thousands of damaged ones; enough of them are still accepted for its
/// assertions to be reached.
#[test]
fn the_corpus_of_damaged_files_breaks_nothing() {
    let second = r#"{"dtype":"I64","shape":[2],"data_offsets":[4,20]}"#;
    let empty = r#"{"dtype":"F32","shape":[0,4],"data_offsets":[20,20]}"#;
    let long = format!(r#"{{"__metadata__":{{"format":"pt"}},"a.b":{INFO},"c":{second},"d":{empty}}}"#);
    let seeds = vec![file(&format!(r#"{{"x":{INFO}}}"#), 4), file("{}", 0), file(&long, 20)];
    let mut accepted = 0;
    for bytes in mutate::damaged(&seeds, Key::seed(11), 30_000) {
        fuzz(&bytes);
        accepted += u32::from(parse(&bytes).is_ok());
    }
    assert!(accepted > 300, "{accepted}");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz(&bytes);
    }

    #[test]
    fn random_headers_never_panic(text in r#"[\{\}\[\]",:0-9a-zFx_]{0,120}"#, data in 0_usize..64) {
        fuzz(&file(&text, data));
    }
}
