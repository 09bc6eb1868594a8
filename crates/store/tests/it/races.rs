//! Processes that want the same step at the same moment: exactly one gets it.

use std::path::PathBuf;
use std::time::Duration;

use pleach_base::{Step, code};
use pleach_store::TaskStore;
use rstest::rstest;

use crate::actors::{PATIENCE, Role, is_one_step, start, stop_file};
use crate::backend::{Backend, Kind, fence, snapshot};

const ROUNDS: u64 = 25;

fn signal(stop: &str, round: u64) -> PathBuf {
    PathBuf::from(format!("{stop}.{round}"))
}

/// The body of a racer: at each signal it takes the task over, and commits the round's step unless that is there.
pub(crate) async fn race(task: &TaskStore, rounds: u64, number: u64, stop: &str) {
    for round in 1..=rounds {
        println!("@ ready {round}");
        while !signal(stop, round).exists() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        match attempt(task, round, number).await {
            Ok(true) => println!("@ won {round}"),
            Ok(false) => println!("@ found {round}"),
            Err(error) => println!("@ lost {round} {}", error.code().id),
        }
    }
}

async fn attempt(task: &TaskStore, round: u64, number: u64) -> pleach_base::Result<bool> {
    // The number in the generation says who wrote it; rounds go up, so that it can always fence.
    let mut writer = task.fence(fence(round, number)).await?;
    if task.newest().await?.is_some_and(|newest| newest.step >= Some(Step(round))) {
        return Ok(false);
    }
    writer.commit(&snapshot(round, number as u8)).await?;
    Ok(true)
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_that_want_one_step_exactly_one_wins(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let racers: Vec<_> = (1..=2).map(|number| start(&backend, Role::Racer { rounds: ROUNDS, number })).collect();
    let stop = stop_file(&backend).display().to_string();
    let mut winners = [0, 0];
    for round in 1..=ROUNDS {
        for racer in &racers {
            racer.wait_for(&format!("@ ready {round}$"), PATIENCE).unwrap();
        }
        std::fs::write(signal(&stop, round), "").unwrap();
        let ended = format!("@ (won|found|lost) {round}( |$)");
        let ends: Vec<String> = racers.iter().map(|racer| racer.wait_for(&ended, PATIENCE).unwrap()).collect();
        let won: Vec<usize> = (0..2).filter(|racer| ends[*racer].contains("@ won")).collect();
        assert_eq!(won.len(), 1, "round {round}: {ends:?}");
        for lost in ends.iter().filter(|line| line.contains("@ lost")) {
            assert!(lost.ends_with(code::STORE_FENCED.id), "{lost}");
        }
        winners[won[0]] += 1;
        let entries = backend.task().entries().await.unwrap();
        let of_round: Vec<_> = entries.iter().filter(|entry| entry.step == Some(Step(round))).collect();
        assert_eq!(of_round.len(), 1, "round {round}: {of_round:?}");
        assert_eq!(of_round[0].fence.generation.0, won[0] as u64 + 1, "it is the winner's");
        assert!(is_one_step(of_round[0], &backend.task().read(of_round[0]).await.unwrap()));
    }
    println!("won: {winners:?}");
}
