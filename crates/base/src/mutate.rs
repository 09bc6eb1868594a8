//! Damaged copies of good bytes, for tests of readers: the same ones on every machine, none of them random.

use crate::rng::{CounterRng, Key};

/// What breaks length fields, offsets and numbers in JSON.
const TOKENS: &[&str] = &[
    "-1",
    "0",
    "1e400",
    "18446744073709551615",
    "9223372036854775808",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[[",
    "{\"a\":",
    "NaN",
    "\u{0}",
    "\\u0000",
    "..",
    "__metadata__",
];

/// Damaged copies of `seeds`, one after the other: bits turned, bytes set, pieces cut out, doubled or moved to another
/// place, tokens written over, ends cut off; up to four of these at once.
pub fn damaged<'a>(seeds: &'a [Vec<u8>], key: Key, count: u64) -> impl Iterator<Item = Vec<u8>> + 'a {
    (0..count).map(move |number| {
        let mut rng = key.with(number).rng();
        let mut bytes = seeds[below(&mut rng, seeds.len())].clone();
        for _ in 0..=below(&mut rng, 4) {
            damage(&mut bytes, &mut rng);
        }
        bytes
    })
}

fn damage(bytes: &mut Vec<u8>, rng: &mut CounterRng) {
    if bytes.is_empty() {
        bytes.push(rng.next_u32() as u8);
        return;
    }
    let at = place(rng, bytes.len());
    let length = below(rng, 16).min(bytes.len() - at);
    match below(rng, 8) {
        0 => bytes[at] ^= 1 << below(rng, 8),
        1 => bytes[at] = rng.next_u32() as u8,
        2 => drop(bytes.drain(at..at + length)),
        3 => {
            let piece = bytes[at..at + length].to_vec();
            let to = place(rng, bytes.len());
            bytes.splice(to..to, piece);
        }
        4 => bytes.truncate(at),
        5 => {
            // A number of the JSON, made another.
            match bytes.iter().enumerate().skip(at).find(|(_, byte)| byte.is_ascii_digit()).map(|(i, _)| i) {
                Some(digit) => bytes[digit] = b'0' + below(rng, 10) as u8,
                None => bytes.push(b'7'),
            }
        }
        _ => {
            let token = TOKENS[below(rng, TOKENS.len())].bytes();
            bytes.splice(at..at + length, token);
        }
    }
}

/// Every second time near the front, where lengths and names stand.
fn place(rng: &mut CounterRng, length: usize) -> usize {
    if below(rng, 2) == 0 { below(rng, length.min(256)) } else { below(rng, length) }
}

fn below(rng: &mut CounterRng, limit: usize) -> usize {
    rng.below(limit.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_reproducible_and_differs_from_the_seed() {
        let seeds = vec![b"{\"shape\":[1,2]}".to_vec(), vec![0; 300]];
        let all: Vec<_> = damaged(&seeds, Key::seed(1), 500).collect();
        assert_eq!(all, damaged(&seeds, Key::seed(1), 500).collect::<Vec<_>>());
        let different = all.iter().filter(|bytes| !seeds.contains(bytes)).count();
        assert!(different > 450, "{different}");
    }
}
