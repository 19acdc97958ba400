mod crash;
mod damage;
mod frozen;
mod writing;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use raftserve_model::{LogIndex, NodeId};

use super::writer::Writer;
use super::*;
use crate::codec::CodecError;
use crate::disk::simulated::SimulatedDisk;

const DIR: &str = "/wal";

fn segment(number: u64) -> PathBuf {
    recovery::segment_path(Path::new(DIR), number)
}

fn id(term: u64, index: u64) -> LogId {
    LogId {
        term,
        node: NodeId(term % 3),
        index: LogIndex(index),
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        node: NodeId(term % 3),
        committed: term.is_multiple_of(2),
    }
}

fn entry(id: LogId, payload: &[u8]) -> EncodedEntry {
    let write = |buffer: &mut Vec<u8>| -> Result<(), CodecError> {
        buffer.extend_from_slice(payload);
        Ok(())
    };
    EncodedEntry::new(id, write).unwrap()
}

fn options() -> WalOptions {
    WalOptions {
        segment_size: 600,
        cache_max: 500,
        ..WalOptions::default()
    }
}

/// A log whose writer only writes when told to.
struct Stepped {
    wal: Wal,
    writer: Writer,
}

impl Stepped {
    fn open(disk: &SimulatedDisk) -> Result<Self, WalError> {
        Self::open_with(disk, options())
    }

    fn open_with(disk: &SimulatedDisk, options: WalOptions) -> Result<Self, WalError> {
        disk.mount(Path::new(DIR));
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (wal, writer) = Wal::open_idle(disk, Path::new(DIR), options, Known::Nothing)?;
        Ok(Self { wal, writer })
    }

    fn append(&self, entries: Vec<EncodedEntry>, done: impl FnOnce(bool) + Send + 'static) {
        let appended = self
            .wal
            .append(entries, move |outcome| done(outcome.is_ok()));
        let appended = appended.now_or_never().expect("the queue has room");
        match appended {
            Ok(()) | Err(AppendError::Failed(_)) => {}
            Err(error) => panic!("{error}: {error:?}"),
        }
    }

    fn append_one(&mut self, id: LogId) {
        self.append(vec![entry(id, b"payload")], |durable| assert!(durable));
        assert!(self.writer.step());
    }

    fn vote(&self, vote: Vote, done: impl FnOnce(bool) + Send + 'static) {
        let done = Box::new(move |outcome: Result<(), Failed>| done(outcome.is_ok()));
        self.wal.shared.push(Item::Vote(vote, done));
    }

    fn truncate(&self, keep: Option<LogId>, done: impl FnOnce(bool) + Send + 'static) {
        let epoch = lock(&self.wal.shared.view).begin_truncate(keep);
        let done = Box::new(move |outcome: Result<(), Failed>| done(outcome.is_ok()));
        self.wal.shared.push(Item::Truncate { keep, epoch, done });
    }

    fn indexes(&self) -> Vec<u64> {
        let entries = self.wal.read_blocking(0..u64::MAX).unwrap();
        entries.iter().map(|entry| entry.id.index.0).collect()
    }
}
