//! The bytes of a snapshot file: writing and reading them in blocks.

use std::collections::VecDeque;

use crc32c::{crc32c, crc32c_append};

use super::pace::Pace;
use super::{SnapshotError, SnapshotFile, SnapshotHead};
use crate::codec;
use crate::formats;
use crate::state::Record;

const MAGIC: [u8; 8] = *b"RSRVSNP\n";
/// The version of the layout of snapshot files.
pub const FORMAT: u16 = formats::SNAPSHOT;
/// bincode 2, as `codec` has it.
const CODEC: u8 = formats::SNAPSHOT_CODEC;
const FIXED_LEN: usize = 20;
const END_LEN: usize = 4 + 8 + 8 + 4 + 8;
/// From the end: the sum of all bytes before it, and the magic.
pub(super) const CHECKSUM_AT: u64 = 4 + 8;

/// A block is written once its records reach this size: what one checksum answers for.
const BLOCK_SIZE: usize = 64 << 10;

/// The largest block that is read: one record may be as large as a frame.
const BLOCK_MAX: usize = BLOCK_SIZE + codec::FRAME_MAX + 64;

/// Writes records into an empty file, whose last piece is not synced.
pub(super) struct SnapshotWriter<'a> {
    file: &'a SnapshotFile,
    block: Vec<u8>,
    offset: u64,
    crc: u32,
    count: u64,
    pace: Pace<'a>,
}

impl<'a> SnapshotWriter<'a> {
    pub(super) fn start(
        file: &'a SnapshotFile,
        head: &SnapshotHead,
        pace: Pace<'a>,
    ) -> Result<Self, SnapshotError> {
        let mut writer = Self {
            file,
            block: Vec::with_capacity(BLOCK_SIZE + BLOCK_SIZE / 4),
            offset: 0,
            crc: 0,
            count: 0,
            pace,
        };
        let head = codec::encode(head).map_err(|source| writer.codec(source))?;
        let mut bytes = Vec::with_capacity(FIXED_LEN + head.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[CODEC, 0]);
        bytes.extend_from_slice(&length(&head));
        bytes.extend_from_slice(&crc32c(&head).to_le_bytes());
        bytes.extend_from_slice(&head);
        writer.write(&bytes)?;
        Ok(writer)
    }

    pub(super) fn push(&mut self, record: &Record) -> Result<(), SnapshotError> {
        let start = self.block.len();
        self.block.extend_from_slice(&[0; 4]);
        codec::encode_into(record, &mut self.block).map_err(|source| self.codec(source))?;
        let size = length(&self.block[start + 4..]);
        self.block[start..start + 4].copy_from_slice(&size);
        self.count += 1;
        if self.block.len() >= BLOCK_SIZE {
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), SnapshotError> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        let mut end = Vec::with_capacity(END_LEN);
        end.extend_from_slice(&[0; 4]);
        end.extend_from_slice(&self.count.to_le_bytes());
        end.extend_from_slice(&(self.offset + END_LEN as u64).to_le_bytes());
        end.extend_from_slice(&crc32c_append(self.crc, &end).to_le_bytes());
        end.extend_from_slice(&MAGIC);
        self.write(&end)
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&length(&self.block));
        head[4..].copy_from_slice(&crc32c(&self.block).to_le_bytes());
        self.write(&head)?;
        let mut block = std::mem::take(&mut self.block);
        self.write(&block)?;
        block.clear();
        self.block = block;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let written = self.file.file.write_at(self.offset, bytes);
        written.map_err(self.file.io("write"))?;
        self.crc = crc32c_append(self.crc, bytes);
        self.offset += bytes.len() as u64;
        let synced = self.pace.wrote(bytes.len(), &*self.file.file);
        synced.map(drop).map_err(self.file.io("sync"))
    }

    fn codec(&self, source: codec::CodecError) -> SnapshotError {
        SnapshotError::Codec {
            path: self.file.path.clone(),
            source,
        }
    }
}

/// Reads a snapshot's blocks in order, verifying each. That the end is verified too is known only once
/// there is no further block.
pub(super) struct Blocks<'a> {
    file: &'a SnapshotFile,
    head: SnapshotHead,
    size: u64,
    offset: u64,
    crc: u32,
    count: u64,
    /// Records of the last block, still encoded.
    records: VecDeque<Vec<u8>>,
}

impl<'a> Blocks<'a> {
    pub(super) fn open(file: &'a SnapshotFile) -> Result<Self, SnapshotError> {
        let mut blocks = Self {
            file,
            head: SnapshotHead::default(),
            size: file.size().map_err(file.io("read"))?,
            offset: 0,
            crc: 0,
            count: 0,
            records: VecDeque::new(),
        };
        let fixed = blocks.read(FIXED_LEN)?;
        if fixed[..8] != MAGIC {
            return Err(blocks.corrupt("it is not a snapshot"));
        }
        let (format, codec) = (u16::from_le_bytes([fixed[8], fixed[9]]), fixed[10]);
        if (format, codec) != (FORMAT, CODEC) {
            if blocks.was_written_as_ours(&fixed)? {
                return Err(blocks.corrupt("its head is damaged"));
            }
            return Err(SnapshotError::Format {
                path: file.path.clone(),
                found: format,
                codec,
            });
        }
        let head = blocks.read(u32_at(&fixed, 12) as usize)?;
        if crc32c(&head) != u32_at(&fixed, 16) {
            return Err(blocks.corrupt("its head is damaged"));
        }
        blocks.head = codec::decode(&head).map_err(|source| blocks.codec(source))?;
        Ok(blocks)
    }

    /// Whether the sum of all bytes fits once the versions in the head are those of this release: then they were, and
    /// have changed. A file of another release is left for that one.
    fn was_written_as_ours(&self, fixed: &[u8]) -> Result<bool, SnapshotError> {
        let mut mended = fixed.to_vec();
        mended[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        mended[10] = CODEC;
        let mut crc = crc32c(&mended);
        let end = self.size.saturating_sub(CHECKSUM_AT);
        let mut at = self.offset;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(BLOCK_SIZE);
            let bytes = self.file.read(at, length.min(BLOCK_SIZE));
            let bytes = bytes.map_err(self.file.io("read"))?;
            crc = crc32c_append(crc, &bytes);
            at += bytes.len() as u64;
        }
        let sum = self.file.checksum().map_err(self.file.io("read"))?;
        Ok(sum == crc)
    }

    pub(super) fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// The next block's records, still encoded; none after the last, when all is verified.
    pub(super) fn next_block(&mut self) -> Result<Option<Vec<Vec<u8>>>, SnapshotError> {
        let size = u32_at(&self.read(4)?, 0) as usize;
        if size == 0 {
            self.check_end()?;
            return Ok(None);
        }
        let crc = u32_at(&self.read(4)?, 0);
        let block = self.read(size)?;
        if crc32c(&block) != crc {
            return Err(self.corrupt("a block is damaged"));
        }
        let mut records = Vec::new();
        let mut rest = &block[..];
        while !rest.is_empty() {
            let record = (rest.len() >= 4)
                .then(|| rest.get(4..4 + u32_at(rest, 0) as usize))
                .flatten()
                .ok_or_else(|| self.corrupt("a record does not fit its block"))?;
            records.push(record.to_vec());
            rest = &rest[4 + record.len()..];
        }
        self.count += records.len() as u64;
        Ok(Some(records))
    }

    /// The next record; none after the last, when all is verified.
    pub(super) fn next_record(&mut self) -> Result<Option<Record>, SnapshotError> {
        while self.records.is_empty() {
            match self.next_block()? {
                Some(records) => self.records.extend(records),
                None => return Ok(None),
            }
        }
        let frame = self.records.pop_front().expect("the loop ends with one");
        let record = codec::decode(&frame).map_err(|source| self.codec(source))?;
        Ok(Some(record))
    }

    fn check_end(&mut self) -> Result<(), SnapshotError> {
        let counts = self.read(16)?;
        let crc = self.crc;
        let end = self.read(12)?;
        let whole = u64_at(&counts, 0) == self.count
            && u64_at(&counts, 8) == self.size
            && u32_at(&end, 0) == crc
            && end[4..] == MAGIC
            && self.offset == self.size;
        if whole {
            Ok(())
        } else {
            Err(self.corrupt("its end is damaged"))
        }
    }

    fn read(&mut self, bytes: usize) -> Result<Vec<u8>, SnapshotError> {
        if bytes > BLOCK_MAX || self.offset + bytes as u64 > self.size {
            return Err(self.corrupt("it is cut short, or a length in it is damaged"));
        }
        let mut buffer = vec![0; bytes];
        let read = self.file.file.read_at(self.offset, &mut buffer);
        read.map_err(self.file.io("read"))?;
        self.crc = crc32c_append(self.crc, &buffer);
        self.offset += bytes as u64;
        Ok(buffer)
    }

    fn corrupt(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Corrupt {
            path: self.file.path.clone(),
            offset: self.offset,
            what,
        }
    }

    fn codec(&self, source: codec::CodecError) -> SnapshotError {
        SnapshotError::Codec {
            path: self.file.path.clone(),
            source,
        }
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    let length = u32::try_from(bytes.len()).expect("frames and blocks are far below 4 GiB");
    length.to_le_bytes()
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
