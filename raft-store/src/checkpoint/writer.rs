//! The thread that keeps the checkpoint close to the state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::watch;

use super::records::Records;
use super::{Order, Place, Saved, StateStoreError};
use crate::entry::LogId;
use crate::raft::{Applied, StateReader};
use crate::state::{Edit, Trails};

/// When and how fast what changed is written while the peer runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// How often: a key that changes more often is written once.
    pub(super) period: Duration,
    pub(super) bytes_per_second: u32,
}

impl Default for Rhythm {
    /// So that neither disk nor processors are busy with it.
    fn default() -> Self {
        Self {
            period: Duration::from_secs(10),
            bytes_per_second: 1 << 20,
        }
    }
}

impl Rhythm {
    /// How long writing so many bytes may take.
    fn time_of(self, bytes: usize) -> Duration {
        let share = bytes as f64 / f64::from(self.bytes_per_second);
        Duration::from_secs_f64(share)
    }
}

/// How many bytes at a time. Between them it looks for orders.
const BATCH_BYTES: usize = 32 << 10;

/// Writes what changed.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    reader: StateReader,
    rhythm: Rhythm,
    generation: u64,
    /// None until something is written for the first time.
    records: Option<Records>,
    /// What the store holds once it is begun and no pass is under way, but for the trails.
    written: Arc<Applied>,
    /// The trails that it holds: they are written at the end alone, since what is written of them before would be replaced.
    trails: Trails,
    progress: watch::Sender<Option<LogId>>,
}

/// What the thread is told while it writes.
#[derive(Clone, Copy, Debug)]
struct Told<'a> {
    orders: &'a Receiver<Order>,
    /// Whether nobody waits for it any more.
    abandoned: &'a AtomicBool,
}

/// How a pass goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// At the bounded rate, until told to finish.
    Bounded,
    /// As fast as it goes.
    Full,
}

impl Writer {
    pub(super) fn new(
        place: Place,
        saved: Option<Saved>,
        reader: StateReader,
        rhythm: Rhythm,
    ) -> Result<Self, StateStoreError> {
        let next = place.clear(saved.as_ref().map(|it| it.generation))?;
        // What was read as the only copy has been vouched for until now.
        place.disown()?;
        let (generation, records, written) = match saved {
            None => (next, None, Applied::default()),
            Some(mut saved) => (saved.generation, saved.records.take(), saved.applied),
        };
        let written = Arc::new(written);
        Ok(Self {
            place,
            reader,
            rhythm,
            generation,
            records,
            progress: watch::Sender::new(written.last),
            trails: written.state.trails(),
            written,
        })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn progress(&self) -> watch::Receiver<Option<LogId>> {
        self.progress.subscribe()
    }

    /// Writes now and then until told to finish, and then the rest.
    pub(super) fn run(
        mut self,
        orders: &Receiver<Order>,
        abandoned: &AtomicBool,
    ) -> Result<(), StateStoreError> {
        let outcome = self.follow(Told { orders, abandoned });
        match &outcome {
            Ok(()) => {}
            Err(StateStoreError::Ended) => tracing::debug!("the checkpoint is abandoned"),
            Err(error) => tracing::warn!(
                error = error as &dyn std::error::Error,
                "the checkpoint is given up; the next start will read snapshot and log"
            ),
        }
        outcome
    }

    fn follow(&mut self, told: Told<'_>) -> Result<(), StateStoreError> {
        let mut pace = Pace::Bounded;
        while pace == Pace::Bounded {
            match told.orders.recv_timeout(self.rhythm.period) {
                Ok(Order::Finish) => pace = Pace::Full,
                Err(RecvTimeoutError::Disconnected) => return Err(StateStoreError::Ended),
                Err(RecvTimeoutError::Timeout) => pace = self.pass(pace, told)?,
            }
        }
        self.pass(Pace::Full, told)?;
        self.write_trails(told)?;
        // Closes the store.
        self.records = None;
        self.place.vouch(self.generation, &self.written)
    }

    /// Makes the store one of the present state; says how to go on.
    fn pass(&mut self, pace: Pace, told: Told<'_>) -> Result<Pace, StateStoreError> {
        let target = self.reader.load();
        if self.records.is_some() && target.last == self.written.last {
            return Ok(pace);
        }
        let records = match &mut self.records {
            Some(records) => records,
            empty => {
                let dir = self.place.state_dir(self.generation);
                let made = self.place.disk.create_dir(&dir);
                made.map_err(StateStoreError::io("make", &dir))?;
                empty.insert(Records::empty(self.place.backend.open(&dir)?))
            }
        };
        let edits = target.state.edits_since(&self.written.state);
        let pace = write(records, edits, pace, self.rhythm, told)?;
        self.progress.send_replace(target.last);
        self.written = target;
        Ok(pace)
    }

    /// Makes the trails in the store those of what was written last.
    fn write_trails(&mut self, told: Told<'_>) -> Result<(), StateStoreError> {
        let Some(records) = &mut self.records else {
            return Ok(());
        };
        let edits = self.written.state.trail_edits_since(&self.trails);
        write(records, edits, Pace::Full, self.rhythm, told).map(drop)
    }
}

/// Writes `edits`, some at a time; says how to go on.
fn write(
    records: &mut Records,
    edits: impl Iterator<Item = Edit>,
    mut pace: Pace,
    rhythm: Rhythm,
    told: Told<'_>,
) -> Result<Pace, StateStoreError> {
    for edit in edits {
        if records.push(edit)? < BATCH_BYTES {
            continue;
        }
        let bytes = records.write()?;
        if told.abandoned.load(Ordering::Relaxed) {
            return Err(StateStoreError::Ended);
        }
        if pace == Pace::Bounded {
            pace = match told.orders.recv_timeout(rhythm.time_of(bytes)) {
                Ok(Order::Finish) => Pace::Full,
                Err(RecvTimeoutError::Disconnected) => return Err(StateStoreError::Ended),
                Err(RecvTimeoutError::Timeout) => Pace::Bounded,
            };
        }
    }
    records.write()?;
    records.flush()?;
    Ok(pace)
}
