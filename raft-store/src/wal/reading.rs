//! Reading entries back, from memory or from their files.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Failed;
use super::format::{self, EncodedEntry, Kind};
use super::queue::{Shared, lock};
use super::view::{Fetch, Run};

/// Entries that are held, in memory or on disk. They stay readable when the log purges them.
pub struct Found {
    fetches: Vec<Fetch>,
    shared: Arc<Shared>,
}

impl Found {
    pub(super) fn new(shared: Arc<Shared>, range: Range<u64>, bytes_max: usize) -> Self {
        let fetches = lock(&shared.view).fetch(range, bytes_max);
        Self { fetches, shared }
    }

    /// Whether all are in memory, so that reading them does not block.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        let mut fetches = self.fetches.iter();
        fetches.all(|it| matches!(it, Fetch::Cached(_)))
    }

    /// The entries. Blocks.
    ///
    /// # Errors
    /// Damaged or unreadable records. The log then fails as a whole: a peer that cannot read its own log must
    /// not act on it.
    pub fn read(self) -> Result<Vec<EncodedEntry>, io::Error> {
        let entries = read_all(self.fetches);
        if let Err(error) = &entries {
            let reason = format!("cannot read an entry: {error}");
            self.shared.fail(Failed::new(&reason));
        }
        entries
    }
}

/// Reads what was looked up, in order.
///
/// # Errors
/// As the operating system says; `InvalidData`, with the place, for a record that is damaged.
fn read_all(fetches: Vec<Fetch>) -> io::Result<Vec<EncodedEntry>> {
    let mut entries = Vec::with_capacity(fetches.len());
    for fetch in fetches {
        match fetch {
            Fetch::Cached(entry) => entries.push(entry),
            Fetch::Stored(run) => read_run(&run, &mut entries)?,
        }
    }
    Ok(entries)
}

/// Reads consecutive entries with one call. Each is verified again: it was long ago that the log was opened.
fn read_run(run: &Run, entries: &mut Vec<EncodedEntry>) -> io::Result<()> {
    let (Some(first), Some(last)) = (run.places.first(), run.places.last()) else {
        return Ok(());
    };
    let start = first.offset();
    let length = usize::try_from(last.end() - start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    run.file.read_at(start, &mut bytes).map_err(|error| {
        let (index, segment) = (run.first, first.segment());
        let place = format!("entry {index} in log segment {segment} at byte {start}: {error}");
        io::Error::new(error.kind(), place)
    })?;
    let bytes = Bytes::from(bytes);
    for (index, place) in (run.first..).zip(&run.places) {
        let damaged = || {
            let (segment, offset) = (place.segment(), place.offset());
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("entry {index} in log segment {segment} is damaged at byte {offset}"),
            )
        };
        let at = (place.offset() - start) as usize;
        let whole = bytes.slice(at..at + place.length());
        let parsed = format::parse_record(&whole, run.salt);
        let (record, _) = parsed.map_err(|_| damaged())?;
        if record.kind != Kind::Entry || record.index != index {
            return Err(damaged());
        }
        let entry = EncodedEntry::from_body(index, whole.slice(format::RECORD_HEAD..));
        entries.push(entry.ok_or_else(damaged)?);
    }
    Ok(())
}
