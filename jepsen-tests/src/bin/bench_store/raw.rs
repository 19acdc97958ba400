//! Our log and state behind bare frames: the protocol of the program `raw_frames`, and a cluster of it.
//!
//! A frame is `length u32 | id u64 | kind u8 | body`, little-endian, its length without itself. Requests: 0
//! asks whether this peer leads, 1 puts (`key length u16 | key | value`), 2 gets (the key). The answer to a
//! request has its id, and 0 for success (with the value of a get), 1 for a refusal (with its reason).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use jepsen_tests::cluster::PATIENCE;
use jepsen_tests::etcd::orphanless;
use jepsen_tests::ports::PortBlock;
use jepsen_tests::wait;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

const PEERS: usize = 3;

/// Frames that wait to be sent on one connection: each client has one under way.
const QUEUE: usize = 1_024;

const LEADS: u8 = 0;
const PUT: u8 = 1;
const GET: u8 = 2;

/// Three processes of it. Killed when dropped.
pub(crate) struct RawCluster {
    peers: Vec<Child>,
    ports: PortBlock,
    _directory: TempDir,
}

impl RawCluster {
    pub(crate) async fn start(binary: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("raftserve-raw-")
            .tempdir()?;
        let ports = PortBlock::take()?;
        let addresses: Vec<String> = (0..PEERS)
            .map(|index| ports.peer(index).peer.to_string())
            .collect();
        let mut cluster = Self {
            peers: Vec::new(),
            ports,
            _directory: directory,
        };
        for index in 0..PEERS {
            let child = orphanless(binary)
                .arg(cluster._directory.path().join(format!("peer-{index}")))
                .arg(cluster.ports.peer(index).admin.to_string())
                .arg(index.to_string())
                .args(&addresses)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {}", binary.display()))?;
            cluster.peers.push(child);
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    pub(crate) fn pids(&self) -> anyhow::Result<Vec<i32>> {
        let pid = |child: &Child| i32::try_from(child.id()).context("a process number");
        self.peers.iter().map(pid).collect()
    }

    /// The address of the peer that leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<SocketAddr> {
        wait::until("a leader behind raw frames", PATIENCE, async || {
            for index in 0..PEERS {
                let address = self.ports.peer(index).admin;
                let connection = RawConnection::open(address).await?;
                if connection.call(LEADS, |_| ()).await.is_ok() {
                    return Ok(address);
                }
            }
            bail!("no peer leads")
        })
        .await
    }
}

impl Drop for RawCluster {
    fn drop(&mut self) {
        for peer in &mut self.peers {
            // One that is gone already is as well.
            let _ = peer.kill();
            let _ = peer.wait();
        }
    }
}

type Answer = oneshot::Sender<Result<Bytes, String>>;

#[derive(Default)]
struct Pending {
    next: u64,
    waiting: HashMap<u64, Answer>,
}

/// A connection on which many requests are under way at once.
#[derive(Clone)]
pub(crate) struct RawConnection {
    frames: mpsc::Sender<Bytes>,
    pending: Arc<Mutex<Pending>>,
}

impl RawConnection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (from, to) = stream.into_split();
        let (frames, queue) = mpsc::channel(QUEUE);
        let pending = Arc::new(Mutex::new(Pending::default()));
        tokio::spawn(send(to, queue));
        tokio::spawn(receive(from, Arc::clone(&pending)));
        Ok(Self { frames, pending })
    }

    pub(crate) async fn put(&self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let length = u16::try_from(key.len()).context("a key is short")?;
        let body = |frame: &mut BytesMut| {
            frame.put_u16_le(length);
            frame.put_slice(key);
            frame.put_slice(value);
        };
        self.call(PUT, body).await.map(drop)
    }

    pub(crate) async fn get(&self, key: &[u8]) -> anyhow::Result<Bytes> {
        self.call(GET, |frame| frame.put_slice(key)).await
    }

    async fn call(&self, kind: u8, body: impl FnOnce(&mut BytesMut)) -> anyhow::Result<Bytes> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut pending = self.pending.lock().expect("nobody panics while holding it");
            pending.next += 1;
            let id = pending.next;
            pending.waiting.insert(id, answer);
            id
        };
        let mut frame = BytesMut::with_capacity(320);
        frame.put_u32_le(0);
        frame.put_u64_le(id);
        frame.put_u8(kind);
        body(&mut frame);
        let length = u32::try_from(frame.len() - 4).context("a frame is short")?;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        let sent = self.frames.send(frame.freeze()).await;
        sent.context("the connection broke")?;
        let answer = answered.await.context("the connection broke")?;
        answer.map_err(anyhow::Error::msg)
    }
}

/// Writes what is queued, all at once.
async fn send(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Bytes>) -> anyhow::Result<()> {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, QUEUE).await > 0 {
        to.write_all(&batch.concat()).await?;
        batch.clear();
    }
    Ok(())
}

/// Hands answers to those who wait for them, until the connection ends; then nobody waits any more.
async fn receive(mut from: OwnedReadHalf, pending: Arc<Mutex<Pending>>) {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        while let Some((id, answer)) = take(&mut buffer) {
            let mut pending = pending.lock().expect("nobody panics while holding it");
            if let Some(waiting) = pending.waiting.remove(&id) {
                // A caller that has gone needs no answer.
                let _ = waiting.send(answer);
            }
        }
    }
    let mut pending = pending.lock().expect("nobody panics while holding it");
    pending.waiting.clear();
}

/// The next whole answer.
fn take(buffer: &mut BytesMut) -> Option<(u64, Result<Bytes, String>)> {
    let head = buffer.first_chunk::<4>()?;
    let length = u32::from_le_bytes(*head) as usize;
    if buffer.len() < 4 + length || length < 9 {
        return None;
    }
    let mut frame = buffer.split_to(4 + length).freeze();
    frame.advance(4);
    let id = frame.get_u64_le();
    let answer = match frame.get_u8() {
        0 => Ok(frame),
        _ => Err(String::from_utf8_lossy(&frame).into_owned()),
    };
    Some((id, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_whole_and_in_order() {
        let mut buffer = BytesMut::new();
        for (id, status, body) in [(7_u64, 0_u8, "value"), (8, 1, "no")] {
            buffer.put_u32_le(9 + body.len() as u32);
            buffer.put_u64_le(id);
            buffer.put_u8(status);
            buffer.put_slice(body.as_bytes());
        }
        let mut part = BytesMut::from(&buffer[..10]);
        assert_eq!(take(&mut part), None);
        assert_eq!(
            take(&mut buffer),
            Some((7, Ok(Bytes::from_static(b"value"))))
        );
        assert_eq!(take(&mut buffer), Some((8, Err("no".to_owned()))));
        assert_eq!(take(&mut buffer), None);
    }
}
