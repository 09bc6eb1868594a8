//! One safetensors file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use pleach_base::{Result, ResultExt, code};
use safetensors::{Dtype, SafeTensors};

use super::mmap::map;

/// A tensor in a file: what its header says, and its bytes.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Name.
    pub name: &'a str,
    /// Kind of elements.
    pub dtype: Dtype,
    /// Shape.
    pub shape: &'a [usize],
    /// Elements, little-endian.
    pub bytes: &'a [u8],
}

#[derive(Debug)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A safetensors file, mapped; its header is checked when it is opened.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    places: BTreeMap<String, Place>,
}

impl TensorFile {
    /// Opens a file.
    ///
    /// # Errors
    /// `MODEL_MISSING` when there is none, `SAFETENSORS` when the header is damaged or lies about lengths.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let damaged = || format!("{}: not a whole safetensors file", path.display());
        let (header, metadata) = SafeTensors::read_metadata(&map).or_code(code::SAFETENSORS, damaged)?;
        SafeTensors::deserialize(&map).or_code(code::SAFETENSORS, damaged)?;
        let data = header + 8;
        let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let (start, end) = info.data_offsets;
            (name, Place { dtype: info.dtype, shape: info.shape.clone(), start: data + start, end: data + end })
        };
        let places = metadata.tensors().into_iter().map(place).collect();
        Ok(Self { path: path.to_owned(), map, places })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Entry<'_>> {
        let (name, place) = self.places.get_key_value(name)?;
        let bytes = self.map.get(place.start..place.end)?;
        Some(Entry { name, dtype: place.dtype, shape: &place.shape, bytes })
    }
}
