//! `pleach logs`.

use pleach_base::{Error, Result};
use pleach_proto::v1::WatchJobResponse;
use pleach_proto::v1::watch_job_response::Update;

use crate::args::{Global, Logs};
use crate::client::Flow;
use crate::{follow, out};

pub(super) async fn run(global: &Global, args: &Logs) -> Result<()> {
    let mut client = super::connect(global).await?;
    let mut printer = Printer { follow: args.follow, until: None, failed: None };
    client.watch(&args.job, 0, |update| printer.update(&update)).await?;
    printer.failed.map_or(Ok(()), Err)
}

struct Printer {
    follow: bool,
    /// The newest update when the command began; what comes later is for `--follow`.
    until: Option<u64>,
    failed: Option<Error>,
}

impl Printer {
    fn update(&mut self, update: &WatchJobResponse) -> Flow {
        if let Some(Update::Job(job)) = &update.update {
            self.until.get_or_insert(job.last_seq);
        }
        if let Some(Err(error)) = line(update).map(|line| out::data(&line)) {
            self.failed = Some(error);
            return Flow::Stop;
        }
        let past_is_over = self.until.is_some_and(|until| update.seq >= until);
        if !self.follow && past_is_over { Flow::Stop } else { Flow::More }
    }
}

fn line(update: &WatchJobResponse) -> Option<String> {
    match update.update.as_ref()? {
        Update::Log(line) => Some(follow::log_line(line)),
        Update::Event(event) => Some(follow::event_line(event)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use pleach_proto::v1;

    use super::*;

    #[test]
    fn the_past_ends_where_it_ended_when_the_command_began() {
        let job = |last_seq| Update::Job(v1::Job { last_seq, ..Default::default() });
        let at = |seq, update| WatchJobResponse { seq, update: Some(update) };
        let step = || Update::Step(v1::StepRow::default());
        let mut past = Printer { follow: false, until: None, failed: None };
        assert_eq!(past.update(&at(0, job(2))), Flow::More);
        assert_eq!(past.update(&at(1, step())), Flow::More);
        assert_eq!(past.update(&at(0, job(9))), Flow::More, "a later snapshot moves nothing");
        assert_eq!(past.update(&at(2, step())), Flow::Stop);
        let mut none = Printer { follow: false, until: None, failed: None };
        assert_eq!(none.update(&at(0, job(0))), Flow::Stop, "nothing has happened yet");
        let mut all = Printer { follow: true, until: None, failed: None };
        assert_eq!(all.update(&at(0, job(1))), Flow::More);
        assert_eq!(all.update(&at(1, step())), Flow::More);
    }
}
