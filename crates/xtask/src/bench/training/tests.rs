use super::super::machine::Machine;
use super::*;

pub(in crate::bench) fn report() -> Report {
    let arm = |system: &str, how: &str, numbers: &[(f64, f64, f64)]| Arm {
        system: system.to_owned(),
        how: how.to_owned(),
        of_floor: 0.5,
        runs: numbers
            .iter()
            .map(|&(tokens_per_second, start_up_seconds, peak_mib)| Run {
                tokens_per_second,
                wall_seconds: 10.0,
                start_up_seconds,
                peak_mib,
                gpu_mib: None,
            })
            .collect(),
    };
    Report {
        taken: Taken {
            name: "w1".to_owned(),
            date: "2026-01-01".to_owned(),
            commit: "0123456789".to_owned(),
            machine: Machine {
                cpu: "a CPU".to_owned(),
                cores: 2,
                memory_gib: 8,
                kernel: "6.1".to_owned(),
                gpus: Vec::new(),
            },
            others: 0.01,
            rounds: 3,
            steps: 20,
        },
        versions: BTreeMap::new(),
        floor: [("float32".to_owned(), 100.0)].into(),
        flops_per_token: 1e8,
        losses: Agreement { steps: 20, first: 0.0, largest: 1e-5, tolerance: 1e-4 },
        arms: vec![
            arm("PEFT", "1 process x 2 threads", &[(100.0, 5.0, 400.0), (90.0, 5.5, 410.0), (110.0, 4.5, 390.0)]),
            arm("PEFT", "2 processes x 1 thread", &[(150.0, 8.0, 800.0)]),
            arm("Pleach", "1 process x 2 threads", &[(180.0, 1.0, 300.0), (240.0, 2.0, 100.0), (210.0, 1.5, 200.0)]),
        ],
        at_once_mib: None,
        figures: Vec::new(),
    }
}

#[test]
fn every_figure_is_held_against_the_best_that_the_baseline_has_for_it() {
    let found = figures(&report(), workload::find("w1").unwrap());
    let value = |figure| found.iter().find(|found| found.figure == figure).unwrap().value;
    assert_eq!(value(Figure::Tokens), 210.0 / 150.0);
    assert_eq!(value(Figure::Memory), 200.0 / 400.0);
    assert_eq!(value(Figure::StartUp), 5.0 / 1.5);
    assert_eq!(value(Figure::Wall), 1.0);
    assert_eq!(found.len(), 4, "no GPU, no utilisation: {found:?}");
}

#[test]
fn several_jobs_are_held_against_all_at_once_in_memory_and_a_gpu_against_its_maker() {
    let mut report = report();
    report.at_once_mib = Some(2000.0);
    report.taken.machine.gpus = vec!["NVIDIA H100 80GB HBM3".to_owned()];
    report.flops_per_token = 989e10;
    let found = figures(&report, workload::find("w2").unwrap());
    let value = |figure| found.iter().find(|found| found.figure == figure).map(|found| found.value);
    assert_eq!(value(Figure::Memory), Some(0.1));
    assert_eq!(value(Figure::StartUp), None);
    assert!((value(Figure::Utilisation).unwrap() - 2.1).abs() < 1e-9);
}

#[test]
fn a_plot_has_a_column_of_points_for_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.svg");
    draw(&path, &report()).unwrap();
    let svg = std::fs::read_to_string(path).unwrap();
    assert_eq!(svg.matches("<circle").count(), 7, "{svg}");
    assert!(svg.contains("PEFT") && svg.contains("Pleach"));
}
