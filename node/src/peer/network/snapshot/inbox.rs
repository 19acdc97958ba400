//! Where snapshots arrive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use raftserve_store::raft::TypeConfig;
use raftserve_store::snapshot::{SnapshotError, SnapshotId};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{AHEAD, Data};
use crate::peer::links::frame;
use crate::peer::rpc::Frame;
use crate::peer::store::{RaftHandle, SnapshotFile, Snapshots};
use crate::peer::wire;
use crate::peer::wire::raft::{SnapshotAnswer, SnapshotHead, Vote};

/// The receiver gives up on a sender that has sent nothing for so long, or has not taken an answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How often the sender is told that a snapshot is still being verified or installed.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What becomes of a whole snapshot.
pub(crate) trait Install: Send + Sync + 'static {
    /// Installs it and returns the vote held then.
    fn install(
        &self,
        vote: Vote,
        meta: SnapshotMetaOf<TypeConfig>,
        file: SnapshotFile,
    ) -> BoxFuture<'static, Result<Vote, String>>;
}

impl Install for RaftHandle {
    fn install(
        &self,
        vote: Vote,
        meta: SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFile,
    ) -> BoxFuture<'static, Result<Vote, String>> {
        let raft = self.clone();
        Box::pin(async move {
            let snapshot = SnapshotOf::<TypeConfig, Data> { meta, snapshot };
            let installed = raft.install_full_snapshot(vote.into(), snapshot).await;
            installed
                .map(|response| response.vote.into())
                .map_err(|error| error.to_string())
        })
    }
}

/// Where snapshots arrive, one at a time. A second sender of the same vote or a later one ends what the first has not
/// brought to its end: it is the same leader after a broken connection, or the next one.
pub(crate) struct Inbox {
    snapshots: Arc<Snapshots>,
    install: Arc<dyn Install>,
    present: Mutex<Option<(Vote, CancellationToken)>>,
    busy: tokio::sync::Mutex<()>,
    received: AtomicU64,
}

type Answers = mpsc::Sender<Result<Frame, Status>>;

fn disk(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("cannot keep the snapshot: {error}"))
}

impl Inbox {
    /// Receives into the store's folder.
    pub(crate) fn new(snapshots: Arc<Snapshots>, install: Arc<dyn Install>) -> Self {
        Self {
            snapshots,
            install,
            present: Mutex::default(),
            busy: tokio::sync::Mutex::default(),
            received: AtomicU64::new(0),
        }
    }

    /// The bytes of snapshots that were received in this peer's life.
    #[cfg(test)]
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until no transfer is under way.
    #[cfg(test)]
    pub(crate) async fn idle(&self) {
        drop(self.busy.lock().await);
    }

    /// Receives a snapshot and installs it, on a task of its own. Returns what to answer meanwhile.
    pub(crate) fn receive(
        self: Arc<Self>,
        frames: Streaming<Frame>,
    ) -> mpsc::Receiver<Result<Frame, Status>> {
        let (answers, answered) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            if let Err(status) = self.run(frames, &answers).await {
                // The sender may be gone.
                let _ = answers.try_send(Err(status));
            }
        });
        answered
    }

    async fn run(&self, mut frames: Streaming<Frame>, answers: &Answers) -> Result<(), Status> {
        let bad = |text: String| Status::invalid_argument(text);
        let first = next(&mut frames).await?;
        let first = first.ok_or_else(|| bad("a snapshot without a head".to_owned()))?;
        let head: SnapshotHead =
            wire::decode(&first.head).map_err(|error| bad(error.to_string()))?;
        let (vote, id) = (head.vote, head.id());
        let meta = head.meta().map_err(|error| bad(error.to_string()))?;
        let superseded = self.take_turn(&vote)?;
        let _one = self.busy.lock().await;
        let wanted = id.clone();
        let (file, has) = self.blocking(move |it| it.resume(&wanted)).await?;
        answer(answers, &SnapshotAnswer::From(has)).await?;
        tokio::select! {
            biased;
            () = superseded.cancelled() => {
                return Err(Status::aborted("another transfer has taken this one's place"));
            }
            kept = self.keep(&file, has, id.size, &mut frames, answers) => kept?,
        }
        let finishing = self.finish(&file, &id, vote, meta);
        tokio::pin!(finishing);
        let mut ticks = interval(TOLD_EVERY);
        let vote = loop {
            tokio::select! {
                biased;
                vote = &mut finishing => break vote?,
                // Whether it is heard or not, what was begun is brought to its end.
                _ = ticks.tick() => drop(answers.try_send(Ok(frame(&SnapshotAnswer::Installing)))),
            }
        };
        answer(answers, &SnapshotAnswer::Done(vote)).await
    }

    /// Ends a transfer that is under way, unless it is a later leader's.
    fn take_turn(&self, vote: &Vote) -> Result<CancellationToken, Status> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((theirs, under_way)) = &*present {
            if vote < theirs {
                return Err(Status::aborted("a later leader sends a snapshot"));
            }
            under_way.cancel();
        }
        let token = CancellationToken::new();
        *present = Some((*vote, token.clone()));
        Ok(token)
    }

    /// Writes what comes into `file`, which has `has` bytes and must end up `length` bytes long.
    async fn keep(
        &self,
        file: &SnapshotFile,
        mut has: u64,
        length: u64,
        frames: &mut Streaming<Frame>,
        answers: &Answers,
    ) -> Result<(), Status> {
        while has < length {
            let Some(frame) = next(frames).await? else {
                return Err(Status::data_loss(format!(
                    "a snapshot of {length} bytes ended after {has}"
                )));
            };
            let (offset, count) = (has, frame.body.len() as u64);
            if count == 0 || count > length - has {
                return Err(Status::invalid_argument(
                    "a piece that does not fit the snapshot",
                ));
            }
            let target = file.clone();
            let written = self
                .blocking(move |snapshots| {
                    target.write(offset, &frame.body).inspect_err(|_| {
                        // A full disk must not stay full of it.
                        snapshots.discard(&target);
                    })
                })
                .await;
            written?;
            self.received.fetch_add(count, Ordering::Relaxed);
            has += count;
            answer(answers, &SnapshotAnswer::Has(has)).await?;
        }
        Ok(())
    }

    /// Verifies and installs. What is damaged, or not what was announced, goes, so that the next try begins anew.
    async fn finish(
        &self,
        file: &SnapshotFile,
        id: &SnapshotId,
        vote: Vote,
        meta: SnapshotMetaOf<TypeConfig>,
    ) -> Result<Vote, Status> {
        let (checked, announced) = (file.clone(), id.last);
        self.blocking(move |snapshots| {
            let head = checked.verify();
            let same = head.as_ref().is_ok_and(|head| head.last == announced);
            if !same {
                snapshots.discard(&checked);
            }
            match head {
                Ok(_) if !same => Err("it is another snapshot than was announced".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        let installed = self.install.install(vote, meta, file.clone()).await;
        let installed = installed.map_err(Status::unavailable)?;
        // An installed file has another name by now. One that came too late has not.
        let left = file.clone();
        self.blocking(move |snapshots| {
            if left.path().exists() {
                snapshots.discard(&left);
            }
            Ok::<_, SnapshotError>(())
        })
        .await?;
        Ok(installed)
    }

    async fn blocking<T, E>(
        &self,
        work: impl FnOnce(&Snapshots) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let snapshots = Arc::clone(&self.snapshots);
        let working = tokio::task::spawn_blocking(move || work(&snapshots));
        working.await.map_err(disk)?.map_err(disk)
    }
}

async fn answer(answers: &Answers, answer: &SnapshotAnswer) -> Result<(), Status> {
    let gone = || Status::cancelled("the sender is gone, or does not listen");
    match timeout(SILENCE_MAX, answers.send(Ok(frame(answer)))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(gone()),
    }
}

async fn next(frames: &mut Streaming<Frame>) -> Result<Option<Frame>, Status> {
    timeout(SILENCE_MAX, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the snapshot's sender has fallen silent"))?
}
