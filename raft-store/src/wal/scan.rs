//! Reading one segment by itself: every record verified, none judged by what other segments hold.
//!
//! So segments can be read on several threads at once, and [`super::recovery`] joins the findings in order.
//! A segment is read through a window that fits a processor's cache; it is never in memory as a whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::WalError;
use super::format::{
    HEADER_LEN, Header, HeaderFault, Kind, RECORD_HEAD, Record, RecordFault, chain, entry_id,
    later_group, parse_record, record_length,
};
use super::view::Place;
use crate::codec;
use crate::disk::{Disk, DiskFile};
use crate::entry::{LogId, Vote};

/// Bytes read at a time: what stays in a processor's second-level cache while it is verified.
const WINDOW: usize = 256 << 10;

/// What a segment says, in order.
#[derive(Debug)]
pub(super) enum Finding {
    /// Entries with consecutive indexes; the last one's id.
    Entries {
        first: u64,
        places: Vec<Place>,
        last: LogId,
    },
    Vote(Vote),
    Committed(Option<LogId>),
    Truncate(Option<LogId>),
    Purge(LogId),
}

/// Where and why reading ended before the end of the file.
#[derive(Debug)]
pub(super) enum Stop {
    /// The header is not one that was written whole.
    Header,
    /// No record, or not the one that must follow, is at this offset.
    Record {
        at: u64,
        what: &'static str,
        /// Whether an intact record of a later group follows: then the damage is no torn write.
        later_group: bool,
    },
    /// It cannot be read at all, whatever the other segments say.
    Refused(WalError),
}

/// A segment that was read.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) path: PathBuf,
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) size: u64,
    pub(super) header: Header,
    pub(super) salt: u32,
    /// With the offset of each one's first record.
    pub(super) findings: Vec<(u64, Finding)>,
    /// CRC of its last record.
    pub(super) last_crc: u32,
    /// The checksum of its records' checksums.
    pub(super) chain: u32,
    /// The highest entry index in it, void ones included.
    pub(super) highest: Option<u64>,
    pub(super) sealed: bool,
    /// The last group with an intact record; the one before its first without any.
    pub(super) group: u64,
    /// Whether that group is whole.
    pub(super) group_ended: bool,
    /// Where that group begins; 0 without any.
    pub(super) group_start: u64,
    /// Whether any group was read whole.
    pub(super) read_any: bool,
    pub(super) stop: Option<Stop>,
}

impl Scan {
    /// Reads segment `number`.
    ///
    /// # Errors
    /// [`WalError::Io`]. What is wrong with the contents is in [`Scan::stop`].
    pub(super) fn run(disk: &dyn Disk, path: &Path, number: u64) -> Result<Self, WalError> {
        let io = |source| WalError::io("read", path, source);
        let file = disk.open(path).map_err(io)?;
        let size = file.size().map_err(io)?;
        let mut scan = Self {
            path: path.to_owned(),
            number,
            file: Arc::clone(&file),
            size,
            header: Header::default(),
            salt: 0,
            findings: Vec::new(),
            last_crc: 0,
            chain: 0,
            highest: None,
            sealed: false,
            group: 0,
            group_ended: true,
            group_start: 0,
            read_any: false,
            stop: None,
        };
        let mut window = Window::new(&*file, size);
        match Header::decode(window.bytes(0, HEADER_LEN).map_err(io)?) {
            Ok((header, salt)) => (scan.header, scan.salt) = (header, salt),
            Err(HeaderFault::Format(found)) => {
                scan.stop = Some(Stop::Refused(WalError::format(path, found)));
                return Ok(scan);
            }
            Err(HeaderFault::Damaged) => {
                scan.stop = Some(Stop::Header);
                return Ok(scan);
            }
        }
        scan.group = scan.header.first_group.saturating_sub(1);
        scan.stop = scan.read_records(&mut window).map_err(io)?;
        Ok(scan)
    }

    fn read_records(&mut self, window: &mut Window<'_>) -> io::Result<Option<Stop>> {
        let mut at = HEADER_LEN as u64;
        while at < self.size {
            let what = match parse_record(window.record(at)?, self.salt) {
                Ok((record, length)) if self.continues(&record) => {
                    if let Err(refused) = self.take(at, &record, length) {
                        return Ok(Some(Stop::Refused(refused)));
                    }
                    at += length as u64;
                    continue;
                }
                Ok(_) => "a record is out of sequence",
                Err(RecordFault::Version(found)) => {
                    let refused = WalError::record_version(&self.path, at, found);
                    return Ok(Some(Stop::Refused(refused)));
                }
                Err(RecordFault::Short) => "a record is cut short",
                Err(RecordFault::Damaged) => "a record is damaged",
            };
            let torn_group = self.group + u64::from(self.group_ended);
            let rest = window.rest(at)?;
            return Ok(Some(Stop::Record {
                at,
                what,
                later_group: later_group(rest, self.salt, torn_group),
            }));
        }
        Ok(None)
    }

    /// Whether a record may come next: groups are numbered without gaps, and a seal is the last.
    fn continues(&self, record: &Record<'_>) -> bool {
        !self.sealed && record.group == self.group + u64::from(self.group_ended)
    }

    fn take(&mut self, at: u64, record: &Record<'_>, length: usize) -> Result<(), WalError> {
        let unreadable = |source| WalError::body(&self.path, at, source);
        let finding = match record.kind {
            Kind::Entry => {
                self.take_entry(at, record, length)?;
                None
            }
            Kind::Vote => Some(Finding::Vote(
                codec::decode(record.body).map_err(unreadable)?,
            )),
            Kind::Committed => Some(Finding::Committed(
                codec::decode(record.body).map_err(unreadable)?,
            )),
            Kind::Truncate => Some(Finding::Truncate(
                codec::decode(record.body).map_err(unreadable)?,
            )),
            Kind::Purge => Some(Finding::Purge(
                codec::decode(record.body).map_err(unreadable)?,
            )),
            Kind::Seal => {
                if record.body != self.chain.to_le_bytes() {
                    let what = "the seal does not fit what it seals";
                    return Err(WalError::corrupt(&self.path, at, what));
                }
                self.sealed = true;
                None
            }
            Kind::Close => None,
        };
        self.findings.extend(finding.map(|finding| (at, finding)));
        if record.group != self.group {
            self.group_start = at;
        }
        self.last_crc = record.crc;
        self.chain = chain(self.chain, record.crc);
        self.group = record.group;
        self.group_ended = record.ends_group;
        self.read_any |= record.ends_group;
        Ok(())
    }

    fn take_entry(&mut self, at: u64, record: &Record<'_>, length: usize) -> Result<(), WalError> {
        let bad = |what| WalError::corrupt(&self.path, at, what);
        let id = entry_id(record.index, record.body).ok_or_else(|| bad("a short entry"))?;
        let place = Place::new(self.number, at, length);
        let place = place.ok_or_else(|| bad("an entry further on than segments reach"))?;
        self.highest = self.highest.max(Some(record.index));
        if let Some((
            _,
            Finding::Entries {
                first,
                places,
                last,
            },
        )) = self.findings.last_mut()
            && *first + places.len() as u64 == record.index
        {
            places.push(place);
            *last = id;
            return Ok(());
        }
        let run = Finding::Entries {
            first: record.index,
            places: vec![place],
            last: id,
        };
        self.findings.push((at, run));
        Ok(())
    }
}

/// A stretch of a file in memory, moved forward as needed.
struct Window<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn DiskFile, size: u64) -> Self {
        Self {
            file,
            size,
            start: 0,
            buffer: Vec::new(),
        }
    }

    /// The bytes from `at`: at least `length` of them, or all that there are.
    fn bytes(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let left = self.size.saturating_sub(at);
        let wanted = left.min(length as u64);
        if at < self.start || at + wanted > self.start + self.buffer.len() as u64 {
            let read = left.min(length.max(WINDOW) as u64);
            let read = usize::try_from(read).map_err(io::Error::other)?;
            self.buffer.resize(read, 0);
            self.start = at;
            self.file.read_at(at, &mut self.buffer)?;
        }
        Ok(&self.buffer[(at - self.start) as usize..])
    }

    /// The bytes of the record at `at`, and what else is at hand; fewer if the file ends before it does.
    fn record(&mut self, at: u64) -> io::Result<&[u8]> {
        let length = record_length(self.bytes(at, RECORD_HEAD)?);
        self.bytes(at, length.unwrap_or(RECORD_HEAD))
    }

    /// All bytes from `at`.
    fn rest(&mut self, at: u64) -> io::Result<&[u8]> {
        let left = usize::try_from(self.size - at).map_err(io::Error::other)?;
        self.bytes(at, left)
    }
}
