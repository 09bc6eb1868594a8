//! A TCP proxy whose mood can be changed: for faults between two programs where nobody may touch the network itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How a proxy treats what passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It hands on.
    #[default]
    Open,
    /// It breaks every connection, and takes none.
    Broken,
    /// It holds everything back, as a network that is cut.
    Silent,
    /// It hands on what comes after this time.
    Late(Duration),
}

/// A running proxy; its connections break when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mood: Arc<watch::Sender<Mood>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts one on a free loopback port that leads to `target`.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let mood = Arc::new(watch::Sender::new(Mood::Open));
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&mood)));
        Ok(Self { address, mood, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it behaves like this, for open connections too.
    pub fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, mood: Arc<watch::Sender<Mood>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((from, _)) = accepted {
                connections.spawn(connection(from, target, mood.subscribe()));
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(from: TcpStream, target: SocketAddr, mut mood: watch::Receiver<Mood>) {
    if passes(&mut mood).await.is_none() {
        return;
    }
    let Ok(to) = TcpStream::connect(target).await else { return };
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    let mut broken = mood.clone();
    tokio::select! {
        _ = hand_on(from_read, to_write, mood.clone()) => {}
        _ = hand_on(to_read, from_write, mood) => {}
        _ = broken.wait_for(|mood| *mood == Mood::Broken) => {}
    }
}

/// Waits as long as the proxy is silent; nothing when it breaks connections.
async fn passes(mood: &mut watch::Receiver<Mood>) -> Option<Duration> {
    match *mood.wait_for(|mood| *mood != Mood::Silent).await.ok()? {
        Mood::Broken => None,
        Mood::Late(by) => Some(by),
        Mood::Open | Mood::Silent => Some(Duration::ZERO),
    }
}

async fn hand_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mood: watch::Receiver<Mood>) -> Option<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        let late = passes(&mut mood).await?;
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        to.write_all(&bytes[..read]).await.ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn answers(stream: &mut TcpStream, limit: Duration) -> bool {
        let mut byte = [0];
        let asked = async {
            stream.write_all(b"x").await?;
            stream.read_exact(&mut byte).await
        };
        matches!(tokio::time::timeout(limit, asked).await, Ok(Ok(1)))
    }

    #[tokio::test]
    async fn moods_hold_for_open_connections_and_end() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let (long, short) = (Duration::from_secs(20), Duration::from_millis(200));
        assert!(answers(&mut stream, long).await);
        proxy.set(Mood::Silent);
        assert!(!answers(&mut stream, short).await);
        proxy.set(Mood::Late(Duration::from_millis(5)));
        let mut byte = [0];
        tokio::time::timeout(long, stream.read_exact(&mut byte)).await.unwrap().unwrap();
        proxy.set(Mood::Broken);
        assert!(!answers(&mut stream, long).await, "an open connection breaks");
        let mut fresh = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(!answers(&mut fresh, long).await, "a new one too");
        proxy.set(Mood::Open);
        let mut fresh = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(answers(&mut fresh, long).await);
    }
}
