//! Bytes of safetensors files, written so that equal tensors give equal files and read as if a stranger wrote them.
//!
//! Order in the file: by element type, widest first, then by name. That is the order of the reference library, which
//! keeps every tensor aligned; the order of the caller is not kept in the file and must come from elsewhere (names).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bytes::Bytes;
pub use safetensors::Dtype;
use safetensors::View;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use pleach_base::{Error, Result, code};

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

/// The reference library's own limit.
const HEADER_LIMIT: u64 = 100_000_000;
const PREFIX: usize = 8;
const METADATA: &str = "__metadata__";

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
    let (header, data) = split(file)?;
    let Header(listed) =
        serde_json::from_slice(header).map_err(|e| damaged("header: not as it should be").caused_by(e))?;
    let mut tensors = Vec::with_capacity(listed.len());
    let mut ranges = Vec::with_capacity(listed.len());
    for (name, info) in &listed {
        let (start, end) = info.check(data.len()).map_err(|why| damaged(format!("tensor `{name}`: {why}")))?;
        ranges.push((start, end, name.as_str()));
        let dtype = info.dtype().map_err(|why| damaged(format!("tensor `{name}`: {why}")))?;
        tensors.push(StoredTensor {
            name: name.clone(),
            dtype,
            shape: info.shape.clone(),
            bytes: data.slice(start..end),
        });
    }
    check_cover(&mut ranges, data.len())?;
    // The reference library has the last word on what the format is.
    safetensors::SafeTensors::deserialize(file).map_err(|e| damaged("file: refused").caused_by(e))?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn damaged(message: impl Into<String>) -> Error {
    code::SAFETENSORS.error(message)
}

fn split(file: &Bytes) -> Result<(&[u8], Bytes)> {
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
    Ok((&file[PREFIX..end], file.slice(end..)))
}

/// The data must be the tensors and nothing else: a gap could hide anything, an overlap is never meant.
fn check_cover(ranges: &mut [(usize, usize, &str)], length: usize) -> Result<()> {
    ranges.sort_unstable();
    let mut expected = 0;
    for (start, end, name) in ranges {
        if *start != expected {
            let what = if *start < expected { "overlaps another tensor" } else { "a gap stands before it" };
            return Err(damaged(format!("tensor `{name}`: it starts at byte {start}, not {expected}: {what}")));
        }
        expected = *end;
    }
    if expected != length {
        return Err(damaged(format!("data: {length} bytes, the header describes {expected}")));
    }
    Ok(())
}

fn bits_of(shape: &[usize], dtype: Dtype) -> Option<u64> {
    let elements = shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(u64::try_from(*dim).ok()?))?;
    elements.checked_mul(dtype.bitsize() as u64)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Info {
    fn dtype(&self) -> std::result::Result<Dtype, String> {
        let name = serde_json::Value::String(self.dtype.clone());
        serde_json::from_value(name).map_err(|_| format!("unknown dtype `{}`", self.dtype))
    }

    fn check(&self, length: usize) -> std::result::Result<(usize, usize), String> {
        let dtype = self.dtype()?;
        let (start, end) = self.data_offsets;
        if start > end || end > length {
            return Err(format!("its bytes {start}..{end} are not within the {length} bytes of data"));
        }
        let bits = bits_of(&self.shape, dtype).ok_or_else(|| format!("shape {:?} is too large", self.shape))?;
        if bits != (end - start) as u64 * 8 {
            return Err(format!("{} bytes do not hold {dtype:?} of shape {:?}", end - start, self.shape));
        }
        Ok((start, end))
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
        let mut seen = std::collections::BTreeSet::new();
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
