//! A matrix as it lies in a file.

use pleach_base::{Error, Result, code};
use tch::{Kind, Tensor};

use super::{Codebook, Codec, pack, packed_len, unpack};

/// A coded matrix: code numbers, means and deviations; or the weights themselves.
#[derive(Debug)]
pub struct Record {
    codec: Codec,
    shape: [usize; 2],
    /// Code numbers, row by row.
    pub(crate) index: Vec<u8>,
    pub(crate) mu: Vec<f32>,
    pub(crate) sigma: Vec<f32>,
    /// With 32 bits a weight.
    plain: Vec<f32>,
}

impl Record {
    /// Codes a matrix `[out, in]`.
    #[must_use]
    pub fn of(codec: Codec, weight: &Tensor) -> Self {
        let _no_grad = tch::no_grad_guard();
        let weight = weight.detach().to_kind(Kind::Float).to_device(tch::Device::Cpu);
        let (mu, sigma) = codec.spread(&weight);
        let index = codec.book().map(|book| book.index(&codec.standardised(&weight)));
        Self::new(codec, &weight, index.as_ref(), [&mu, &sigma])
    }

    /// Codes a matrix again that has the values of codes, with the `spread` `[2, groups]` that it was read with.
    #[must_use]
    pub fn again(codec: Codec, weight: &Tensor, spread: &Tensor) -> Self {
        let _no_grad = tch::no_grad_guard();
        let weight = weight.detach().to_kind(Kind::Float).to_device(tch::Device::Cpu);
        let [mu, sigma] = [0, 1].map(|row| spread.get(row).to_device(tch::Device::Cpu).unsqueeze(1));
        let index = codec.book().map(|book| {
            let codes = &sigma * Codebook::tensor(&book.codes, &weight).unsqueeze(0) + &mu; // [groups, codes]
            (weight.unsqueeze(-1) - codes.unsqueeze(1)).abs().argmin(-1, false)
        });
        Self::new(codec, &weight, index.as_ref(), [&mu, &sigma])
    }

    fn new(codec: Codec, weight: &Tensor, index: Option<&Tensor>, [mu, sigma]: [&Tensor; 2]) -> Self {
        let shape = [weight.size()[0] as usize, weight.size()[1] as usize];
        let mut record = Self { codec, shape, index: Vec::new(), mu: Vec::new(), sigma: Vec::new(), plain: Vec::new() };
        match index {
            None => record.plain = floats(weight),
            Some(index) => {
                record.index = floats(&index.to_kind(Kind::Float)).into_iter().map(|n| n as u8).collect();
                (record.mu, record.sigma) = (floats(mu), floats(sigma));
            }
        }
        record
    }

    /// Whether every mean has a deviation: otherwise codes say nothing.
    #[must_use]
    pub fn spreads(&self) -> bool {
        self.sigma.iter().all(|sigma| sigma.is_finite() && *sigma > 0.0)
    }

    /// Means and deviations `[2, groups]`.
    pub fn spread(&self) -> Tensor {
        Tensor::from_slice(&[self.mu.as_slice(), &self.sigma].concat()).reshape([2, -1])
    }

    /// Reads a matrix of this shape and takes its bytes from `bytes`.
    ///
    /// # Errors
    /// `ADAPTER_FORMAT` when there are too few bytes.
    pub fn read(codec: Codec, shape: [usize; 2], bytes: &mut &[u8]) -> Result<Self> {
        let count = shape[0] * shape[1];
        let mut take = |n: usize| {
            let split = bytes.split_at_checked(n).ok_or_else(|| short(n - bytes.len()))?;
            *bytes = split.1;
            Ok::<_, Error>(split.0)
        };
        let mut record = Self { codec, shape, index: Vec::new(), mu: Vec::new(), sigma: Vec::new(), plain: Vec::new() };
        if codec.book().is_none() {
            record.plain = from_le(take(4 * count)?);
            return Ok(record);
        }
        let groups = codec.groups(shape[0]);
        record.index = unpack(take(packed_len(count, codec.bit))?, codec.bit, count);
        record.mu = from_le(take(4 * groups)?);
        record.sigma = from_le(take(4 * groups)?);
        Ok(record)
    }

    /// Appends its bytes.
    pub fn write(&self, to: &mut Vec<u8>) {
        if self.codec.book().is_some() {
            to.extend(pack(&self.index, self.codec.bit));
        }
        for value in self.plain.iter().chain(&self.mu).chain(&self.sigma) {
            to.extend(value.to_le_bytes());
        }
    }

    /// How it is coded.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Its packed code numbers.
    #[must_use]
    pub fn packed(&self) -> Vec<u8> {
        pack(&self.index, self.codec.bit)
    }

    /// `W~` `[out, in]`, float32.
    pub fn weight(&self) -> Tensor {
        let shape = self.shape.map(|n| n as i64);
        let Some(book) = self.codec.book() else { return Tensor::from_slice(&self.plain).reshape(shape) };
        let (mu, sigma) = (Tensor::from_slice(&self.mu).unsqueeze(1), Tensor::from_slice(&self.sigma).unsqueeze(1));
        let index = Tensor::from_slice(&self.index).reshape(shape);
        sigma * book.of_index(&index, &mu) + mu
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap_or_default()
}

fn from_le(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn short(missing: usize) -> Error {
    code::ADAPTER_FORMAT.error(format!("the file ends {missing} bytes too early"))
}

#[cfg(test)]
mod tests {
    use super::super::{Measure, Per};
    use super::*;

    #[test]
    fn what_is_read_is_what_training_saw() {
        let w = (Tensor::arange(35, (Kind::Float, tch::Device::Cpu)) * 1.3).sin().reshape([5, 7]) * 0.02;
        for (bit, per) in [(1, Per::Tensor), (2, Per::Row), (4, Per::Tensor), (8, Per::Tensor), (32, Per::Tensor)] {
            let codec = Codec { bit, codebook: Measure::L1Gauss, per };
            let mut bytes = Vec::new();
            Record::of(codec, &w).write(&mut bytes);
            assert_eq!(bytes.len(), codec.bytes(5, 7));
            let mut rest = bytes.as_slice();
            let again = Record::read(codec, [5, 7], &mut rest).unwrap();
            assert!(rest.is_empty());
            assert!(again.weight().equal(&codec.coded(&w)), "{bit} bits");
            if bit != 32 {
                let mut second = Vec::new();
                Record::again(codec, &again.weight(), &again.spread()).write(&mut second);
                assert_eq!(second, bytes, "{bit} bits, written again");
            }
            let mut rest = &bytes[1..];
            assert_eq!(Record::read(codec, [5, 7], &mut rest).unwrap_err().code(), code::ADAPTER_FORMAT);
        }
    }

    #[test]
    fn a_matrix_of_equal_values_is_stored_as_they_are() {
        let codec = Codec { bit: 1, codebook: Measure::L1Gauss, per: Per::Tensor };
        let record = Record::of(codec, &Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu)));
        assert!(!record.spreads());
        assert!(record.weight().equal(&Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu))));
    }
}
