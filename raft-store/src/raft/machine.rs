//! The state machine as openraft wants it, and the published state that everyone else reads.

use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use raftserve_model::{LogIndex, LogTime, Unsupported, VersionRange};
use tokio::sync::watch;

use super::check::{CHECK_EVERY, Checks, StateCheck};
use super::convert::{applied_membership_to, log_id_from, log_id_to, membership_from};
use super::{StoreTypes, TypeConfig};
use crate::command::{Action, Outcome};
use crate::entry::{AppliedMembership, LogId};
use crate::formats::SUPPORTED;
use crate::snapshot::{Snapshot, SnapshotError, SnapshotFile, SnapshotHead, Snapshots};
use crate::state::State;

/// Entries applied before the state is published and their proposers are answered: a fraction of a
/// millisecond of work, so that the first of a long run does not wait for the last.
const PUBLISH_MAX: usize = 256;

/// A state and the entry that it is the state of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Arc<AppliedMembership>,
    pub(crate) state: Arc<State>,
}

impl Applied {
    pub(crate) fn head(&self) -> SnapshotHead {
        SnapshotHead {
            last: self.last,
            membership: (*self.membership).clone(),
        }
    }
}

/// The applied state as the rest of a peer reads it, without locks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StateReader {
    applied: Arc<ArcSwap<Applied>>,
    index: watch::Receiver<LogIndex>,
    news: watch::Receiver<LogIndex>,
    checks: Checks,
    unsupported: Arc<OnceLock<Unsupported>>,
}

impl StateReader {
    /// The state as of the last applied batch of entries.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.applied.load().state)
    }

    /// The last applied index, as it moves. A state read after it was seen is as new, or newer.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        self.index.clone()
    }

    /// The last applied index whose entry may have changed more than keys ([`Action::is_of_keys`]), as it moves: for
    /// whoever looks at services, replicas, sessions or peers when they change, and would be woken by each write of a
    /// key otherwise.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<LogIndex> {
        self.news.clone()
    }

    /// The last applied entry.
    #[must_use]
    pub fn last(&self) -> Option<LogId> {
        self.applied.load().last
    }

    /// A verified snapshot of the state as it is now, to be sent elsewhere; see [`Snapshots::export`]. Blocks.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn export(
        &self,
        snapshots: &Snapshots,
    ) -> Result<(SnapshotHead, SnapshotFile), SnapshotError> {
        let applied = self.load();
        let head = applied.head();
        let file = snapshots.export(&head, applied.state.records())?;
        Ok((head, file))
    }

    /// The digests that were noted last, oldest first.
    #[must_use]
    pub fn checks(&self) -> Vec<StateCheck> {
        self.checks.kept()
    }

    /// Why this release cannot go on in this cluster, if that is why the state machine has failed.
    #[must_use]
    pub fn unsupported(&self) -> Option<Unsupported> {
        self.unsupported.get().copied()
    }

    /// The last applied entry, and the agreed time as of it.
    #[must_use]
    pub fn last_stamp(&self) -> (Option<LogId>, LogTime) {
        let applied = self.applied.load();
        (applied.last, applied.state.now())
    }

    pub(crate) fn load(&self) -> Arc<Applied> {
        self.applied.load_full()
    }
}

/// Applies entries to the state and publishes it: an answer never precedes the state that it speaks of.
#[derive(Debug)]
pub struct StateMachine<C = TypeConfig> {
    types: PhantomData<fn() -> C>,
    state: State,
    last: Option<LogId>,
    membership: Arc<AppliedMembership>,
    applied: Arc<ArcSwap<Applied>>,
    index: watch::Sender<LogIndex>,
    news: watch::Sender<LogIndex>,
    /// Whether there are any that are not published yet.
    has_news: bool,
    checks: Checks,
    supports: VersionRange,
    /// Told to readers: openraft makes text of the error.
    unsupported: Arc<OnceLock<Unsupported>>,
    snapshots: Arc<Snapshots>,
}

impl<C: StoreTypes> StateMachine<C> {
    pub(crate) fn new(applied: Applied, snapshots: Arc<Snapshots>) -> Self {
        let index = applied.last.map_or(LogIndex(0), |last| last.index);
        Self {
            types: PhantomData,
            state: (*applied.state).clone(),
            last: applied.last,
            membership: Arc::clone(&applied.membership),
            applied: Arc::new(ArcSwap::from_pointee(applied)),
            index: watch::Sender::new(index),
            news: watch::Sender::new(index),
            has_news: false,
            checks: Checks::default(),
            supports: SUPPORTED,
            unsupported: Arc::default(),
            snapshots,
        }
    }

    /// One that ends where the cluster's version leaves `supports`, rather than what this release supports.
    #[must_use]
    pub(crate) fn supporting(self, supports: VersionRange) -> Self {
        Self { supports, ..self }
    }

    /// A handle to read the state with.
    #[must_use]
    pub fn reader(&self) -> StateReader {
        StateReader {
            applied: Arc::clone(&self.applied),
            index: self.index.subscribe(),
            news: self.news.subscribe(),
            checks: self.checks.clone(),
            unsupported: Arc::clone(&self.unsupported),
        }
    }

    fn refuse(&self, why: Unsupported) -> io::Error {
        io::Error::other(*self.unsupported.get_or_init(|| why))
    }

    /// Applies an entry. One that this release cannot follow is not applied, and ends the peer: to pass over it
    /// would make this state another one for ever.
    fn apply_one(&mut self, entry: &EntryOf<C>) -> io::Result<Outcome> {
        let id = log_id_from(&entry.log_id);
        let mut compare = id.index.0.is_multiple_of(CHECK_EVERY);
        let outcome = match &entry.payload {
            EntryPayload::Blank => Outcome::default(),
            EntryPayload::Normal(command) => {
                if let Action::RaiseVersion { version } = command.action
                    && self.supports.newest < version
                {
                    return Err(self.refuse(Unsupported::TooOld {
                        cluster: version,
                        supported: self.supports,
                    }));
                }
                compare |= matches!(command.action, Action::CompareStates);
                self.has_news |= !command.action.is_of_keys();
                let members = &self.membership.membership;
                self.state.apply_among(id.index, command, members)
            }
            EntryPayload::Membership(membership) => {
                self.has_news = true;
                self.membership = Arc::new(AppliedMembership {
                    log_id: Some(id),
                    membership: membership_from(membership),
                });
                Outcome::default()
            }
        };
        self.last = Some(id);
        if compare {
            self.checks.note(id.index, &self.state);
        }
        Ok(outcome)
    }

    fn publish(&mut self) {
        self.applied.store(Arc::new(Applied {
            last: self.last,
            membership: Arc::clone(&self.membership),
            state: Arc::new(self.state.clone()),
        }));
        if let Some(last) = self.last {
            self.index.send_replace(last.index);
            if std::mem::take(&mut self.has_news) {
                self.news.send_replace(last.index);
            }
        }
    }

    fn publish_and_answer(&mut self, answers: &mut Vec<(ApplyResponder<C>, Outcome)>) {
        self.publish();
        for (responder, outcome) in answers.drain(..) {
            responder.send(outcome);
        }
    }
}

impl<C: StoreTypes> RaftStateMachine<C> for StateMachine<C> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder<C>;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>), io::Error> {
        let membership = applied_membership_to(&self.membership).map_err(io::Error::other)?;
        Ok((self.last.map(log_id_to), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        let mut unpublished = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = match next {
                Ok(next) => next,
                Err(error) => {
                    self.publish_and_answer(&mut answers);
                    return Err(error);
                }
            };
            let outcome = match self.apply_one(&entry) {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.publish_and_answer(&mut answers);
                    return Err(error);
                }
            };
            answers.extend(responder.map(|responder| (responder, outcome)));
            unpublished += 1;
            if unpublished == PUBLISH_MAX {
                self.publish_and_answer(&mut answers);
                unpublished = 0;
                yield_once().await;
            }
        }
        self.publish_and_answer(&mut answers);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        SnapshotBuilder {
            types: PhantomData,
            applied: self.applied.load_full(),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let offered = meta.last_log_id.as_ref().map(log_id_from);
        if let (Some(offered), Some(held)) = (offered, self.last)
            && offered < held
        {
            return Err(io::Error::other(SnapshotError::Older { offered, held }));
        }
        let snapshots = Arc::clone(&self.snapshots);
        let installing = C::run_blocking(move || snapshots.install(&snapshot, offered));
        let (installed, state) = installing.await?.map_err(io::Error::other)?;
        let supported = self.supports.check(state.version());
        supported.map_err(|why| self.refuse(why))?;
        self.state = state;
        self.last = installed.head.last;
        if let Some(last) = self.last {
            tracing::info!(%last, "a snapshot was installed");
        }
        self.membership = Arc::new(installed.head.membership);
        self.has_news = true;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        self.snapshots.current().map(to_raft).transpose()
    }
}

/// Lets the thread's other tasks run, on whatever runtime: a long run of entries must not keep a heartbeat waiting.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn to_raft(snapshot: Snapshot) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
    let last_membership =
        applied_membership_to(&snapshot.head.membership).map_err(io::Error::other)?;
    Ok(SnapshotOf::<TypeConfig, SnapshotFile> {
        meta: SnapshotMetaOf::<TypeConfig> {
            last_log_id: snapshot.head.last.map(log_id_to),
            last_membership,
        },
        snapshot: snapshot.file,
    })
}

/// Writes a snapshot of the state as it was when this was made, while entries go on being applied.
#[derive(Debug)]
pub struct SnapshotBuilder<C = TypeConfig> {
    types: PhantomData<fn() -> C>,
    applied: Arc<Applied>,
    snapshots: Arc<Snapshots>,
}

impl<C: StoreTypes> RaftSnapshotBuilder<C> for SnapshotBuilder<C> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        let applied = Arc::clone(&self.applied);
        let snapshots = Arc::clone(&self.snapshots);
        let building =
            C::run_at_leisure(move || snapshots.build(&applied.head(), applied.state.records()));
        let built = building.await?.map_err(io::Error::other)?;
        if let Some(last) = built.head.last {
            tracing::info!(%last, "a snapshot was taken");
        }
        to_raft(built)
    }
}
