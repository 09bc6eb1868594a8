//! The ranks of a new gang compare what they stand on: the base model, the rows, the adapters before the first step.

use pleach_base::{Result, code};
use sha2::{Digest as _, Sha256};
use tch::Tensor;

use super::task::{Ground, JobTask};

/// Length of one digest in the exchange.
const DIGEST: usize = 32;

/// Refuses to go on unless all ranks have the same model, sources and untrained adapters. One exchange.
///
/// # Errors
/// On every rank, with the ranks that differ from rank 0: `ADAPTER_BASE`, `DATA_SOURCE` or `DIGEST_MISMATCH`.
pub(super) fn agree_on_ground(ground: &Ground<'_>, tasks: &[JobTask]) -> Result<()> {
    let group = ground.cx.group;
    if group.world() == 1 {
        return Ok(());
    }
    let sources: Vec<_> = tasks.iter().flat_map(|task| &task.sources).collect();
    let mut mine: Vec<u8> = Sha256::digest(&ground.model.fingerprint).to_vec();
    sources.iter().for_each(|source| mine.extend(Sha256::digest(&source.digest)));
    tasks.iter().for_each(|task| mine.extend(task.untrained.digest));
    let all = group.all_gather(&Tensor::from_slice(&mine).to_device(group.device()))?;
    let differ = |part: usize| -> Vec<usize> {
        let piece = |rank: usize| all[rank].narrow(0, (part * DIGEST) as i64, DIGEST as i64);
        (1..all.len()).filter(|rank| !piece(*rank).equal(&piece(0))).collect()
    };
    for part in 0..mine.len() / DIGEST {
        let ranks = differ(part);
        if ranks.is_empty() {
            continue;
        }
        return Err(match part.checked_sub(1) {
            None => code::ADAPTER_BASE
                .error(format!("spec.backbone.path: ranks {ranks:?} hold another base model than rank 0"))
                .hint("every worker must read the same model folder"),
            Some(at) if at < sources.len() => code::DATA_SOURCE
                .error(format!("{}: ranks {ranks:?} see other rows than rank 0", sources[at].source))
                .hint("every worker must read the same files: use shared storage, or equal copies under the same path"),
            Some(at) => code::DIGEST_MISMATCH
                .error(format!(
                    "task {}: ranks {ranks:?} begin with other parameters than rank 0",
                    tasks[at - sources.len()].name
                ))
                .hint("every rank must run the same build on the same kind of machine"),
        });
    }
    Ok(())
}
