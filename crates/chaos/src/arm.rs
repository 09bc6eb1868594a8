//! One arm: a cluster trains the job from its first step to its end, with or without faults, and everything about it is written down.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use pleach_base::SharedClock;
use pleach_base::rng::Key;
use pleach_base::shutdown::Shutdown;
use pleach_proto::v1::JobState;
use pleach_testkit::net::Net;
use tokio::runtime::Runtime;

use crate::audit;
use crate::cluster::{Cluster, Plan};
use crate::feed::Feeds;
use crate::history::{Account, History};
use crate::inject::{Injected, Injector};
use crate::measure::Timeline;
use crate::plan::Planned;
use crate::reader::{Findings, Reader};
use crate::stores::Stores;
use crate::watch::{self, Heard, Watch};
use crate::workload::{self, Workload};

/// Between two looks at everything.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Faults stop so long before the expected end, so that each can be recovered from.
const QUIET_END: Duration = Duration::from_secs(6);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What an arm needs.
pub(crate) struct Stage<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) clock: SharedClock,
    pub(crate) shutdown: Shutdown,
    pub(crate) stores: &'a Stores,
    pub(crate) folder: PathBuf,
    pub(crate) workers: u32,
    pub(crate) etcd: bool,
    pub(crate) disks: bool,
    pub(crate) seed: u64,
}

/// What came of it.
pub(crate) struct Arm {
    pub(crate) succeeded: bool,
    pub(crate) state: String,
    /// From the first sight of step 1 to the end of the job.
    pub(crate) seconds: f64,
    pub(crate) account: Account,
    pub(crate) timeline: Timeline,
    pub(crate) start: Duration,
    pub(crate) heard: Heard,
    pub(crate) findings: Findings,
    /// What `pleach audit` says.
    pub(crate) audit: serde_json::Value,
    pub(crate) faults: Vec<Injected>,
    pub(crate) skipped: Vec<String>,
    /// Programs that ended without being told to.
    pub(crate) told: Vec<String>,
}

impl Stage<'_> {
    /// Runs an arm; `step` is what a step takes, and `limit` after which it is given up.
    pub(crate) fn run(
        &self,
        name: &str,
        work: &Workload,
        net: Option<&mut Net>,
        faults: &[Planned],
        step: Duration,
        limit: Duration,
    ) -> Result<Arm> {
        let plan = Plan {
            folder: self.folder.join(name),
            workers: self.workers,
            etcd: self.etcd,
            disks: self.disks,
            proxies: true,
            env: self.stores.env(),
            runtime: self.runtime.handle().clone(),
        };
        std::fs::create_dir_all(&plan.folder)?;
        let gateway = net.as_deref().map_or(std::net::Ipv4Addr::LOCALHOST, Net::gateway);
        let mut cluster = Cluster::start(&plan, net, self.clock.elapsed())?;
        let store = self.stores.address(name);
        let job = workload::job(work, name, self.workers, &store);
        let job = job.to_string();
        write(&plan.folder.join("job.json"), &job)?;
        let submitted = watch::submit(&cluster.endpoints, &job, name, &self.clock);
        self.runtime.block_on(submitted)?;
        let watch = Watch::start(self.runtime.handle(), SharedClock::clone(&self.clock), &cluster.endpoints, name)?;
        let (objects, root) = self.stores.objects(name, name)?;
        let reader = Reader::start(self.runtime.handle(), objects, root);
        let mut seen = Seen::new(&cluster, work);
        let mut injector = Injector::new(self.stores.faults(), gateway);
        let outcome = self.follow(&mut cluster, &watch, &mut seen, &mut injector, faults, (step, limit));
        injector.end(&mut cluster)?;
        if outcome.is_err() {
            eprintln!("{}", last_words(&cluster));
        }
        let ended = outcome?;
        // Records of the last steps come with the next answer.
        std::thread::sleep(Duration::from_millis(500));
        seen.look(self.clock.elapsed())?;
        let heard = std::mem::take(&mut *watch.heard());
        let told = std::mem::take(&mut cluster.told);
        let audit = audit::audit(&cluster.endpoints, &plan.env, name)?;
        drop(cluster);
        let start = seen.timeline.begun.get(&1).copied().unwrap_or(ended);
        Ok(Arm {
            succeeded: heard.state() == JobState::Succeeded,
            state: heard.job.as_ref().map(|job| format!("{:?}: {}", job.state(), job.reason)).unwrap_or_default(),
            seconds: ended.saturating_sub(start).as_secs_f64(),
            account: seen.history.account(work.shape),
            audit,
            findings: reader.finish(self.runtime.handle())?,
            start,
            timeline: seen.timeline,
            heard,
            faults: injector.done,
            skipped: injector.skipped,
            told,
        })
    }

    /// Until the job has ended. Returns when that was.
    fn follow(
        &self,
        cluster: &mut Cluster,
        watch: &Watch,
        seen: &mut Seen,
        injector: &mut Injector,
        faults: &[Planned],
        (step, limit): (Duration, Duration),
    ) -> Result<Duration> {
        let mut pauses = Key::seed(self.seed).named("restarts").rng();
        let mut faults = faults.iter().peekable();
        let began = self.clock.elapsed();
        let mut told = began;
        loop {
            let now = self.clock.elapsed();
            if self.shutdown.is_requested() {
                bail!("asked to stop");
            }
            if now > began + limit {
                bail!("the job is not done after {} s: {}", limit.as_secs(), describe(watch, seen));
            }
            cluster.supervise(now, &mut pauses)?;
            seen.look(now)?;
            injector.tend(cluster, now)?;
            let (state, leader) = {
                let heard = watch.heard();
                (heard.state(), heard.leader.unwrap_or_default())
            };
            if matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled) {
                return Ok(now);
            }
            let start = seen.timeline.begun.get(&2).copied();
            let left = step * (seen.steps.saturating_sub(seen.timeline.newest())) as u32;
            if let (Some(start), Some(next)) = (start, faults.peek())
                && start + next.at <= now
                && left > QUIET_END
            {
                eprintln!("{:>7.1} s  step {:>5}  {}", (now - start).as_secs_f64(), seen.timeline.newest(), next.kind);
                injector.inject(cluster, next, now, leader)?;
                faults.next();
            }
            if now > told + TELL_EVERY {
                told = now;
                eprintln!("{:>7.1} s  {}", (now - began).as_secs_f64(), describe(watch, seen));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// What the feed logs showed.
struct Seen {
    feeds: Feeds,
    history: History,
    timeline: Timeline,
    steps: u64,
}

impl Seen {
    fn new(cluster: &Cluster, work: &Workload) -> Self {
        Self {
            feeds: Feeds::of(&cluster.feed_folder()),
            history: History::default(),
            timeline: Timeline::default(),
            steps: work.shape.steps,
        }
    }

    fn look(&mut self, now: Duration) -> Result<()> {
        for line in self.feeds.more()? {
            self.history.add(&line);
            self.timeline.add(&line, now);
        }
        Ok(())
    }
}

fn describe(watch: &Watch, seen: &Seen) -> String {
    let heard = watch.heard();
    let (state, generation) =
        heard.job.as_ref().map_or((JobState::Unspecified, 0), |job| (job.state(), job.generation));
    let reason = heard.job.as_ref().map(|job| job.reason.clone()).unwrap_or_default();
    format!("step {}/{}  generation {generation}  {state:?} {reason}", seen.timeline.newest(), seen.steps)
}

fn last_words(cluster: &Cluster) -> String {
    let words =
        cluster.nodes.iter().map(|node| format!("--- {} ({} starts)\n{}", node.name, node.starts, node.tail(12)));
    format!("{}\nlogs: {}", words.collect::<Vec<_>>().join("\n"), cluster.logs().display())
}

fn write(path: &Path, text: &str) -> Result<()> {
    Ok(std::fs::write(path, text)?)
}
