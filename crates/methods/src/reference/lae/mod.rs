//! Page 61, LAE: the modules in one block, and a whole sequence of tasks on a small vision transformer.

mod pets;
mod run;

use pleach_base::Result;

use super::recording::{Recording, wrong};
use super::{Compared, Page, Train};

pub(super) const PAGE: Page = Page { number: 61, tolerances: &[], repeat };

fn repeat(recording: &Recording, train: &dyn Train, compared: &mut Compared) -> Result<()> {
    match recording.kind.as_str() {
        "module" => pets::repeat(recording, compared)?,
        "training" => run::repeat(recording, train, compared)?,
        other => return Err(wrong(format!("kind: page 61 has no {other}"))),
    }
    compared.check_used(recording);
    Ok(())
}
