//! Bytes of safetensors files, written so that equal tensors give equal files and read as if a stranger wrote them.
//!
//! Order in the file: by element type, widest first, then by name. That is the order of the reference library, which
//! keeps every tensor aligned; the order of the caller is not kept in the file and must come from elsewhere (names).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
pub use safetensors::Dtype;
use safetensors::View;

use pleach_base::header::{self, Listed, METADATA, bits_of};
use pleach_base::{Result, code};

/// A named tensor as bytes: little-endian, row-major, without padding.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its key in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Bytes,
}

/// A safetensors file with metadata `{"format": "pt"}`, which is what PEFT and transformers ask for.
///
/// # Errors
/// `INTERNAL` with the tensor's name when bytes and shape disagree or a name is used twice or reserved.
pub fn write(tensors: &[StoredTensor]) -> Result<Bytes> {
    let mut by_name = BTreeMap::new();
    for tensor in tensors {
        let bits = bits_of(&tensor.shape, tensor.dtype);
        if bits != Some(tensor.bytes.len() as u64 * 8) {
            return Err(code::INTERNAL.error(format!(
                "tensor `{}`: {} bytes for {:?} of shape {:?}",
                tensor.name,
                tensor.bytes.len(),
                tensor.dtype,
                tensor.shape
            )));
        }
        if tensor.name == METADATA || by_name.insert(tensor.name.as_str(), AsView(tensor)).is_some() {
            return Err(code::INTERNAL.error(format!("tensor `{}`: the name is taken", tensor.name)));
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = safetensors::serialize(by_name, Some(metadata))
        .map_err(|e| code::INTERNAL.error("cannot write tensors").caused_by(e))?;
    Ok(file.into())
}

/// The tensors of a safetensors file, sorted by name. They share `file`'s memory.
///
/// # Errors
/// `SAFETENSORS` with the tensor's name, or the part of the header, that cannot be right. Never panics, whatever the
/// bytes.
pub fn read(file: &Bytes) -> Result<Vec<StoredTensor>> {
    let stored = |tensor: Listed| StoredTensor {
        bytes: file.slice(tensor.bytes),
        name: tensor.name,
        dtype: tensor.dtype,
        shape: tensor.shape,
    };
    Ok(header::parse(file)?.into_iter().map(stored).collect())
}

struct AsView<'a>(&'a StoredTensor);

impl View for AsView<'_> {
    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.0.bytes)
    }

    fn data_len(&self) -> usize {
        self.0.bytes.len()
    }
}

#[cfg(test)]
mod tests;
