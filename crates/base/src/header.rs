//! The header of a safetensors file, read as if a stranger wrote it: `length u64 | JSON | data`, where the JSON lists each
//! tensor's kind, shape and place in the data.
//!
//! The reference library accepts less than the JSON can say, and says less about what is wrong: here every refusal names
//! the tensor, and two tensors of one name are refused instead of one being lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::{Error, Result, code};

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where its elements are in the file.
    pub bytes: Range<usize>,
}

/// The reference library's own limit.
const HEADER_LIMIT: u64 = 100_000_000;
const PREFIX: usize = 8;
/// The key that holds text instead of a tensor.
pub const METADATA: &str = "__metadata__";

/// The tensors of a file, sorted by name.
///
/// # Errors
/// `SAFETENSORS` with the tensor's name, or the part of the header, that cannot be right. Never panics, whatever the
/// bytes.
pub fn parse(file: &[u8]) -> Result<Vec<Listed>> {
    let (header, start) = split(file)?;
    let length = file.len() - start;
    let Header(listed) =
        serde_json::from_slice(header).map_err(|e| damaged("header: not as it should be").caused_by(e))?;
    let mut tensors = Vec::with_capacity(listed.len());
    for (name, info) in listed {
        let (dtype, from, to) = info.check(length).map_err(|why| damaged(format!("tensor `{name}`: {why}")))?;
        tensors.push(Listed { name, dtype, shape: info.shape, bytes: start + from..start + to });
    }
    check_cover(&tensors, start, length)?;
    // The reference library has the last word on what the format is.
    safetensors::SafeTensors::deserialize(file).map_err(|e| damaged("file: refused").caused_by(e))?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Bits of a tensor; `None` when they do not fit a number.
#[must_use]
pub fn bits_of(shape: &[usize], dtype: Dtype) -> Option<u64> {
    let elements = shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(u64::try_from(*dim).ok()?))?;
    elements.checked_mul(dtype.bitsize() as u64)
}

/// What a fuzzer calls: reads `data` as a file. What comes out lies within the file, in a name order without twins.
///
/// # Panics
/// When a header was accepted that should not have been.
pub fn fuzz(data: &[u8]) {
    let Ok(tensors) = parse(data) else { return };
    let mut covered = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        assert!(tensor.bytes.start <= tensor.bytes.end && tensor.bytes.end <= data.len(), "{tensor:?}");
        assert_eq!(bits_of(&tensor.shape, tensor.dtype), Some(tensor.bytes.len() as u64 * 8), "{tensor:?}");
        assert!(index == 0 || tensors[index - 1].name < tensor.name, "{tensor:?}");
        covered += tensor.bytes.len();
    }
    assert!(PREFIX + covered <= data.len(), "tensors overlap");
}

fn damaged(message: impl Into<String>) -> Error {
    code::SAFETENSORS.error(message)
}

/// The header's JSON, and where the data begins.
fn split(file: &[u8]) -> Result<(&[u8], usize)> {
    let prefix: [u8; PREFIX] = file
        .get(..PREFIX)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| damaged(format!("header: the file has {} bytes, its length alone takes 8", file.len())))?;
    let length = u64::from_le_bytes(prefix);
    let rest = (file.len() - PREFIX) as u64;
    if length > HEADER_LIMIT || length > rest {
        return Err(damaged(format!("header: it claims {length} bytes, the file has {rest} after its length")));
    }
    let end = PREFIX + usize::try_from(length).unwrap_or(usize::MAX);
    Ok((&file[PREFIX..end], end))
}

/// The data must be the tensors and nothing else: a gap could hide anything, an overlap is never meant.
fn check_cover(tensors: &[Listed], start: usize, length: usize) -> Result<()> {
    let mut places: Vec<_> = tensors.iter().map(|t| (t.bytes.start - start, t.bytes.end - start, &t.name)).collect();
    places.sort_unstable();
    let mut expected = 0;
    for (from, to, name) in places {
        if from != expected {
            let what = if from < expected { "overlaps another tensor" } else { "a gap stands before it" };
            return Err(damaged(format!("tensor `{name}`: it starts at byte {from}, not {expected}: {what}")));
        }
        expected = to;
    }
    if expected != length {
        return Err(damaged(format!("data: {length} bytes, the header describes {expected}")));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Info {
    /// Kind, and the place within `length` bytes of data.
    fn check(&self, length: usize) -> std::result::Result<(Dtype, usize, usize), String> {
        let name = serde_json::Value::String(self.dtype.clone());
        let dtype: Dtype = serde_json::from_value(name).map_err(|_| format!("unknown dtype `{}`", self.dtype))?;
        let (start, end) = self.data_offsets;
        if start > end || end > length {
            return Err(format!("its bytes {start}..{end} are not within the {length} bytes of data"));
        }
        let bits = bits_of(&self.shape, dtype).ok_or_else(|| format!("shape {:?} is too large", self.shape))?;
        if bits != (end - start) as u64 * 8 {
            return Err(format!("{} bytes do not hold {dtype:?} of shape {:?}", end - start, self.shape));
        }
        Ok((dtype, start, end))
    }
}

/// The header's tensors in the order of the file. A map would silently keep the last of two equal names.
struct Header(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        use serde::de::Error as _;
        let mut seen = BTreeSet::new();
        let mut listed = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("tensor `{name}`: listed twice")));
            }
            if name == METADATA {
                map.next_value::<BTreeMap<String, String>>()?;
            } else {
                let info = map.next_value::<Info>().map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                listed.push((name, info));
            }
        }
        Ok(Header(listed))
    }
}

#[cfg(test)]
mod tests;
