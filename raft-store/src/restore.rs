//! Beginning a new cluster with the state of another one: from a snapshot file, or from what one peer of a
//! lost majority still has on its disk.
//!
//! What is written is the data directory of a single voter: a snapshot with a membership of its own, and a
//! vote. Others then join it as they join any cluster. The new cluster differs from its parent in
//!
//! - its id, so that neither takes a call from the other;
//! - its voter's id and nonce, which were never used before: every id of the parent's is refused;
//! - its log, which begins after everything that the parent, and clusters that began with the same state before,
//!   can have published ([`first_index`]), so that who follows indexes never sees time go back;
//! - what [`State::lineage`] says, by which its controller knows whose the replicas are.
//!
//! A directory is filled first and becomes a data directory last, so that what a crash leaves is refused by
//! every start.

mod in_place;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftserve_model::{ClusterId, LogIndex, NodeId, Unsupported};

use crate::codec::{self, CodecError};
use crate::command::Action;
use crate::disk::{Disk, ReadOnlyDisk};
use crate::entry::{AppliedMembership, LogId, Membership, Payload, PeerRecord, Vote};
use crate::formats::SUPPORTED;
use crate::identity::{DataDir, DirectoryLock, EmptyDir, Identity, IdentityError};
use crate::snapshot::{SnapshotError, SnapshotFile, SnapshotHead, Snapshots};
use crate::state::{Claim, Lineage, State};
use crate::store::{OpenError, SNAPSHOT_DIR, Store, WAL_DIR};
use crate::wal::{Failed, Wal, WalError, WalOptions};

pub use in_place::InPlace;

/// The least by which a new cluster's log is ahead of the state that it begins with, where that is ahead of the calendar.
const INDEX_GAP_MIN: u64 = 1 << 32;

/// Indexes that are set aside for each second of the calendar: more than any cluster writes on average, so that
/// no cluster which began by the calendar ever overtakes it.
const INDEXES_PER_SECOND: u64 = 1 << 16;

/// Where that calendar begins: 2025, in milliseconds since 1970.
const CALENDAR_BEGINS_MS: u64 = 1_735_689_600_000;

/// Entries of a survivor's log that are read at a time.
const READ_AHEAD: u64 = 1024;

/// Why no cluster was begun.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory to read or to fill.
    #[error(transparent)]
    Directory(#[from] IdentityError),
    /// The survivor's directory holds no readable store.
    #[error("the survivor's data cannot be read")]
    Open(#[source] OpenError),
    /// The snapshot, that was read or is being written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is nothing to begin with.
    #[error("{} holds no cluster's state: no entry was ever applied", .path.display())]
    Empty {
        /// The file or directory.
        path: PathBuf,
    },
    /// It is no data directory of a member.
    #[error("{} is not the data directory of a peer that belongs to a cluster", .path.display())]
    NoMember {
        /// The directory.
        path: PathBuf,
    },
    /// An entry of the survivor's log does not decode.
    #[error("entry {index} of the survivor's log cannot be understood")]
    Entry {
        /// Its index.
        index: u64,
        /// Why.
        source: CodecError,
    },
    /// The cluster's version is one that this release does not know, or has left behind: what it makes of the state, and
    /// of entries after it, may be another state than the cluster's.
    #[error("this release cannot go on with that cluster's state")]
    Unsupported(#[source] Unsupported),
    /// The survivor's log cannot be read.
    #[error("the survivor's log cannot be read from entry {index}")]
    Read {
        /// The first that was wanted.
        index: u64,
        /// What the log said.
        source: std::io::Error,
    },
    /// The new log.
    #[error("cannot make the new log")]
    Wal(#[source] WalError),
    /// The new vote.
    #[error("cannot write the new log")]
    Vote(#[source] Failed),
    /// The new directory did not get the old one's place; nothing was moved.
    #[error("cannot put the new data into the place of {}", .path.display())]
    Place {
        /// The old directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The new directory has the old one's place, and the old one is where the new one was made.
    #[error(
        "the new data is in its place, and the old data, now at {}, cannot be put aside as {}",
        .left.display(), .aside.display()
    )]
    Aside {
        /// Where the old data is.
        left: PathBuf,
        /// Where it was to go.
        aside: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Everything is in its place, and may not be after a power cut.
    #[error("all data is in its place, and {} cannot be synced", .path.display())]
    Sync {
        /// The directory in which all of it lies.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The old data was to go where there is something already.
    #[error("{} exists", .path.display())]
    Occupied {
        /// What was there.
        path: PathBuf,
    },
    /// What an earlier try has made is in use.
    #[error(
        "{} was made by an earlier try, is the data directory of a peer of cluster {cluster}, and may have been used since",
        .path.display()
    )]
    GoneOn {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// Where an earlier try may have left something.
    #[error("cannot look at {}", .path.display())]
    Beside {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A directory of the new data.
    #[error("cannot make {}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A state to begin with, and where it was in its cluster's log.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The cluster that it is of.
    pub cluster: ClusterId,
    /// The last entry in it.
    pub last: LogId,
    /// The members then.
    pub membership: Membership,
    /// The state.
    pub state: Arc<State>,
}

impl Parent {
    /// The state in a snapshot file, all of which is verified. It may be of a version that this release can show and
    /// keep, and not go on with: see [`Parent::check_version`]. Blocks.
    ///
    /// # Errors
    /// [`RestoreError::Snapshot`], [`RestoreError::Empty`].
    pub fn in_file(path: &Path) -> Result<Self, RestoreError> {
        let (head, state) = SnapshotFile::open(path)?.load()?;
        Self::new(path, head, state)
    }

    fn new(path: &Path, head: SnapshotHead, state: State) -> Result<Self, RestoreError> {
        match (state.cluster(), head.last) {
            (Some(cluster), Some(last)) => Ok(Self {
                cluster,
                last,
                membership: head.membership.membership,
                state: Arc::new(state),
            }),
            _ => Err(RestoreError::Empty {
                path: path.to_owned(),
            }),
        }
    }

    /// That this release can go on with the state, as is asked before a cluster is begun with it.
    ///
    /// # Errors
    /// [`RestoreError::Unsupported`], which says what to run.
    pub fn check_version(&self) -> Result<(), RestoreError> {
        let supported = SUPPORTED.check(self.state.version());
        supported.map_err(RestoreError::Unsupported)
    }
}

/// What one peer has of its cluster. Its directory stays locked as long as this is held.
#[derive(Debug)]
pub struct Survivor {
    /// The peer.
    pub node: NodeId,
    /// The state after all of its log.
    pub parent: Parent,
    dir: DataDir,
}

impl Survivor {
    /// Reads the data directory of a peer that is down. The whole log is applied, whether it is known to be
    /// committed or not: an entry that was acknowledged need not be known to be so here. Nothing is changed, so
    /// that it may lie on a volume that cannot be written, and damage stays to be looked at. Blocks.
    ///
    /// # Errors
    /// [`RestoreError`]; in particular [`IdentityError::Locked`] while the peer runs.
    pub fn read(path: &Path) -> Result<Self, RestoreError> {
        let disk = Arc::new(ReadOnlyDisk);
        Self::read_on(disk, path, DirectoryLock::take_to_read)
    }

    fn read_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        lock: impl FnOnce(&Path) -> Result<DirectoryLock, IdentityError>,
    ) -> Result<Self, RestoreError> {
        let no_member = || RestoreError::NoMember {
            path: path.to_owned(),
        };
        if DataDir::is_empty(&*disk, path)? {
            return Err(no_member());
        }
        let dir = DataDir::open_to_read(disk, path, lock)?;
        let Identity::Member { cluster, node, .. } = dir.identity() else {
            return Err(no_member());
        };
        let (wal, applied) = Store::default().read(&dir).map_err(RestoreError::Open)?;
        let (head, state) = replay(&wal, applied.head(), (*applied.state).clone())?;
        let mut parent = Parent::new(path, head, state)?;
        parent.cluster = cluster;
        parent.check_version()?;
        Ok(Self { node, parent, dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether the peer was told that it was removed, whatever its log says.
    #[must_use]
    pub fn was_told_of_removal(&self) -> bool {
        self.dir.is_removed()
    }
}

/// Applies everything in the log that follows `head`. As in a running peer, what follows an entry that raises the version
/// beyond what this release supports is not applied: it may mean something else than this release knows.
fn replay(
    wal: &Wal,
    mut head: SnapshotHead,
    mut state: State,
) -> Result<(SnapshotHead, State), RestoreError> {
    let range = wal.range();
    let after = head.last.map_or(0, |last| last.index.0 + 1);
    let mut next = range.start.max(after);
    while next < range.end {
        let upto = range.end.min(next + READ_AHEAD);
        let entries = wal.read_blocking(next..upto);
        let entries = entries.map_err(|source| RestoreError::Read {
            index: next,
            source,
        })?;
        for entry in &entries {
            let index = entry.id.index;
            let payload = codec::decode(entry.payload()).map_err(|source| RestoreError::Entry {
                index: index.0,
                source,
            })?;
            head.last = Some(entry.id);
            match payload {
                Payload::Blank => {}
                Payload::Command(command) => {
                    if let Action::RaiseVersion { version } = command.action
                        && SUPPORTED.newest < version
                    {
                        let supported = SUPPORTED.check(version);
                        supported.map_err(RestoreError::Unsupported)?;
                    }
                    let members = &head.membership.membership;
                    state.apply_among(index, &command, members);
                }
                Payload::Membership(membership) => {
                    head.membership = AppliedMembership {
                        log_id: head.last,
                        membership,
                    };
                }
            }
        }
        next = upto;
    }
    Ok((head, state))
}

/// What a new cluster is to be.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// Its id, drawn at random.
    pub cluster: ClusterId,
    /// Whose the parent's replicas are.
    pub claim: Claim,
    /// The time, in milliseconds since 1970.
    pub unix_ms: u64,
    /// `host:port` at which its first peer will be reached; it announces its present one when it starts.
    pub address: String,
}

/// What was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its only voter.
    pub node: NodeId,
    /// Where it comes from, and what its log begins after.
    pub lineage: Lineage,
}

/// The index that a cluster's log begins after which begins at `unix_ms` with a state as of `last`, which was written
/// at `written_ms`.
///
/// That is the calendar's, which is beyond all that clusters published which keep within it: the parent, and every
/// child of the same state that began before. A state that was ahead of the calendar when it was written is moved on
/// by a gap and by the calendar. Which of both holds depends on the state alone, and either goes on with the time: so
/// of two clusters that begin with the same state the later is always ahead by what the earlier may have published.
#[must_use]
pub fn first_index(last: LogIndex, written_ms: u64, unix_ms: u64) -> LogIndex {
    let calendar = |unix_ms: u64| {
        let since = unix_ms.saturating_sub(CALENDAR_BEGINS_MS);
        since.saturating_mul(INDEXES_PER_SECOND) / 1_000
    };
    let now = calendar(unix_ms);
    // A clock that is behind what was written must not take the log back.
    if last.0 <= calendar(written_ms) && last.0 < now {
        LogIndex(now)
    } else {
        LogIndex(last.0.saturating_add(INDEX_GAP_MIN).saturating_add(now))
    }
}

/// Fills `target` with the data of the only voter of a new cluster that begins with `parent`'s state. Blocks; not
/// to be called from within an asynchronous task.
///
/// # Errors
/// [`RestoreError`]; `target` is then not a data directory.
///
/// # Panics
/// In an asynchronous task.
pub fn begin(
    parent: &Parent,
    beginning: &Beginning,
    target: EmptyDir,
) -> Result<Begun, RestoreError> {
    parent.check_version()?;
    let written = parent.state.wall_at(parent.state.now());
    let index = first_index(parent.last.index, written.0, beginning.unix_ms);
    let node = NodeId(index.0);
    let last = LogId {
        term: parent.last.term + 1,
        node,
        index,
    };
    let lineage = Lineage {
        parent: parent.cluster,
        parent_index: parent.last.index,
        claim: beginning.claim,
        began: index,
    };
    let record = PeerRecord {
        nonce: target.nonce(),
        address: beginning.address.clone(),
    };
    let head = SnapshotHead {
        last: Some(last),
        membership: AppliedMembership {
            log_id: Some(last),
            membership: Membership {
                configs: vec![[node].into()],
                nodes: [(node, record)].into(),
            },
        },
    };
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    let (wal, snap) = (
        target.path().join(WAL_DIR),
        target.path().join(SNAPSHOT_DIR),
    );
    for dir in [&wal, &snap] {
        target.disk().create_dir(dir).map_err(io(dir))?;
    }
    let records = parent.state.records();
    let renewed = records.filter_map(|it| it.renewed(beginning.cluster, lineage));
    let snapshots = Snapshots::open(Arc::clone(target.disk()), &snap)?;
    // What can be written must be what can be read: at this point nothing was lost yet.
    snapshots.build(&head, renewed)?.file.load()?;
    write_vote(&target, &wal, last)?;
    let synced = target.disk().sync_dir(target.path());
    synced.map_err(io(target.path()))?;
    target.become_member(beginning.cluster, node)?;
    Ok(Begun {
        cluster: beginning.cluster,
        node,
        lineage,
    })
}

/// A log of no entries and a vote: without it, the first election would be in a term before the snapshot's.
fn write_vote(target: &EmptyDir, dir: &Path, last: LogId) -> Result<(), RestoreError> {
    let wal = Wal::open(Arc::clone(target.disk()), dir, WalOptions::default());
    let wal = wal.map_err(RestoreError::Wal)?;
    let vote = Vote {
        term: last.term,
        node: last.node,
        committed: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|source| RestoreError::Io {
        path: dir.to_owned(),
        source,
    })?;
    runtime
        .block_on(wal.save_vote(vote))
        .map_err(RestoreError::Vote)?;
    wal.close();
    Ok(())
}

#[cfg(test)]
mod tests;
