//! Code numbers as bytes: `8 / bit` of them in each, the first in the lowest bits. What is left of the last byte is 0.

/// Bytes of this many numbers.
#[must_use]
pub fn packed_len(count: usize, bit: u32) -> usize {
    (count * bit as usize).div_ceil(8)
}

/// Packs numbers below `2^bit`; `bit` is 1, 2, 4 or 8.
#[must_use]
pub fn pack(numbers: &[u8], bit: u32) -> Vec<u8> {
    let each = 8 / bit as usize;
    numbers
        .chunks(each)
        .map(|chunk| chunk.iter().rev().fold(0u8, |byte, number| byte.wrapping_shl(bit) | number))
        .collect()
}

/// The first `count` numbers of `bytes`.
#[must_use]
pub fn unpack(bytes: &[u8], bit: u32, count: usize) -> Vec<u8> {
    let mask = u8::try_from((1u32 << bit) - 1).unwrap_or(u8::MAX);
    let each = 8 / bit as usize;
    let all = bytes.iter().flat_map(|byte| (0..each).map(move |at| (byte >> (at as u32 * bit)) & mask));
    all.take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_is_in_the_lowest_bits() {
        assert_eq!(pack(&[1, 0, 0, 0, 0, 0, 0, 1, 1], 1), [0b1000_0001, 1]);
        assert_eq!(pack(&[3, 0, 1, 2], 2), [0b1001_0011]);
        assert_eq!(pack(&[15, 2, 7], 4), [0x2f, 0x07]);
        assert_eq!(pack(&[9, 255], 8), [9, 255]);
    }

    #[test]
    fn what_is_packed_is_unpacked_whatever_its_number() {
        for bit in [1, 2, 4, 8] {
            for count in [0, 1, 7, 8, 9, 35] {
                let numbers: Vec<u8> = (0..count).map(|at| ((at * 37 + 11) % (1 << bit)) as u8).collect();
                let bytes = pack(&numbers, bit);
                assert_eq!(bytes.len(), packed_len(count, bit));
                assert_eq!(unpack(&bytes, bit, count), numbers, "{bit} bits, {count} numbers");
            }
        }
    }
}
