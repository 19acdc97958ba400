//! The log as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use futures_util::Stream;
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::convert::{from_stored, log_id_from, log_id_to, to_stored, vote_from, vote_to};
use super::{StoreTypes, TypeConfig};
use crate::snapshot::Snapshots;
use crate::wal::Wal;

/// Bytes of entries in one answer to replication: what one message to a follower may carry.
const REPLICATION_BYTES_MAX: usize = 4 << 20;

/// Bytes of entries read ahead of applying them, so that catching up does not hold a whole log in memory.
const APPLY_BYTES_MAX: usize = 1 << 20;

/// Reads entries and the vote. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader<C = TypeConfig> {
    types: PhantomData<fn() -> C>,
    wal: Arc<Wal>,
}

/// The log and the vote of a peer.
///
/// `append` returns once entries can be read; openraft hears from the writer's thread that they are durable.
/// Purging forgets entries at once, but on disk the log reaches back to the older of the two kept
/// snapshots, whatever openraft asks for, unless a snapshot has replaced the log.
#[derive(Clone, Debug)]
pub struct LogStore<C = TypeConfig> {
    reader: LogReader<C>,
    snapshots: Arc<Snapshots>,
}

impl<C> LogStore<C> {
    pub(crate) fn new(wal: Arc<Wal>, snapshots: Arc<Snapshots>) -> Self {
        Self {
            reader: LogReader {
                types: PhantomData,
                wal,
            },
            snapshots,
        }
    }

    fn wal(&self) -> &Wal {
        &self.reader.wal
    }
}

impl<C: StoreTypes> LogReader<C> {
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<EntryOf<C>>> {
        let found = self.wal.find(range, bytes_max);
        let stored = if found.is_cached() {
            found.read()?
        } else {
            C::run_blocking(move || found.read()).await??
        };
        let entries: Result<_, _> = stored.iter().map(from_stored).collect();
        entries.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<C: StoreTypes> RaftLogReader<C> for LogReader<C> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<TypeConfig>>, io::Error> {
        self.read(bounds(&range), usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<TypeConfig>>, io::Error> {
        Ok(self.wal.vote().map(vote_to))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<TypeConfig>>, io::Error> {
        self.read(start..end, REPLICATION_BYTES_MAX).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<EntryOf<TypeConfig>, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = bounds(&range);
        let start = (self.clone(), range, Vec::new().into_iter());
        Box::pin(futures_util::stream::try_unfold(
            start,
            |(reader, mut range, mut ahead)| async move {
                let mut entry: Option<EntryOf<TypeConfig>> = ahead.next();
                if entry.is_none() && !range.is_empty() {
                    ahead = reader
                        .read(range.clone(), APPLY_BYTES_MAX)
                        .await?
                        .into_iter();
                    entry = ahead.next();
                }
                let Some(entry) = entry else { return Ok(None) };
                range.start = entry.log_id.index + 1;
                Ok(Some((entry, (reader, range, ahead))))
            },
        ))
    }
}

impl<C: StoreTypes> RaftLogStorage<C> for LogStore<C> {
    type LogReader = LogReader<C>;

    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.wal().purged().map(log_id_to),
            last_log_id: self.wal().last().map(log_id_to),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> Result<(), io::Error> {
        Ok(self.wal().save_vote(vote_from(vote)).await?)
    }

    async fn save_committed(
        &mut self,
        committed: Option<LogIdOf<TypeConfig>>,
    ) -> Result<(), io::Error> {
        self.wal()
            .save_committed(committed.as_ref().map(log_id_from));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<TypeConfig>>, io::Error> {
        Ok(self.wal().committed().map(log_id_to))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Result<Vec<_>, _> = entries.into_iter().map(|it| to_stored(&it)).collect();
        let entries = entries.map_err(io::Error::other)?;
        let done = move |outcome: Result<(), crate::wal::Failed>| {
            callback.io_completed(outcome.map_err(io::Error::from));
        };
        let appended = self.wal().append(entries, done).await;
        appended.map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, keep: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        Ok(self.wal().truncate(keep.as_ref().map(log_id_from)).await?)
    }

    async fn purge(&mut self, upto: LogIdOf<TypeConfig>) -> io::Result<()> {
        let upto = log_id_from(&upto);
        let replaced = self.wal().last().is_none_or(|last| last.index < upto.index);
        let durable = if replaced {
            Some(upto)
        } else {
            let floor = self.snapshots.log_floor();
            floor.map(|floor| {
                if floor.index < upto.index {
                    floor
                } else {
                    upto
                }
            })
        };
        self.wal().purge(upto, durable);
        Ok(())
    }
}
