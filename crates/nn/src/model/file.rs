//! One safetensors file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use pleach_base::Result;
use pleach_base::header::{self, Listed};
use safetensors::Dtype;

use super::mmap::{copied, map};

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
    /// The file that they are in, and where; `None` for bytes in memory.
    pub place: Option<(&'a Path, usize)>,
}

#[derive(Debug)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A safetensors file, mapped; its header is checked when it is opened.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    /// Whether the bytes are a file's, not in memory.
    on_disk: bool,
    map: Mmap,
    places: BTreeMap<String, Place>,
}

impl TensorFile {
    /// Opens a file.
    ///
    /// # Errors
    /// `MODEL_MISSING` when there is none, `SAFETENSORS` naming the file and the tensor when the header is damaged or lies about
    /// lengths.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { on_disk: true, ..Self::of(path, map(path)?)? })
    }

    /// A file that is no file: its bytes, in memory of its own.
    ///
    /// # Errors
    /// `IO` without the memory, `SAFETENSORS` as [`TensorFile::open`].
    pub fn in_memory(bytes: &[u8]) -> Result<Self> {
        Self::of(Path::new("memory"), copied(bytes)?)
    }

    fn of(path: &Path, map: Mmap) -> Result<Self> {
        let listed = header::parse(&map).map_err(|error| error.at(path.display()))?;
        let place = |t: Listed| (t.name, Place { dtype: t.dtype, shape: t.shape, bytes: t.bytes });
        let places = listed.into_iter().map(place).collect();
        Ok(Self { path: path.to_owned(), on_disk: false, map, places })
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
        let bytes = self.map.get(place.bytes.clone())?;
        let at = self.on_disk.then_some((self.path.as_path(), place.bytes.start));
        Some(Entry { name, dtype: place.dtype, shape: &place.shape, bytes, place: at })
    }
}
