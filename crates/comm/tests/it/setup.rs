//! Groups that cannot be formed say why, in time.

use std::time::{Duration, Instant};

use pleach_base::code;
use pleach_comm::{Bind, GroupOptions, ReduceOp, RendezvousServer, StoreAddr, gloo};
use tch::{Kind, Tensor};

fn options(rank: usize, world: usize, port: u16) -> GroupOptions {
    let mut options = GroupOptions::new(rank, world, "job/g0001", StoreAddr::new("127.0.0.1", port));
    options.setup_timeout = Duration::from_millis(1500);
    options.arrival_timeout = Duration::from_millis(1500);
    options
}

fn refused(options: &GroupOptions) -> pleach_base::Error {
    let Err(error) = gloo(options) else { panic!("was formed") };
    assert_eq!(error.code(), code::COMM_SETUP, "{error:?}");
    assert!(error.hint_text().is_some(), "{error:?}");
    error
}

#[test]
#[allow(clippy::disallowed_methods)]
fn a_missing_store_or_rank_is_given_up_in_time() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begun = Instant::now();
    let error = refused(&options(0, 2, closed));
    assert!(error.message().contains(&format!("127.0.0.1:{closed}")), "{error:?}");
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let error = refused(&options(0, 2, server.port()));
    assert!(error.message().contains("job/g0001") && error.message().contains("rank 1 did not come"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "took {:?}", begun.elapsed());
}

#[test]
fn a_prefix_is_used_once() {
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let first = options(0, 1, server.port());
    drop(gloo(&first).unwrap());
    assert!(refused(&first).message().contains("before"));
    let mut next = first;
    next.prefix = "job/g0002".to_owned();
    gloo(&next).unwrap();
}

#[test]
fn an_address_that_is_not_ours_is_refused() {
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let mut wrong = options(0, 1, server.port());
    wrong.bind = Some(Bind::Address([192, 0, 2, 1].into()));
    assert!(refused(&wrong).message().contains("192.0.2.1"));
    wrong.prefix = "job/g0002".to_owned();
    wrong.bind = Some(Bind::Interface("nosuch0".to_owned()));
    assert!(refused(&wrong).message().contains("nosuch0"));
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let Err(error) = RendezvousServer::start("127.0.0.1", server.port()) else { panic!("was started twice") };
    assert_eq!(error.code(), code::COMM_SETUP);
}

#[test]
fn a_group_binds_where_it_is_told_and_two_ranks_may_share_a_process() {
    tch::set_num_threads(1);
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let binds = [Bind::Interface("lo".to_owned()), Bind::Address([127, 0, 0, 1].into())];
    let ranks: Vec<_> = binds
        .into_iter()
        .enumerate()
        .map(|(rank, bind)| {
            let mut options = options(rank, 2, server.port());
            options.setup_timeout = Duration::from_secs(20);
            options.arrival_timeout = Duration::from_secs(20);
            options.bind = Some(bind);
            std::thread::spawn(move || {
                let group = gloo(&options).unwrap();
                let mut tensor = Tensor::from(rank as f32 + 1.0).to_kind(Kind::Float);
                group.all_reduce(&mut tensor, ReduceOp::Sum).unwrap();
                tensor.double_value(&[])
            })
        })
        .collect();
    for rank in ranks {
        assert_eq!(rank.join().unwrap(), 3.0);
    }
}
