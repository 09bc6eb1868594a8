//! Commands that need tensors live in `pleach-worker`; `pleach X` finds it beside itself or on PATH and hands over.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use pleach_base::{Error, Result, code, suggest};

use crate::args::{Cli, Global};

const NAME: &str = "pleach-worker";
/// Subcommands of the worker binary that users call through `pleach`.
pub(crate) const TENSOR_COMMANDS: &[&str] =
    &["parity", "merge", "unmerge", "compose", "export", "import", "diff", "generate", "eval"];

/// Replaces this process by a worker.
///
/// # Errors
/// `WORKER_BINARY`; does not return otherwise.
pub(crate) fn worker(global: &Global, args: &[OsString]) -> Result<()> {
    let mut command = Command::new(binary()?);
    // The connection of `pleach --address X worker` is the worker's; its own flags come later and win.
    command.env("PLEACH_ADDRESS", &global.address);
    if let Some(token) = &global.token {
        command.env("PLEACH_TOKEN", token);
    }
    if let Some(ca) = &global.ca {
        command.env("PLEACH_CA", ca);
    }
    become_it(command.args(args))
}

/// Replaces this process by a tensor subcommand, or says that there is no such command.
///
/// # Errors
/// `BAD_VALUE` for an unknown command, `WORKER_BINARY`; does not return otherwise.
pub(crate) fn other(args: &[OsString]) -> Result<()> {
    let name = args.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if TENSOR_COMMANDS.contains(&name.as_str()) {
        return become_it(Command::new(binary()?).args(args));
    }
    let command = Cli::command();
    let known: Vec<_> =
        command.get_subcommands().map(clap::Command::get_name).chain(TENSOR_COMMANDS.iter().copied()).collect();
    Err(code::BAD_VALUE.error(format!("no command `{name}`")).hint(
        suggest::nearest(&name, known)
            .map_or("`pleach --help` lists them".into(), |near| format!("did you mean `{near}`?")),
    ))
}

fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(missing().caused_by(error))
}

/// The path of `pleach-worker`: `PLEACH_WORKER_BINARY`, beside this program, or on PATH.
///
/// # Errors
/// `WORKER_BINARY` naming where it was looked for.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PLEACH_WORKER_BINARY") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(missing().at(path.display())) };
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|folder| folder.join(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(on_path(&path)).find(|path| path.is_file()).ok_or_else(missing)
}

fn on_path(path: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(NAME)).collect()
}

fn missing() -> Error {
    code::WORKER_BINARY
        .error(format!("`{NAME}` is neither beside `pleach` nor on PATH"))
        .hint("build it with `cargo build -p pleach-worker`, or set PLEACH_WORKER_BINARY")
}
