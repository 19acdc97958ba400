//! Opening a peer's store: the parts in a data directory, checked against each other.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftserve_model::{Unsupported, VersionRange};

use crate::checkpoint::{Checkpoint, Marker, Place, Saved, StateStoreError, pays};
use crate::entry::LogId;
use crate::formats::SUPPORTED;
use crate::identity::DataDir;
pub use crate::identity::DirectoryLock;
use crate::raft::{Applied, LogStore, Retention, SnapshotTrigger, StateMachine, StateReader};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotHead, Snapshots, Unread};
use crate::state::State;
use crate::wal::{Known, Wal, WalError, WalOptions, Writer};

pub(crate) const WAL_DIR: &str = "wal";
pub(crate) const SNAPSHOT_DIR: &str = "snap";

/// Why a store cannot be opened. Nothing is half-opened then, and no data was changed, except that the end of
/// a write that a crash had cut short may be gone.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Whose directory it is, or that it is ours, cannot be made sure of.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// The operating system refused.
    #[error("cannot prepare {}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// See [`WalError`].
    #[error("cannot open the log")]
    Wal(#[source] WalError),
    /// See [`SnapshotError`].
    #[error("cannot open the snapshots")]
    Snapshot(#[source] SnapshotError),
    /// What was saved at the last stop can neither be used nor deleted.
    #[error("cannot clear the saved state")]
    Checkpoint(#[source] StateStoreError),
    /// What vouches for a state that is not needed cannot be taken away, and a later start might take it for its own.
    #[error(
        "{} says what was saved at an earlier stop, which a later start must not take for its own, and cannot be taken away \
         durably. The snapshots and the log hold all of it: remove that file by hand if it is there, or mend the disk, and start \
         the peer again",
        .path.display()
    )]
    Disown {
        /// The file.
        path: PathBuf,
        /// Why it cannot be taken away.
        source: StateStoreError,
    },
    /// This release cannot work in the peer's cluster.
    #[error("cannot run this release")]
    Unsupported(#[source] Unsupported),
    /// There was a log once.
    #[error(
        "the log of {} is gone: its votes and entries are lost. Put back the directory `{WAL_DIR}` from a copy made since the \
         peer ran last; or remove the data directory, so that the peer joins again under a new id",
        .path.display()
    )]
    LogLost {
        /// The data directory.
        path: PathBuf,
    },
    /// Another peer found that the log had lost entries.
    #[error(
        "the log of {} lost entries that this peer had acknowledged, as its leader found: with what is left it must not vote. \
         Remove the data directory, so that the peer joins again under a new id",
        .path.display()
    )]
    LogCut {
        /// The data directory.
        path: PathBuf,
    },
    /// The log begins after the newest snapshot ends.
    #[error(
        "the log of {} begins after entry {purged}, but the newest intact snapshot ends with {snapshot}: entries between are \
         lost. Put back a newer snapshot from a copy; or remove the data directory, so that the peer joins again under a new id",
        .path.display()
    )]
    Gap {
        /// The data directory.
        path: PathBuf,
        /// The last entry that is no longer in the log.
        purged: LogId,
        /// The last entry of the snapshot, or `nothing`.
        snapshot: String,
    },
    /// As in [`OpenError::Gap`], and the state that was saved at the last stop reaches further, but cannot be read.
    #[error(
        "the log of {} begins after entry {purged}, no intact snapshot reaches it, and the state saved at the last stop, the only \
         copy, cannot be read. Nothing was removed: start the peer again once the disk can be read, or put back a newer \
         snapshot from a copy; or remove the data directory, so that the peer joins again under a new id",
        .path.display()
    )]
    OnlyCopy {
        /// The data directory.
        path: PathBuf,
        /// The last entry that is no longer in the log.
        purged: LogId,
        /// Why it cannot be read.
        source: StateStoreError,
    },
    /// As in [`OpenError::Gap`], of a peer that is down, and a start would use the state that was saved at the last stop.
    #[error(
        "the log of {} begins after entry {purged}, and no intact snapshot reaches it; but the state saved at the last stop, up to \
         {saved}, is there, and is the only copy. Do not remove the directory: make a copy of it, then start the peer once by \
         itself, with its usual flags, until its log says that a snapshot was taken. Then stop it, and try again",
        .path.display()
    )]
    OnlySaved {
        /// The data directory.
        path: PathBuf,
        /// The last entry that is no longer in the log.
        purged: LogId,
        /// The last entry of the saved state.
        saved: LogId,
    },
}

impl OpenError {
    fn gap(dir: &Path, purged: LogId, snapshot: Option<LogId>) -> Self {
        Self::Gap {
            path: dir.to_owned(),
            purged,
            snapshot: snapshot.map_or_else(|| "nothing".to_owned(), |last| last.to_string()),
        }
    }

    fn unread_copy(dir: &Path, purged: LogId) -> impl FnOnce(StateStoreError) -> Self {
        let path = dir.to_owned();
        move |source| Self::OnlyCopy {
            path,
            purged,
            source,
        }
    }
}

/// An open store: what openraft takes, and what the rest of the peer uses.
#[derive(Debug)]
pub struct Opened {
    /// For openraft.
    pub log: LogStore,
    /// For openraft.
    pub machine: StateMachine,
    /// The applied state.
    pub reader: StateReader,
    /// The log itself: its failure must end the process.
    pub wal: Arc<Wal>,
    /// For receiving snapshots from other peers.
    pub snapshots: Arc<Snapshots>,
    /// When to ask openraft for a snapshot.
    pub trigger: SnapshotTrigger,
    /// How much of the log to keep.
    pub retention: Retention,
    /// To be used last, when the peer stops in good order.
    pub checkpoint: Checkpoint,
}

/// What a start does with the state that was saved at the last stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedState {
    /// It is not used, and none is saved.
    Unused,
    /// It is used where that is likely to be sooner than the snapshot and the log after it, or where it is the only copy.
    WhereItPays,
    /// It is used wherever it is newer than the snapshot.
    WhereNewer,
}

/// Opens stores.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    /// Sizes of the log.
    pub wal: WalOptions,
    /// Whether to use what was saved at the last stop.
    pub saved: SavedState,
    /// The cluster versions that this release can work in.
    pub supports: VersionRange,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            wal: WalOptions::default(),
            saved: SavedState::WhereItPays,
            supports: SUPPORTED,
        }
    }
}

impl Store {
    /// Opens the store in `dir`, or makes one if the peer never had one. Reads and verifies all of it, and
    /// restores the state of the newest snapshot; openraft applies the log from there. Blocks.
    ///
    /// The lock on the directory is held until the log is closed, and `dir` and the checkpoint are dropped.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub fn open(&self, dir: &mut DataDir) -> Result<Opened, OpenError> {
        let (opened, writer) = self.open_idle(dir)?;
        let started = opened.wal.start(writer, self.wal.stall);
        started.map_err(OpenError::Wal)?;
        opened.snapshots.keep_calm(true);
        if opened.trigger.is_overdue() {
            opened.snapshots.hurry();
        }
        Ok(opened)
    }

    /// A store whose log writes nothing yet: [`Wal::start`] starts the writer.
    pub(crate) fn open_idle(&self, dir: &mut DataDir) -> Result<(Opened, Writer), OpenError> {
        if dir.log_was_cut() {
            return Err(OpenError::LogCut {
                path: dir.path().to_owned(),
            });
        }
        let disk = Arc::clone(dir.disk());
        let (wal_dir, snapshot_dir) = (dir.path().join(WAL_DIR), dir.path().join(SNAPSHOT_DIR));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        for path in [&wal_dir, &snapshot_dir] {
            disk.create_dir(path).map_err(io(path))?;
        }
        disk.sync_dir(dir.path()).map_err(io(dir.path()))?;
        if dir.log_was_made() && !holds_log(&disk.list(&wal_dir).map_err(io(&wal_dir))?) {
            return Err(OpenError::LogLost {
                path: dir.path().to_owned(),
            });
        }
        let snapshots = Snapshots::open_readable(Arc::clone(&disk), &snapshot_dir);
        let (snapshots, mut unread) = snapshots.map_err(OpenError::Snapshot)?;
        let snapshots = Arc::new(snapshots);
        let opened = Wal::open_idle(Arc::clone(&disk), &wal_dir, self.wal, known(dir));
        let (wal, writer) = opened.map_err(OpenError::Wal)?;
        let wal = wal.holding(Arc::clone(dir.lock()));
        if !dir.log_was_made() {
            dir.note_log_made()?;
        }
        let (wal, place) = (Arc::new(wal), Place::new(disk, dir.path()));
        let saved = self.saved(dir.path(), &place, &wal, (&snapshots, &mut unread))?;
        for unread in &unread {
            snapshots.put_aside(unread).map_err(OpenError::Snapshot)?;
        }
        let place = (self.saved != SavedState::Unused).then_some(place);
        let applied = match &saved {
            Some(saved) => saved.applied.clone(),
            None => restore(dir.path(), &wal, snapshots.current())?,
        };
        self.check_version(&applied)?;
        let machine = StateMachine::new(applied, Arc::clone(&snapshots)).supporting(self.supports);
        let reader = machine.reader();
        let lock = Arc::clone(dir.lock());
        let checkpoint = Checkpoint::start(place, saved, Arc::clone(&wal), reader.clone(), lock);
        let opened = Opened {
            log: LogStore::new(Arc::clone(&wal), Arc::clone(&snapshots)),
            machine,
            retention: Retention::new(Arc::clone(&wal), Arc::clone(&snapshots)),
            trigger: SnapshotTrigger::new(Arc::clone(&wal), Arc::clone(&snapshots), reader.clone()),
            checkpoint: checkpoint.map_err(OpenError::Checkpoint)?,
            reader,
            wal,
            snapshots,
        };
        Ok((opened, writer))
    }

    /// The state that was saved at the last stop, if it is to be used. Nothing vouches for it from then on, also if it is not,
    /// since what is saved now will not be the state at the next start; but where it is the only copy, that ends last, when
    /// the checkpoint is begun. What is missed of the snapshots that are `unread` is made sure of first. Where nothing is
    /// missed, what vouches for a state and cannot be read does not vouch.
    fn saved(
        &self,
        dir: &Path,
        place: &Place,
        wal: &Wal,
        (snapshots, unread): (&Snapshots, &mut Vec<Unread>),
    ) -> Result<Option<Saved>, OpenError> {
        let snapshot = snapshots.current().and_then(|it| it.head.last);
        let Some(purged) = gap(wal, snapshot) else {
            do_without(unread, dir, wal, snapshot)?;
            let vouched = place.vouched().unwrap_or_else(|doubt| {
                tracing::warn!(
                    error = &doubt as &dyn std::error::Error,
                    "the state saved at the last stop is not used: what vouches for it cannot be read. Look at the disk"
                );
                None
            });
            let usable = self.usable(vouched, wal, snapshot);
            let wanted = match usable.map_err(unread_log(dir))? {
                Some((marker, _)) if self.is_wanted(&marker, snapshots)? => Some(marker),
                _ => None,
            };
            let taken = match wanted {
                Some(marker) => place.take(marker),
                None => place.disown().map(|()| None),
            };
            return taken.map_err(|source| OpenError::Disown {
                path: place.marker(),
                source,
            });
        };
        let Some((marker, _)) = self.only_copy(dir, place, wal, (purged, snapshot))? else {
            do_without(unread, dir, wal, snapshot)?;
            return Err(OpenError::gap(dir, purged, snapshot));
        };
        let saved = place.read_only_copy(marker);
        let saved = saved.map_err(OpenError::unread_copy(dir, purged))?;
        tracing::error!(
            "no intact snapshot of {} reaches entry {purged}, after which its log begins: they were removed, or damaged. \
             The state saved at the last stop is the only copy, and is used; a snapshot is taken at once. If this peer \
             crashes before, remove its data directory, so that it joins again under a new id; but if its cluster is to be \
             recovered from it, see docs/runbooks/lost-majority.md",
            dir.display()
        );
        Ok(Some(saved))
    }

    /// What vouches for the state that was saved at the last stop, and the entry it ends with, where the log begins after
    /// `purged` and no snapshot reaches it. Changes nothing.
    fn only_copy(
        &self,
        dir: &Path,
        place: &Place,
        wal: &Wal,
        (purged, snapshot): (LogId, Option<LogId>),
    ) -> Result<Option<(Marker, LogId)>, OpenError> {
        let vouched = place.vouched();
        let vouched = vouched.map_err(OpenError::unread_copy(dir, purged))?;
        let usable = self.usable(vouched, wal, snapshot);
        usable.map_err(unread_log(dir))
    }

    /// What vouches for a saved state, and the entry it ends with, if it is to be used at all, is of an entry of this log, and
    /// is newer than the snapshot's.
    fn usable(
        &self,
        vouched: Option<Marker>,
        wal: &Wal,
        snapshot: Option<LogId>,
    ) -> io::Result<Option<(Marker, LogId)>> {
        let vouched = vouched.filter(|_| self.saved != SavedState::Unused);
        let ended = vouched.and_then(|marker| marker.head.last.map(|last| (marker, last)));
        match ended.filter(|(_, last)| Some(*last) > snapshot) {
            Some((marker, last)) => Ok(holds(wal, last)?.then_some((marker, last))),
            None => Ok(None),
        }
    }

    /// Whether a saved state that is newer than the snapshot is worth reading, where both are there.
    fn is_wanted(&self, saved: &Marker, snapshots: &Snapshots) -> Result<bool, OpenError> {
        let Some(snapshot) = snapshots.current() else {
            return Ok(true);
        };
        if self.saved == SavedState::WhereNewer {
            return Ok(true);
        }
        let index = |head: &SnapshotHead| head.last.map_or(0, |last| last.index.0);
        let entries = index(&saved.head).saturating_sub(index(&snapshot.head));
        let bytes = snapshot.file.size().map_err(|source| {
            OpenError::Snapshot(SnapshotError::Io {
                what: "read",
                path: snapshot.file.path().to_owned(),
                source,
            })
        })?;
        let wanted = pays(entries, bytes);
        if !wanted {
            tracing::info!(
                entries,
                bytes,
                "the state saved at the last stop is not used: the snapshot, and the entries after it, are read sooner"
            );
        }
        Ok(wanted)
    }

    /// The log of a peer that is down, and the state of its newest snapshot. Nothing is changed, and a log that was
    /// found to have lost entries is read too: it may be all that is left. A saved state is not read, since whatever reads its
    /// store also writes it. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::OnlySaved`] where a start would go on from the saved state.
    pub(crate) fn read(&self, dir: &DataDir) -> Result<(Wal, Applied), OpenError> {
        let disk = &**dir.disk();
        let (wal_dir, snapshot_dir) = (dir.path().join(WAL_DIR), dir.path().join(SNAPSHOT_DIR));
        let names = disk.list(&wal_dir).map_err(|source| OpenError::Io {
            path: wal_dir.clone(),
            source,
        })?;
        if dir.log_was_made() && !holds_log(&names) {
            return Err(OpenError::LogLost {
                path: dir.path().to_owned(),
            });
        }
        let newest = Snapshots::newest_in(disk, &snapshot_dir);
        let (newest, mut unread) = newest.map_err(OpenError::Snapshot)?;
        let wal = Wal::open_to_read(disk, &wal_dir, self.wal, known(dir));
        let wal = wal.map_err(OpenError::Wal)?;
        let last = newest.as_ref().and_then(|it| it.head.last);
        let may_start = !dir.log_was_cut() && !dir.is_removed();
        if let Some(purged) = gap(&wal, last).filter(|_| may_start) {
            let place = Place::new(Arc::clone(dir.disk()), dir.path());
            if let Some((_, saved)) = self.only_copy(dir.path(), &place, &wal, (purged, last))? {
                return Err(OpenError::OnlySaved {
                    path: dir.path().to_owned(),
                    purged,
                    saved,
                });
            }
        }
        do_without(&mut unread, dir.path(), &wal, last)?;
        let applied = restore(dir.path(), &wal, newest)?;
        self.check_version(&applied)?;
        Ok((wal, applied))
    }

    /// A cluster has a version from its first entry on.
    fn check_version(&self, applied: &Applied) -> Result<(), OpenError> {
        if applied.state.cluster().is_none() {
            return Ok(());
        }
        let supported = self.supports.check(applied.state.version());
        supported.map_err(OpenError::Unsupported)
    }
}

/// What is known of the log in `dir`: opening writes a group and syncs it before the log is noted as made.
fn known(dir: &DataDir) -> Known {
    if dir.log_was_made() {
        Known::Synced
    } else {
        Known::Nothing
    }
}

fn holds_log(names: &[String]) -> bool {
    names.iter().any(|name| name.ends_with(".wal"))
}

/// Whether the log holds this very entry.
fn holds(wal: &Wal, id: LogId) -> io::Result<bool> {
    let entries = wal.read_blocking(id.index.0..id.index.0 + 1)?;
    Ok(entries.first().is_some_and(|entry| entry.id == id))
}

/// Goes on without the snapshots that are damaged or could not be read, where nothing is missed: the newest other one, which ends
/// with `newest`, or the very beginning reaches the log, and one of both holds the very entry that each of them ends with.
///
/// # Errors
/// [`OpenError::Snapshot`] of the first that is needed.
fn do_without(
    unread: &mut Vec<Unread>,
    dir: &Path,
    wal: &Wal,
    newest: Option<LogId>,
) -> Result<(), OpenError> {
    let reaches = gap(wal, newest).is_none();
    for at in 0..unread.len() {
        let Unread { last, error, .. } = &unread[at];
        let held = newest >= Some(*last) || holds(wal, *last).map_err(unread_log(dir))?;
        if !reaches || !held {
            return Err(OpenError::Snapshot(unread.swap_remove(at).error));
        }
        tracing::error!(
            error = error as &dyn std::error::Error,
            "a snapshot was passed over: what else there is holds as much. Look at the disk"
        );
    }
    Ok(())
}

fn unread_log(dir: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let wal = dir.join(WAL_DIR);
    move |source| OpenError::Wal(WalError::io("read", &wal, source))
}

/// The entry that the log begins after, if the newest snapshot, which ends with `last`, does not reach it.
fn gap(wal: &Wal, last: Option<LogId>) -> Option<LogId> {
    let purged = wal.purged()?;
    last.is_none_or(|last| last.index < purged.index)
        .then_some(purged)
}

/// The state of the newest snapshot, which the log must continue.
pub(crate) fn restore(
    dir: &Path,
    wal: &Wal,
    current: Option<Snapshot>,
) -> Result<Applied, OpenError> {
    let last = current.as_ref().and_then(|it| it.head.last);
    if let Some(purged) = gap(wal, last) {
        return Err(OpenError::gap(dir, purged, last));
    }
    let Some(current) = current else {
        return Ok(Applied::default());
    };
    let (head, state): (_, State) = current.file.load().map_err(OpenError::Snapshot)?;
    Ok(Applied {
        last: head.last,
        membership: Arc::new(head.membership),
        state: Arc::new(state),
    })
}

#[cfg(test)]
mod tests;
