//! How fast a snapshot is written: the log, which clients wait for, is on the same disk.
//!
//! Written all at once, tens of megabytes wait for the disk when the file is synced, and a sync of the log waits behind
//! them: in the disk's queue, and on ext4 also in the journal, whose commit has to bring along the data of every file that
//! grew (`data=ordered`). So a snapshot is synced piece by piece, and leaves the disk alone in between.

use std::io;
use std::time::{Duration, Instant};

use crate::disk::DiskFile;

/// Bytes that wait for the disk at once: a millisecond or two of a disk that is no fast one, which is what a sync of the
/// log takes in any case.
pub(super) const PIECE: usize = 256 << 10;

/// The rest after each piece, as a multiple of the time that its sync took: the disk is the log's three quarters of the time,
/// and a disk that has much to do is left alone for longer.
const REST: u32 = 3;

/// The longest rest: a disk that stalled must not draw a snapshot out, for which a stop and the log's purge wait.
const REST_MAX: Duration = Duration::from_millis(20);

/// Syncs a file as it is written.
#[derive(Debug, Default)]
pub(super) struct Pace {
    unsynced: usize,
}

impl Pace {
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
        std::thread::sleep(rest_after(begun.elapsed()));
        Ok(())
    }
}

fn rest_after(sync: Duration) -> Duration {
    (sync * REST).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_left_alone_for_longer_and_a_stalled_one_not_for_ever() {
        let micros = Duration::from_micros;
        assert_eq!(rest_after(micros(0)), micros(0));
        assert_eq!(rest_after(micros(900)), micros(2_700));
        assert_eq!(rest_after(Duration::from_secs(9)), REST_MAX);
    }
}
