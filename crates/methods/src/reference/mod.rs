//! What the papers' own code computed on tiny inputs, repeated with our methods and compared.
//!
//! A recording is a folder with `case.json` (page, kind, the page's options, tolerances) and `io.safetensors` (`frozen.*`,
//! `param.*`, `input.*`, `expected.*`). One file a page maps its tensors onto the method; it is one line in the list
//! below. Every `expected.*` tensor must be compared and every key of `tolerance` and `config` understood, or the case
//! does not count as repeated.
//!
//! Not here: recordings of PEFT's adapters on whole models (crate `pleach-train`), and optimisers, which the caller
//! lends to the pages that repeat a training ([`Train`]).

mod compare;
mod model;
mod recording;
mod timm;
mod training;
mod vit;

mod binary;
mod generative;
mod hydra;
mod lae;
mod mixda;
mod mos;
mod mosa;
mod p_adapter;
mod pill;
mod poly;
mod router;
mod snnk;
mod sparse;
mod vl_adapter;

use std::path::Path;

use pleach_base::Result;
use serde::Serialize;

pub use compare::Compared;
pub use recording::Recording;
pub use training::{Train, Update};

use recording::{ROUTERS, wrong};

/// One page's way to repeat its recordings.
struct Page {
    /// Number of the page.
    number: u32,
    /// Keys of `tolerance` beside `abs` and `rel`.
    tolerances: &'static [&'static str],
    repeat: fn(&Recording, &dyn Train, &mut Compared) -> Result<()>,
}

static PAGES: &[Page] = &[
    snnk::PAGE,
    generative::PAGE,
    vl_adapter::PAGE,
    mixda::PAGE,
    mosa::PAGE,
    sparse::PAGE,
    p_adapter::PAGE,
    binary::PAGE,
    pill::PAGE,
    hydra::PAGE,
    mos::PAGE,
    poly::PAGE,
    lae::PAGE,
    router::PAGE,
];

/// What came of one recording.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Name of the case.
    pub case: String,
    /// The page's method.
    pub method: String,
    /// `module`, `training`, `codec`, ...
    pub kind: String,
    /// Tensors compared.
    pub compared: usize,
    /// The largest deviation in parts of what is allowed; NaN (in JSON null) when a number is none or shapes differ.
    pub worst: f64,
    /// The tensor where it is.
    pub at: String,
    /// Whether everything is within its tolerance.
    pub within: bool,
}

/// Whether a folder is a recording of a page rather than of a whole training with PEFT.
///
/// # Errors
/// `PARITY_CASE` when its `case.json` cannot be read.
pub fn is_recording(folder: &Path) -> Result<bool> {
    recording::about(folder).map(|about| about.contains_key("kind"))
}

/// Repeats the recording in `folder` on the CPU, with the optimisers of `train`.
///
/// # Errors
/// `PARITY_CASE` naming the file and what is wrong with it: a page or kind that is not built, an option or tolerance that
/// is not known, a tensor that is missing or was not compared.
pub fn run(folder: &Path, train: &dyn Train) -> Result<Outcome> {
    let recording = Recording::open(folder)?;
    let page = PAGES.iter().find(|page| page.number == recording.page).ok_or_else(|| {
        let built: Vec<_> = PAGES.iter().map(|page| page.number.to_string()).collect();
        wrong(format!("page {} ({}) is not built", recording.page, recording.method))
            .hint(format!("pages of this build: {}", built.join(", ")))
    })?;
    let mut compared = Compared::new(&recording, page.tolerances)?;
    (page.repeat)(&recording, train, &mut compared)?;
    compared.finish()
}
