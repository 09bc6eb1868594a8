//! `pleach-papers [NN...]`: runs what the papers claim, prints what was measured, and writes `docs/papers/`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use pleach_papers::PAGES;
use pleach_papers::judge::Outcome;
use pleach_papers::page::Page;
use pleach_papers::report;
use pleach_papers::run::{Options, run};
use tch::{Cuda, Device};

/// What the papers claim, measured on small models.
#[derive(Parser)]
#[command(name = "pleach-papers")]
struct Args {
    /// Numbers of the pages, such as 47; all when absent
    pages: Vec<u32>,
    /// Train on the first GPU
    #[arg(long)]
    gpu: bool,
    /// How results are printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Seeds trained at a time; as many as there are cores when absent
    #[arg(long)]
    threads: Option<usize>,
    /// Two seeds at a twentieth of the steps: shows that a page runs, and writes nothing
    #[arg(long)]
    reduced: bool,
    /// The first N seeds at all steps: shows which way a page goes, and writes nothing
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed, for choices that must not be made on a page's own seeds, which begin at 0; writes nothing
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// Folder of the pages that are written
    #[arg(long, default_value = "docs/papers")]
    docs: PathBuf,
    /// Write nothing
    #[arg(long)]
    dry: bool,
    /// Run nothing: only write the table of all pages anew
    #[arg(long)]
    index: bool,
}

/// What can go wrong, for people.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Forms of output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

fn main() -> ExitCode {
    match all(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the pages; whether every claim is shown, or says why not.
fn all(args: &Args) -> Result<bool> {
    if args.index {
        report::write_index(&args.docs)?;
        return Ok(true);
    }
    let pages = chosen(&args.pages)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let device = if args.gpu { gpu()? } else { Device::Cpu };
    let (threads, reduced, seeds, from) = (args.threads.unwrap_or(cores), args.reduced, args.seeds, args.from);
    let options = Options { device, threads, reduced, seeds, from };
    let writes = !args.reduced && !args.dry && args.seeds.is_none() && from == 0;
    let mut outcomes = Vec::new();
    for page in pages {
        let told = |seed: u64, seconds: f64| eprintln!("page {:02} seed {seed}: {seconds:.1} s", page.number);
        let outcome = run(page, &options, &told)?;
        if args.output == Output::Text {
            println!("{}", report::text(page, &outcome));
        }
        if writes {
            report::write(&args.docs, page, &outcome)?;
        }
        outcomes.push(outcome);
    }
    if writes {
        report::write_index(&args.docs)?;
    }
    if args.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&outcomes).unwrap_or_default());
    }
    Ok(args.reduced || args.seeds.is_some() || from > 0 || outcomes.iter().all(Outcome::explained))
}

fn chosen(numbers: &[u32]) -> Result<Vec<&'static Page>> {
    if numbers.is_empty() {
        return Ok(PAGES.to_vec());
    }
    let known = || PAGES.iter().map(|page| format!("{:02}", page.number)).collect::<Vec<_>>().join(", ");
    let find = |number: &u32| {
        let missing = || format!("there is no page {number:02}; there are {}", known()).into();
        PAGES.iter().copied().find(|page| page.number == *number).ok_or_else(missing)
    };
    numbers.iter().map(find).collect()
}

fn gpu() -> Result<Device> {
    match Cuda::is_available() {
        true => Ok(Device::Cuda(0)),
        false => Err("--gpu: this build or this machine has no GPU".into()),
    }
}
