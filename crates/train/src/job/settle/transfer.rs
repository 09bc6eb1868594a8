//! A state from one rank to those who lack it: a small header, then the tensors in large pieces, then their sha256, which
//! every receiver compares with that of what arrived.

use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use pleach_base::{Result, ResultExt as _, code};
use pleach_comm::Collective;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

use crate::engine::{StateHeader, Task, TaskState};
use crate::flat::bytes_of;
use crate::job::broadcast;
use crate::observer::Observer;
use crate::record::CommitRow;

/// Bytes of a piece: large enough to be fast, small enough that leases see progress on a slow network.
const PIECE: usize = 16 << 20;
/// Pieces that may wait to be hashed.
const WAITING: usize = 4;

/// What goes with a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Luggage {
    pub(super) header: StateHeader,
    /// Names and bits: text would not give every number back.
    metrics: Vec<(String, u64)>,
    /// The steps since the durable one.
    pub(super) ledger: Vec<CommitRow>,
    pub(super) durable: u64,
}

impl Luggage {
    pub(super) fn of(state: &TaskState, metrics: &Map<String, Value>, ledger: Vec<CommitRow>, durable: u64) -> Self {
        let numbers = metrics.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?.to_bits())));
        Self { header: state.header(), metrics: numbers.collect(), ledger, durable }
    }

    pub(super) fn metrics(&self) -> Map<String, Value> {
        self.metrics.iter().map(|(name, bits)| (name.clone(), json!(f64::from_bits(*bits)))).collect()
    }
}

/// Gives the luggage of rank `owner` to all. A collective call.
pub(super) fn share_luggage(group: &dyn Collective, owner: usize, mine: Option<&Luggage>) -> Result<Luggage> {
    let message = match mine {
        Some(luggage) => serde_json::to_vec(luggage).or_code(code::INTERNAL, || "cannot pack a state".to_owned())?,
        None => Vec::new(),
    };
    let message = Bytes::from(broadcast::bytes(group, owner, message)?);
    serde_json::from_slice(&message).or_code(code::INTERNAL, || "cannot unpack a state".to_owned())
}

/// Gives the state of rank `owner` to all, bit for bit; `mine` is there on that rank. A collective call.
///
/// # Errors
/// `DIGEST_MISMATCH` when something else arrived than was sent; those of [`Collective`].
pub(super) fn share_state(
    (group, observer): (&dyn Collective, &dyn Observer),
    owner: usize,
    mine: Option<&TaskState>,
    (task, header): (&Task, &StateHeader),
) -> Result<TaskState> {
    let mut state = match mine {
        Some(state) => state.alias(),
        None => task.blank(header),
    };
    let packed = pack(&state.own, group);
    let mut parts = vec![state.params.shallow_clone()];
    parts.extend(state.moments.iter().map(Tensor::shallow_clone));
    parts.push(packed.shallow_clone());
    let arrived = send(group, observer, owner, &parts)?;
    let mut sent = Tensor::from_slice(&arrived).to_device(group.device());
    group.broadcast(&mut sent, owner)?;
    if bytes_of(&sent) != arrived {
        let (rank, step) = (group.rank(), state.step);
        return Err(code::DIGEST_MISMATCH
            .error(format!("the state of step {step} reached rank {rank} otherwise than rank {owner} sent it"))
            .hint("look for a faulty machine or network"));
    }
    unpack(&mut state.own, &packed);
    Ok(state)
}

/// Broadcasts `parts` in pieces and gives the sha256 of all of them, worked out beside.
fn send(group: &dyn Collective, observer: &dyn Observer, owner: usize, parts: &[Tensor]) -> Result<[u8; 32]> {
    let (pieces, hashing) = sync_channel(WAITING);
    std::thread::scope(|scope| {
        let hasher = scope.spawn(move || hash(&hashing));
        let sent = parts.iter().flat_map(|part| cut(part, PIECE)).try_for_each(|mut piece| {
            group.broadcast(&mut piece, owner)?;
            observer.progress();
            // The hasher ends only when this end is dropped, or by a panic that the join shows.
            let _ = pieces.send(piece);
            Ok(())
        });
        drop(pieces);
        let digest = hasher.join().map_err(|_| code::INTERNAL.error("a state could not be hashed"));
        sent.and(digest)
    })
}

fn hash(pieces: &Receiver<Tensor>) -> [u8; 32] {
    let mut hash = Sha256::new();
    pieces.iter().for_each(|piece| hash.update(bytes_of(&piece)));
    hash.finalize().into()
}

/// Views of a flat tensor of at most `bytes` each.
fn cut(tensor: &Tensor, bytes: usize) -> Vec<Tensor> {
    let (length, most) = (tensor.numel() as i64, (bytes / tensor.kind().elt_size_in_bytes().max(1)).max(1));
    let starts = (0..length).step_by(most);
    starts.map(|at| tensor.narrow(0, at, (length - at).min(most as i64))).collect()
}

/// Tensors of any kinds and shapes as one of bytes: a call for each would take longer than the bytes.
fn pack(tensors: &[Tensor], group: &dyn Collective) -> Tensor {
    let bytes: Vec<u8> = tensors.iter().flat_map(bytes_of).collect();
    Tensor::from_slice(&bytes).to_kind(Kind::Uint8).to_device(group.device())
}

fn unpack(tensors: &mut [Tensor], packed: &Tensor) {
    let bytes = bytes_of(packed);
    let mut at = 0;
    for tensor in tensors {
        let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
        let value = Tensor::from_data_size(&bytes[at..at + length], &tensor.size(), tensor.kind());
        *tensor = value.to_device(tensor.device());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn pieces_cover_a_tensor_and_packed_ones_come_back() {
        let tensor = Tensor::arange(10, (Kind::Float, Device::Cpu));
        let pieces = cut(&tensor, 12);
        assert_eq!(pieces.iter().map(Tensor::numel).collect::<Vec<_>>(), [3, 3, 3, 1]);
        assert!(Tensor::cat(&pieces, 0).equal(&tensor));
        assert!(cut(&Tensor::zeros([0], (Kind::Float, Device::Cpu)), 12).is_empty());
        let group = pleach_comm::local(Device::Cpu);
        let own = [Tensor::from_slice(&[1i64, -2]), Tensor::from_slice(&[0.5f32, 1e-30, 3.0]).reshape([3, 1])];
        let packed = pack(&own, group.as_ref());
        let mut back = own.each_ref().map(Tensor::zeros_like);
        unpack(&mut back, &packed);
        assert!(back.iter().zip(&own).all(|(back, own)| back.equal(own) && back.size() == own.size()));
    }

    /// Prints how long 200 MB take between two ranks over loopback; for `cargo test -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn seconds_of_two_hundred_megabytes() {
        use pleach_comm::{GroupOptions, RendezvousServer, StoreAddr};
        let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
        let rank = |rank: usize, port: u16| {
            tch::set_num_threads(1);
            let group =
                pleach_comm::gloo(&GroupOptions::new(rank, 2, "measure", StoreAddr::new("127.0.0.1", port))).unwrap();
            let clock = pleach_base::SystemClock::shared();
            let digests: Vec<_> = (0..5)
                .map(|_| {
                    let part = || Tensor::ones([16_666_667], (Kind::Float, Device::Cpu)) * (1 - rank as i64);
                    let parts = [part(), part(), part()];
                    group.barrier().unwrap();
                    let begun = clock.elapsed();
                    let digest = send(group.as_ref(), &crate::observer::Silent, 0, &parts).unwrap();
                    println!("rank {rank}: {:.3} s", (clock.elapsed() - begun).as_secs_f64());
                    digest
                })
                .collect();
            digests
        };
        let port = server.port();
        let other = std::thread::spawn(move || rank(1, port));
        assert_eq!(rank(0, port), other.join().unwrap());
    }

    #[test]
    fn metrics_keep_their_bits() {
        let metrics = Map::from_iter([("train/loss".to_owned(), json!(0.1f64 + 0.2)), ("x".to_owned(), json!(5e-324))]);
        let header = serde_json::from_value(json!({
            "step": 1, "skipped": 0, "updates": 1, "judged": [], "digest": vec![0; 32], "moments": false
        }));
        let bits = metrics.iter().map(|(name, value)| (name.clone(), value.as_f64().unwrap().to_bits())).collect();
        let luggage = Luggage { header: header.unwrap(), metrics: bits, ledger: Vec::new(), durable: 0 };
        let text = serde_json::to_vec(&luggage).unwrap();
        let back: Luggage = serde_json::from_slice(&text).unwrap();
        assert_eq!(back.metrics(), metrics);
    }
}
