//! `cargo xtask bench [NAME...]`: measures Pleach on this machine. Each measurement writes `docs/bench/NAME.json`, from which
//! `docs/performance.md` tells.

mod control;

use anyhow::{Result, bail};

use crate::paths::Paths;
use crate::ui;

/// `bench` on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// What to measure: control (one coordinator with thousands of workers); everything when absent
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Goes to the only measurement that is named; `-- --help` says what it understands
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Something that can be measured.
struct Measurement {
    name: &'static str,
    /// In a few words.
    what: &'static str,
    run: fn(&Paths, &[String]) -> Result<()>,
}

const ALL: &[Measurement] =
    &[Measurement { name: "control", what: "one coordinator with thousands of simulated workers", run: control::run }];

/// The command.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    for measurement in chosen(args)? {
        ui::say(measurement.name, measurement.what);
        (measurement.run)(paths, &args.rest)?;
    }
    Ok(())
}

fn chosen(args: &Args) -> Result<Vec<&'static Measurement>> {
    if !args.rest.is_empty() && args.names.len() != 1 {
        bail!("options after `--` go to one measurement: name it");
    }
    if args.names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let find = |name: &String| match ALL.iter().find(|measurement| measurement.name == name) {
        Some(measurement) => Ok(measurement),
        None => {
            let names: Vec<_> = ALL.iter().map(|measurement| measurement.name).collect();
            bail!("`{name}` is no measurement; there are: {}", names.join(", "))
        }
    };
    args.names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], rest: &[&str]) -> Result<Vec<&'static str>> {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let chosen = chosen(&Args { names: own(names), rest: own(rest) })?;
        Ok(chosen.into_iter().map(|measurement| measurement.name).collect())
    }

    #[test]
    fn measurements_are_found_by_name_and_options_go_to_one() {
        assert_eq!(names(&[], &[]).unwrap().len(), ALL.len());
        assert_eq!(names(&["control"], &["--workers", "10"]).unwrap(), ["control"]);
        assert!(names(&["control", "nothing"], &[]).unwrap_err().to_string().contains("`nothing` is no measurement"));
        assert!(names(&[], &["--workers", "10"]).is_err());
    }
}
