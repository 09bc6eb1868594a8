//! Routers, which have no page: a stack of feed-forward parts whose experts tokens choose (MixLoRA), and a whole small
//! model with scaled experts (X-LoRA).

mod mixlora;
mod xlora;

use pleach_base::Result;

use super::recording::{Recording, wrong};
use super::{Compared, Page, ROUTERS, Train};

pub(super) const PAGE: Page = Page { number: ROUTERS, tolerances: &[], repeat };

fn repeat(recording: &Recording, _: &dyn Train, compared: &mut Compared) -> Result<()> {
    match (recording.method.as_str(), recording.kind.as_str()) {
        ("mixlora", "module") => mixlora::repeat(recording, compared)?,
        ("xlora", "module") => xlora::repeat(recording, compared)?,
        ("mixlora" | "xlora", kind) => return Err(wrong(format!("kind: routers have no {kind}"))),
        (method, _) => return Err(wrong(format!("method: there is no router {method}"))),
    }
    compared.check_used(recording);
    Ok(())
}
