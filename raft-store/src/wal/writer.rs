//! The one thread that writes the log.
//!
//! It takes all that is queued, writes it with one call, syncs once, and then reports to each waiter in
//! order. While one sync runs the next group gathers; no delay is added. The order of records on disk is
//! the order in which they were queued: votes and entries never pass each other.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::format::{HEADER_LEN, Header, Kind, chain, write_record};
use super::queue::{Item, Shared, finish, lock};
use super::recovery::segment_path;
use super::view::Place;
use super::{Failed, WalError};
use crate::codec;
use crate::disk::{Disk, DiskFile};
use crate::entry::{LogId, Vote};

/// The write buffer is given back above this size, so that one large group does not hold its memory.
const BUFFER_KEEP: usize = 1 << 20;

/// A segment that takes no more records.
pub(super) struct Sealed {
    pub(super) number: u64,
    pub(super) highest: Option<u64>,
}

/// The segment being written.
pub(super) struct Active {
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) salt: u32,
    pub(super) size: u64,
    pub(super) last_crc: u32,
    /// The checksum of its records' checksums.
    pub(super) chain: u32,
    pub(super) highest: Option<u64>,
}

/// What must be known from any suffix of the segments, since earlier ones go away.
#[derive(Clone, Copy, Default)]
pub(super) struct Marks {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
}

struct Line {
    kind: Kind,
    index: u64,
    body: bytes::Bytes,
}

/// The log's files, as the writing thread owns them.
pub(crate) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) segment_size: u64,
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) active: Active,
    /// The last group that is durable; in recovery, the one before the group to be written.
    pub(super) group: u64,
    pub(super) marks: Marks,
    /// Whether the active segment does not hold the marks yet.
    pub(super) marks_due: bool,
    pub(super) buffer: Vec<u8>,
    pub(super) shared: Arc<Shared>,
}

/// Makes sure that nobody waits for a writer that is gone.
struct FailOnExit(Arc<Shared>);

impl Drop for FailOnExit {
    fn drop(&mut self) {
        // After a clean end nothing waits, and nothing can be queued.
        if std::thread::panicking() {
            self.0.fail(Failed::new("the log writer panicked"));
        }
    }
}

impl Writer {
    /// Writes groups until the log is closed or fails.
    pub(super) fn run(mut self) {
        let _guard = FailOnExit(Arc::clone(&self.shared));
        while self.step() {}
    }

    /// Waits for something to write, writes one group, and reports. False once the log is closed and all is
    /// written.
    pub(crate) fn step(&mut self) -> bool {
        let Some(items) = self.shared.take() else {
            return false;
        };
        if let Some(failed) = self.shared.failure() {
            finish(items, &Err(failed));
            return true;
        }
        let outcome = self.commit(&items);
        let outcome = outcome.map_err(|error| Failed::from(&error));
        if let Err(failed) = &outcome {
            self.shared.fail(failed.clone());
        }
        finish(items, &outcome);
        if outcome.is_ok()
            && let Err(error) = self.remove_purged()
        {
            self.shared.fail(Failed::from(&error));
        }
        true
    }

    /// Makes `items` durable as one group.
    fn commit(&mut self, items: &[Item]) -> Result<(), WalError> {
        if items.is_empty() {
            return Ok(());
        }
        if self.active.size >= self.segment_size {
            self.roll()?;
        }
        let mut lines = Vec::new();
        if self.marks_due {
            self.push_marks(&mut lines)?;
        }
        for item in items {
            self.push_item(item, &mut lines)?;
        }
        let places = self.write_group(&lines)?;
        self.publish(items, &places);
        Ok(())
    }

    fn push_item(&mut self, item: &Item, lines: &mut Vec<Line>) -> Result<(), WalError> {
        match item {
            Item::Entries { entries, .. } => lines.extend(entries.iter().map(|entry| Line {
                kind: Kind::Entry,
                index: entry.id.index.0,
                body: entry.body().clone(),
            })),
            Item::Vote(vote, _) => {
                self.marks.vote = Some(*vote);
                lines.push(frame(Kind::Vote, vote)?);
            }
            Item::Truncate { keep, .. } => lines.push(frame(Kind::Truncate, keep)?),
            Item::Committed(committed) => {
                self.marks.committed = *committed;
                lines.push(frame(Kind::Committed, committed)?);
            }
            Item::Purge(upto) => {
                self.marks.purged = Some(*upto);
                lines.push(frame(Kind::Purge, upto)?);
            }
        }
        Ok(())
    }

    fn push_marks(&mut self, lines: &mut Vec<Line>) -> Result<(), WalError> {
        if let Some(vote) = &self.marks.vote {
            lines.push(frame(Kind::Vote, vote)?);
        }
        if let Some(purged) = &self.marks.purged {
            lines.push(frame(Kind::Purge, purged)?);
        }
        lines.push(frame(Kind::Committed, &self.marks.committed)?);
        Ok(())
    }

    /// Writes the marks as a group of their own, or as the end of the group that a crash cut short.
    pub(super) fn write_marks(&mut self) -> Result<(), WalError> {
        let mut lines = Vec::new();
        self.push_marks(&mut lines)?;
        lines.push(Line {
            kind: Kind::Close,
            index: 0,
            body: bytes::Bytes::new(),
        });
        self.write_group(&lines).map(drop)
    }

    /// Writes and syncs one group; returns where its entries are.
    fn write_group(&mut self, lines: &[Line]) -> Result<Vec<Place>, WalError> {
        let group = self.group + 1;
        self.buffer.clear();
        let mut places = Vec::with_capacity(lines.len());
        for (at, line) in lines.iter().enumerate() {
            let start = self.buffer.len();
            self.active.last_crc = write_record(
                &mut self.buffer,
                self.active.salt,
                line.kind,
                (group, at + 1 == lines.len()),
                line.index,
                &line.body,
            );
            self.active.chain = chain(self.active.chain, self.active.last_crc);
            if line.kind == Kind::Entry {
                self.active.highest = self.active.highest.max(Some(line.index));
                let offset = self.active.size + start as u64;
                let place = Place::new(self.active.number, offset, self.buffer.len() - start);
                places.push(place.expect("groups and segments are bounded far below 4 GiB"));
            }
        }
        let path = segment_path(&self.dir, self.active.number);
        let began = Instant::now();
        let under_way = self.shared.monitor.begin();
        let written = self.active.file.write_at(self.active.size, &self.buffer);
        written.map_err(|source| WalError::io("write", &path, source))?;
        let synced = self.active.file.sync();
        synced.map_err(|source| WalError::io("sync", &path, source))?;
        drop(under_way);
        self.active.size += self.buffer.len() as u64;
        self.note_work(lines.len(), began.elapsed());
        self.group = group;
        self.marks_due = false;
        self.buffer.shrink_to(BUFFER_KEEP);
        Ok(places)
    }

    fn note_work(&self, records: usize, took: Duration) {
        let mut work = lock(&self.shared.work);
        work.groups += 1;
        work.records += records as u64;
        work.bytes += self.buffer.len() as u64;
        work.busy += took;
        work.longest = work.longest.max(took);
    }

    /// Lets readers know where entries are, so that they need not stay in memory.
    fn publish(&self, items: &[Item], places: &[Place]) {
        let mut view = lock(&self.shared.view);
        let mut places = places.iter();
        for item in items {
            match item {
                Item::Entries { entries, epoch, .. } => {
                    for (entry, place) in entries.iter().zip(&mut places) {
                        view.place(*epoch, entry.id.index.0, *place);
                    }
                }
                Item::Truncate { epoch, .. } => view.truncate_written(*epoch),
                Item::Vote(vote, _) => view.vote = Some(*vote),
                Item::Committed(_) | Item::Purge(_) => {}
            }
        }
        view.trim_cache();
    }

    /// Seals the active segment and begins the next.
    fn roll(&mut self) -> Result<(), WalError> {
        self.write_group(&[Line {
            kind: Kind::Seal,
            index: 0,
            body: self.active.chain.to_le_bytes().to_vec().into(),
        }])?;
        let first_index = lock(&self.shared.view).range().end;
        let shared = Arc::clone(&self.shared);
        let under_way = shared.monitor.begin();
        let next = Active::create(
            &*self.disk,
            &self.dir,
            &Header {
                number: self.active.number + 1,
                first_index,
                first_group: self.group + 1,
                previous_crc: self.active.last_crc,
            },
        )?;
        drop(under_way);
        self.sealed.push_back(Sealed {
            number: self.active.number,
            highest: self.active.highest,
        });
        self.active = next;
        self.marks_due = true;
        let file = (Arc::clone(&self.active.file), self.active.salt);
        lock(&self.shared.view)
            .files
            .insert(self.active.number, file);
        Ok(())
    }

    /// Removes whole segments below the durable purge mark.
    fn remove_purged(&mut self) -> Result<(), WalError> {
        let Some(purged) = self.marks.purged.map(|id| id.index.0) else {
            return Ok(());
        };
        // Not before the marks that they hold are durable further on.
        while !self.marks_due
            && let Some(oldest) = self.sealed.front()
            && oldest.highest.is_none_or(|highest| highest <= purged)
        {
            let path = segment_path(&self.dir, oldest.number);
            let under_way = self.shared.monitor.begin();
            let outcome = self.disk.remove(&path);
            outcome.map_err(|source| WalError::io("remove", &path, source))?;
            lock(&self.shared.view).files.remove(&oldest.number);
            // One by one: a crash must not leave a gap between the numbers.
            let synced = self.disk.sync_dir(&self.dir);
            synced.map_err(|source| WalError::io("sync", &self.dir, source))?;
            drop(under_way);
            self.sealed.pop_front();
        }
        Ok(())
    }
}

impl Active {
    /// Makes a segment, durable with its name and header.
    pub(super) fn create(
        disk: &dyn Disk,
        dir: &std::path::Path,
        header: &Header,
    ) -> Result<Self, WalError> {
        let path = segment_path(dir, header.number);
        let io = |source| WalError::io("create", &path, source);
        let file = disk.create(&path).map_err(io)?;
        let (bytes, salt) = header.encode();
        file.write_at(0, &bytes).map_err(io)?;
        file.sync().map_err(io)?;
        disk.sync_dir(dir).map_err(io)?;
        Ok(Self {
            number: header.number,
            file,
            salt,
            size: HEADER_LEN as u64,
            last_crc: 0,
            chain: 0,
            highest: None,
        })
    }
}

fn frame<T: bincode::Encode>(kind: Kind, value: &T) -> Result<Line, WalError> {
    Ok(Line {
        kind,
        index: 0,
        body: codec::encode(value).map_err(WalError::Encode)?.into(),
    })
}
