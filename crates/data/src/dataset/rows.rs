//! Where each row of a file lies, in about two bytes a row: the numbers of a row follow from those of the row before
//! it, and every 64th row is written out, so that any row is found in a few steps.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::files::RowRef;

/// Rows between two that are written out.
const BLOCK: usize = 64;
/// Bytes of a written-out row: where its packed numbers begin, its offset, its line.
const BLOCK_BYTES: usize = 8 + 8 + 4;

/// The rows of a file in order.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct RowIndex {
    rows: u64,
    blocks: Vec<Block>,
    packed: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    at: u64,
    offset: u64,
    line: u32,
}

impl fmt::Debug for RowIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowIndex").field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// Takes rows in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Builder {
    index: RowIndex,
    last: Option<RowRef>,
    lines: Sha256,
}

impl Builder {
    /// `row` lies behind all rows before it.
    pub(super) fn push(&mut self, row: RowRef) {
        self.lines.update(row.line.to_le_bytes());
        let index = &mut self.index;
        let head = u64::from(row.length) << 1;
        match self.last.filter(|_| !(index.rows as usize).is_multiple_of(BLOCK)) {
            None => {
                index.blocks.push(Block { at: index.packed.len() as u64, offset: row.offset, line: row.line });
                put(&mut index.packed, head);
            }
            Some(last) => {
                let gap = row.offset.wrapping_sub(last.offset + u64::from(last.length));
                let lines = u64::from(row.line.wrapping_sub(last.line));
                if (gap, lines) == (1, 1) {
                    put(&mut index.packed, head);
                } else {
                    [head | 1, gap, lines].into_iter().for_each(|number| put(&mut index.packed, number));
                }
            }
        }
        index.rows += 1;
        self.last = Some(row);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.rows == 0
    }

    /// The index, and the SHA-256 (hex) of the lines that are usable.
    pub(super) fn finish(mut self) -> (RowIndex, String) {
        self.index.packed.shrink_to_fit();
        (self.index, hex::encode(self.lines.finalize()))
    }
}

impl RowIndex {
    pub(super) fn len(&self) -> u64 {
        self.rows
    }

    /// `None` outside, and where the index is not one that [`Builder`] made.
    pub(super) fn get(&self, row: u64) -> Option<RowRef> {
        let row = usize::try_from(row).ok().filter(|_| row < self.rows)?;
        let block = self.blocks.get(row / BLOCK)?;
        let mut packed = self.packed.get(usize::try_from(block.at).ok()?..)?;
        let first = take(&mut packed)?;
        let mut at = RowRef { offset: block.offset, length: length(first)?, line: block.line };
        for _ in 0..row % BLOCK {
            let head = take(&mut packed)?;
            let (gap, lines) = if head & 1 == 1 { (take(&mut packed)?, take(&mut packed)?) } else { (1, 1) };
            at.offset = at.offset.checked_add(u64::from(at.length))?.checked_add(gap)?;
            at.line = at.line.checked_add(u32::try_from(lines).ok()?)?;
            at.length = length(head)?;
        }
        Some(at)
    }

    /// Appends the index to `to`.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.rows.to_le_bytes());
        for block in &self.blocks {
            to.extend_from_slice(&block.at.to_le_bytes());
            to.extend_from_slice(&block.offset.to_le_bytes());
            to.extend_from_slice(&block.line.to_le_bytes());
        }
        to.extend_from_slice(&self.packed);
    }

    /// What [`RowIndex::write`] wrote; `None` for anything of another size than it says. What is inside is checked when
    /// it is used.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (rows, rest) = bytes.split_first_chunk::<8>()?;
        let rows = u64::from_le_bytes(*rows);
        // A row takes a byte at least: a number that cannot be right reserves no memory.
        let count = usize::try_from(rows).ok().filter(|count| *count <= rest.len())?.div_ceil(BLOCK);
        let (blocks, packed) = rest.split_at_checked(count.checked_mul(BLOCK_BYTES)?)?;
        let blocks = blocks.chunks_exact(BLOCK_BYTES).map(block).collect::<Option<_>>()?;
        Some(Self { rows, blocks, packed: packed.to_vec() })
    }
}

fn block(bytes: &[u8]) -> Option<Block> {
    let (at, rest) = bytes.split_first_chunk::<8>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (line, _) = rest.split_first_chunk::<4>()?;
    Some(Block { at: u64::from_le_bytes(*at), offset: u64::from_le_bytes(*offset), line: u32::from_le_bytes(*line) })
}

fn length(head: u64) -> Option<u32> {
    u32::try_from(head >> 1).ok()
}

/// Seven bits a byte, lowest first; the highest bit says that more follow.
fn put(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_base::mutate::damaged;
    use pleach_base::rng::Key;
    use proptest::prelude::*;

    fn built(rows: &[RowRef]) -> RowIndex {
        let mut builder = Builder::default();
        rows.iter().for_each(|row| builder.push(*row));
        builder.finish().0
    }

    fn written(index: &RowIndex) -> Vec<u8> {
        let mut bytes = Vec::new();
        index.write(&mut bytes);
        bytes
    }

    /// Rows with mostly nothing between them.
    fn laid(steps: &[(u32, bool, u16, u8)]) -> Vec<RowRef> {
        let (mut offset, mut line) = (3u64, 0u32);
        let lay = |(length, plain, gap, lines): &(u32, bool, u16, u8)| {
            let (gap, lines) = if *plain { (1, 1) } else { (u64::from(*gap), u32::from(*lines) + 1) };
            line += lines;
            offset += gap;
            let row = RowRef { offset, length: *length, line };
            offset += u64::from(*length);
            row
        };
        steps.iter().map(lay).collect()
    }

    proptest! {
        #[test]
        fn every_row_is_found_again(
            steps in prop::collection::vec((any::<u32>(), prop::bool::weighted(0.8), any::<u16>(), any::<u8>()), 0..300)
        ) {
            let rows = laid(&steps);
            let index = built(&rows);
            prop_assert_eq!(RowIndex::read(&written(&index)), Some(index.clone()));
            for (number, row) in rows.iter().enumerate() {
                prop_assert_eq!(index.get(number as u64), Some(*row));
            }
            prop_assert_eq!(index.get(rows.len() as u64), None);
        }
    }

    #[test]
    fn damaged_bytes_never_panic_and_reserve_little() {
        let rows = laid(&(0..200u32).map(|n| (n * 977, n % 7 != 0, n as u16, n as u8)).collect::<Vec<_>>());
        let seeds = [written(&built(&rows)), written(&built(&rows[..1])), Vec::new()];
        for bytes in damaged(&seeds, Key::seed(11), 20_000) {
            let Some(index) = RowIndex::read(&bytes) else { continue };
            assert!(index.len() <= bytes.len() as u64);
            for row in (0..index.len()).chain([u64::MAX]) {
                let _ = index.get(row);
            }
        }
    }

    #[test]
    fn a_plain_row_takes_two_bytes_and_a_bit() {
        let rows = laid(&vec![(500, true, 0, 0); 64_000]);
        let bytes = written(&built(&rows)).len();
        assert!(bytes < 64_000 * 5 / 2, "{bytes}");
    }
}
