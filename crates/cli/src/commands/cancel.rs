//! `pleach cancel`.

use pleach_base::Result;

use super::watch::{ended, shown};
use crate::args::{Cancel, Global};
use crate::follow::{Follower, Stream};
use crate::{out, view};

pub(super) async fn run(global: &Global, args: &Cancel) -> Result<()> {
    let mut client = super::connect(global).await?;
    let mut job = client.cancel(&args.job, &args.reason).await?;
    if !args.no_wait && !view::ended(&job) {
        out::note(format!("waiting for {} to finish its step and write a checkpoint", job.id));
        let mut follower = Follower::new(Stream::Err, shown(global));
        client.watch(&args.job, job.last_seq, |update| follower.update(update)).await?;
        follower.clear();
        job = ended(follower, &mut client, &args.job).await?;
    }
    out::data(&format!("{} {}", job.id, view::state(&job)))
}
