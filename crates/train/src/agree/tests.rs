//! Two ranks over loopback.

use pleach_base::Code;
use pleach_comm::{GroupOptions, RendezvousServer, StoreAddr};

use super::*;

/// Two ranks say something; what each hears.
fn both(said: [Said; 2]) -> Vec<std::result::Result<Agreed, Code>> {
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let port = server.port();
    let rank = |rank: usize, said: Said| {
        let store = StoreAddr::new("127.0.0.1", port);
        let group = pleach_comm::gloo(&GroupOptions::new(rank, 2, "agree", store)).unwrap();
        let heard = commit(group.as_ref(), "words", 3, &said).map_err(|error| error.code());
        group.barrier().unwrap();
        heard
    };
    let [first, second] = said;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| rank(1, second));
        vec![rank(0, first), other.join().unwrap()]
    })
}

fn said(digest: u8, fed: &[u32]) -> Said {
    let fed = fed.iter().map(|lane| (*lane, [*lane as u8; 32])).collect();
    Said { step: 5, digest: [digest; 32], word: Word::default(), fed }
}

#[test]
fn ranks_that_agree_know_what_every_lane_was_fed() {
    let heard = both([said(7, &[0, 1]), said(7, &[2])]);
    for agreed in heard {
        assert_eq!(agreed.unwrap().lane_digests, [[0; 32], [1; 32], [2; 32]]);
    }
}

#[test]
fn ranks_with_other_results_all_hear_of_it() {
    let another_step = Said { step: 6, ..said(7, &[2]) };
    for other in [said(8, &[2]), another_step] {
        assert_eq!(both([said(7, &[0, 1]), other]), [Err(code::DIGEST_MISMATCH), Err(code::DIGEST_MISMATCH)]);
    }
}

#[test]
fn a_lane_of_nobody_or_of_two_ends_the_step_everywhere() {
    for (first, second) in [(&[0, 1][..], &[1, 2][..]), (&[0], &[2]), (&[0, 1, 1], &[2])] {
        let heard = both([said(7, first), said(7, second)]);
        assert_eq!(heard, [Err(code::LANE_MISMATCH), Err(code::LANE_MISMATCH)], "{first:?} {second:?}");
    }
}
