//! One file a command; each takes its arguments and says how it ended.

mod audit;
mod cancel;
mod coordinator;
mod describe;
mod events;
mod explain;
mod get;
mod lengths;
mod logs;
mod methods;
mod plan;
mod profile;
mod pull;
mod schema;
mod submit;
mod trace;
mod train;
mod version;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory;
use pleach_base::Result;

use crate::args::{Cli, Command, Global};
use crate::client::Client;
use crate::handover;

/// Runs a command.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let global = cli.global;
    match cli.command {
        Command::Train(args) => return train::run(&global, args).await,
        Command::Submit(args) => return submit::run(&global, args).await,
        Command::Watch(args) => return watch::run(&global, &args).await,
        Command::Audit(args) => return audit::run(&global, args).await,
        Command::Get(args) => get::run(&global, &args).await?,
        Command::Describe(args) => describe::run(&global, &args).await?,
        Command::Events(args) => events::run(&global, &args).await?,
        Command::Logs(args) => logs::run(&global, &args).await?,
        Command::Profile(args) => profile::run(&global, &args).await?,
        Command::Cancel(args) => cancel::run(&global, &args).await?,
        Command::Delete(args) => connect(&global).await?.delete(&args.job).await?,
        Command::Pull(args) => pull::run(&global, &args).await?,
        Command::Plan(args) => plan::run(&global, &args)?,
        Command::Methods(args) => methods::run(&args)?,
        Command::Explain(args) => explain::run(&args)?,
        Command::Schema => schema::run()?,
        Command::Coordinator(args) => coordinator::run(&global, args).await?,
        Command::Worker(args) => handover::worker(&global, &args.args)?,
        Command::Version(output) => version::run(output.output)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pleach", &mut std::io::stdout());
        }
        Command::Other(args) => handover::other(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A connection for commands that name a job: without `--tenant` on behalf of `default`.
async fn connect(global: &Global) -> Result<Client> {
    Client::connect(global, global.tenant.as_deref().unwrap_or("default")).await
}
