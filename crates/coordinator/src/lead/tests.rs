//! The election and its fence, on a real etcd.

use pleach_base::SystemClock;
use pleach_testkit::etcd::Etcd as Server;

use super::election::{Leader, campaign, keep, look};
use super::*;

async fn link(server: &Server, prefix: &str) -> Link {
    let endpoints: Vec<_> = server.endpoints().split(',').map(|address| format!("http://{address}")).collect();
    Link::open(&endpoints, prefix).await.unwrap()
}

fn me(id: &str) -> Leader {
    Leader { id: id.into(), term: 0, advertise: format!("http://{id}:1") }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_one_that_was_replaced_writes_nothing() {
    let server = tokio::task::spawn_blocking(|| Server::start(1).unwrap()).await.unwrap();
    let (link, clock) = (link(&server, "test").await, SystemClock::shared());
    let first = campaign(&link, &clock, me("a"), 0).await.unwrap().expect("nobody leads");
    assert!(campaign(&link, &clock, me("b"), 0).await.unwrap().is_none(), "somebody leads");
    let (leader, revision) = look(&link).await.unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.term, revision), ("a", first.term.0, first.revision));
    let put = |value: &str| vec![Op::put(link.key("x"), value.as_bytes().to_vec())];
    first.write(put("1")).await.unwrap();
    assert!(first.is_fresh());

    let second = campaign(&link, &clock, me("b"), revision).await.unwrap().expect("in place of the first");
    assert!(second.term > first.term);
    second.write(put("2")).await.unwrap();
    assert_eq!(first.write(put("1")).await.unwrap_err().code(), code::NOT_LEADER);
    assert!(first.is_lost() && !first.is_fresh());
    let stored = second.get(&link.key("x"), GetOptions::new()).await.unwrap();
    assert_eq!(stored[0].value(), b"2");
    assert!(campaign(&link, &clock, me("c"), revision).await.unwrap().is_none(), "that place was taken");

    // Giving up a leadership that another one has taken takes nothing from it.
    first.resign().await;
    second.write(put("3")).await.unwrap();
    second.resign().await;
    assert!(look(&link).await.unwrap().is_none(), "the key goes with the lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_kept_and_a_leader_without_one_notices() {
    let server = tokio::task::spawn_blocking(|| Server::start(1).unwrap()).await.unwrap();
    let (link, clock) = (link(&server, "test").await, SystemClock::shared());
    let leadership = campaign(&link, &clock, me("a"), 0).await.unwrap().unwrap();
    let kept = tokio::time::timeout(3 * TTL, keep(&leadership, |_| {})).await;
    assert!(kept.is_err(), "it is kept");
    leadership.write(Vec::new()).await.unwrap();
    let mut leases = link.leases();
    leases.revoke(leadership.lease).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), keep(&leadership, |_| {})).await.expect("it notices");
    assert!(leadership.is_lost());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_key_once_and_prefixes_do_not_mix() {
    let server = tokio::task::spawn_blocking(|| Server::start(1).unwrap()).await.unwrap();
    let (link, clock) = (link(&server, "test").await, SystemClock::shared());
    let leadership = campaign(&link, &clock, me("a"), 0).await.unwrap().unwrap();
    let name = |n: usize| link.key(&format!("event/t/j/{n:04}"));
    for chunk in (0..PAGE + 10).collect::<Vec<_>>().chunks(100) {
        leadership.write(chunk.iter().map(|n| Op::put(name(*n), vec![1])).collect()).await.unwrap();
    }
    leadership.write(vec![Op::put(link.key("event0"), vec![1])]).await.unwrap();
    let found = leadership.scan(&link.key("event/"), false).await.unwrap();
    let names: Vec<_> = found.iter().map(|kv| kv.key_str().unwrap().to_owned()).collect();
    assert_eq!(names, (0..PAGE + 10).map(name).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_overwritten_is_forgotten_and_what_is_current_is_not() {
    let server = tokio::task::spawn_blocking(|| Server::start(1).unwrap()).await.unwrap();
    let (link, clock) = (link(&server, "test").await, SystemClock::shared());
    let leadership = campaign(&link, &clock, me("a"), 0).await.unwrap().unwrap();
    let put = |value: &str| vec![Op::put(link.key("x"), value.as_bytes().to_vec())];
    leadership.write(put("1")).await.unwrap();
    leadership.write(put("2")).await.unwrap();
    let first = GetOptions::new().with_revision(leadership.revision + 1);
    assert_eq!(leadership.get(&link.key("x"), first.clone()).await.unwrap()[0].value(), b"1");
    let forgets = history::forget(&leadership, Duration::from_millis(20));
    let gone = async {
        let mut kv = link.kv();
        while kv.get(link.key("x"), Some(first.clone())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = forgets => panic!("it still leads"),
        gone = tokio::time::timeout(Duration::from_secs(20), gone) => gone.expect("the first value is forgotten"),
    }
    assert_eq!(leadership.get(&link.key("x"), GetOptions::new()).await.unwrap()[0].value(), b"2");
}
