//! The handwritten digits of `tests/fixtures/digits/`: 1,797 images of 8 x 8 pixels.

use pleach_base::{Result, code};
use tch::{Device, Kind, Tensor};

use super::data::Data;

const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/digits/digits.csv"));

/// All of them: images `[1797, 1, 8, 8]` between 0 and 1, and the digits.
///
/// # Errors
/// `INTERNAL` when the file is not as it should be.
pub fn load(device: Device) -> Result<Data> {
    let bad = || code::INTERNAL.error("digits.csv: not 65 numbers a line");
    let numbers: std::result::Result<Vec<f32>, _> =
        TEXT.split([',', '\n']).filter(|n| !n.is_empty()).map(str::parse).collect();
    let numbers = numbers.map_err(|_| bad())?;
    if numbers.is_empty() || numbers.len() % 65 != 0 {
        return Err(bad());
    }
    let all = Tensor::from_slice(&numbers).reshape([-1, 65]).to_device(device);
    let images = (all.narrow(1, 0, 64) / 16.0).reshape([-1, 1, 8, 8]);
    Ok(Data::new(images, all.select(1, 64).to_kind(Kind::Int64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_is_there() {
        let digits = load(Device::Cpu).unwrap();
        assert_eq!(digits.x.size(), [1797, 1, 8, 8]);
        let counts: Vec<_> = (0..10).map(|digit| digits.only(&[digit]).len()).collect();
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert!((digits.x.max().double_value(&[]) - 1.0).abs() < 1e-6);
    }
}
