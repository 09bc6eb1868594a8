//! The command line: what exists, in the words of `--help`. What the commands do is in `commands`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Commands that this program does not list itself are handed over: see `handover`.
const AFTER: &str = "\
Commands of pleach-worker (they need tensors):
  parity   Compare with recorded numbers of other implementations
  merge    Fold an adapter into its base model
  unmerge  Take an adapter out of a merged model again
  compose  Add up sparse differences of several trainings
  export   Write an adapter in a form that others open
  import   Check an adapter of others against a model, and write it for `init_from`
  diff     Compare two adapters or models, tensor by tensor
  generate Let a trained generator write the adapter of a context

Exit codes: 0 done, 1 failed, 2 bad input, 3 coordinator not reachable.";

/// Distributed training of adapters on a frozen transformer.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = AFTER)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Global {
    /// Address of the coordinator; of all of them, separated by commas, when several stand by
    #[arg(long, global = true, env = "PLEACH_ADDRESS", default_value = "http://127.0.0.1:7700", value_name = "URL")]
    pub(crate) address: String,
    /// Owner of the jobs; the job file's `metadata.tenant` when it is absent at submission
    #[arg(long, global = true, env = "PLEACH_TENANT")]
    pub(crate) tenant: Option<String>,
    /// Token of the coordinator
    #[arg(long, global = true, env = "PLEACH_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// PEM file of the authority that signed the coordinator's certificate
    #[arg(long, global = true, env = "PLEACH_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Say more on standard error (twice: everything)
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Options")]
    pub(crate) verbose: u8,
}

/// How data is written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// `-o`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Output {
    /// How data is written to standard output
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// A job file and what is changed in it.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobFile {
    /// The job file, YAML or JSON; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Replace a value of the file: `--set spec.train.epochs=1` (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// The commands, in the order of `--help`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a job on this machine: coordinator, workers and all
    Train(Train),
    /// Send a job to a coordinator and follow it
    Submit(Submit),
    /// List jobs, or show one
    Get(Get),
    /// Show a job with its tasks, workers, evaluations and checkpoints
    Describe(Describe),
    /// Follow a job until it ends
    Watch(JobName),
    /// Show the log lines and events of a job
    Logs(Logs),
    /// Tell the history of a job: who trained, who was lost and why, what was recorded
    Events(Events),
    /// Show where the time of the newest steps went, rank by rank
    Profile(Profile),
    /// Prove from records and data that each row of an epoch was trained exactly once
    Audit(Audit),
    /// Ask a job to stop: it finishes the step and writes a checkpoint
    Cancel(Cancel),
    /// Forget an ended job; its checkpoints stay
    Delete(Delete),
    /// Fetch an adapter from the store and verify it
    Pull(Pull),
    /// Show what a job would train, without training it
    Plan(Plan),
    /// List the methods
    Methods(Methods),
    /// Explain a method (`lora`) or an error (`PL0102`)
    Explain(Explain),
    /// Print the JSON schema of job files
    Schema,
    /// Run a coordinator
    Coordinator(Coordinator),
    /// Run a worker (hands over to pleach-worker)
    #[command(disable_help_flag = true)]
    Worker(Handover),
    /// Print the version
    Version(Output),
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Commands that need tensors: handed over to pleach-worker
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Arguments that another program reads.
#[derive(Debug, Args)]
pub(crate) struct Handover {
    /// Arguments of pleach-worker
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) args: Vec<OsString>,
}

/// `train`.
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) job: JobFile,
    /// Worker processes; the job's `workers.max` when absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) workers: Option<u32>,
    /// Device of the workers: `cpu`, `cuda:N`, or `cuda` for one GPU each
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Where the job's state is kept, so that the same command goes on after an interruption
    #[arg(long, value_name = "FOLDER", default_value = ".pleach/train")]
    pub(crate) state: PathBuf,
    /// Show at the end where the time of the newest steps went, and write those steps as a Chrome trace
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Write every step as a line of JSON into this file: loss, tokens, times
    #[arg(long, value_name = "FILE")]
    pub(crate) steps: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `submit`.
#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    pub(crate) job: JobFile,
    /// Id of the job; the file's `metadata.name` when absent. The same id with the same job is the same job
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Return when the job is stored instead of following it
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The job; all jobs when absent
    pub(crate) job: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `describe`.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// The job
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// A job.
#[derive(Debug, Args)]
pub(crate) struct JobName {
    /// The job
    pub(crate) job: String,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The job
    pub(crate) job: String,
    /// Go on until the job ends
    #[arg(long, short)]
    pub(crate) follow: bool,
}

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The job
    pub(crate) job: String,
    /// Go on until the job ends; JSON is then one line each
    #[arg(long, short)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `profile`.
#[derive(Debug, Args)]
pub(crate) struct Profile {
    /// The job
    pub(crate) job: String,
    /// Also write these steps as a Chrome trace, for chrome://tracing or Perfetto
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// How an audit is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditFormat {
    /// Sentences
    #[default]
    Text,
    /// One JSON document
    Json,
    /// Sentences, and into the file of `--to` one row for each row of each epoch: step, lane, generation
    Parquet,
}

/// `audit`.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// The job; beside `--job-file` its id, where that is not the file's `metadata.name`
    #[arg(required_unless_present = "job_file")]
    pub(crate) job: Option<String>,
    /// Read the job from its file and ask no coordinator: the audit ends with the newest durable step
    #[arg(long, value_name = "FILE")]
    pub(crate) job_file: Option<PathBuf>,
    /// Replace a value of the file (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE", requires = "job_file")]
    pub(crate) sets: Vec<String>,
    /// Only this task
    #[arg(long)]
    pub(crate) task: Option<String>,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: AuditFormat,
    /// The file for `-o parquet`
    #[arg(long, value_name = "FILE", required_if_eq("output", "parquet"))]
    pub(crate) to: Option<PathBuf>,
}

/// `cancel`.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job
    pub(crate) job: String,
    /// Why, for the job's history
    #[arg(long, default_value = "cancelled by a user")]
    pub(crate) reason: String,
    /// Return at once instead of waiting for the job to stop
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The job
    pub(crate) job: String,
}

/// `pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Job and task
    #[arg(value_name = "JOB/TASK")]
    pub(crate) target: String,
    /// Folder for the files
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// The step; the newest publishable one when absent
    #[arg(long)]
    pub(crate) step: Option<u64>,
    /// Also fetch a step that did not pass its gate
    #[arg(long)]
    pub(crate) unpublishable: bool,
    /// Read this store instead of asking a coordinator where the job's is
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `plan`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) job: JobFile,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `methods`.
#[derive(Debug, Args)]
pub(crate) struct Methods {
    /// Only names that match, such as `lo*`
    #[arg(value_name = "GLOB")]
    pub(crate) glob: Option<String>,
    /// Only this kind: adapter, router, strategy, attention, compress
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Show on which families of backbones each works
    #[arg(long)]
    pub(crate) families: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A method or an error code
    #[arg(value_name = "NAME|PLnnnn")]
    pub(crate) name: String,
}

/// `coordinator`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Coordinator {
    /// YAML or JSON file with the same settings as the flags
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address of the gRPC services [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address of /healthz, /readyz, /metrics; `off` for none [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<String>,
    /// File that keeps the jobs, or `etcd://HOST:PORT[,HOST:PORT]/PREFIX`, which several coordinators may share; `memory`
    /// keeps nothing [default: .pleach/coordinator.redb]
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) state: Option<String>,
    /// Milliseconds after which a silent worker is lost [default: 10000]
    #[arg(long, value_name = "MS")]
    pub(crate) lease_ttl_ms: Option<u64>,
    /// Milliseconds that workers train on while no coordinator answers [default: 75000]
    #[arg(long, value_name = "MS")]
    pub(crate) grace_ms: Option<u64>,
    /// Where callers reach this coordinator; others that stand by send them here [default: http:// and the address of --listen]
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
