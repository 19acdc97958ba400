//! How much room is left on the file system of the data directory. A write that finds none ends the peer, as it must, and
//! peers with equal disks fill them at the same time: so it is said before.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bincode::{Decode, Encode};
use tokio::time::{MissedTickBehavior, interval};

use super::core::Core;

/// How often it is looked. At a hundred megabytes a second, what is warned of below lasts for some seconds more than that.
const PERIOD: Duration = Duration::from_secs(2);

/// Below this share of a file system there is little room in it: a twentieth.
const SHARE: u64 = 20;

/// Nor is less than this much room: the log writes on while somebody is called.
const LEAST: u64 = 256 << 20;

/// More than this much room is never little for its share alone.
const MOST: u64 = 4 << 30;

/// A file system that is small as a whole is not short of room for that: a quarter of it is enough.
const SMALL: u64 = 4;

/// How much more room there has to be than where the shortage began, in quarters, before it is over.
const OVER: (u64, u64) = (5, 4);

/// Room on the file system of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Room {
    /// Bytes that may still be written.
    pub free: u64,
    /// Bytes that it has in all.
    pub total: u64,
    /// Whether somebody has to make room.
    pub is_short: bool,
}

/// Below how many free bytes there is a shortage, on a file system of `total` bytes where a snapshot and a segment of the
/// log take so many. The next snapshot is written beside the two that are kept, and the log grows meanwhile.
fn mark(total: u64, snapshot: u64, segment: u64) -> u64 {
    let usual = (total / SHARE).clamp(LEAST, MOST).min(total / SMALL);
    let next = snapshot
        .saturating_mul(2)
        .saturating_add(segment.saturating_mul(2));
    usual.max(next.min(total / 2))
}

/// What is left, given what was said before: a shortage is over only once there is clearly more than where it began.
fn judge(before: Option<Room>, free: u64, total: u64, mark: u64) -> Room {
    let (more, parts) = OVER;
    let was_short = before.is_some_and(|it| it.is_short);
    let until = match was_short {
        true => mark / parts * more,
        false => mark,
    };
    Room {
        free,
        total,
        is_short: free < until,
    }
}

/// Free and total bytes of the file system of `path`, for who is not its superuser.
///
/// # Errors
/// What the operating system says.
fn look(path: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok((bytes(found.f_bavail), bytes(found.f_blocks)))
}

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Option<Room>>);

impl Seen {
    /// What was seen last; none before the first look.
    pub(crate) fn last(&self) -> Option<Room> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, room: Room) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
    }
}

/// Looks for as long as this peer runs, and says at warn when room becomes short. `segment` is how large a segment of the
/// log becomes.
pub(crate) async fn run(core: Arc<Core>, folder: PathBuf, segment: u64) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        period.tick().await;
        let (at, snapshots) = (folder.clone(), Arc::clone(&core.snapshots));
        // A disk may hold up whoever asks it.
        let looking = tokio::task::spawn_blocking(move || {
            let snapshot = snapshots.current().and_then(|it| it.file.size().ok());
            look(&at).map(|found| (found, snapshot.unwrap_or(0)))
        });
        let Ok(looked) = looking.await else {
            return;
        };
        let ((free, total), snapshot) = match looked {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%error, folder = %folder.display(), "cannot tell how much room is left");
                }
                continue;
            }
        };
        failed = false;
        let before = core.room.last();
        let room = judge(before, free, total, mark(total, snapshot, segment));
        core.room.set(room);
        match (before.is_some_and(|it| it.is_short), room.is_short) {
            (false, true) => tracing::warn!(
                free_mib = free >> 20, total_mib = total >> 20, folder = %folder.display(),
                "there is little room left on the disk of the data directory: this peer ends when there is none. See \
                 docs/runbooks/full-disk.md"
            ),
            (true, false) => tracing::info!(
                free_mib = free >> 20,
                "there is room again on the disk of the data directory"
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_mark_is_a_share_of_the_disk_and_never_less_than_what_comes_next_needs() {
        let segment = 64 * MIB;
        let of = |total, snapshot| mark(total, snapshot, segment);
        assert_eq!(of(40 * GIB, 0), 2 * GIB);
        assert_eq!(of(2000 * GIB, 0), 4 * GIB, "room enough for anybody");
        assert_eq!(of(2 * GIB, 0), 256 * MIB, "a twentieth would be too little");
        assert_eq!(of(4 * GIB, GIB), 2 * GIB, "the half of it at most");
        assert_eq!(of(100 * GIB, 4 * GIB), 8 * GIB + 128 * MIB);
        assert_eq!(
            mark(64 * MIB, 0, MIB),
            16 * MIB,
            "a small one is no short one"
        );
        assert_eq!(mark(0, 0, 0), 0);
        assert_eq!(mark(u64::MAX, u64::MAX, u64::MAX), u64::MAX / 2);
    }

    #[test]
    fn a_shortage_is_over_only_once_there_is_clearly_more_room() {
        let mut seen = None;
        let mut is_short = |free| {
            let room = judge(seen, free, 1_000, 100);
            seen = Some(room);
            room.is_short
        };
        assert!(!is_short(100));
        assert!(is_short(99));
        assert!(is_short(124), "it would be said again and again");
        assert!(!is_short(125));
        assert!(!is_short(100));
    }

    #[test]
    fn a_real_file_system_tells_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let (free, total) = look(folder.path()).unwrap();
        assert!(0 < total && free <= total, "{free} of {total}");
        assert!(look(&folder.path().join("missing")).is_err());
    }
}
