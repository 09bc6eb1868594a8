//! `docs/papers/README.md`: what the pages are, and the table of all of them from the numbers that lie beside them.

use std::fmt::Write as _;
use std::path::Path;

use pleach_base::{Result, ResultExt as _, code};

use super::{margin, put};
use crate::judge::Outcome;

/// What stands before the table.
const HEAD: &str = "# What the papers claim, measured

Every method of a paper comes with an experiment that a laptop repeats in a few minutes: the paper's claim, scaled down to models of a
few thousand parameters, with the method and its baselines as they are in the registries, trained by the engine that trains jobs.

```
cargo xtask papers            # all pages
cargo xtask papers 47 59      # some
cargo xtask papers 47 --gpu   # on a GPU
```

Seeds 0 to 4 (or 0 to 9) were fixed in advance. Data, the pretrained model and the order of batches are the same for all arms of
a seed, and so is the budget of steps. A claim is *shown* when the mean over seeds keeps the margin and at least four of five seeds have
its sign: of a lead that is asked for each seed must lead, of a lag that is allowed each seed must keep it. What is *not shown* is
left in the table with its reason. Everything drawn follows from the seed, each seed is computed on one thread, and a second run on the same
machine gives the same digits.

Small models trained for seconds say whether a method does what its paper says it does; they say nothing about its numbers
on real ones.

";

/// Writes the table of all pages whose numbers lie in the folder.
///
/// # Errors
/// `IO` when the folder cannot be read or written; `INTERNAL` for a file of numbers that is none.
pub fn write_index(folder: &Path) -> Result<()> {
    put(&folder.join("README.md"), &markdown(&outcomes(folder)?))
}

/// The numbers in the folder, by page.
fn outcomes(folder: &Path) -> Result<Vec<Outcome>> {
    let failed = || format!("{}: cannot be read", folder.display());
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).or_code(code::IO, failed)? {
        let path = entry.or_code(code::IO, failed)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read_to_string(&path).or_code(code::IO, failed)?;
            let bad = || format!("{}: not the numbers of a page", path.display());
            all.push(serde_json::from_str::<Outcome>(&text).or_code(code::INTERNAL, bad)?);
        }
    }
    all.sort_by_key(|outcome| outcome.page);
    Ok(all)
}

fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = HEAD.to_owned();
    text.push_str("| page | method | claim | what must hold, and what was measured | |\n|---|---|---|---|---|\n");
    for outcome in outcomes {
        let margins: Vec<String> =
            outcome.margins.iter().map(|verdict| format!("{}: {}", verdict.says, margin(verdict))).collect();
        let held = outcome.margins.iter().filter(|verdict| verdict.holds).count();
        let word = match outcome.shown() {
            true => "shown".to_owned(),
            false => format!("{held} of {} shown", outcome.margins.len()),
        };
        let _ = writeln!(
            text,
            "| [{:02}]({:02}.md) | {} | {} | {} | {word} |",
            outcome.page,
            outcome.page,
            outcome.title,
            outcome.claim,
            margins.join("<br>")
        );
    }
    text
}
