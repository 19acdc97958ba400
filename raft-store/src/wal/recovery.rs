//! Opening the log: joining what the segments say, and telling a write that a crash cut short from corruption.
//!
//! Group n + 1 is written only after group n was synced. So damage can be a torn write only in the last
//! group of the last segment: no intact record of a later group may follow it. Then the group's rest is
//! cut off, whatever of it survived further on, since unsynced pages reach the disk in any order. Any
//! other damage hits data that was synced: the log is refused, and so is one that holds no group though one
//! is known to have been synced. Damage of synced records at the very end of the log cannot be told from a
//! torn write by one peer alone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::format::HEADER_LEN;
use super::queue::lock;
use super::scan::{Finding, Scan, Stop};
use super::view::View;
use super::{WalError, WalOptions};
use crate::disk::{Disk, DiskFile};

/// Threads that read segments. More would wait for memory, not for the processor.
const READERS_MAX: usize = 4;

/// A smaller log is read before another thread has started.
const READ_IN_PARALLEL: u64 = 4 << 20;

/// The end of a log that a crash cut short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Where the damage began.
    pub offset: u64,
    /// How many bytes were cut off.
    pub bytes: u64,
}

/// A segment that was read.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) salt: u32,
    pub(super) size: u64,
    /// CRC of its last record.
    pub(super) last_crc: u32,
    /// The checksum of its records' checksums.
    pub(super) chain: u32,
    /// The highest entry index in it, void ones included.
    pub(super) highest: Option<u64>,
    /// Where its last group begins; 0 if it holds none.
    pub(super) group_start: u64,
    sealed: bool,
}

/// What is known of a log before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: a crash may have cut short its making.
    Nothing,
    /// A group of it was synced, so that a log without any is a log that was lost.
    Synced,
}

/// What becomes of the remains of a write that a crash cut short. They are passed over in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    /// They go, since the log is written on.
    Cut,
    /// They stay: the log is only read.
    Keep,
}

/// Where reading has come to.
#[derive(Debug)]
pub(super) struct Recovery {
    known: Known,
    remains: Remains,
    pub(super) view: View,
    /// By number. The last may be sealed; none in a new log.
    pub(super) segments: Vec<Segment>,
    /// The last group with an intact record.
    pub(super) group: u64,
    /// Whether that group is whole.
    pub(super) group_ended: bool,
    pub(super) torn: Option<TornTail>,
    /// Whether any group was read whole.
    read_any: bool,
}

/// The name of a segment's file.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.wal"))
}

impl Recovery {
    /// Reads the log in `dir`, without its torn tail.
    pub(super) fn run(
        disk: &dyn Disk,
        dir: &Path,
        options: &WalOptions,
        known: Known,
        remains: Remains,
    ) -> Result<Self, WalError> {
        let mut recovery = Self {
            known,
            remains,
            view: View::new(options.cache_max),
            segments: Vec::new(),
            group: 0,
            group_ended: true,
            torn: None,
            read_any: false,
        };
        let numbers = numbers(disk, dir)?;
        if numbers.is_empty() && known == Known::Synced {
            let path = segment_path(dir, 1);
            return Err(WalError::Missing { path });
        }
        for (expected, number) in (numbers.first().copied().unwrap_or(0)..).zip(&numbers) {
            if *number != expected {
                let path = segment_path(dir, expected);
                return Err(WalError::Missing { path });
            }
        }
        let last = numbers.last().copied();
        for scan in scan_all(disk, dir, &numbers, options)? {
            let is_last = Some(scan.number) == last;
            recovery.join(disk, scan, is_last)?;
        }
        recovery.check_start(dir)?;
        Ok(recovery)
    }

    /// Takes the next segment.
    fn join(&mut self, disk: &dyn Disk, mut scan: Scan, is_last: bool) -> Result<(), WalError> {
        let holds_too_little = self.must_hold_a_group(scan.number) && !scan.read_any;
        match scan.stop.take() {
            None if holds_too_little => {
                let what = "the segment ends before its first group does, which was synced";
                Err(WalError::corrupt(&scan.path, scan.size, what))
            }
            None => self.attach(scan, is_last),
            Some(Stop::Header) => {
                // The header is synced before the first record is written.
                let unborn = is_last && scan.size <= HEADER_LEN as u64 && !holds_too_little;
                if unborn {
                    return self.drop_unborn(disk, &scan.path, scan.size);
                }
                let what = "the segment's header is damaged";
                Err(WalError::corrupt(&scan.path, 0, what))
            }
            Some(Stop::Record {
                at,
                what,
                later_group,
            }) => {
                self.check_link(&scan)?;
                if !is_last || holds_too_little || later_group {
                    return Err(WalError::corrupt(&scan.path, at, what));
                }
                self.cut(&mut scan, at)?;
                self.attach(scan, is_last)
            }
            Some(Stop::Refused(refused)) => Err(refused),
        }
    }

    /// Whether a group of the next segment is known to have been synced. Earlier segments are removed only once
    /// one of a later is.
    fn must_hold_a_group(&self, number: u64) -> bool {
        self.segments.is_empty() && (number > 1 || self.known == Known::Synced)
    }

    /// Whether a segment continues the one before it.
    fn check_link(&self, scan: &Scan) -> Result<(), WalError> {
        let broken = |what| Err(WalError::corrupt(&scan.path, 0, what));
        if scan.header.number != scan.number {
            return broken("it is another segment, renamed");
        }
        let Some(previous) = self.segments.last() else {
            return Ok(());
        };
        if !previous.sealed || !self.group_ended {
            return broken("the segment before it does not end with a seal");
        }
        let follows = scan.header.first_group == self.group + 1;
        if scan.header.previous_crc != previous.last_crc || !follows {
            return broken("it does not continue the segment before it");
        }
        Ok(())
    }

    /// Removes a segment whose creation a crash cut short.
    fn drop_unborn(&mut self, disk: &dyn Disk, path: &Path, size: u64) -> Result<(), WalError> {
        if self.remains == Remains::Cut {
            disk.remove(path)
                .map_err(|source| WalError::io("remove", path, source))?;
        }
        self.torn = Some(TornTail {
            path: path.to_owned(),
            offset: 0,
            bytes: size,
        });
        Ok(())
    }

    /// Cuts a torn write off.
    fn cut(&mut self, scan: &mut Scan, at: u64) -> Result<(), WalError> {
        let io = |source| WalError::io("cut the torn end off", &scan.path, source);
        if self.remains == Remains::Cut {
            scan.file.set_size(at).map_err(io)?;
            scan.file.sync().map_err(io)?;
        }
        self.torn = Some(TornTail {
            path: scan.path.clone(),
            offset: at,
            bytes: scan.size - at,
        });
        scan.size = at;
        Ok(())
    }

    /// Adds a whole segment, and what it says, to the log.
    fn attach(&mut self, scan: Scan, is_last: bool) -> Result<(), WalError> {
        self.check_link(&scan)?;
        if !is_last && !scan.sealed {
            let what = "the segment's end is missing";
            return Err(WalError::corrupt(&scan.path, scan.size, what));
        }
        for (at, finding) in scan.findings {
            self.replay(finding)
                .map_err(|what| WalError::corrupt(&scan.path, at, &what))?;
        }
        let file = (Arc::clone(&scan.file), scan.salt);
        self.view.files.insert(scan.number, file);
        self.group = scan.group;
        self.group_ended = scan.group_ended;
        self.read_any |= scan.read_any;
        self.segments.push(Segment {
            path: scan.path,
            number: scan.number,
            file: scan.file,
            salt: scan.salt,
            size: scan.size,
            last_crc: scan.last_crc,
            chain: scan.chain,
            highest: scan.highest,
            group_start: scan.group_start,
            sealed: scan.sealed,
        });
        Ok(())
    }

    fn replay(&mut self, finding: Finding) -> Result<(), String> {
        match finding {
            Finding::Entries {
                first,
                places,
                last,
            } => {
                let outcome = self.view.recover(first, places, last);
                return outcome.map_err(|error| error.to_string());
            }
            Finding::Vote(vote) => self.view.vote = Some(vote),
            Finding::Committed(committed) => self.view.committed = committed,
            Finding::Truncate(keep) => self.view.truncate(keep),
            Finding::Purge(upto) => {
                self.view.moves_durable_purge(upto);
                self.view.purge(upto);
            }
        }
        Ok(())
    }

    /// Segments are removed from the front, and only below the purge mark.
    fn check_start(&self, dir: &Path) -> Result<(), WalError> {
        let Some(first) = self.segments.first() else {
            return Ok(());
        };
        let start = self.view.range().start;
        let purged = self.view.purged().map(|id| id.index.0);
        if first.number > 1
            && !self.view.range().is_empty()
            && Some(start) > purged.map(|it| it + 1)
        {
            return Err(WalError::Missing {
                path: segment_path(dir, first.number - 1),
            });
        }
        Ok(())
    }

    /// Whether the last segment takes no more records.
    pub(super) fn is_sealed(&self) -> bool {
        self.segments.last().is_none_or(|segment| segment.sealed)
    }
}

/// Reads all segments, several at a time; in order of their numbers.
fn scan_all(
    disk: &dyn Disk,
    dir: &Path,
    numbers: &[u64],
    options: &WalOptions,
) -> Result<Vec<Scan>, WalError> {
    let scan = |number| Scan::run(disk, &segment_path(dir, number), number);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let readers = processors.min(READERS_MAX).min(numbers.len());
    let bytes = numbers.len() as u64 * options.segment_size;
    if readers < 2 || bytes < READ_IN_PARALLEL {
        return numbers.iter().copied().map(scan).collect();
    }
    let next = AtomicUsize::new(0);
    let scans = Mutex::new(Vec::with_capacity(numbers.len()));
    let read = || {
        while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = scan(*number);
            lock(&scans).push((*number, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..readers {
            scope.spawn(read);
        }
        read();
    });
    let mut scans = scans.into_inner().unwrap_or_else(|it| it.into_inner());
    scans.sort_unstable_by_key(|(number, _)| *number);
    scans.into_iter().map(|(_, outcome)| outcome).collect()
}

fn numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, WalError> {
    let names = disk
        .list(dir)
        .map_err(|source| WalError::io("list", dir, source))?;
    // What has another name that ends so, as a copy made by hand, is none of ours.
    let number = |name: &String| {
        let number = name.strip_suffix(".wal")?.parse().ok()?;
        (segment_path(dir, number) == dir.join(name)).then_some(number)
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
