//! The bytes of a segment.
//!
//! ```text
//! segment  header | record | record | …
//! header   magic 8 | format u16 | zero u16 | previous crc u32 | number u64 | first index u64 | first group u64 | crc u32
//! record   length u32 | crc u32 | kind u8 | version u8 | group u64 | index u64 | body
//! ```
//! All numbers are little-endian. `length` counts what follows `crc`. A record's CRC32C covers its length
//! and all that follows the CRC, and starts from the CRC of its segment's header: bytes of another
//! segment, or bytes that only look like a record, do not pass. The header holds the CRC of the record
//! that sealed the previous segment, and that depends on every record before it, which chains the segments. The top bit of `kind` marks the last
//! record of a group: it tells whether damage that follows belongs to this group or to the next.

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use raftserve_model::{LogIndex, NodeId};

use crate::entry::LogId;
use crate::formats;

/// Bytes of a segment's header.
pub(super) const HEADER_LEN: usize = 44;
/// Bytes of a record before its body.
pub(super) const RECORD_HEAD: usize = 26;
/// Bytes of an entry's body before its payload: term and node of its leader.
pub(super) const ENTRY_HEAD: usize = 16;

const MAGIC: [u8; 8] = *b"RSRVWAL\n";
/// The segment format that is written, and the only one that is read.
const FORMAT: u16 = formats::SEGMENT;
const RECORD_VERSION: u8 = formats::LOG_RECORD;
const GROUP_END: u8 = 0x80;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A log entry. Body: term u64, node u64, payload frame.
    Entry,
    /// The vote. Body: a frame of it.
    Vote,
    /// How far the log is known to be committed. Body: a frame of an optional log id.
    Committed,
    /// Entries after an optional log id are void. Body: a frame of it.
    Truncate,
    /// Entries up to a log id are no longer needed. Body: a frame of it.
    Purge,
    /// Nothing follows in this segment. Body: the checksum u32 of the checksums of all records before it, so that
    /// its own, and with it the next segment's header, depends on all that the segment holds.
    Seal,
    /// Ends a group that a crash cut short, or one that would be empty.
    Close,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::Committed => 3,
            Self::Truncate => 4,
            Self::Purge => 5,
            Self::Seal => 6,
            Self::Close => 7,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Committed,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Seal,
            7 => Self::Close,
            _ => return None,
        })
    }
}

/// A segment's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u64,
    /// The index that the next entry was to have when the segment was begun. For people; nothing reads it.
    pub(super) first_index: u64,
    /// The group of its first record.
    pub(super) first_group: u64,
    /// CRC of the record that sealed the previous segment; 0 in segment 1.
    pub(super) previous_crc: u32,
}

impl Header {
    /// The bytes, and the salt of the segment's records.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.previous_crc.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.first_index.to_le_bytes());
        bytes.extend_from_slice(&self.first_group.to_le_bytes());
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// The header at the start of `segment`, and the salt of its records.
    pub(super) fn decode(segment: &[u8]) -> Result<(Self, u32), HeaderFault> {
        let bytes = segment.get(..HEADER_LEN).ok_or(HeaderFault::Damaged)?;
        let crc = u32_at(bytes, HEADER_LEN - 4);
        if bytes[..8] != MAGIC || crc32c(&bytes[..HEADER_LEN - 4]) != crc {
            return Err(HeaderFault::Damaged);
        }
        match u16::from_le_bytes([bytes[8], bytes[9]]) {
            FORMAT => {}
            other => return Err(HeaderFault::Format(other)),
        }
        let header = Self {
            number: u64_at(bytes, 16),
            first_index: u64_at(bytes, 24),
            first_group: u64_at(bytes, 32),
            previous_crc: u32_at(bytes, 12),
        };
        Ok((header, crc))
    }
}

/// Why a header was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Damaged,
    Format(u16),
}

/// A record read from a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    /// Which group commit it is part of.
    pub(super) group: u64,
    /// Whether it is the group's last.
    pub(super) ends_group: bool,
    /// An entry's index; 0 in other kinds.
    pub(super) index: u64,
    pub(super) body: &'a [u8],
    pub(super) crc: u32,
}

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordFault {
    /// The bytes end before the record does.
    Short,
    /// Checksum, length or kind is wrong.
    Damaged,
    /// A whole record of a later release.
    Version(u8),
}

/// The length that the record at the start of `bytes` claims to have.
pub(super) fn record_length(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= 4).then(|| u32_at(bytes, 0) as usize + 8)
}

/// Reads the record at the start of `bytes`; also returns its length.
pub(super) fn parse_record(bytes: &[u8], salt: u32) -> Result<(Record<'_>, usize), RecordFault> {
    if bytes.len() < RECORD_HEAD {
        return Err(RecordFault::Short);
    }
    let length = u32_at(bytes, 0) as usize;
    if length < RECORD_HEAD - 8 {
        return Err(RecordFault::Damaged);
    }
    let whole = bytes.get(..length + 8).ok_or(RecordFault::Short)?;
    let kind = Kind::of(whole[8] & !GROUP_END);
    // Checked before the checksum only because it is cheap: a search for records tries every byte.
    if kind.is_none() && whole[9] == RECORD_VERSION {
        return Err(RecordFault::Damaged);
    }
    let crc = u32_at(whole, 4);
    if checksum(whole, salt) != crc {
        return Err(RecordFault::Damaged);
    }
    let Some(kind) = kind.filter(|_| whole[9] == RECORD_VERSION) else {
        return Err(RecordFault::Version(whole[9]));
    };
    let record = Record {
        kind,
        group: u64_at(whole, 10),
        ends_group: whole[8] & GROUP_END != 0,
        index: u64_at(whole, 18),
        body: &whole[RECORD_HEAD..],
        crc,
    };
    Ok((record, whole.len()))
}

/// Appends a record to `buffer`; returns its CRC.
pub(super) fn write_record(
    buffer: &mut Vec<u8>,
    salt: u32,
    kind: Kind,
    (group, ends_group): (u64, bool),
    index: u64,
    body: &[u8],
) -> u32 {
    let start = buffer.len();
    let length = u32::try_from(RECORD_HEAD - 8 + body.len()).expect("the codec limits bodies");
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(kind.code() | if ends_group { GROUP_END } else { 0 });
    buffer.push(RECORD_VERSION);
    buffer.extend_from_slice(&group.to_le_bytes());
    buffer.extend_from_slice(&index.to_le_bytes());
    buffer.extend_from_slice(body);
    let crc = checksum(&buffer[start..], salt);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn checksum(whole: &[u8], salt: u32) -> u32 {
    crc32c_append(crc32c_append(salt, &whole[..4]), &whole[8..])
}

/// The checksum of records' checksums, after one more record.
pub(super) fn chain(before: u32, crc: u32) -> u32 {
    crc32c_append(before, &crc.to_le_bytes())
}

/// Whether any record of a group after `group` is intact in `bytes`, wherever it starts.
pub(super) fn later_group(bytes: &[u8], salt: u32, group: u64) -> bool {
    // Groups are numbered without gaps and none is empty, so there cannot be more of them here: arbitrary
    // bytes are told from a group's number without a checksum over all that follows them.
    let highest = group.saturating_add((bytes.len() / RECORD_HEAD) as u64 + 1);
    let starts = 0..bytes.len().saturating_sub(RECORD_HEAD - 1);
    starts.into_iter().any(|start| {
        let claimed = u64_at(bytes, start + 10);
        group < claimed && claimed <= highest && parse_record(&bytes[start..], salt).is_ok()
    })
}

/// An entry as it is stored: its id, and its body, which begins with the id's term and node.
#[derive(Clone, Debug)]
pub struct EncodedEntry {
    /// Where it is, and under which leader it was written.
    pub id: LogId,
    body: Bytes,
}

impl EncodedEntry {
    /// An entry of a payload frame that `write_payload` appends.
    ///
    /// # Errors
    /// Those of `write_payload`.
    pub fn new<E>(
        id: LogId,
        write_payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(&id.term.to_le_bytes());
        body.extend_from_slice(&id.node.0.to_le_bytes());
        write_payload(&mut body)?;
        Ok(Self {
            id,
            body: body.into(),
        })
    }

    /// An entry from its stored body.
    pub(super) fn from_body(index: u64, body: Bytes) -> Option<Self> {
        let id = entry_id(index, &body)?;
        Some(Self { id, body })
    }

    /// The payload's frame.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.body[ENTRY_HEAD..]
    }

    /// Its stored body.
    pub(super) fn body(&self) -> &Bytes {
        &self.body
    }
}

/// The id of an entry, from its index and its stored body.
pub(super) fn entry_id(index: u64, body: &[u8]) -> Option<LogId> {
    (body.len() >= ENTRY_HEAD).then(|| LogId {
        term: u64_at(body, 0),
        node: NodeId(u64_at(body, 8)),
        index: LogIndex(index),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_the_bytes_it_always_had() {
        let header = Header {
            number: 2,
            first_index: 3,
            first_group: 5,
            previous_crc: 4,
        };
        let (bytes, salt) = header.encode();
        let fixed =
            b"RSRVWAL\n\x01\0\0\0\x04\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0";
        assert_eq!(bytes[..40], fixed[..]);
        assert_eq!(Header::decode(&bytes), Ok((header, salt)));

        let mut buffer = Vec::new();
        write_record(&mut buffer, 0, Kind::Vote, (5, true), 6, b"ab");
        let fixed = b"\x14\0\0\0\x82\x01\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0ab";
        assert_eq!([&buffer[..4], &buffer[8..]].concat(), fixed);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut buffer = Vec::new();
        write_record(&mut buffer, 7, Kind::Entry, (1, true), 9, b"body");
        assert!(parse_record(&buffer, 7).is_ok());
        assert_eq!(parse_record(&buffer, 8), Err(RecordFault::Damaged));
        for bit in 0..buffer.len() * 8 {
            let mut damaged = buffer.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_record(&damaged, 7).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn later_groups_are_found_at_any_offset() {
        let mut buffer = vec![0; 3];
        write_record(&mut buffer, 7, Kind::Entry, (4, false), 1, b"x");
        buffer.extend_from_slice(&[0xff; 5]);
        write_record(&mut buffer, 7, Kind::Entry, (5, true), 2, b"y");
        assert!(later_group(&buffer, 7, 3));
        assert!(later_group(&buffer, 7, 4));
        assert!(!later_group(&buffer, 7, 5));
        assert!(!later_group(&buffer, 6, 3));
    }

    #[test]
    fn looking_for_later_groups_in_arbitrary_bytes_costs_little() {
        // Many of these bytes are a length that fits: without the bound on numbers, half a million checksums
        // over a megabyte each would be taken.
        assert!(!later_group(&[0, 0, 16, 0].repeat(512 << 10), 7, 3));
    }
}
