//! How long it takes to open a large JSONL source for the first and for the second time, and to make a batch of its
//! last step: `cargo run --release -p pleach-data --example seek -- FOLDER [ROWS]`. Writes into `FOLDER` and removes it.

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures, for people")]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use pleach_data::{Cursor, Dataset, Encoder, Limits, Loader, OpenOptions, Order, Plan, RowCache, Side, Tokenizer};
use pleach_spec::job::DataSpec;

const WORDS: [&str; 8] = ["the", "cat", "sat", "on", "mat", "dog", "ran", "far"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("which folder?")?).join("pleach-seek");
    let rows: u64 = args.next().as_deref().unwrap_or("10000000").parse()?;
    std::fs::create_dir_all(&folder)?;
    let source = folder.join("rows.jsonl");
    write(&source, rows)?;
    println!("{rows} rows, {} bytes", source.metadata()?.len());

    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wordpiece.json");
    let spec: DataSpec = serde_json::from_value(serde_json::json!({"source": source, "task": "causal_lm"}))?;
    let limits = Limits { vocab_size: 70, num_labels: None, max_positions: None };
    let encoder = Arc::new(Encoder::new(&spec, Some(Tokenizer::open(&tokenizer)?), Side::Both, limits)?);
    let cache = RowCache { folder: folder.join("cache"), least_bytes: 0 };
    let options = OpenOptions { rows: Some(cache.clone()), ..OpenOptions::default() };
    for time in ["first", "second"] {
        let start = Instant::now();
        let dataset = Arc::new(Dataset::open_source(&spec.source, &encoder, &options)?);
        println!("{time} open: {:.3} s, digest {}", start.elapsed().as_secs_f64(), dataset.digest());
        let plan = Plan::new(dataset.len(), 64, 4, Some(1), None)?;
        let order = Order::new(plan, 7, &"seek".into(), &spec);
        let cursor = Cursor { step: order.plan().total_steps() - 1 };
        let batches = Loader::start(dataset, Arc::clone(&encoder), cursor.work(order, 0..4), 4)?;
        let samples = batches.map(|lane| lane.map(|lane| lane.batch.len())).sum::<Result<usize, _>>()?;
        println!("{time} open and the last step's {samples} rows: {:.3} s", start.elapsed().as_secs_f64());
    }
    for entry in std::fs::read_dir(&cache.folder)? {
        println!("index: {} bytes", entry?.metadata()?.len());
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn write(path: &Path, rows: u64) -> std::io::Result<()> {
    let mut to = BufWriter::new(File::create(path)?);
    for row in 0..rows {
        let word = |n: u64| WORDS[(row / 8u64.pow(n as u32) % 8) as usize];
        writeln!(to, "{{\"id\": {row}, \"text\": \"{} {} {} {} {}\"}}", word(0), word(1), word(2), word(3), word(4))?;
    }
    to.flush()
}
