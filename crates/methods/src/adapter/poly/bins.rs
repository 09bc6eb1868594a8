//! Which linear maps share one set of logits.

use pleach_nn::{Part, Site};

use super::Granularity;

/// The bin of a site: sites with equal bins share their logits.
pub(crate) fn bin(granularity: Granularity, site: &Site) -> String {
    let path = site.path.as_str();
    let block = || site.block.map_or_else(|| path.to_owned(), |block| format!("block {block}"));
    match granularity {
        Granularity::Finegrained => path.to_owned(),
        Granularity::Layerwise => format!("{} {}", block(), sublayer(site)),
        Granularity::Blockwise => block(),
        Granularity::Coderwise => coder(path).to_owned(),
        Granularity::Coarsegrained => String::new(),
    }
}

/// The part of the block that a map belongs to: a decoder may have two attentions.
fn sublayer(site: &Site) -> String {
    match site.part {
        Part::Up | Part::Gate | Part::Down => "feed-forward".to_owned(),
        _ => {
            let mut until = Vec::new();
            for name in site.path.split('.') {
                until.push(name);
                if name.to_lowercase().contains("att") {
                    return until.join(".");
                }
            }
            until.pop();
            until.join(".")
        }
    }
}

/// The stack that a path lies in.
fn coder(path: &str) -> &str {
    path.split('.').find(|name| matches!(*name, "encoder" | "decoder")).unwrap_or_default()
}
