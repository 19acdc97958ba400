//! Reading the log back, and telling a write that a crash cut short from corruption.
//!
//! Group n + 1 is written only after group n was synced. So damage can be a torn write only in the last
//! group of the last segment: no intact record of a later group may follow it. Then the group's rest is
//! cut off, whatever of it survived further on, since unsynced pages reach the disk in any order. Any
//! other damage hits data that was synced: the log is refused. Damage of synced records at the very
//! end of the log cannot be told from a torn write by one peer alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::WalError;
use super::format::{
    HEADER_LEN, Header, HeaderFault, Kind, Record, RecordFault, entry_id, highest_group,
    parse_record,
};
use super::view::{Place, View};
use crate::codec;
use crate::disk::{Disk, DiskFile};

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
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) salt: u32,
    pub(super) size: u64,
    /// CRC of its last record.
    pub(super) last_crc: u32,
    /// The highest entry index in it, void ones included.
    pub(super) highest: Option<u64>,
    sealed: bool,
}

/// Where reading has come to.
#[derive(Debug)]
pub(super) struct Recovery {
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
    /// Reads the log in `dir`, cutting off a torn tail.
    pub(super) fn run(disk: &dyn Disk, dir: &Path, cache_max: usize) -> Result<Self, WalError> {
        let mut recovery = Self {
            view: View::new(cache_max),
            segments: Vec::new(),
            group: 0,
            group_ended: true,
            torn: None,
            read_any: false,
        };
        let numbers = numbers(disk, dir)?;
        for (at, &number) in numbers.iter().enumerate() {
            let path = segment_path(dir, number);
            let expected = numbers[0] + at as u64;
            if number != expected {
                return Err(WalError::Missing {
                    path: segment_path(dir, expected),
                });
            }
            recovery.read_segment(disk, &path, number, at + 1 == numbers.len())?;
        }
        recovery.check_start(dir)?;
        Ok(recovery)
    }

    fn read_segment(
        &mut self,
        disk: &dyn Disk,
        path: &Path,
        number: u64,
        is_last: bool,
    ) -> Result<(), WalError> {
        let io = |source| WalError::io("read", path, source);
        let file = disk.open(path).map_err(io)?;
        let size = file.size().map_err(io)?;
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| WalError::too_large(path))?];
        file.read_at(0, &mut bytes).map_err(io)?;

        let (header, salt) = match Header::decode(&bytes) {
            Ok(found) => found,
            Err(HeaderFault::Format(found)) => return Err(WalError::format(path, found)),
            // The header is synced before the first record is written.
            Err(HeaderFault::Damaged)
                if is_last
                    && bytes.len() <= HEADER_LEN
                    && (number == 1 || !self.segments.is_empty()) =>
            {
                return self.drop_unborn(disk, path, size);
            }
            Err(HeaderFault::Damaged) => {
                return Err(WalError::corrupt(
                    path,
                    0,
                    "the segment's header is damaged",
                ));
            }
        };
        if header.number != number {
            return Err(WalError::corrupt(path, 0, "it is another segment, renamed"));
        }
        if let Some(previous) = self.segments.last() {
            if !previous.sealed || !self.group_ended {
                let what = "the segment before it does not end with a seal";
                return Err(WalError::corrupt(path, 0, what));
            }
            if header.previous_crc != previous.last_crc || header.first_group != self.group + 1 {
                let what = "it does not continue the segment before it";
                return Err(WalError::corrupt(path, 0, what));
            }
        } else {
            self.group = header.first_group.saturating_sub(1);
        }
        self.segments.push(Segment {
            number,
            file: Arc::clone(&file),
            salt,
            size,
            last_crc: 0,
            highest: None,
            sealed: false,
        });
        self.view.files.insert(number, (file, salt));
        self.read_records(path, &bytes, is_last)
    }

    /// Removes a segment whose creation a crash cut short.
    fn drop_unborn(&mut self, disk: &dyn Disk, path: &Path, size: u64) -> Result<(), WalError> {
        disk.remove(path)
            .map_err(|source| WalError::io("remove", path, source))?;
        self.torn = Some(TornTail {
            path: path.to_owned(),
            offset: 0,
            bytes: size,
        });
        Ok(())
    }

    fn read_records(&mut self, path: &Path, bytes: &[u8], is_last: bool) -> Result<(), WalError> {
        let segment = self.segments.last().expect("the caller has just pushed it");
        let (number, salt) = (segment.number, segment.salt);
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let fault = match parse_record(&bytes[at..], salt) {
                Ok((record, length)) if self.continues(&record) => {
                    self.replay(path, number, at, &record, length)?;
                    at += length;
                    continue;
                }
                Ok(_) => "a record is out of sequence",
                Err(RecordFault::Version(found)) => {
                    return Err(WalError::record_version(path, at, found));
                }
                Err(RecordFault::Short) => "a record is cut short",
                Err(RecordFault::Damaged) => "a record is damaged",
            };
            return self.cut(path, bytes, at, fault, is_last);
        }
        let segment = self.segments.last().expect("pushed by the caller");
        if !is_last && !segment.sealed {
            return Err(WalError::corrupt(path, at, "the segment's end is missing"));
        }
        Ok(())
    }

    /// Whether a record may come next: groups are numbered without gaps, and a seal is the last.
    fn continues(&self, record: &Record<'_>) -> bool {
        let sealed = self.segments.last().is_some_and(|segment| segment.sealed);
        !sealed && record.group == self.group + u64::from(self.group_ended)
    }

    /// Cuts the log off at `at` if the damage there can be a torn write.
    fn cut(
        &mut self,
        path: &Path,
        bytes: &[u8],
        at: usize,
        fault: &str,
        is_last: bool,
    ) -> Result<(), WalError> {
        // Earlier segments are removed only once a group of a later one is synced.
        let must_hold_a_group = self.segments.len() == 1 && self.first_number() > 1;
        let holds_none = must_hold_a_group && !self.read_any;
        let torn_group = self.group + u64::from(self.group_ended);
        let segment = self.segments.last_mut().expect("pushed by the caller");
        let synced = !is_last || holds_none;
        if synced || highest_group(&bytes[at..], segment.salt, torn_group).is_some() {
            return Err(WalError::corrupt(path, at, fault));
        }
        let io = |source| WalError::io("cut the torn end off", path, source);
        segment.file.set_size(at as u64).map_err(io)?;
        segment.file.sync().map_err(io)?;
        segment.size = at as u64;
        self.torn = Some(TornTail {
            path: path.to_owned(),
            offset: at as u64,
            bytes: (bytes.len() - at) as u64,
        });
        Ok(())
    }

    fn replay(
        &mut self,
        path: &Path,
        number: u64,
        at: usize,
        record: &Record<'_>,
        length: usize,
    ) -> Result<(), WalError> {
        let bad = |what: &str| WalError::corrupt(path, at, what);
        let unreadable = |source| WalError::body(path, at, source);
        let segment = self.segments.last_mut().expect("pushed by the caller");
        segment.last_crc = record.crc;
        match record.kind {
            Kind::Entry => {
                let id = entry_id(record.index, record.body).ok_or_else(|| bad("short entry"))?;
                segment.highest = segment.highest.max(Some(record.index));
                let place = Place {
                    segment: number,
                    offset: at as u64,
                    length: u32::try_from(length).map_err(|_| bad("huge entry"))?,
                };
                let outcome = self.view.recover(id, place);
                outcome.map_err(|error| bad(&error.to_string()))?;
            }
            Kind::Vote => {
                self.view.vote = Some(codec::decode(record.body).map_err(unreadable)?);
            }
            Kind::Committed => {
                self.view.committed = codec::decode(record.body).map_err(unreadable)?;
            }
            Kind::Truncate => {
                let keep = codec::decode(record.body).map_err(unreadable)?;
                self.view.truncate(keep);
            }
            Kind::Purge => {
                let upto = codec::decode(record.body).map_err(unreadable)?;
                self.view.moves_durable_purge(upto);
                self.view.purge(upto);
            }
            Kind::Seal => segment.sealed = true,
            Kind::Close => {}
        }
        self.group = record.group;
        self.group_ended = record.ends_group;
        self.read_any |= record.ends_group;
        Ok(())
    }

    fn first_number(&self) -> u64 {
        self.segments.first().map_or(1, |segment| segment.number)
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

fn numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, WalError> {
    let names = disk
        .list(dir)
        .map_err(|source| WalError::io("list", dir, source))?;
    let number = |name: &String| name.strip_suffix(".wal")?.parse().ok();
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
