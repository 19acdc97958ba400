//! A peer's log and state behind bare frames on loopback, to measure what gRPC costs beside them. Not for use:
//! it checks nothing that `raftserve.v1.KeyValue` checks, and has no end but being killed.
//!
//! Usage: raw_frames DATA_DIR LISTEN INDEX PEER...
//!
//! A frame is `length u32 | id u64 | kind u8 | body`, little-endian, its length without itself. Requests: 0
//! asks whether this peer leads, 1 puts (`key length u16 | key | value`), 2 gets (the key). The answer to a
//! request has its id, and 0 for success (with the value of a get), 1 for a refusal (with its reason).

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use raftserve_model::Incarnation;
use raftserve_node::clock;
use raftserve_node::consensus::Consensus;
use raftserve_node::peer::{self, LogGrowth, MembershipPolicy, PeerConfig, Profile};
use raftserve_store::Outcome;
use raftserve_store::command::{Action, Request};
use raftserve_store::formats::SUPPORTED;
use raftserve_store::state::{KvCondition, Promotion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;

/// Peers allocate small pieces on several threads for every write and every HTTP/2 request: see `docs/benchmarks.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As the admin API has it.
const BUDGET: Duration = Duration::from_millis(1_600);

/// The largest frame: a value of 64 KiB, its key and what is around them.
const FRAME_MAX: usize = 72 << 10;

/// Requests of one connection under way at once; more wait in the socket.
const REQUESTS_MAX: usize = 1_024;

#[derive(Debug)]
enum Ask {
    Leads,
    Put(Action),
    Get(String),
}

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let mut word = |name: &str| words.next().with_context(|| format!("{name} is missing"));
    let data_dir = word("DATA_DIR")?.into();
    let listen: SocketAddr = word("LISTEN")?.parse().context("LISTEN is an address")?;
    let index: usize = word("INDEX")?.parse().context("INDEX is a number")?;
    let peers: Vec<String> = words.collect();
    let address = peers
        .get(index)
        .context("INDEX is one of the peers")?
        .clone();
    ensure!(
        listen.ip().is_loopback(),
        "there are no credentials: listen on loopback"
    );
    let config = PeerConfig {
        data_dir,
        listener: TcpListener::bind(&address).context("cannot bind the peer port")?,
        peers,
        join: Vec::new(),
        policy: MembershipPolicy {
            promote_after: Duration::ZERO,
            promotion: Promotion::Automatic,
            dead_after: None,
            lease: Duration::ZERO,
        },
        address,
        admin_address: listen.to_string(),
        proxy_address: listen.to_string(),
        host: "localhost".to_owned(),
        incarnation: Incarnation(rand::random()),
        profile: Profile::Fast,
        growth: LogGrowth::default(),
        supports: SUPPORTED,
        wall_clock: clock::wall_now,
        certificates: None,
        founding: None,
        waits_for: tokio::sync::watch::Sender::default(),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(serve(config, listen))
}

async fn serve(config: PeerConfig, listen: SocketAddr) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let peer = peer::start(config).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, peer.consensus()));
    }
}

/// Answers one connection until it ends or sends what is no frame.
async fn connection(stream: TcpStream, consensus: Consensus) {
    let (mut from, to) = stream.into_split();
    let (answers, queue) = mpsc::channel(REQUESTS_MAX);
    tokio::spawn(write(to, queue));
    let consensus = Arc::new(consensus);
    let mut buffer = BytesMut::with_capacity(64 << 10);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        loop {
            let (id, ask) = match take(&mut buffer) {
                Ok(Some(asked)) => asked,
                Ok(None) => break,
                Err(_) => return,
            };
            // Room for the answer first, so that a slow reader bounds what is under way.
            let Ok(room) = answers.clone().reserve_owned().await else {
                return;
            };
            let consensus = Arc::clone(&consensus);
            tokio::spawn(async move { room.send(frame(id, answer(&consensus, ask).await)) });
        }
    }
}

/// The next whole frame.
fn take(buffer: &mut BytesMut) -> anyhow::Result<Option<(u64, Ask)>> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*head) as usize;
    ensure!(
        (9..=FRAME_MAX).contains(&length),
        "a frame of {length} bytes"
    );
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let mut frame = buffer.split_to(4 + length);
    frame.advance(4);
    let id = frame.get_u64_le();
    let ask = match frame.get_u8() {
        0 => Ask::Leads,
        1 => {
            let key = usize::from(frame.try_get_u16_le()?);
            ensure!(frame.len() >= key, "a key longer than its frame");
            let key = frame.split_to(key);
            Ask::Put(Action::Request(Request::PutKey {
                key: std::str::from_utf8(&key)?.parse()?,
                value: Arc::from(&*frame),
                condition: KvCondition::Any,
            }))
        }
        2 => Ask::Get(std::str::from_utf8(&frame)?.to_owned()),
        kind => anyhow::bail!("unknown kind {kind}"),
    };
    Ok(Some((id, ask)))
}

async fn answer(consensus: &Consensus, ask: Ask) -> Result<Bytes, String> {
    match ask {
        Ask::Leads => match consensus.leadership().borrow().is_self {
            true => Ok(Bytes::new()),
            false => Err("this peer does not lead".to_owned()),
        },
        Ask::Put(action) => match consensus.propose(action, BUDGET).await {
            Ok((_, Outcome::KeyPut { .. })) => Ok(Bytes::new()),
            Ok((_, other)) => Err(other.to_string()),
            Err(error) => Err(error.to_string()),
        },
        Ask::Get(key) => {
            let confirmed = consensus.read_barrier(BUDGET).await;
            confirmed.map_err(|error| error.to_string())?;
            let state = consensus.state();
            let entry = state.key(&key).ok_or("there is no such key")?;
            Ok(Bytes::copy_from_slice(&entry.value))
        }
    }
}

fn frame(id: u64, answer: Result<Bytes, String>) -> Bytes {
    let (status, body) = match answer {
        Ok(body) => (0, body),
        Err(reason) => (1, reason.into()),
    };
    let mut frame = BytesMut::with_capacity(13 + body.len());
    let length = u32::try_from(9 + body.len()).unwrap_or(u32::MAX);
    frame.put_u32_le(length);
    frame.put_u64_le(id);
    frame.put_u8(status);
    frame.put_slice(&body);
    frame.freeze()
}

/// Writes the answers that are ready, all at once.
async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, REQUESTS_MAX).await > 0 {
        if to.write_all(&batch.concat()).await.is_err() {
            return;
        }
        batch.clear();
    }
}
