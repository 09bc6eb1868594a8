//! Tensors to bytes and back.

use pleach_base::{Result, ResultExt, code};
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use crate::model::Entry;

/// The bytes of a tensor, little-endian and contiguous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorBytes {
    /// Kind of its elements.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// `numel` elements.
    pub bytes: Vec<u8>,
}

/// The bytes of a tensor, from whatever device.
#[must_use]
pub fn to_le_bytes(tensor: &Tensor) -> TensorBytes {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let numel = tensor.numel();
    let mut bytes = vec![0; numel * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, numel);
    TensorBytes {
        dtype: dtype_of(tensor.kind()),
        shape: tensor.size().iter().map(|n| usize::try_from(*n).unwrap_or_default()).collect(),
        bytes,
    }
}

/// A tensor of an entry's bytes on the CPU, a copy.
///
/// # Errors
/// `SAFETENSORS` naming the tensor when its element kind is not one that is read.
pub fn tensor_from_entry(entry: &Entry<'_>) -> Result<Tensor> {
    let kind = kind_of(entry.dtype).ok_or_else(|| {
        code::SAFETENSORS.error(format!("tensor `{}`: elements of kind {:?} are not read", entry.name, entry.dtype))
    })?;
    let shape: Vec<i64> = entry.shape.iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
    Tensor::f_from_data_size(entry.bytes, &shape, kind)
        .or_code(code::SAFETENSORS, || format!("tensor `{}`: cannot be read", entry.name))
}

pub(crate) fn dtype_of(kind: Kind) -> Dtype {
    match kind {
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Double => Dtype::F64,
        Kind::Bool => Dtype::BOOL,
        _ => Dtype::F32,
    }
}

/// The kind of a file's elements; `None` for those that are not read.
#[must_use]
pub fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}
