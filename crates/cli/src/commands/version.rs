//! `pleach version`.

use pleach_base::Result;
use serde_json::json;

use crate::args::Format;
use crate::out;

pub(super) fn run(format: Format) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let value = json!({"version": version, "api_version": pleach_spec::job::API_VERSION});
    out::emit(format, &value, || format!("pleach {version}"))
}
