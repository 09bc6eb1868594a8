//! `cargo xtask setup`: after it, plain `cargo build`, `cargo test` and `cargo run` work.
//!
//! What is fetched lands in the user's cache folder once and is linked under `.pleach/`, where `.cargo/config.toml` points.
//! A libtorch of the user's own (`LIBTORCH`, `LIBTORCH_USE_PYTORCH`) is checked and used as it is.

mod disk;
mod libtorch;
mod link;
mod lock;
mod model;
mod pins;
mod pip;
mod protox;
mod wheel;

use anyhow::Result;

pub(crate) use disk::require as require_space;
pub(crate) use libtorch::{Libtorch, View};
pub(crate) use lock::Lock;
pub(crate) use model::minilm;
pub(crate) use pip::Python;

use crate::paths::Paths;
use crate::ui;

/// `setup` on the command line.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {
    /// Also make the CUDA view of libtorch (about 2.7 GB to fetch), linked as .pleach/libtorch-cuda
    #[arg(long)]
    pub(crate) cuda: bool,
}

/// The command: like [`ensure`], and says what it found.
pub(crate) fn run(paths: &Paths, args: &Args) -> Result<()> {
    let libtorch = ensure_view(paths, View::Cpu)?;
    ui::say("libtorch", libtorch.describe());
    if args.cuda {
        let cuda = ensure_view(paths, View::Cuda)?;
        ui::say("cuda", cuda.describe());
    }
    let protox = protox::ensure(paths)?;
    ui::say("protoc", protox.display());
    ui::say("ready", "`cargo build`, `cargo test` and `cargo run` work now");
    Ok(())
}

/// What every other command does first: milliseconds when all is there.
pub(crate) fn ensure(paths: &Paths) -> Result<()> {
    ensure_view(paths, View::Cpu)?;
    protox::ensure(paths)?;
    Ok(())
}

/// Finds or makes one view of libtorch and links it.
pub(crate) fn ensure_view(paths: &Paths, view: View) -> Result<Libtorch> {
    let found = libtorch::find(paths, view)?;
    let libtorch = match found {
        Some(found) => found,
        None => {
            let _lock = Lock::take(&paths.cache, "setup")?;
            // Another setup may have made it while we waited.
            match libtorch::find(paths, view)? {
                Some(found) => found,
                None => libtorch::make(paths, view)?,
            }
        }
    };
    link::point(&paths.local(view.link_name()), &libtorch.folder)?;
    Ok(libtorch)
}
