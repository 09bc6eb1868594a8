//! Tensors on their way into a safetensors file: converted one at a time while it is written.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use pleach_base::{Result, ResultExt, code};
use safetensors::{Dtype, View};
use tch::{Kind, Tensor};

use super::bytes::{dtype_of, kind_of, tensor_from_entry, to_le_bytes};
use crate::model::Entry;

/// A tensor to be written.
#[derive(Debug)]
pub struct OutTensor<'a> {
    from: From<'a>,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Debug)]
enum From<'a> {
    Entry(Entry<'a>),
    Tensor(Tensor),
}

impl<'a> OutTensor<'a> {
    /// A tensor of another file, as it is.
    #[must_use]
    pub fn raw(entry: &Entry<'a>) -> Self {
        Self { dtype: entry.dtype, shape: entry.shape.to_vec(), from: From::Entry(entry.clone()) }
    }

    /// A tensor, in its own kind.
    #[must_use]
    pub fn of(tensor: &Tensor) -> Self {
        let shape = tensor.size().iter().map(|n| usize::try_from(*n).unwrap_or_default()).collect();
        Self { dtype: dtype_of(tensor.kind()), shape, from: From::Tensor(tensor.detach()) }
    }

    /// The same with elements of another kind.
    #[must_use]
    pub fn to(self, kind: Kind) -> Self {
        Self { dtype: dtype_of(kind), ..self }
    }

    /// The same with elements of another kind; unchanged for kinds that are not computed with.
    #[must_use]
    pub fn to_dtype(self, dtype: Dtype) -> Self {
        match kind_of(dtype) {
            Some(kind) => self.to(kind),
            None => self,
        }
    }

    /// Bytes that it will take.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn converted(&self) -> Vec<u8> {
        let tensor = match &self.from {
            From::Tensor(tensor) => Some(tensor.shallow_clone()),
            From::Entry(entry) => tensor_from_entry(entry).ok(),
        };
        let kind = kind_of(self.dtype).unwrap_or(Kind::Float);
        tensor.map(|tensor| to_le_bytes(&tensor.to_kind(kind)).bytes).unwrap_or_default()
    }
}

impl View for OutTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.from {
            From::Entry(entry) if entry.dtype == self.dtype => Cow::Borrowed(entry.bytes),
            From::Entry(_) | From::Tensor(_) => Cow::Owned(self.converted()),
        }
    }

    fn data_len(&self) -> usize {
        self.len()
    }
}

/// Writes a safetensors file with the metadata that transformers and PEFT ask for. Equal tensors give equal files.
///
/// # Errors
/// `IO` when it cannot be written.
pub fn write_tensors(path: &Path, tensors: BTreeMap<String, OutTensor<'_>>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .or_code(code::IO, || format!("{}: cannot be written", path.display()))
}
