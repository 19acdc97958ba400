//! A power cut at every operation of random workloads. What is found afterwards must be the outcome of a
//! prefix of what was issued, and no shorter one than what was reported durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::simulated::{Fault, Random};

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

struct Run {
    log: Stepped,
    random: Random,
    term: u64,
    /// After each thing issued.
    models: Vec<Model>,
    /// How many of `models` are durable for certain.
    durable: Arc<AtomicUsize>,
}

impl Run {
    fn note(&mut self, change: impl FnOnce(&mut Model)) {
        let mut model = self.models.last().unwrap().clone();
        change(&mut model);
        self.models.push(model);
    }

    fn done(&self) -> impl FnOnce(bool) + Send + 'static {
        let (durable, upto) = (Arc::clone(&self.durable), self.models.len());
        move |ok| {
            if ok {
                durable.fetch_max(upto, Ordering::SeqCst);
            }
        }
    }

    fn model(&self) -> &Model {
        self.models.last().unwrap()
    }

    /// An index that is held, or that of the last purged entry.
    fn some_held(&mut self) -> Option<LogId> {
        let ids: Vec<LogId> = self.model().entries.values().map(|(id, _)| *id).collect();
        let at = self.random.below(ids.len() as u64 + 1) as usize;
        ids.get(at).copied().or(self.model().purged)
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
        if self.random.below(5) == 0 {
            // As after a snapshot that replaces the log.
            let last = self.model().last().map_or(0, |last| last.index.0);
            upto = id(self.term, last + 1 + self.random.below(5));
        }
        if self
            .model()
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return;
        }
        self.note(|model| {
            model.entries = model.entries.split_off(&(upto.index.0 + 1));
            model.purged = Some(upto);
        });
        self.log.wal.purge(upto, Some(upto));
    }
}

/// Opens a log, and again as long as the power goes while it is opened.
fn reopen(mut disk: SimulatedDisk, random: &mut Random, seed: &str) -> (SimulatedDisk, Stepped) {
    loop {
        disk = if random.coin() {
            disk.after_power_cut(random)
        } else {
            disk.after_kill()
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
            Err(error) => assert!(disk.is_off(), "{seed}: refused: {error}"),
        }
    }
}

/// Runs the workload of `seed` until the power goes at operation `cut`. False if it ended before.
fn crash_run(seed: u64, cut: u64) -> bool {
    let what = format!("seed {seed}, cut {cut}");
    let disk = SimulatedDisk::failing_at(cut, Fault::PowerCut);
    let mut models = vec![Model::default()];
    let mut durable = 0;
    let mut random = Random(seed);
    if let Ok(log) = Stepped::open(&disk) {
        let mut run = Run {
            log,
            random: random.clone(),
            term: 1,
            models,
            durable: Arc::new(AtomicUsize::new(0)),
        };
        for _ in 0..30 {
            run.act();
            if disk.is_off() {
                break;
            }
        }
        while !disk.is_off() && run.log.wal.shared.has_work() {
            run.log.writer.step();
        }
        models = run.models;
        durable = run.durable.load(Ordering::SeqCst);
    }
    let was_cut = disk.is_off();
    random.0 ^= cut << 32;
    let (disk, log) = reopen(disk, &mut random, &what);
    let found = Model::of(&log.wal);
    let fits = models
        .iter()
        .enumerate()
        .any(|(at, model)| at + 1 >= durable && *model == found);
    assert!(
        fits,
        "{what}: {durable} of {} durable; expected {:#?} or later, found {found:#?}",
        models.len(),
        models[durable.saturating_sub(1)],
    );
    // What was found once is durable.
    drop(log);
    let disk = disk.after_power_cut(&mut random);
    let log = Stepped::open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(Model::of(&log.wal), found, "{what}: found, and lost");
    goes_on(&disk, log, &found, &what);
    was_cut
}

/// The log that was found can be written, and holds that too.
fn goes_on(disk: &SimulatedDisk, mut log: Stepped, found: &Model, what: &str) {
    let next = found.last().map_or(0, |last| last.index.0 + 1);
    let mut expected = found.clone();
    let new = id(1 << 40, next);
    expected.entries.insert(next, (new, b"payload".to_vec()));
    log.append_one(new);
    drop(log);
    let log = Stepped::open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(Model::of(&log.wal), expected, "{what}");
}

/// Returns the number of crash points.
fn crash_everywhere(seed: u64) -> u64 {
    let mut cut = 1;
    while crash_run(seed, cut) {
        cut += 1;
    }
    cut - 1
}

#[test]
fn nothing_durable_is_lost_and_the_vote_never_goes_back_whenever_the_power_goes() {
    let points: u64 = (0..40).map(crash_everywhere).sum();
    assert!(points > 1500, "{points} crash points only");
}

#[test]
#[ignore = "two minutes; for a nightly run"]
fn a_hundred_thousand_power_cuts() {
    let mut points = 0;
    for seed in 1_000.. {
        points += crash_everywhere(seed);
        if points > 100_000 {
            return;
        }
    }
}
