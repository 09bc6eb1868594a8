//! A rank under command: reads one command a line, answers with one line that starts with `@`.
//!
//! | command | answer |
//! |---|---|
//! | `form RANK WORLD PREFIX checked\|fast TIMEOUT_MS` | `@ formed` or `@ refused CODE text` |
//! | `checks` | `@ held N` or `@ broken text` |
//! | `reduce N` | `@ done`, or `@ ended CODE MILLIS LOST text` of the call that failed |
//! | `deviate` | rank 0 leaves an agreed plan, the others follow it; as `reduce` |
//! | `absent` | all plan a broadcast from the last rank, which then stays away; as `reduce` |
//! | `sleep MS` | `@ slept` |
//! | `time N ELEMENTS` | `@ took SECONDS` of N all-reduces of f32, exchanged one by one |
//! | `plan N ELEMENTS` | the same under one plan |
//! | `leave` | `@ left`; drops the group |
//! | `abort` | none of its own; works while another command runs |

use std::io::{BufRead, Write};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pleach_base::{Result, SystemClock};
use tch::{Kind, Tensor};

use super::run;
use crate::{Abort, Call, Collective, ReduceOp, Signature};

/// A group that the test wants.
#[derive(Clone, Debug)]
pub struct Form {
    /// The number of this rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world: usize,
    /// The name of the group.
    pub prefix: String,
    /// Whether every call is checked.
    pub checked: bool,
    /// How long a collective may go without progress.
    pub timeout: Duration,
}

type Handle = Arc<Mutex<Option<Arc<dyn Abort>>>>;

/// Obeys commands until the input ends. `form` makes groups of the implementation under test.
pub fn drive(
    form: impl Fn(&Form) -> Result<Box<dyn Collective>>,
    input: impl BufRead + Send + 'static,
    mut output: impl Write,
) {
    let handle: Handle = Arc::default();
    let commands = listen(input, Arc::clone(&handle));
    let mut group: Option<Box<dyn Collective>> = None;
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let answer = match (words.as_slice(), &group) {
            (["form", rest @ ..], _) => {
                group = None;
                match parse(rest).map(|wanted| form(&wanted)) {
                    None => "@ bad command".to_owned(),
                    Some(Err(error)) => format!("@ refused {} {error:?}", error.code().id),
                    Some(Ok(formed)) => {
                        *handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(formed.abort_handle());
                        group = Some(formed);
                        "@ formed".to_owned()
                    }
                }
            }
            (["leave"], _) => {
                group = None;
                "@ left".to_owned()
            }
            (words, Some(group)) => obey(words, group.as_ref()),
            (_, None) => "@ no group".to_owned(),
        };
        if writeln!(output, "{answer}").and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

/// Passes commands on, except `abort`, which must not wait for the one that is running.
fn listen(input: impl BufRead + Send + 'static, handle: Handle) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in input.lines().map_while(std::result::Result::ok) {
            if line.trim() == "abort" {
                if let Some(abort) = handle.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                    abort.abort();
                }
            } else if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

fn parse(words: &[&str]) -> Option<Form> {
    let [rank, world, prefix, mode, timeout] = words else { return None };
    Some(Form {
        rank: rank.parse().ok()?,
        world: world.parse().ok()?,
        prefix: (*prefix).to_owned(),
        checked: *mode == "checked",
        timeout: Duration::from_millis(timeout.parse().ok()?),
    })
}

fn obey(words: &[&str], group: &dyn Collective) -> String {
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<u32>().ok()).unwrap_or(1);
    match words.first().copied().unwrap_or_default() {
        "checks" => match run(group) {
            Ok(held) => format!("@ held {held}"),
            Err(why) => format!("@ broken {}", why.replace('\n', " ")),
        },
        "reduce" => timed(group, || (0..number(1)).try_for_each(|_| reduce(group, 1024))),
        "deviate" => timed(group, || deviate(group)),
        "absent" => timed(group, || absent(group)),
        "sleep" => {
            std::thread::sleep(Duration::from_millis(u64::from(number(1))));
            "@ slept".to_owned()
        }
        "time" | "plan" => match took(group, number(1), i64::from(number(2)), words[0] == "plan") {
            Ok(seconds) => format!("@ took {seconds:.4}"),
            Err(error) => format!("@ ended {error:?}"),
        },
        _ => "@ bad command".to_owned(),
    }
}

fn timed(group: &dyn Collective, body: impl FnOnce() -> Result<()>) -> String {
    let clock = SystemClock::shared();
    match body() {
        Ok(()) => "@ done".to_owned(),
        Err(error) => {
            let lost: Vec<String> = group.lost().iter().map(usize::to_string).collect();
            let lost = if lost.is_empty() { "-".to_owned() } else { lost.join(",") };
            let text = error.message().replace('\n', " ");
            format!("@ ended {} {} {lost} {text}", error.code().id, clock.elapsed().as_millis())
        }
    }
}

/// The seconds that `calls` all-reduces take.
fn took(group: &dyn Collective, calls: u32, elements: i64, planned: bool) -> Result<f64> {
    let mut tensor = Tensor::zeros([elements], (Kind::Float, group.device()));
    let call = Call::AllReduce(ReduceOp::Sum);
    let clock = SystemClock::shared();
    if planned {
        group.verify_plan(&[Signature::of(call, &tensor)], calls as usize)?;
    }
    (0..calls).try_for_each(|_| group.all_reduce(&mut tensor, ReduceOp::Sum))?;
    Ok(clock.elapsed().as_secs_f64())
}

fn reduce(group: &dyn Collective, elements: i64) -> Result<()> {
    group.all_reduce(&mut Tensor::ones([elements], (Kind::Float, group.device())), ReduceOp::Sum)
}

fn deviate(group: &dyn Collective) -> Result<()> {
    let planned = Signature::new(Call::AllReduce(ReduceOp::Sum), Kind::Float, &[1024]);
    group.verify_plan(&[planned], 2)?;
    reduce(group, 1024)?;
    reduce(group, if group.rank() == 0 { 512 } else { 1024 })
}

fn absent(group: &dyn Collective) -> Result<()> {
    let last = group.world() - 1;
    let mut tensor = Tensor::ones([1024], (Kind::Float, group.device()));
    group.verify_plan(&[Signature::of(Call::Broadcast(last), &tensor)], 1)?;
    if group.rank() == last { Ok(()) } else { group.broadcast(&mut tensor, last) }
}
