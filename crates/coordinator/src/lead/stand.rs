//! Standing by, leading, standing by again.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusRecorder;
use pleach_base::shutdown::Shutdown;
use pleach_base::{Result, ResultExt, code};
use tokio::sync::watch;

use super::election::{self, Leader, campaign, is_gone, look};
use super::link::Trouble;
use super::{Leadership, Link, TTL, history, refused};
use crate::actor::{self, Actor, Ended, Role};
use crate::config::Config;
use crate::db::{Backend, Etcd};
use crate::serve::tick;

/// Between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A leader's port is found closed so often, one look after the other, before its place is taken: a process that starts
/// again has its port closed for a moment.
const REFUSALS: u32 = 2;

/// What was overwritten longer ago is forgotten: at thousands of steps a second etcd's space of 2 GiB would last minutes.
const FORGET_EVERY: Duration = Duration::from_secs(15);

/// What a coordinator that shares an etcd needs to take its turns.
pub(crate) struct Stand {
    pub(crate) link: Link,
    pub(crate) config: Config,
    pub(crate) advertise: String,
    pub(crate) recorder: Arc<PrometheusRecorder>,
    pub(crate) roles: watch::Sender<Role>,
    pub(crate) shutdown: Shutdown,
}

/// Stands by and leads in turns until a shutdown is requested.
///
/// # Errors
/// When etcd refuses what this build asks, or the state cannot be read.
pub(crate) async fn stand(stand: Stand) -> Result<()> {
    while !stand.shutdown.is_requested() {
        let won = tokio::select! {
            won = stand.win() => won?,
            () = stand.shutdown.requested() => break,
        };
        match stand.lead(Arc::new(won)).await? {
            Ended::SteppedDown => stand.follow(None),
            Ended::Shutdown | Ended::CannotStore => break,
        }
    }
    Ok(())
}

impl Stand {
    fn follow(&self, leader: Option<String>) {
        self.roles.send_if_modified(|role| {
            let same = matches!(role, Role::Follower { leader: known } if *known == leader);
            *role = Role::Follower { leader };
            !same
        });
    }

    /// Waits for the leadership.
    async fn win(&self) -> Result<Leadership> {
        let mut refusals = 0;
        loop {
            match self.try_to_win(&mut refusals).await {
                Ok(Some(won)) => return Ok(won),
                Ok(None) => {}
                Err(Trouble::Away(why)) => {
                    tracing::debug!(why, "etcd does not answer");
                    self.follow(None);
                }
                Err(Trouble::Refused(error)) => return Err(refused(error)),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn try_to_win(&self, refusals: &mut u32) -> std::result::Result<Option<Leadership>, Trouble> {
        let me = Leader { id: self.config.ids.next_id(), term: 0, advertise: self.advertise.clone() };
        let Some((leader, revision)) = look(&self.link).await? else {
            return campaign(&self.link, &self.config.clock, me, 0).await;
        };
        let gone = leader.advertise != self.advertise && is_gone(&leader.advertise).await;
        *refusals = if gone { *refusals + 1 } else { 0 };
        if *refusals >= REFUSALS {
            *refusals = 0;
            tracing::warn!(leader = leader.advertise, "the leader's port is closed; taking its place");
            return campaign(&self.link, &self.config.clock, me, revision).await;
        }
        self.follow(Some(leader.advertise));
        Ok(None)
    }

    /// Leads until that ends.
    async fn lead(&self, leadership: Arc<Leadership>) -> Result<Ended> {
        let actor = tokio::select! {
            actor = self.load(&leadership) => actor,
            () = election::keep(&leadership, |_| {}) => return Ok(Ended::SteppedDown),
        };
        let actor = match actor {
            Ok(actor) => actor,
            Err(error) if error.code() == code::NOT_LEADER => return Ok(Ended::SteppedDown),
            Err(error) => {
                leadership.resign().await;
                return Err(error);
            }
        };
        tracing::info!(term = %leadership.term, advertise = self.advertise, "this coordinator leads");
        let turn = Arc::clone(&leadership);
        tokio::spawn(async move { history::forget(&turn, FORGET_EVERY).await });
        let (handle, requests) = actor::channel();
        let (recorder, stop) = (Arc::clone(&self.recorder), self.shutdown.clone());
        let run = move || metrics::with_local_recorder(&*recorder, || actor.run(requests, &stop));
        let mut acting = tokio::task::spawn_blocking(run);
        tokio::spawn(tick(handle.clone(), self.config.tick, self.shutdown.clone()));
        let seen = |fresh: bool| {
            self.roles.send_if_modified(|role| {
                let led = matches!(role, Role::Leader(_));
                *role = if fresh { Role::Leader(handle.clone()) } else { Role::Follower { leader: None } };
                led != fresh
            });
        };
        seen(leadership.is_fresh());
        let ended = tokio::select! {
            ended = &mut acting => ended,
            () = election::keep(&leadership, seen) => {
                // The next tick, or whatever waits for etcd, finds that it is lost.
                self.follow(None);
                acting.await
            }
            () = self.overdue() => {
                leadership.lose();
                acting.await
            }
        };
        leadership.lose();
        self.follow(None);
        ended.or_code(code::INTERNAL, || "the coordinator's actor panicked".into())
    }

    /// A shutdown does not wait for an etcd that is away.
    async fn overdue(&self) {
        self.shutdown.requested().await;
        tokio::time::sleep(TTL).await;
    }

    /// Loads the state, on a thread that may wait.
    async fn load(&self, leadership: &Arc<Leadership>) -> Result<Actor> {
        let (config, runtime) = (self.config.clone(), tokio::runtime::Handle::current());
        let leadership = Arc::clone(leadership);
        let load = move || {
            let term = leadership.term;
            let db: Arc<dyn Backend> = Arc::new(Etcd::new(leadership, runtime, config.kept_updates));
            Actor::load(&config, db, term, false)
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        loaded.or_code(code::INTERNAL, || "loading the state panicked".into())?
    }
}
