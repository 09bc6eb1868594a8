//! One flat float32 buffer in ParamTree order: where each tensor lies, and the bytes of tensors.

use bytes::Bytes;
use pleach_base::{Result, code};
use pleach_store::tensors::{Dtype, StoredTensor};
use tch::{Device, Kind, Tensor};

/// Names, shapes and offsets of the tensors in a flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlatLayout {
    entries: Vec<(String, Vec<i64>)>,
}

impl FlatLayout {
    /// The layout of tensors in this order.
    pub(crate) fn new(entries: Vec<(String, Vec<i64>)>) -> Self {
        Self { entries }
    }

    /// How many tensors.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many numbers.
    pub(crate) fn numel(&self) -> i64 {
        self.entries.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
    }

    /// Each tensor's name and its view of `flat` (`[n]`), in order.
    pub(crate) fn pieces<'a>(&'a self, flat: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> + 'a {
        let mut at = 0;
        self.entries.iter().map(move |(name, shape)| {
            let length = shape.iter().product();
            let piece = flat.narrow(0, at, length).view(shape.as_slice());
            at += length;
            (name.as_str(), piece)
        })
    }

    /// The buffer from tensors by name; `prefix` is in front of each name.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` with the tensor that is missing or has another shape.
    pub(crate) fn gather(&self, prefix: &str, tensors: &std::collections::BTreeMap<String, Tensor>) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.entries.len());
        for (name, shape) in &self.entries {
            let key = format!("{prefix}{name}");
            let tensor =
                tensors.get(&key).ok_or_else(|| code::ADAPTER_FORMAT.error(format!("tensor {key} is missing")))?;
            if tensor.size() != *shape {
                let message = format!("tensor {key} has shape {:?}, the adapter needs {shape:?}", tensor.size());
                return Err(code::ADAPTER_FORMAT.error(message));
            }
            parts.push(tensor.to_kind(Kind::Float).reshape([-1]));
        }
        Ok(if parts.is_empty() { Tensor::zeros([0], (Kind::Float, Device::Cpu)) } else { Tensor::cat(&parts, 0) })
    }
}

/// The elements of a tensor, row-major, little-endian.
pub(crate) fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let count = tensor.numel();
    let mut bytes = vec![0; count * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, count);
    bytes
}

/// A tensor as the store writes it. Float32, int64 and uint8 only: nothing else is stored.
///
/// # Errors
/// `INTERNAL` for another kind.
pub(crate) fn to_stored(name: impl Into<String>, tensor: &Tensor) -> Result<StoredTensor> {
    let dtype = match tensor.kind() {
        Kind::Float => Dtype::F32,
        Kind::Int64 => Dtype::I64,
        Kind::Uint8 => Dtype::U8,
        other => return Err(code::INTERNAL.error(format!("tensors of kind {other:?} are not stored"))),
    };
    let shape = tensor.size().iter().map(|dim| *dim as usize).collect();
    Ok(StoredTensor { name: name.into(), dtype, shape, bytes: bytes_of(tensor).into() })
}

/// The tensors of a safetensors file by name, on the CPU.
///
/// # Errors
/// `SAFETENSORS` when the file is damaged, `ADAPTER_FORMAT` for an element type that adapters do not have.
pub(crate) fn read_tensors(file: &Bytes) -> Result<std::collections::BTreeMap<String, Tensor>> {
    let mut tensors = std::collections::BTreeMap::new();
    for stored in pleach_store::tensors::read(file)? {
        let kind = match stored.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::I64 => Kind::Int64,
            Dtype::I32 => Kind::Int,
            Dtype::U8 => Kind::Uint8,
            other => {
                return Err(code::ADAPTER_FORMAT.error(format!("tensor {}: element type {other:?}", stored.name)));
            }
        };
        let shape: Vec<i64> = stored.shape.iter().map(|dim| *dim as i64).collect();
        tensors.insert(stored.name, Tensor::from_data_size(&stored.bytes, &shape, kind));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_gather_are_inverse_and_survive_a_file() {
        let layout = FlatLayout::new(vec![("x".into(), vec![2, 3]), ("y".into(), vec![]), ("z".into(), vec![1])]);
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(layout.numel(), 8);
        let stored: Vec<_> =
            layout.pieces(&flat).map(|(name, piece)| to_stored(format!("m/{name}"), &piece).unwrap()).collect();
        let file = pleach_store::tensors::write(&stored).unwrap();
        let back = layout.gather("m/", &read_tensors(&file).unwrap()).unwrap();
        assert!(flat.equal(&back));
        let error = layout.gather("v/", &read_tensors(&file).unwrap()).unwrap_err();
        assert_eq!((error.code(), error.message()), (code::ADAPTER_FORMAT, "tensor v/x is missing"));
    }
}
