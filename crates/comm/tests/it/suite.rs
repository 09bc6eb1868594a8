//! The conformance suite over gloo and local.

use pleach_comm::conformance::{checks, run};
use pleach_comm::local;
use rstest::rstest;

use crate::ranks::Gang;

#[test]
fn local_conforms() {
    tch::set_num_threads(1);
    let expected = checks().filter(|check| check.min_world <= 1).count();
    assert_eq!(run(local(tch::Device::Cpu).as_ref()), Ok(expected));
}

#[rstest]
#[case::two(2)]
#[case::three(3)]
#[case::four(4)]
fn gloo_conforms(#[case] world: usize) {
    let mut gang = Gang::start(world);
    let held = format!("held {}", checks().count());
    for mode in ["checked", "fast"] {
        gang.form(world, mode, 20_000);
        assert_eq!(gang.ask(world, "checks"), vec![held.clone(); world], "{mode}");
    }
}

#[test]
fn gloo_conforms_alone() {
    let mut gang = Gang::start(1);
    gang.form(1, "checked", 5000);
    assert!(gang.ask(1, "checks")[0].starts_with("held"), "a group of one conforms");
}

/// Numbers for people: `cargo test -p pleach-comm --test it -- --ignored --nocapture timings`.
#[test]
#[ignore = "prints timings, asserts nothing"]
fn timings() {
    let mut gang = Gang::start(2);
    gang.form(2, "fast", 20_000);
    for command in ["time 5 1048576", "time 50 1048576", "plan 50 1048576", "time 1000 256", "plan 1000 256"] {
        println!("{command}: {:?}", gang.ask(2, command));
    }
}
