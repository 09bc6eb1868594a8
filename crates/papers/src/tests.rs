//! Every page, at a twentieth of its steps.

use std::collections::BTreeSet;

use tch::Device;

use crate::page::{At, Than};
use crate::run::{Options, run};
use crate::{PAGES, report};

const REDUCED: Options = Options { device: Device::Cpu, threads: 2, reduced: true, seeds: None, from: 0 };

#[test]
fn every_page_runs_and_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    for page in PAGES {
        let outcome = run(page, &REDUCED, &|_, _| ()).unwrap();
        assert_eq!(outcome.margins.len(), page.margins.len());
        report::write(folder.path(), page, &outcome).unwrap();
    }
    report::write_index(folder.path()).unwrap();
    let index = std::fs::read_to_string(folder.path().join("README.md")).unwrap();
    assert_eq!(index.matches("| [").count(), PAGES.len());
}

/// A seed's digits depend on nothing but the seed: not on how many are trained beside it or after it.
#[test]
fn a_second_run_gives_the_same_digits() {
    let page = PAGES.iter().find(|page| page.number == 47).unwrap();
    let first = run(page, &REDUCED, &|_, _| ()).unwrap();
    let second = run(page, &Options { threads: 1, ..REDUCED }, &|_, _| ()).unwrap();
    let alone = run(page, &Options { seeds: Some(1), ..REDUCED }, &|_, _| ()).unwrap();
    let rows = || first.scores.iter().zip(&alone.scores);
    assert!(rows().all(|(all, one)| all.values[..1] == one.values[..]) && rows().count() == first.scores.len());
    assert_eq!((first.scores, first.margins), (second.scores, second.margins));
}

#[test]
fn pages_are_in_order_and_judge_what_they_measure() {
    assert!(PAGES.is_sorted_by(|a, b| a.number < b.number));
    for page in PAGES {
        let arms: BTreeSet<_> = page.arms.iter().map(|arm| arm.name).collect();
        let measures: BTreeSet<_> = page.measures.iter().map(|measure| measure.name).collect();
        let known = |At(arm, measure): At| arms.contains(arm) && measures.contains(measure);
        for margin in page.margins {
            let than = if let Than::Arm(at) = margin.than { known(at) } else { true };
            assert!(known(margin.of) && than, "page {}: {}", page.number, margin.says);
        }
        assert!(!page.margins.is_empty() && [5, 10].contains(&page.seeds), "page {}", page.number);
    }
}

/// The table was not changed by hand, and has every page that was run.
#[test]
fn the_table_is_that_of_the_numbers() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/papers");
    let folder = tempfile::tempdir().unwrap();
    for page in PAGES {
        let name = format!("{:02}.json", page.number);
        if let Ok(bytes) = std::fs::read(docs.join(&name)) {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
    }
    report::write_index(folder.path()).unwrap();
    let read = |folder: &std::path::Path| std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert_eq!(read(folder.path()), read(&docs), "`cargo xtask papers --index` writes it");
}
