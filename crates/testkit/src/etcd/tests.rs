//! A real cluster.

use super::*;

#[test]
fn a_cluster_outlives_its_leader_and_takes_it_back() {
    let limit = Duration::from_secs(60);
    let mut etcd = Etcd::start(3).unwrap();
    assert_eq!(etcd.endpoints().split(',').count(), 3);
    let first = etcd.leader().unwrap();
    etcd.kill(first).unwrap();
    assert!(etcd.kill(first).is_err(), "it is dead");
    etcd.wait_healthy(limit).unwrap();
    let second = etcd.leader().unwrap();
    assert_ne!(first, second);
    etcd.restart(first).unwrap();
    etcd.wait_healthy(limit).unwrap();

    let other = (0..3).find(|index| *index != etcd.leader().unwrap()).unwrap();
    etcd.pause(other).unwrap();
    assert!(!healthy(etcd.members[other].client), "a stopped member answers nothing");
    etcd.resume(other).unwrap();
    etcd.wait_healthy(limit).unwrap();
}
