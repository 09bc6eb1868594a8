//! x
use crate::paths::Paths;
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {}
pub(crate) fn run(_p: &Paths, _a: &Args) -> anyhow::Result<()> {
    Ok(())
}
