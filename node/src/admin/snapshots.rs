//! The service `Snapshots`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::errors::Reason;
use super::gate::admitted;
use super::shared::Shared;
use super::v1::{self, save_snapshot_response::Part, snapshots_server::Snapshots};
use crate::consensus::{ExportError, Exported};

/// The most snapshots that are saved from one peer at once: each takes disk space as large as the state.
const SAVES_MAX: usize = 2;

/// How long a quorum may take to confirm what the state must hold.
const BARRIER: Duration = Duration::from_millis(1_500);

/// The bytes of the file in one message.
const PIECE_BYTES: usize = 256 << 10;

/// Messages read ahead of the client.
const AHEAD: usize = 4;

/// A client that takes no message for so long is given up, and the space that it holds is freed.
const STALL_MAX: Duration = Duration::from_secs(30);

type Parts = BoxStream<'static, Result<v1::SaveSnapshotResponse, Status>>;
type Sender = mpsc::Sender<Result<v1::SaveSnapshotResponse, Status>>;

/// See the module.
pub(super) struct SnapshotsApi {
    shared: Arc<Shared>,
    saves: Arc<Semaphore>,
}

impl SnapshotsApi {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            saves: Arc::new(Semaphore::new(SAVES_MAX)),
        }
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsApi {
    type SaveStream = Parts;

    async fn save(
        &self,
        request: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<Parts>, Status> {
        let (v1::SaveSnapshotRequest {}, _held) = admitted(request);
        let stream = self.shared.admit_stream()?;
        let save = Arc::clone(&self.saves).try_acquire_owned().map_err(|_| {
            Reason::TooManyStreams.status(format!(
                "this peer saves {SAVES_MAX} snapshots already; wait, or ask another peer"
            ))
        })?;
        let consensus = self.shared.parts.consensus.clone();
        let (sender, parts) = mpsc::channel(AHEAD);
        // The answer begins at once: a large state takes longer to write than a call may to be answered.
        tokio::spawn(async move {
            let _held = (stream, save);
            let sent = match consensus.export(BARRIER).await {
                Ok(exported) => send(exported, &sender).await,
                Err(error) => Err(refusal(&error)),
            };
            if let Err(status) = sent {
                // Nobody may be reading any more.
                let _ = sender.try_send(Err(status));
            }
        });
        let closing = self.shared.closing.clone().cancelled_owned();
        let parts = ReceiverStream::new(parts).take_until(closing);
        Ok(Response::new(parts.boxed()))
    }
}

fn refusal(error: &ExportError) -> Status {
    match error {
        ExportError::NoQuorum(error) => Reason::NoQuorum.status(format!(
            "no snapshot was saved, since it might lack what was acknowledged: {}; try again, also on another peer",
            error.reason
        )),
        ExportError::Snapshot(error) => {
            Reason::Internal.status(format!("the snapshot could not be written: {error}"))
        }
        ExportError::Stopping => Reason::Stopping.status("this peer is stopping"),
    }
}

async fn send(exported: Exported, sender: &Sender) -> Result<(), Status> {
    let unreadable = |error: std::io::Error| {
        Reason::Internal.status(format!("cannot read the snapshot: {error}"))
    };
    let size = exported.file.size().map_err(unreadable)?;
    let header = v1::SnapshotHeader {
        cluster_id: exported.cluster.to_string(),
        index: exported.last.index.0,
        term: exported.last.term,
        size,
    };
    push(sender, Part::Header(header)).await?;
    let mut hash = Sha256::new();
    let mut offset = 0;
    while offset < size {
        let file = exported.file.clone();
        let reading = tokio::task::spawn_blocking(move || file.read(offset, PIECE_BYTES));
        let piece = reading.await.map_err(std::io::Error::other);
        let piece = piece.and_then(|piece| piece).map_err(unreadable)?;
        hash.update(&piece);
        offset += piece.len() as u64;
        push(sender, Part::Data(Bytes::from(piece))).await?;
    }
    let trailer = v1::SnapshotTrailer {
        sha256: Bytes::copy_from_slice(&hash.finalize()),
    };
    push(sender, Part::Trailer(trailer)).await
}

async fn push(sender: &Sender, part: Part) -> Result<(), Status> {
    let message = v1::SaveSnapshotResponse { part: Some(part) };
    let slow = || Reason::SlowConsumer.status("the snapshot was not read for too long");
    match tokio::time::timeout(STALL_MAX, sender.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(slow()),
    }
}
