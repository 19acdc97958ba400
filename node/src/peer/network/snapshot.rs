//! Whole snapshots over a connection of their own, in pieces.
//!
//! One call with frames both ways. The sender offers a snapshot; the receiver says from which byte on it wants it; the
//! sender sends pieces; the receiver says after each how much it has, then, every second, that it is installing, and
//! at last its vote. What a receiver has stays with it when the connection breaks or it restarts, and is not sent
//! again as long as the very same snapshot is offered. Every step has a deadline and the whole has none: a fixed
//! total would never be met by a large state. Nothing is installed before every byte of it was verified.

mod inbox;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::raft::SnapshotResponse;
use raftserve_model::NodeId;
use raftserve_store::raft::TypeConfig;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::peer::links::{CallError, Links, frame, read};
use crate::peer::rpc::Frame;
use crate::peer::store::SnapshotFile;
use crate::peer::wire::SNAPSHOT_FRAME_BYTES;
use crate::peer::wire::raft::{SnapshotAnswer, SnapshotHead};

pub(crate) use inbox::Inbox;

/// What a snapshot is to the store.
pub(crate) type Data = SnapshotFile;

/// Frames read ahead of the connection: enough to keep it busy, and a bound on what a transfer holds in memory.
const AHEAD: usize = 4;

/// The most snapshots that a leader sends at once: more would take the disk and the network from the log.
const SENDS_MAX: usize = 2;

/// Where snapshots leave from.
#[derive(Clone)]
pub(crate) struct Outbox {
    room: Arc<Semaphore>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(SENDS_MAX)),
        }
    }

    /// Sends a snapshot to `target`. Fails once the receiver has made no progress for `step`. Dropping the future
    /// ends the transfer; what was received is kept there.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn send(
        &self,
        links: &Links,
        target: NodeId,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, Data>,
        step: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, CallError> {
        let _room = self.room.acquire().await;
        let unreadable = |error: io::Error| CallError::Broken {
            target,
            reason: format!("cannot read the snapshot: {error}"),
        };
        let file = snapshot.snapshot;
        let (length, checksum) = (file.size(), file.checksum());
        let (length, checksum) = (length.map_err(unreadable)?, checksum.map_err(unreadable)?);
        let head = SnapshotHead::new(vote, &snapshot.meta, length, checksum);
        let (frames, outgoing) = mpsc::channel(AHEAD);
        // The channel is empty, and so has room.
        let _ = frames.try_send(frame(&head));
        let mut answers = links
            .stream(target, step, ReceiverStream::new(outgoing))
            .await?;
        let from = match next(&mut answers, target, step).await? {
            SnapshotAnswer::From(from) => from,
            other => return Err(unexpected(target, &other)),
        };
        if from > 0 {
            tracing::info!(%target, from, length, "resuming the transfer of a snapshot");
        }
        let reading = tokio::task::spawn_blocking(move || read_frames(&file, from, &frames));
        let vote = loop {
            match next(&mut answers, target, step).await? {
                SnapshotAnswer::Has(_) | SnapshotAnswer::Installing => {}
                SnapshotAnswer::Done(vote) => break vote,
                other @ SnapshotAnswer::From(_) => return Err(unexpected(target, &other)),
            }
        };
        if let Ok(Err(error)) = reading.await {
            tracing::debug!(%error, "the snapshot's reader ended early");
        }
        Ok(SnapshotResponse::new(vote.into()))
    }
}

fn unexpected(target: NodeId, answer: &SnapshotAnswer) -> CallError {
    CallError::Broken {
        target,
        reason: format!("an answer out of turn: {answer:?}"),
    }
}

/// The receiver's next word, which is its progress.
async fn next(
    answers: &mut Streaming<Frame>,
    target: NodeId,
    step: Duration,
) -> Result<SnapshotAnswer, CallError> {
    let broken = |reason: String| CallError::Broken { target, reason };
    match timeout(step, answers.message()).await {
        Ok(Ok(Some(answer))) => read(target, &answer),
        Ok(Ok(None)) => Err(broken("it hung up before the end".to_owned())),
        Ok(Err(status)) => Err(CallError::from_status(target, &status)),
        Err(_) => Err(CallError::Deadline {
            target,
            waited: step,
        }),
    }
}

/// Reads the file into frames until it ends or nobody wants them any more.
fn read_frames(file: &SnapshotFile, from: u64, frames: &mpsc::Sender<Frame>) -> io::Result<()> {
    let mut offset = from;
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
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        frames.blocking_send(frame).map_err(gone)?;
    }
}

#[cfg(test)]
mod tests;
