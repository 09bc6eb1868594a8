//! `cargo xtask mutate`: are the invariants really watched? Each mutation of `mutations.toml` breaks one of them in a
//! copy of the sources; the test that watches it must pass without the mutation and fail with it.
//!
//! The copy and what is built of it lie under `target/mutate/`; compiled dependencies are shared with the ordinary
//! target folder by hard links. The checkout itself is never touched.

mod edit;
mod list;
mod report;
mod scratch;
mod trial;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::paths::Paths;
use crate::ui;
use list::Mutation;
use report::Row;
use scratch::Scratch;
use trial::{Outcome, Watch};

/// `mutate` on the command line.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only these mutations; all when absent
    names: Vec<String>,
    /// Say which mutations there are, and end
    #[arg(long)]
    list: bool,
    /// Where the JSON goes; `target/mutate/report.json` when absent
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    let wanted = list::chosen(&args.names)?;
    if args.list {
        print!("{}", report::listed(&wanted));
        return Ok(());
    }
    // Every text is looked for before anything is built: a mutation that has lost its place is found at once.
    for mutation in &wanted {
        edit::apply(&paths.root, mutation)?;
    }
    let scratch = Scratch::prepare(paths)?;
    let mut sound: BTreeMap<&Watch, bool> = BTreeMap::new();
    let mut rows = Vec::new();
    for mutation in &wanted {
        // Mutations are ordered by package, so that a package is built as it is once, and then with each of its own.
        let sound = match sound.get(&mutation.watch) {
            Some(sound) => *sound,
            None => {
                ui::say("unmutated", mutation.watch.shown());
                let passes = trial::run(&scratch, &mutation.watch)?.outcome == Outcome::Passed;
                sound.insert(&mutation.watch, passes);
                passes
            }
        };
        rows.push(if sound { mutate(&scratch, mutation)? } else { Row::unsound(mutation) });
    }
    let file = args.output.clone().unwrap_or_else(|| paths.target().join("mutate/report.json"));
    report::write(&file, &rows)?;
    print!("{}", report::table(&rows));
    let missed = rows.iter().filter(|row| !row.is_caught()).count();
    if missed > 0 {
        bail!("{missed} of {} mutations were not caught", rows.len());
    }
    ui::say("caught", format!("all {}; {}", rows.len(), file.display()));
    Ok(())
}

/// One mutation, applied, tried, and taken back.
fn mutate(scratch: &Scratch, mutation: &Mutation) -> Result<Row> {
    ui::say("mutation", format!("{}: {}", mutation.name, mutation.what));
    let files = edit::apply(&scratch.tree, mutation)?;
    let _restored = files.write()?;
    Ok(Row::of(mutation, trial::run(scratch, &mutation.watch)?))
}
