//! A power cut, a kill or a failing disk at every operation of random workloads. What is found afterwards must
//! be the outcome of a prefix of what was issued, and no shorter one than what was reported durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::simulated::seeds::crash_points;
use crate::disk::simulated::{Fault, Image, Random};

/// What is found when a log is opened. What was purged, but not durably, is there again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<u64, (LogId, Vec<u8>)>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        let last = self.entries.values().next_back().map(|(id, _)| *id);
        last.or(self.purged)
    }

    fn of(wal: &Wal) -> Self {
        let entries = wal.read_blocking(0..u64::MAX).unwrap();
        let entries = entries
            .iter()
            .map(|it| (it.id.index.0, (it.id, it.payload().to_vec())));
        let model = Self {
            entries: entries.collect(),
            vote: wal.vote(),
            committed: wal.committed(),
            purged: wal.purged(),
        };
        assert_eq!(wal.last(), model.last());
        model
    }
}

/// How far a run has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// How many models there are.
    issued: Arc<AtomicUsize>,
    /// How many of them are durable for certain.
    durable: Arc<AtomicUsize>,
    /// Whether a waiter was told of a failure.
    failed: Arc<AtomicUsize>,
}

struct Run {
    log: Stepped,
    random: Random,
    term: u64,
    /// The last entry that readers see as purged: never before that of the newest model.
    purged: Option<LogId>,
    /// After each thing issued.
    models: Vec<Model>,
    progress: Progress,
}

impl Run {
    fn new(log: Stepped, random: Random, progress: Progress) -> Self {
        progress.issued.store(1, Ordering::SeqCst);
        Self {
            log,
            random,
            term: 1,
            purged: None,
            models: vec![Model::default()],
            progress,
        }
    }

    fn note(&mut self, change: impl FnOnce(&mut Model)) {
        let mut model = self.models.last().unwrap().clone();
        change(&mut model);
        self.models.push(model);
        let issued = &self.progress.issued;
        issued.store(self.models.len(), Ordering::SeqCst);
    }

    fn done(&self) -> impl FnOnce(bool) + Send + 'static {
        let (progress, upto) = (self.progress.clone(), self.models.len());
        move |ok| {
            if ok {
                let failed = progress.failed.load(Ordering::SeqCst);
                assert_eq!(failed, 0, "acknowledged after a failure");
                progress.durable.fetch_max(upto, Ordering::SeqCst);
            } else {
                progress.failed.store(1, Ordering::SeqCst);
            }
        }
    }

    /// Acts until `over`, at most thirty times, and writes what is left.
    fn go(&mut self, over: impl Fn() -> bool) {
        for _ in 0..30 {
            if over() {
                return;
            }
            self.act();
        }
        while !over() && self.log.wal.shared.has_work() {
            self.log.writer.step();
        }
    }

    fn model(&self) -> &Model {
        self.models.last().unwrap()
    }

    /// An entry that readers see, or the last purged one.
    fn some_held(&mut self) -> Option<LogId> {
        let ids = self.model().entries.values().map(|(id, _)| *id);
        let held: Vec<LogId> = ids.filter(|id| Some(*id) > self.purged).collect();
        let at = self.random.below(held.len() as u64 + 1) as usize;
        held.get(at).copied().or(self.purged)
    }

    /// Up to where the log forgets durably what is purged up to `upto`, which it holds: as far, less far, or no further than it
    /// has. The older of two snapshots says so.
    fn some_floor(&mut self, upto: LogId) -> Option<LogId> {
        let there = self.model().entries.range(..=upto.index.0);
        let there: Vec<LogId> = there.map(|(_, (id, _))| *id).collect();
        match self.random.below(3) {
            0 => None,
            1 => Some(upto),
            _ => {
                let at = self.random.below(there.len() as u64 + 1) as usize;
                there.get(at).copied().or(self.model().purged)
            }
        }
    }

    fn act(&mut self) {
        match self.random.below(12) {
            0..=5 => self.append(),
            6 => {
                self.term += 1;
                let vote = vote(self.term);
                self.note(|model| model.vote = Some(vote));
                self.log.vote(vote, self.done());
            }
            7 => self.truncate(),
            8 | 9 => {
                let committed = self.some_held();
                self.note(|model| model.committed = committed);
                self.log.wal.save_committed(committed);
            }
            _ => self.purge(),
        }
        if self.random.coin() {
            self.step();
        }
    }

    fn step(&mut self) {
        // Marks alone do not wake the writer; the loop would wait for ever.
        if self.log.wal.shared.has_work() {
            self.log.writer.step();
        }
    }

    fn append(&mut self) {
        let mut entries = Vec::new();
        for _ in 0..=self.random.below(3) {
            let next = self.model().last().map_or(0, |last| last.index.0 + 1);
            let id = id(self.term, next);
            let length = self.random.below(150) as usize;
            let payload: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
            entries.push(entry(id, &payload));
            self.note(|model| {
                model.entries.insert(next, (id, payload));
            });
        }
        self.log.append(entries, self.done());
    }

    fn truncate(&mut self) {
        let keep = self.some_held();
        let purged = self.model().purged;
        self.note(|model| {
            let end = keep.map_or(0, |id| id.index.0 + 1);
            model.entries.split_off(&end);
            model.purged = purged;
        });
        self.term += 1;
        self.log.truncate(keep, self.done());
    }

    fn purge(&mut self) {
        let Some(mut upto) = self.some_held().or(self.model().last()) else {
            return;
        };
        let replaced = self.random.below(5) == 0;
        if replaced {
            // As after a snapshot that replaces the log.
            let last = self.model().last().map_or(0, |last| last.index.0);
            upto = id(self.term, last + 1 + self.random.below(5));
        }
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        // What follows such a snapshot does not follow what is in the log: that must not come back.
        let durable = match replaced {
            true => Some(upto),
            false => self.some_floor(upto),
        };
        self.purged = Some(upto);
        self.note(|model| {
            if let Some(durable) = durable.filter(|durable| Some(*durable) > model.purged) {
                model.entries = model.entries.split_off(&(durable.index.0 + 1));
                model.purged = Some(durable);
            }
        });
        self.log.wal.purge(upto, durable);
    }
}

/// Opens a log, and again as long as the power goes while it is opened.
fn reopen(image: &Image, random: &mut Random, what: &str) -> (SimulatedDisk, Stepped) {
    let mut image = image.clone();
    loop {
        let disk = if random.coin() {
            image.after_power_cut(random)
        } else {
            image.after_kill()
        };
        if random.coin() {
            disk.fail_at(1 + random.below(8), Fault::PowerCut);
        }
        match Stepped::open(&disk) {
            Ok(log) if !disk.is_off() => {
                disk.fail_at(0, Fault::PowerCut);
                return (disk, log);
            }
            Ok(_) => {}
            Err(error) => assert!(disk.is_off(), "{what}: refused: {error}"),
        }
        image = disk.image();
    }
}

/// What a run left behind at one moment.
struct Moment {
    image: Image,
    issued: usize,
    durable: usize,
}

/// Checks what is found after a moment, and that the log goes on from there.
fn check(moment: &Moment, models: &[Model], random: &mut Random, what: &str) {
    let (disk, log) = reopen(&moment.image, random, what);
    let found = Model::of(&log.wal);
    let durable = moment.durable.max(1);
    let mut possible = models[durable - 1..moment.issued.max(1)].iter();
    assert!(
        possible.any(|model| *model == found),
        "{what}: {durable} of {} durable; expected {:#?} or later, found {found:#?}",
        moment.issued,
        models[durable - 1],
    );
    // What was found once is durable.
    drop(log);
    let disk = disk.after_power_cut(random);
    let log = Stepped::open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(Model::of(&log.wal), found, "{what}: found, and lost");
    goes_on(&disk, log, &found, random, what);
}

/// The log that was found can be written, and holds that too.
fn goes_on(disk: &SimulatedDisk, mut log: Stepped, found: &Model, random: &mut Random, what: &str) {
    let next = found.last().map_or(0, |last| last.index.0 + 1);
    let mut expected = found.clone();
    let new = id(1 << 40, next);
    expected.entries.insert(next, (new, b"payload".to_vec()));
    log.append_one(new);
    drop(log);
    let log = Stepped::open(&disk.after_power_cut(random))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(Model::of(&log.wal), expected, "{what}");
}

/// Runs the workload of `seed` once, and checks a power cut or a kill in the middle of each of its operations.
/// Returns the number of crash points.
fn crash_everywhere(seed: u64) -> u64 {
    let disk = SimulatedDisk::default();
    let progress = Progress::default();
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (seen, counts) = (Arc::clone(&moments), progress.clone());
    disk.on_operation(move |image| {
        seen.lock().unwrap().push(Moment {
            image,
            issued: counts.issued.load(Ordering::SeqCst),
            durable: counts.durable.load(Ordering::SeqCst),
        });
    });
    let log = Stepped::open(&disk).unwrap();
    let mut run = Run::new(log, Random(seed), progress);
    run.go(|| false);
    let models = std::mem::take(&mut run.models);
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    for (at, moment) in moments.iter().enumerate() {
        let mut random = Random(seed ^ (at as u64) << 32);
        let what = format!("seed {seed}, operation {at}");
        check(moment, &models, &mut random, &what);
    }
    moments.len() as u64
}

/// Runs the workload of `seed` with `fault` at every operation. Returns how often that was.
fn fail_everywhere(seed: u64, fault: Fault) -> u64 {
    for at in 1.. {
        let disk = SimulatedDisk::failing_at(at, fault);
        let progress = Progress::default();
        let mut models = vec![Model::default()];
        if let Ok(log) = Stepped::open(&disk) {
            let failure = log.wal.watch_failure();
            let mut run = Run::new(log, Random(seed), progress.clone());
            run.go(|| failure.borrow().is_some());
            if !disk.has_faulted() {
                return at - 1;
            }
            models = std::mem::take(&mut run.models);
        }
        let moment = Moment {
            image: disk.image(),
            issued: models.len(),
            durable: progress.durable.load(Ordering::SeqCst),
        };
        let mut random = Random(seed ^ at << 32);
        let what = format!("seed {seed}, {fault:?} at operation {at}");
        check(&moment, &models, &mut random, &what);
    }
    unreachable!("the workload ends")
}

/// Nothing durable is lost, and the vote never goes back.
#[test]
fn a_log_survives_a_crash_at_every_operation() {
    crash_points(5_000, crash_everywhere);
}

#[test]
fn nothing_is_acknowledged_after_an_error_and_nothing_acknowledged_is_lost_by_it() {
    for fault in [Fault::Error, Fault::Full, Fault::LostSync] {
        let points: u64 = (0..10).map(|seed| fail_everywhere(seed, fault)).sum();
        assert!(points > 200, "{fault:?}: {points} points only");
    }
}
