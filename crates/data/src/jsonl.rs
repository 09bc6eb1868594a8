//! One pass over a JSONL file: where its lines are, and the hash of all its bytes.

use std::io::{self, BufRead};

use sha2::{Digest, Sha256};

/// A longer line is a malformed row; it is skipped without being held in memory.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// A line without its line break.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) offset: u64,
    /// `None` when it is longer than [`MAX_LINE`].
    pub(crate) bytes: Option<&'a [u8]>,
}

/// Calls `each` for every line that is not blank. Gives the number of bytes and their SHA-256, in hex, unless `each`
/// stops the scan with an error.
pub(crate) fn scan<E>(
    mut reader: impl BufRead,
    mut each: impl FnMut(Line<'_>) -> Result<(), E>,
) -> io::Result<Result<(u64, String), E>> {
    let (mut hash, mut line, mut number, mut offset) = (Sha256::new(), Vec::new(), 0, 0);
    loop {
        number += 1;
        let length = next_line(&mut reader, &mut hash, &mut line)?;
        if length == 0 {
            return Ok(Ok((offset, hex::encode(hash.finalize()))));
        }
        let (skip, bytes) = content(&line, offset);
        let too_long = length > MAX_LINE as u64;
        if (too_long || !bytes.is_empty())
            && let Err(stop) = each(Line { number, offset: offset + skip as u64, bytes: (!too_long).then_some(bytes) })
        {
            return Ok(Err(stop));
        }
        offset += length;
    }
}

/// Reads a line with its break into `line`, as far as [`MAX_LINE`]; gives its whole length, 0 at the end.
fn next_line(reader: &mut impl BufRead, hash: &mut Sha256, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut length = 0;
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        hash.update(&buffer[..taken]);
        line.extend_from_slice(&buffer[..taken.min(MAX_LINE - line.len().min(MAX_LINE))]);
        length += taken as u64;
        reader.consume(taken);
        if end.is_some() || taken == 0 {
            return Ok(length);
        }
    }
}

/// The line without surrounding white space, and without the byte order mark that some editors put first.
fn content(line: &[u8], offset: u64) -> (usize, &[u8]) {
    let marked = if offset == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
    let bytes = marked.trim_ascii_start();
    (line.len() - bytes.len(), bytes.trim_ascii_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn lines(bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        let mut found = Vec::new();
        // A tiny buffer, so that lines span several reads.
        let reader = io::BufReader::with_capacity(3, bytes);
        let scanned = scan(reader, |line| {
            found.push((line.number, line.offset, line.bytes.unwrap().to_vec()));
            Ok::<_, Infallible>(())
        });
        let (length, hash) = scanned.unwrap().unwrap();
        assert_eq!((length, hash), (bytes.len() as u64, hex::encode(Sha256::digest(bytes))));
        found
    }

    #[test]
    fn lines_keep_their_numbers_past_blank_ones() {
        let found = lines(b"\xef\xbb\xbf{\"a\":1}\r\n\n  \t\n {\"b\":2} \nlast");
        let expected = [(1, 3, &b"{\"a\":1}"[..]), (4, 18, b"{\"b\":2}"), (5, 27, b"last")];
        assert_eq!(found, expected.map(|(number, offset, bytes)| (number, offset, bytes.to_vec())));
        assert_eq!(lines(b""), []);
    }

    #[test]
    fn a_line_past_the_limit_is_counted_and_not_held() {
        let mut bytes = vec![b'x'; MAX_LINE + 10];
        bytes.extend_from_slice(b"\nnext\n");
        let mut found = Vec::new();
        let reader = io::BufReader::new(&bytes[..]);
        let scanned = scan(reader, |line| {
            found.push((line.number, line.offset, line.bytes.map(<[u8]>::len)));
            Ok::<_, Infallible>(())
        });
        scanned.unwrap().unwrap();
        assert_eq!(found, [(1, 0, None), (2, MAX_LINE as u64 + 11, Some(4))]);
    }

    proptest! {
        #[test]
        fn offsets_point_at_the_lines(bytes in prop::collection::vec(prop::sample::select(b"\n\r {}a\xef\xbb\xbf".to_vec()), 0..200)) {
            for (_, offset, line) in lines(&bytes) {
                prop_assert_eq!(&bytes[offset as usize..offset as usize + line.len()], &line[..]);
            }
        }
    }
}
