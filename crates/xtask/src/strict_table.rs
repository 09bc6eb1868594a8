//! `cargo xtask strict-table`: one job in strict mode, with every number of workers and through several histories of failures; the
//! hash of each adapter, and an error unless they are equal.

use anyhow::Result;

use crate::paths::Paths;
use crate::{cmd, test};

/// The test that makes the table.
const TEST: &str = "strict::one_adapter_for_every_world_and_history";

/// The command.
pub(crate) fn run(paths: &Paths) -> Result<()> {
    test::build_programs(paths)?;
    cmd::run(cmd::cargo(paths).args(["test", "--quiet", "-p", "pleach-e2e", "--", "--exact", "--nocapture", TEST]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo test` is content when no test has the name.
    #[test]
    fn the_test_is_there() {
        let (module, name) = TEST.split_once("::").unwrap();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/tests/it");
        let text = std::fs::read_to_string(root.join(format!("{module}.rs"))).unwrap();
        assert!(text.contains(&format!("fn {name}()")), "{TEST}");
    }
}
