//! Whole snapshots over a connection of their own, in pieces, with a deadline on every step instead of
//! on the whole: a fixed total would never be met by a large state.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::raft::SnapshotResponse;
use raftserve_model::NodeId;
use raftserve_store::raft::TypeConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::peer::links::{CallError, Links, Purpose, read};
use crate::peer::rpc::Frame;
use crate::peer::store::{RaftHandle, SnapshotFile, Snapshots};
use crate::peer::wire::raft::{SnapshotHead, SnapshotReply};
use crate::peer::wire::{self, SNAPSHOT_FRAME_BYTES};

/// What a snapshot is to the store.
pub(crate) type Data = SnapshotFile;

/// Frames read ahead of the connection: enough to keep it busy, and a bound on what a transfer holds
/// in memory.
const AHEAD: usize = 4;

/// The receiver gives up on a sender that has sent nothing for so long.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Sends a snapshot to `target`. Fails once no piece was taken for `step`.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn send(
    links: &Links,
    target: NodeId,
    vote: VoteOf<TypeConfig>,
    snapshot: SnapshotOf<TypeConfig, Data>,
    step: Duration,
) -> Result<SnapshotResponse<TypeConfig>, CallError> {
    let broken = |error: io::Error| CallError::Broken {
        target,
        reason: format!("cannot read the snapshot: {error}"),
    };
    let file = snapshot.snapshot;
    let length = file.size().map_err(broken)?;
    let head = Frame {
        head: wire::encode(&SnapshotHead::new(vote, &snapshot.meta, length)),
        body: Bytes::new(),
    };
    let (frames, outgoing) = mpsc::channel(AHEAD);
    let (progress, mut moved) = watch::channel(());
    let reading = tokio::task::spawn_blocking(move || read_frames(&file, head, &frames, &progress));
    let call = links.call(
        target,
        Purpose::Snapshots,
        // Bounded by progress, below; this only names a bound that no transfer meets.
        Duration::from_secs(24 * 60 * 60),
        ReceiverStream::new(outgoing),
        |mut client, request| async move { client.snapshot(request).await },
    );
    tokio::pin!(call);
    let answer = loop {
        let deadline = Instant::now() + step;
        tokio::select! {
            answer = &mut call => break answer?,
            Ok(()) = moved.changed() => {}
            () = sleep_until(deadline) => {
                return Err(CallError::Deadline { target, waited: step });
            }
        }
    };
    if let Ok(Err(error)) = reading.await {
        tracing::debug!(%error, "the snapshot's reader ended early");
    }
    let reply: SnapshotReply = read(target, &answer)?;
    Ok(SnapshotResponse::new(reply.vote.into()))
}

/// Reads the file into frames until it ends or nobody wants them any more.
fn read_frames(
    file: &SnapshotFile,
    head: Frame,
    frames: &mpsc::Sender<Frame>,
    progress: &watch::Sender<()>,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    frames.blocking_send(head).map_err(gone)?;
    let mut offset = 0;
    loop {
        let piece = file.read(offset, SNAPSHOT_FRAME_BYTES)?;
        if piece.is_empty() {
            return Ok(());
        }
        offset += piece.len() as u64;
        let frame = Frame {
            head: Bytes::new(),
            body: piece.into(),
        };
        frames.blocking_send(frame).map_err(gone)?;
        progress.send_replace(());
    }
}

/// Where snapshots arrive. One at a time: a leader sends no second one before the first has ended, and
/// a new leader's waits for the old one's to break off.
pub(crate) struct Inbox {
    snapshots: Arc<Snapshots>,
    busy: tokio::sync::Mutex<()>,
}

impl Inbox {
    /// Receives into the store's folder.
    pub(crate) fn of(snapshots: Arc<Snapshots>) -> Self {
        Self {
            snapshots,
            busy: tokio::sync::Mutex::default(),
        }
    }
}

fn disk(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("cannot keep the snapshot: {error}"))
}

/// Receives a snapshot and installs it.
///
/// # Errors
/// A status for the sender.
pub(crate) async fn receive(
    raft: &RaftHandle,
    inbox: &Inbox,
    mut frames: Streaming<Frame>,
) -> Result<SnapshotReply, Status> {
    let _one = inbox.busy.lock().await;
    let first = next(&mut frames)
        .await?
        .ok_or_else(|| Status::invalid_argument("a snapshot without a head"))?;
    let head: SnapshotHead =
        wire::decode(&first.head).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let (vote, length) = (head.vote, head.bytes);
    let meta = head
        .meta()
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let file = blocking(&inbox.snapshots, Snapshots::receive)
        .await?
        .map_err(disk)?;
    let installed = match keep(&inbox.snapshots, &file, length, &mut frames).await {
        Ok(()) => {
            let snapshot = SnapshotOf::<TypeConfig, Data> {
                meta,
                snapshot: file.clone(),
            };
            let installing = raft.install_full_snapshot(vote.into(), snapshot).await;
            installing.map_err(|error| Status::unavailable(error.to_string()))
        }
        Err(status) => Err(status),
    };
    // An installed file has another name by now. One that came too late, or not whole, has not.
    blocking(&inbox.snapshots, move |snapshots| {
        if file.path().exists() {
            snapshots.discard(&file);
        }
    })
    .await?;
    Ok(SnapshotReply {
        vote: installed?.vote.into(),
    })
}

/// Writes what comes into `file`, which must end up `length` bytes long.
async fn keep(
    snapshots: &Arc<Snapshots>,
    file: &SnapshotFile,
    length: u64,
    frames: &mut Streaming<Frame>,
) -> Result<(), Status> {
    let mut received = 0u64;
    while let Some(frame) = next(frames).await? {
        let offset = received;
        received += frame.body.len() as u64;
        if received > length {
            return Err(Status::invalid_argument("a snapshot longer than it said"));
        }
        let file = file.clone();
        blocking(snapshots, move |_| file.write(offset, &frame.body))
            .await?
            .map_err(disk)?;
    }
    if received == length {
        return Ok(());
    }
    Err(Status::data_loss(format!(
        "a snapshot of {length} bytes ended after {received}"
    )))
}

async fn blocking<T: Send + 'static>(
    snapshots: &Arc<Snapshots>,
    work: impl FnOnce(&Snapshots) -> T + Send + 'static,
) -> Result<T, Status> {
    let snapshots = Arc::clone(snapshots);
    let working = tokio::task::spawn_blocking(move || work(&snapshots));
    working.await.map_err(disk)
}

async fn next(frames: &mut Streaming<Frame>) -> Result<Option<Frame>, Status> {
    timeout(SILENCE_MAX, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the snapshot's sender has fallen silent"))?
}
