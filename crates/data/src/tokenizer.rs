//! A Hugging Face `tokenizer.json`. Only this module knows the `tokenizers` crate.
//!
//! Padding and truncation that the file asks for are dropped: lengths are the job's. Truncation is done here, before
//! special tokens are added, because the crate subtracts their number from the limit without looking, and processes
//! the parts it cuts off.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use pleach_base::{Result, code};
use sha2::{Digest, Sha256};
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

use crate::example::Encoded;

/// What any tokenizer should turn into at least one token: an unassigned character, a control character, a combining
/// mark, an invisible character. One that does is taken to accept every text that is not blank.
const PROBES: [&str; 4] = ["\u{e000}", "\u{1}", "\u{301}", "\u{200b}"];

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pad_id: u32,
    max_id: u32,
    total: bool,
    sha256: String,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("pad_id", &self.pad_id).field("max_id", &self.max_id).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// `TOKENIZER`, naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| {
            code::TOKENIZER
                .error(format!("{}: cannot be read", path.display()))
                .hint("put the model's tokenizer.json beside its weights, or set spec.data.tokenizer")
                .caused_by(error)
        })?;
        Self::from_bytes(&bytes).map_err(|error| error.at(path.display()))
    }

    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// `TOKENIZER`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let loaded = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(bytes)));
        let refuse = || {
            code::TOKENIZER
                .error("not a tokenizer.json that this build reads")
                .hint("use the file `tokenizer.json` of the model's folder, not `tokenizer_config.json` or `vocab.txt`")
        };
        let mut inner = match loaded {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(refuse().caused_by(error)),
            Err(_) => return Err(refuse()),
        };
        let pad = inner.get_padding().map(|padding| padding.pad_id);
        let pad = pad.or_else(|| inner.token_to_id("[PAD]")).or_else(|| inner.token_to_id("<pad>"));
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| refuse().caused_by(error))?;
        let max_id = inner.get_vocab(true).into_values().max();
        let max_id = max_id.ok_or_else(|| refuse().hint("its vocabulary is empty"))?;
        let mut tokenizer =
            Self { inner, pad_id: pad.unwrap_or(0), max_id, total: false, sha256: hex::encode(Sha256::digest(bytes)) };
        tokenizer.total =
            PROBES.iter().all(|probe| matches!(tokenizer.encode(probe, None, 64), Ok(made) if !made.is_empty()));
        Ok(tokenizer)
    }

    /// SHA-256, in hex, of the file.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The id that the tokenizer names for padding, or 0.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The id that it names for masked tokens, if it has one.
    #[must_use]
    pub fn mask_id(&self) -> Option<u32> {
        self.inner.token_to_id("[MASK]").or_else(|| self.inner.token_to_id("<mask>"))
    }

    /// Ids of tokens that are no text, such as those around a sequence.
    #[must_use]
    pub fn special_ids(&self) -> BTreeSet<u32> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
    }

    /// The largest id that it can give, added tokens included.
    #[must_use]
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// Whether every text that is not blank is known to give at least one token and no error.
    pub(crate) fn is_total(&self) -> bool {
        self.total
    }

    /// How many special tokens a text, or a pair of texts, gets.
    #[must_use]
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
    }

    /// Tokens of a text or a pair, special tokens included, at most `max_length` in all: tokens are taken off the end
    /// of the longer text. The reason if the tokenizer refuses.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoded, String> {
        catch_unwind(AssertUnwindSafe(|| self.encode_or_panic(text, pair, max_length)))
            .unwrap_or_else(|_| Err("the tokenizer panicked".into()))
    }

    fn encode_or_panic(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoded, String> {
        let reason = |error: tokenizers::Error| format!("the tokenizer refuses the text: {error}");
        let mut first = self.inner.encode_fast(text, false).map_err(reason)?;
        let mut second = match pair {
            Some(pair) => Some(self.inner.encode_fast(pair, false).map_err(reason)?),
            None => None,
        };
        let room = max_length.saturating_sub(self.special_tokens(pair.is_some()));
        let (n, m) = longest_first(first.len(), second.as_ref().map_or(0, Encoding::len), room);
        cut(&mut first, n);
        if let Some(second) = &mut second {
            cut(second, m);
            second.set_type_ids(vec![1; second.len()]);
        }
        let whole = self.inner.post_process(first, second, true).map_err(reason)?;
        Ok(Encoded { ids: whole.get_ids().to_vec(), type_ids: whole.get_type_ids().to_vec() })
    }
}

fn cut(encoding: &mut Encoding, length: usize) {
    encoding.truncate(length, 0, TruncationDirection::Right);
    encoding.take_overflowing();
}

/// Lengths after cutting two texts to `room` tokens, always from the longer one.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let (shorter, half) = (first.min(second), room / 2);
    match (shorter <= half, first <= second) {
        (true, true) => (first, room - first),
        (true, false) => (room - second, second),
        // Both are cut. As in the `tokenizers` crate, the larger half goes to the text that was longer.
        (false, true) => (half, room - half),
        (false, false) => (room - half, half),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cutting_keeps_all_the_room_and_takes_from_the_longer(a in 0usize..60, b in 0usize..60, room in 0usize..90) {
            let (n, m) = longest_first(a, b, room);
            prop_assert!(n <= a && m <= b);
            prop_assert_eq!(n + m, room.min(a + b));
            if n < a {
                prop_assert!(n + 1 >= m, "{n} of {a} tokens are left while the other text keeps {m}");
            }
            if m < b {
                prop_assert!(m + 1 >= n, "{m} of {b} tokens are left while the other text keeps {n}");
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(Tokenizer::from_bytes(&bytes).unwrap_err().code(), code::TOKENIZER);
        }
    }
}
