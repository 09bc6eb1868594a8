//! Frozen tensors that are their file: mapped, not read. Processes of one machine share the pages, and a page is read when
//! it is first touched. The mapping is private, so that nothing that is written to such a tensor reaches the file, and it
//! lives as long as the last tensor in it.
//!
//! Whoever truncates a model file in use ends the process with a bus error, as with every mapped file. Replacing it by
//! renaming another over it is safe.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

use super::bytes::kind_of;
use crate::model::Entry;

/// Smaller tensors are copied: they save nothing, and memory of their own is aligned.
const LEAST: usize = 64 << 10;

/// The files of one build.
#[derive(Default)]
pub(super) struct Mapped(RefCell<BTreeMap<PathBuf, Option<Tensor>>>);

impl Mapped {
    /// The tensor of an entry, on the CPU, in its file; `None` where it must be read: it is small, of another kind than is
    /// wanted, in no file, not aligned in it, or the system does not map the file.
    pub(super) fn tensor(&self, entry: &Entry<'_>, wanted: Kind) -> Option<Tensor> {
        let (path, start) = entry.place?;
        let aligned = start.is_multiple_of(wanted.elt_size_in_bytes());
        if kind_of(entry.dtype) != Some(wanted) || entry.bytes.len() < LEAST || !aligned {
            return None;
        }
        let mut files = self.0.borrow_mut();
        let file = files.entry(path.to_owned()).or_insert_with(|| {
            let length = i64::try_from(std::fs::metadata(path).ok()?.len()).ok()?;
            Tensor::f_from_file(path.to_str()?, false, length, (Kind::Uint8, Device::Cpu)).ok()
        });
        let shape: Vec<i64> = entry.shape.iter().map(|n| i64::try_from(*n).ok()).collect::<Option<_>>()?;
        let bytes = file.as_ref()?.f_narrow(0, i64::try_from(start).ok()?, i64::try_from(entry.bytes.len()).ok()?);
        bytes.ok()?.f_view_dtype(wanted).ok()?.f_view(shape.as_slice()).ok()
    }
}
