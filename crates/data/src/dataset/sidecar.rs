//! What one pass over a file found, kept in the user's cache: opening the file again does not read it again.
//!
//! A sidecar lies under a name made of the file's path and of what the job asks of a row. It tells which file it is
//! of: size, times, and a digest of samples of the content. If any of these differs, or the sidecar is not whole, the
//! file is scanned and the sidecar written anew. Rows of Parquet files are kept beside it, as JSON lines.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::rows::RowIndex;
use crate::encode::Encoder;
use crate::source::SourceFile;

/// Changes whenever the form of sidecars, or what makes a row usable, does.
const FORMAT: &str = concat!("pleach rows 1 of ", env!("CARGO_PKG_VERSION"));
const MAGIC: &[u8; 8] = b"pleachix";
/// Pieces of a file that its identity looks at, and their size.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 4_096;

/// What makes a file the same file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    bytes: u64,
    /// Seconds and nanoseconds of the last change of content, and of anything.
    times: [i64; 4],
    /// SHA-256 over evenly spaced pieces, the first and the last among them.
    sampled: String,
}

/// All about a file but its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) lines_sha256: String,
    pub(super) bad_count: u64,
    /// The first malformed rows: line, and what is wrong.
    pub(super) bad: Vec<(u64, String)>,
    /// The first malformed row had a token id out of range.
    pub(super) token_range: bool,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    file: Identity,
    spool: Option<Identity>,
    about: About,
}

/// Where the sidecar of a file is, or will be.
#[derive(Debug)]
pub(super) struct Slot {
    folder: PathBuf,
    name: String,
    source: PathBuf,
    identity: Identity,
}

impl Slot {
    /// The place below `folder` for what a pass over `file` for `encoder` finds; none for files that are read in no
    /// time, or that cannot be looked at.
    pub(super) fn of(folder: &Path, least_bytes: u64, encoder: &Encoder, file: &SourceFile) -> Option<Self> {
        let source = file.path.canonicalize().ok()?;
        if source.metadata().ok()?.len() < least_bytes {
            return None;
        }
        let identity = Identity::of(&source).ok()?;
        let key = format!("{FORMAT}\n{}\n{}\n", encoder.fingerprint(), source.display());
        let name = hex::encode(Sha256::digest(key));
        Some(Self { folder: folder.to_owned(), name, source, identity })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.index", self.name))
    }

    /// Where the rows of a Parquet file are kept.
    pub(super) fn spool(&self) -> PathBuf {
        self.folder.join(format!("{}.jsonl", self.name))
    }

    /// What an earlier pass over the same file found.
    pub(super) fn load(&self, spooled: bool) -> Option<(About, RowIndex)> {
        let bytes = std::fs::read(self.path()).ok()?;
        let (head, rows) = decode(&bytes)?;
        let same_spool =
            if spooled { Identity::of(&self.spool()).ok() == head.spool && head.spool.is_some() } else { true };
        if head.format != FORMAT || head.file != self.identity || !same_spool {
            tracing::debug!(file = %self.source.display(), "the index of rows is of another state of the file");
            return None;
        }
        Some((head.about, rows))
    }

    /// Keeps what a pass found, if the file is still what it was before the pass. A cache that cannot be written is
    /// none: the next open scans again.
    pub(super) fn store(&self, about: &About, rows: &RowIndex, spooled: bool) {
        if let Err(error) = self.try_store(about, rows, spooled) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot keep the index of rows");
        }
    }

    fn try_store(&self, about: &About, rows: &RowIndex, spooled: bool) -> io::Result<()> {
        if Identity::of(&self.source)? != self.identity {
            return Err(io::Error::other("the file changed while it was read"));
        }
        let spool = if spooled { Some(Identity::of(&self.spool())?) } else { None };
        let head = Head { format: FORMAT.to_owned(), file: self.identity.clone(), spool, about: about.clone() };
        std::fs::create_dir_all(&self.folder)?;
        let mut part = tempfile::NamedTempFile::new_in(&self.folder)?;
        part.write_all(&encode(&head, rows)?)?;
        part.persist(self.path())?;
        Ok(())
    }
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let about: Metadata = file.metadata()?;
        let (bytes, mut hash, mut piece) = (about.len(), Sha256::new(), vec![0; SAMPLE_BYTES as usize]);
        let last = bytes.saturating_sub(SAMPLE_BYTES);
        for sample in 0..SAMPLES {
            let at = (u128::from(last) * u128::from(sample) / u128::from(SAMPLES - 1)) as u64;
            let length = SAMPLE_BYTES.min(bytes - at) as usize;
            file.read_exact_at(&mut piece[..length], at)?;
            hash.update(&piece[..length]);
        }
        let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
        Ok(Self { bytes, times, sampled: hex::encode(hash.finalize()) })
    }
}

/// Magic, SHA-256 of the rest, length of the head, head as JSON, rows.
fn encode(head: &Head, rows: &RowIndex) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(head)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&json);
    rows.write(&mut bytes);
    let sum = Sha256::digest(&bytes[40..]);
    bytes[8..40].copy_from_slice(&sum);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<(Head, RowIndex)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (sum, rest) = rest.split_first_chunk::<32>()?;
    if Sha256::digest(rest)[..] != sum[..] {
        return None;
    }
    inside(rest)
}

fn inside(rest: &[u8]) -> Option<(Head, RowIndex)> {
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (json, rows) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((serde_json::from_slice(json).ok()?, RowIndex::read(rows)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_base::mutate::damaged;
    use pleach_base::rng::Key;

    fn example() -> Vec<u8> {
        let identity = Identity { bytes: 9, times: [1, 2, 3, 4], sampled: "ab".to_owned() };
        let about = About { bytes: 9, bad: vec![(2, "no".to_owned())], bad_count: 1, ..About::default() };
        let mut rows = super::super::rows::Builder::default();
        for line in 1..100 {
            rows.push(crate::files::RowRef { offset: u64::from(line) * 10, length: 9, line });
        }
        let head = Head { format: FORMAT.to_owned(), file: identity, spool: None, about };
        encode(&head, &rows.finish().0).unwrap()
    }

    #[test]
    fn any_damage_is_seen() {
        let whole = example();
        assert!(decode(&whole).is_some());
        for bytes in damaged(std::slice::from_ref(&whole), Key::seed(5), 5_000) {
            assert!(decode(&bytes).is_none() || bytes == whole);
        }
    }

    /// Behind the checksum as well: it may be right by the hand of another program.
    #[test]
    fn what_the_checksum_covers_never_panics() {
        for bytes in damaged(&[example()[40..].to_vec()], Key::seed(6), 20_000) {
            if let Some((_, rows)) = inside(&bytes) {
                assert!((0..rows.len()).filter_map(|row| rows.get(row)).count() as u64 <= rows.len());
            }
        }
    }
}
