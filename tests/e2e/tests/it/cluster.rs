//! A cluster on one machine whose parts die one by one: a coordinator on fixed ports, workers by name, and the job as both tell it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pleach_testkit::process::{Process, binary, free_port};
use serde_json::Value;

use crate::feeds::Feeds;
use crate::support::{Bench, LONG, pleach};

/// Between two looks at a job or a feed log.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a worker may be silent, and how long a gang may train without a coordinator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) lease: Duration,
    pub(crate) grace: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { lease: Duration::from_secs(2), grace: Duration::from_secs(30) }
    }
}

/// The processes of a cluster. Dropping it kills them.
pub(crate) struct Cluster<'a> {
    bench: &'a Bench,
    name: String,
    times: Times,
    ports: (u16, u16),
    coordinator: Option<Process>,
    workers: BTreeMap<String, Process>,
    /// What is left of the dead, for messages.
    buried: Vec<(String, String)>,
}

impl<'a> Cluster<'a> {
    /// A coordinator without workers. `name` tells clusters of one bench apart.
    pub(crate) fn new(bench: &'a Bench, name: &str, times: Times) -> Self {
        let ports = (free_port().unwrap(), free_port().unwrap());
        let mut cluster = Self {
            bench,
            name: name.to_owned(),
            times,
            ports,
            coordinator: None,
            workers: BTreeMap::new(),
            buried: Vec::new(),
        };
        cluster.start_coordinator();
        cluster
    }

    /// As [`Cluster::new`], with workers `w0`, `w1`, ...
    pub(crate) fn with_workers(bench: &'a Bench, name: &str, count: usize) -> Self {
        let mut cluster = Self::new(bench, name, Times::default());
        for index in 0..count {
            cluster.join(&format!("w{index}"));
        }
        cluster
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.0)
    }

    fn folder(&self, what: &str) -> PathBuf {
        self.bench.path(&format!("{}-{what}", self.name))
    }

    /// Starts the coordinator, or starts it again on what it had stored and where it was.
    pub(crate) fn start_coordinator(&mut self) {
        let (grpc, http) = self.ports;
        let mut command = pleach();
        command.args(["coordinator", "--listen", &format!("127.0.0.1:{grpc}")]);
        command.args(["--http", &format!("127.0.0.1:{http}"), "--state"]).arg(self.folder("state.redb"));
        command.args(["--lease-ttl-ms", &self.times.lease.as_millis().to_string()]);
        command.args(["--grace-ms", &self.times.grace.as_millis().to_string()]);
        let process = Process::start("coordinator", command).unwrap();
        process.wait_for(&grpc.to_string(), LONG).unwrap();
        self.coordinator = Some(process);
    }

    /// SIGKILL for the coordinator.
    pub(crate) fn kill_coordinator(&mut self) {
        let mut process = self.coordinator.take().unwrap();
        process.kill().unwrap();
        self.bury("coordinator", &process);
    }

    /// Starts a worker, in place of a dead one of its name if there was one.
    pub(crate) fn join(&mut self, name: &str) {
        let mut command = Command::new(binary("pleach-worker").unwrap());
        command.args(["--coordinator", &self.address(), "--name", name, "--threads", "1"]);
        command.arg("--feed-log").arg(self.folder("feed"));
        command.arg("--fault-file").arg(self.fault_file(name));
        if let Some(dead) = self.workers.insert(name.to_owned(), Process::start(name, command).unwrap()) {
            self.bury(name, &dead);
        }
    }

    fn fault_file(&self, name: &str) -> PathBuf {
        self.folder(&format!("fault-{name}"))
    }

    /// A worker raises `signal` (`kill`, `stop`, `term`) on itself when it next begins `phase`.
    pub(crate) fn fault(&self, name: &str, phase: &str, signal: &str) {
        // Renamed into place: half a line is no order.
        let path = self.fault_file(name);
        let draft = path.with_extension("draft");
        std::fs::write(&draft, format!("{phase} {signal}")).unwrap();
        std::fs::rename(draft, path).unwrap();
    }

    /// A worker's process.
    pub(crate) fn worker(&mut self, name: &str) -> &mut Process {
        self.workers.get_mut(name).unwrap_or_else(|| panic!("no worker {name}"))
    }

    /// SIGKILL for a worker.
    pub(crate) fn kill(&mut self, name: &str) {
        self.worker(name).kill().unwrap();
    }

    /// SIGTERM for a worker; waits until it has left.
    pub(crate) fn leave(&mut self, name: &str) {
        self.worker(name).terminate().unwrap();
        let worker = self.worker(name);
        let status = worker.wait(LONG).unwrap();
        assert!(status.success(), "{name} left with {status}: {}", worker.text());
    }

    /// Waits until a worker has ended.
    pub(crate) fn until_dead(&mut self, name: &str) {
        self.worker(name).wait(LONG).unwrap();
    }

    fn bury(&mut self, name: &str, process: &Process) {
        self.buried.push((format!("{name} (before)"), process.text()));
    }

    /// A command of `pleach` for this coordinator.
    pub(crate) fn call(&self, args: &[&str]) -> Process {
        let mut command = pleach();
        command.args(args).env("PLEACH_ADDRESS", self.address());
        Process::start(args[0], command).unwrap()
    }

    /// What a command printed that must succeed.
    pub(crate) fn output(&self, args: &[&str]) -> String {
        let mut process = self.call(args);
        let status = process.wait(LONG).unwrap();
        assert!(status.success(), "pleach {args:?}: {}\n{}", process.text(), self.story());
        let out = process.lines().into_iter().filter(|line| !line.is_stderr).map(|line| line.text);
        out.collect::<Vec<_>>().join("\n")
    }

    /// Stores a job and returns at once.
    pub(crate) fn submit(&self, job: &Path) {
        self.output(&["submit", "--no-wait", "-o", "json", job.to_str().unwrap()]);
    }

    /// The job as the coordinator tells it.
    pub(crate) fn job(&self, id: &str) -> Value {
        serde_json::from_str(&self.output(&["get", id, "-o", "json"])).unwrap()
    }

    /// Waits until the coordinator tells of a job what `wanted` wants.
    pub(crate) fn until(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        self.wait(&format!("job {id}: {what}"), || {
            last = self.job(id);
            let ended = ["succeeded", "failed", "cancelled"].iter().any(|state| last["state"] == **state);
            let found = wanted(&last);
            assert!(found || !ended, "job {id} ended before: {what}\n{last:#}\n{}", self.story());
            found
        });
        last
    }

    /// Waits until so many workers hold a lease and do nothing.
    pub(crate) fn until_idle(&self, count: usize) {
        self.wait(&format!("{count} idle workers"), || {
            let line = format!("pleach_workers{{state=\"idle\"}} {count}");
            self.metrics().lines().any(|had| had == line)
        });
    }

    /// What the coordinator's HTTP side tells.
    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.1)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until a job runs with exactly these workers, by rank or not.
    pub(crate) fn until_members(&self, id: &str, names: &[&str]) -> Value {
        self.until(id, &format!("runs with {names:?}"), |job| {
            let mut now: Vec<&str> = members(job);
            now.sort_unstable();
            let mut wanted = names.to_vec();
            wanted.sort_unstable();
            job["state"] == "running" && now == wanted
        })
    }

    /// The workers of a running job, by rank.
    pub(crate) fn by_rank(&self, id: &str) -> Vec<String> {
        let job = self.until(id, "runs", |job| job["state"] == "running" && !members(job).is_empty());
        members(&job).into_iter().map(str::to_owned).collect()
    }

    /// Waits for the good end of a job.
    pub(crate) fn until_done(&self, id: &str) -> Value {
        self.until(id, "succeeded", |job| job["state"] == "succeeded")
    }

    /// Ends a job that has no end of its own, and returns it with the step that it was stored at.
    pub(crate) fn finish(&self, id: &str) -> (Value, u64) {
        self.output(&["cancel", id, "--reason", "the test has seen enough"]);
        let job = self.until(id, "cancelled", |job| job["state"] == "cancelled");
        let step = job["tasks"][0]["durable_step"].as_u64().unwrap();
        assert!(step > 0, "cancelled without a checkpoint: {job:#}\n{}", self.story());
        (job, step)
    }

    /// What the workers were fed so far.
    pub(crate) fn feeds(&self) -> Feeds {
        Feeds::read(&self.folder("feed"))
    }

    /// Waits until the gang is fed a step beyond `step` by `world` ranks.
    pub(crate) fn until_fed(&self, world: u64, step: u64) -> u64 {
        let mut at = 0;
        self.wait(&format!("{world} ranks are fed a step beyond {step}"), || {
            at = self.feeds().newest(world);
            at > step
        });
        at
    }

    /// Looks again and again until `done`.
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        // Looks are counted, not time: a machine that was asleep has its chance all the same.
        for _ in 0..LONG.as_millis() / LOOK_EVERY.as_millis() {
            if done() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("in vain: {what}\n{}", self.story());
    }

    /// The last lines of everybody, for a failed test.
    pub(crate) fn story(&self) -> String {
        let alive = self.coordinator.iter().map(|process| ("coordinator".to_owned(), process.text()));
        let alive = alive.chain(self.workers.iter().map(|(name, process)| (name.clone(), process.text())));
        let all = self.buried.iter().cloned().chain(alive);
        let tail = |text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n  ")
        };
        all.map(|(name, text)| format!("== {name}\n  {}\n", tail(&text))).collect()
    }
}

/// The workers of a job by rank.
pub(crate) fn members(job: &Value) -> Vec<&str> {
    job["members"].as_array().into_iter().flatten().filter_map(|member| member["worker"].as_str()).collect()
}
