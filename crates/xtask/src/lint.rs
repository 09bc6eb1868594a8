//! x
use crate::paths::Paths;
pub(crate) fn run(_p: &Paths) -> anyhow::Result<()> {
    Ok(())
}
pub(crate) fn fix(_p: &Paths) -> anyhow::Result<()> {
    Ok(())
}
