use super::*;
use crate::judge::Row;
use crate::page::{Arm, At, Cx, Margin, Measure, Need, Scores, Than};

fn nothing(_: &Cx) -> Result<Scores> {
    Ok(Scores::default())
}

const TOY: Page = Page {
    number: 7,
    title: "Toy",
    paper: "Nobody, *Nothing*, 2000",
    claim: "A is better than B.",
    setup: "Coins are tossed.",
    seeds: 5,
    arms: &[Arm { name: "a", what: "heads" }, Arm { name: "b < c", what: "tails" }],
    measures: &[Measure { name: "accuracy", unit: "%", digits: 1 }],
    margins: &[Margin::new("a leads by 2", At("a", "accuracy"), Than::Number(1.0), Need::AtLeast(2.0))],
    run: nothing,
};

fn outcome(holds: bool, reason: Option<&str>) -> Outcome {
    let row = |arm: &str, values: &[f64], params| Row {
        arm: arm.to_owned(),
        measure: "accuracy".to_owned(),
        values: values.to_vec(),
        params,
    };
    Outcome {
        page: 7,
        title: "Toy".to_owned(),
        claim: TOY.claim.to_owned(),
        device: "cpu".to_owned(),
        seeds: 2,
        reduced: false,
        seconds: 1.2,
        threads: 2,
        work: 2.0,
        scores: vec![row("a", &[90.0, 92.0], Some(12_345)), row("b < c", &[80.0, 81.0], None)],
        margins: vec![Verdict {
            says: "a leads by 2".to_owned(),
            margin: 3.0,
            spread: 0.5,
            times: false,
            signs: 2,
            holds,
            reason: reason.map(str::to_owned),
        }],
    }
}

#[test]
fn a_page_says_what_was_measured_and_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &TOY, &outcome(true, None)).unwrap();
    write_index(folder.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let page = read("07.md");
    for part in
        ["# 07 Toy", "> A is better than B.", "| a | heads | 12,345 | 91.0 ± 1.4 % |", "| 2 of 2 | shown |", "(07.svg)"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(
        read("README.md")
            .contains("| [07](07.md) | Toy | A is better than B. | a leads by 2: +3.000 ± 0.500 | shown |")
    );
    let plot = read("07.svg");
    assert_eq!(plot.matches("<circle").count(), 4);
    assert!(plot.contains("b &lt; c"));
    let back: Outcome = serde_json::from_str(&read("07.json")).unwrap();
    assert_eq!(back, outcome(true, None));
}

#[test]
fn what_is_not_shown_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let failed = outcome(false, Some("the coin is fair"));
    assert!(!failed.shown() && failed.explained() && !outcome(false, None).explained());
    write(folder.path(), &TOY, &failed).unwrap();
    write_index(folder.path()).unwrap();
    let page = std::fs::read_to_string(folder.path().join("07.md")).unwrap();
    assert!(page.contains("*a leads by 2* is not shown: the coin is fair"));
    assert!(std::fs::read_to_string(folder.path().join("README.md")).unwrap().contains("0 of 1 shown"));
    assert!(text(&TOY, &failed).contains("not shown: a leads by 2: +3.000 ± 0.500, 2 of 2 seeds"));
}
