//! How fast a snapshot is written: the log, which clients wait for, is on the same disk.
//!
//! Written all at once, tens of megabytes wait for the disk when the file is synced, and a sync of the log waits behind
//! them: in the disk's queue, and on ext4 also in the journal, whose commit has to bring along the data of every file that
//! grew (`data=ordered`). So a snapshot is synced piece by piece, and leaves the disk alone in between.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::disk::DiskFile;

/// Bytes that wait for the disk at once: a millisecond or two of a disk that is no fast one, which is what a sync of the
/// log takes in any case.
pub(super) const PIECE: usize = 256 << 10;

/// The least rest after each piece, so that few of the log's writes meet one: on a disk that syncs in a quarter of a
/// millisecond, less than one in a hundred. This makes 8 MB a second.
const REST: Duration = Duration::from_millis(30);

/// The rest after a piece whose sync took long, as a multiple of that: a disk that has much to do is the log's three quarters
/// of the time.
const REST_SHARE: u32 = 3;

/// The longest rest: a disk that stalled must not draw a snapshot out, for which the log's purge waits.
const REST_MAX: Duration = Duration::from_millis(100);

/// Whether there is a log on the same disk that clients wait for. A snapshot that is begun before this changes takes note of it.
#[derive(Debug, Default)]
pub(super) struct Calm(AtomicBool);

impl Calm {
    pub(super) fn set(&self, is_calm: bool) {
        self.0.store(is_calm, Ordering::Relaxed);
    }
}

/// Syncs a file as it is written.
#[derive(Debug)]
pub(super) struct Pace<'a> {
    calm: &'a Calm,
    unsynced: usize,
}

impl<'a> Pace<'a> {
    pub(super) fn new(calm: &'a Calm) -> Self {
        Self { calm, unsynced: 0 }
    }

    /// Notes that so many bytes more were written, and waits for the disk if they make a piece. Blocks.
    ///
    /// # Errors
    /// As the operating system says of a sync. Fatal.
    pub(super) fn wrote(&mut self, bytes: usize, file: &dyn DiskFile) -> io::Result<()> {
        self.unsynced += bytes;
        if self.unsynced < PIECE {
            return Ok(());
        }
        self.unsynced = 0;
        let begun = Instant::now();
        file.sync()?;
        if self.calm.0.load(Ordering::Relaxed) {
            std::thread::sleep(rest_after(begun.elapsed()));
        }
        Ok(())
    }
}

fn rest_after(sync: Duration) -> Duration {
    (sync * REST_SHARE).clamp(REST, REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_left_alone_for_longer_and_a_stalled_one_not_for_ever() {
        let ms = Duration::from_millis;
        assert_eq!(rest_after(ms(0)), REST);
        assert_eq!(rest_after(ms(12)), ms(36));
        assert_eq!(rest_after(Duration::from_secs(9)), REST_MAX);
    }
}
