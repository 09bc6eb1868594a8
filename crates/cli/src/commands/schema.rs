//! `pleach schema`.

use pleach_base::Result;

use crate::args::Format;
use crate::out;

pub(super) fn run() -> Result<()> {
    out::emit(Format::Json, &pleach_spec::schema(&pleach_methods::schemas()), String::new)
}
