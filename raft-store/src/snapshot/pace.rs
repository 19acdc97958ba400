//! How fast a snapshot is written: the log, which clients wait for, is on the same disk.
//!
//! Written all at once, tens of megabytes wait for the disk when the file is synced, and a sync of the log waits behind
//! them: in the disk's queue, and on ext4 also in the journal, whose commit has to bring along the data of every file that
//! grew (`data=ordered`). So a snapshot is synced piece by piece, and leaves the disk alone in between.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::DiskFile;

/// Bytes that wait for the disk at once: a millisecond or two of a disk that is no fast one, which is what a sync of the
/// log takes in any case. Tests have small snapshots, and each sync is one more place to crash at.
pub(super) const PIECE: usize = if cfg!(test) { 512 } else { 256 << 10 };

/// The rest after each piece, so that few of the log's writes meet one: on a disk that syncs in a quarter of a millisecond,
/// less than one in a hundred. This makes 8 MB a second.
const REST: Duration = Duration::from_millis(30);

/// The rest after a piece whose sync took long, as a multiple of that: a disk that has much to do is the log's three quarters
/// of the time.
const REST_SHARE: u32 = 3;

/// The longest rest: a disk that stalled must not draw a snapshot out, for which the log's purge waits.
const REST_MAX: Duration = Duration::from_millis(100);

/// The part of the time between the beginnings of two snapshots that all rests of one may take together: where entries come so
/// fast that the next snapshot is soon due, peers must go on taking turns. The first snapshot after a start, and after a time in
/// which little came, knows no better.
const PART_OF_INTERVAL: u32 = 2;

/// Whether there is a log on the same disk that clients wait for, and how often snapshots are taken.
#[derive(Debug, Default)]
pub(super) struct Calm {
    kept: AtomicBool,
    hurries: AtomicBool,
    begun: Mutex<Option<Instant>>,
}

impl Calm {
    pub(super) fn keep(&self, is_kept: bool) {
        self.kept.store(is_kept, Ordering::Relaxed);
    }

    /// No snapshot rests until there is one.
    pub(super) fn hurry(&self) {
        self.hurries.store(true, Ordering::Relaxed);
    }

    /// A snapshot is in place.
    pub(super) fn has_one(&self) {
        self.hurries.store(false, Ordering::Relaxed);
    }

    pub(super) fn hurries(&self) -> bool {
        self.hurries.load(Ordering::Relaxed)
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// The pace of a snapshot that begins at `now` and will be about `bytes` long, if that can be told from the last one.
    pub(super) fn begin(&self, now: Instant, bytes: Option<u64>) -> Pace<'_> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let last = begun.replace(now);
        if self.hurries() {
            return Pace::at_once();
        }
        let most = last.zip(bytes).map_or(REST_MAX, |(last, bytes)| {
            let pieces = u32::try_from(bytes / PIECE as u64).unwrap_or(u32::MAX);
            now.saturating_duration_since(last) / PART_OF_INTERVAL / pieces.max(1)
        });
        Pace {
            calm: Some(self),
            most,
            unsynced: 0,
        }
    }
}

/// Syncs a file as it is written.
#[derive(Debug)]
pub(super) struct Pace<'a> {
    calm: Option<&'a Calm>,
    /// The longest rest.
    most: Duration,
    unsynced: usize,
}

impl Pace<'_> {
    /// Without rests, for somebody who waits.
    pub(super) fn at_once() -> Self {
        Self {
            calm: None,
            most: Duration::ZERO,
            unsynced: 0,
        }
    }

    /// Notes that so many bytes more were written, and waits for the disk if they make a piece. Blocks; returns for how long
    /// it rested then.
    ///
    /// # Errors
    /// As the operating system says of a sync. Fatal.
    pub(super) fn wrote(&mut self, bytes: usize, file: &dyn DiskFile) -> io::Result<Duration> {
        self.unsynced += bytes;
        if self.unsynced < PIECE {
            return Ok(Duration::ZERO);
        }
        self.unsynced = 0;
        let begun = Instant::now();
        file.sync()?;
        if !self.calm.is_some_and(Calm::is_kept) {
            return Ok(Duration::ZERO);
        }
        let rest = rest_after(begun.elapsed()).min(self.most);
        std::thread::sleep(rest);
        Ok(rest)
    }
}

fn rest_after(sync: Duration) -> Duration {
    (sync * REST_SHARE).clamp(REST, REST_MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::simulated::SimulatedDisk;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_slow_disk_is_left_alone_for_longer_and_a_stalled_one_not_for_ever() {
        let ms = Duration::from_millis;
        assert_eq!(rest_after(ms(0)), REST);
        assert_eq!(rest_after(ms(12)), ms(36));
        assert_eq!(rest_after(Duration::from_secs(9)), REST_MAX);
    }

    #[test]
    fn it_rests_after_each_piece_while_there_is_somebody_to_rest_for() {
        let disk = SimulatedDisk::default();
        let file = disk.create(Path::new("/file")).unwrap();
        let calm = Calm::default();
        let rests = |pace: &mut Pace<'_>| pace.wrote(PIECE, &*file).unwrap() >= REST;
        let mut pace = calm.begin(Instant::now(), None);
        assert!(!rests(&mut pace), "there is no log yet");
        calm.keep(true);
        assert!(rests(&mut pace));
        assert_eq!(pace.wrote(PIECE - 1, &*file).unwrap(), Duration::ZERO);
        assert!(pace.wrote(1, &*file).unwrap() >= REST, "a piece in parts");
        calm.keep(false);
        assert!(!rests(&mut pace), "the peer stops");
        calm.keep(true);
        assert!(!rests(&mut Pace::at_once()));
        calm.hurry();
        for _ in 0..2 {
            assert!(!rests(&mut calm.begin(Instant::now(), None)));
        }
        calm.has_one();
        assert!(rests(&mut calm.begin(Instant::now(), None)));
    }

    #[test]
    fn where_snapshots_are_taken_often_each_is_quick() {
        let calm = Calm::default();
        let begun = Instant::now();
        let bytes = Some(100 * PIECE as u64 + 1);
        assert_eq!(calm.begin(begun, bytes).most, REST_MAX);
        let soon = calm.begin(begun + 2 * SECOND, bytes).most;
        assert_eq!(soon, SECOND / 100);
        let late = calm.begin(begun + 202 * SECOND, bytes).most;
        assert_eq!(late, SECOND);
        let small = calm.begin(begun + 204 * SECOND, Some(1)).most;
        assert_eq!(small, SECOND);
    }
}
