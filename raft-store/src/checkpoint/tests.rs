//! What every backend must do, and what is made of those that do not.

mod crash;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use raftserve_model::{LogIndex, LogTime, NodeId};

use super::*;
use crate::command::{Action, Command, Request};
use crate::disk::RealDisk;
use crate::entry::LogId;
use crate::raft::StateMachine;
use crate::snapshot::Snapshots;
use crate::state::{Edit, Event, EventKind, KV_CHANGES_BYTES_MAX, KvCondition, Record, State};

fn backends() -> [Arc<dyn Backend>; 2] {
    [Arc::new(sled::Sled), Arc::new(redb::Redb)]
}

/// A state after `count` entries.
fn applied(count: u64) -> Applied {
    after(count, &Action::OpenClient)
}

/// A state after `count` entries that put one key, with `bytes` of value.
fn put(count: u64, bytes: usize) -> Applied {
    let request = Request::PutKey {
        key: "key".parse().unwrap(),
        value: vec![7; bytes].into(),
        condition: KvCondition::Any,
    };
    after(count, &Action::Request(request))
}

fn after(count: u64, action: &Action) -> Applied {
    let mut state = State::default();
    for index in 1..=count {
        let command = Command::at(LogTime::default(), action.clone());
        state.apply(LogIndex(index), &command);
    }
    Applied {
        last: Some(LogId {
            term: 1,
            node: NodeId(1),
            index: LogIndex(count),
        }),
        state: Arc::new(state),
        ..Applied::default()
    }
}

/// A place for checkpoints, and the rest of a data directory.
struct Scene {
    dir: tempfile::TempDir,
    place: Place,
}

impl Scene {
    fn new(backend: Arc<dyn Backend>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::with_backend(backend, Arc::new(RealDisk), dir.path());
        Self { dir, place }
    }

    /// The worker of a peer whose state is `applied`, and which was started from `saved`.
    fn worker(&self, applied: Applied, saved: Option<Saved>) -> Worker {
        self.worker_in(Rhythm::default(), applied, saved)
    }

    fn worker_in(&self, rhythm: Rhythm, applied: Applied, saved: Option<Saved>) -> Worker {
        let snapshots = self.dir.path().join("snap");
        std::fs::create_dir_all(&snapshots).unwrap();
        let snapshots = Snapshots::open(Arc::new(RealDisk), &snapshots).unwrap();
        let machine: StateMachine = StateMachine::new(applied, Arc::new(snapshots));
        let lock = Arc::new(DirectoryLock::take(self.dir.path()).unwrap());
        let writer = Writer::new(self.place.clone(), saved, machine.reader(), rhythm).unwrap();
        Worker::start(writer, lock).unwrap()
    }

    /// Stops in good order with that state.
    fn save(&self, applied: &Applied) {
        let worker = self.worker(applied.clone(), None);
        worker.finish(Duration::from_secs(60)).unwrap();
    }

    fn take(&self) -> Option<Saved> {
        self.take_within(OPEN_DEADLINE)
    }

    fn take_within(&self, deadline: Duration) -> Option<Saved> {
        let marker = self.place.vouched().unwrap()?;
        self.place.take_within(deadline, marker).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for generation in self.place.generations().unwrap() {
            let entries = std::fs::read_dir(self.place.state_dir(generation)).unwrap();
            let paths = entries.map(|it| it.unwrap().path());
            files.extend(paths.filter(|it| it.is_file()));
        }
        files
    }
}

fn contents(store: &dyn StateStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let mut take = |key: &[u8], value: &[u8]| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    store.scan(&mut take).unwrap();
    found
}

fn an_edit() -> impl Strategy<Value = ValueEdit> {
    let key = prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255)], 1..4);
    let size = prop_oneof![Just(0), 1..40_usize, Just(VALUE_MAX)];
    let value = (any::<u8>(), size).prop_map(|(byte, size)| vec![byte; size]);
    (key, prop::option::weighted(0.7, value))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Ordered, replacing, deleting, and the same after it is closed and opened.
    #[test]
    fn every_backend_keeps_the_latest_values_in_the_order_of_their_keys(
        runs in prop::collection::vec(prop::collection::vec(an_edit(), 0..40), 1..4),
    ) {
        for backend in backends() {
            let dir = tempfile::tempdir().unwrap();
            let mut model = BTreeMap::new();
            for run in &runs {
                let mut store = backend.open(dir.path()).unwrap();
                let held: Vec<_> = model.clone().into_iter().collect();
                prop_assert_eq!(contents(store.as_ref()), held, "{:?} reopened", backend);
                for edit in run {
                    store.write(vec![edit.clone()]).unwrap();
                }
                store.write(run.clone()).unwrap();
                for (key, value) in run {
                    match value {
                        Some(value) => drop(model.insert(key.clone(), value.clone())),
                        None => drop(model.remove(key)),
                    }
                }
                let held: Vec<_> = model.clone().into_iter().collect();
                prop_assert_eq!(contents(store.as_ref()), held, "{:?}", backend);
                store.flush().unwrap();
            }
        }
    }
}

/// An event's record of about that size.
fn record(number: u64, size: usize) -> Record {
    let event = Event {
        index: LogIndex(number),
        time: Default::default(),
        service: None,
        kind: EventKind::Replica {
            number: 1,
            status: raftserve_model::status::ReplicaStatus::NotReady,
            reason: Some("x".repeat(size)),
        },
    };
    Record::Event {
        number,
        event: Arc::new(event),
    }
}

#[test]
fn large_records_are_split_replaced_and_removed_on_every_backend() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = BTreeMap::new();
        let mut records = Records::empty(backend.open(dir.path()).unwrap());
        let sizes = [
            0,
            VALUE_MAX - 40,
            VALUE_MAX,
            10 * VALUE_MAX,
            300 * VALUE_MAX,
        ];
        for (round, shift) in (0..sizes.len()).enumerate() {
            for number in 0..sizes.len() as u64 {
                let size = sizes[(number as usize + shift) % sizes.len()];
                let edit = if size == 0 && round > 0 {
                    model.remove(&number);
                    Edit::Remove(record(number, 0).key())
                } else {
                    model.insert(number, record(number, size));
                    Edit::Put(record(number, size))
                };
                records.push(edit).unwrap();
            }
            records.write().unwrap();
            records.flush().unwrap();
            drop(records);
            let mut found = Vec::new();
            let store = backend.open(dir.path()).unwrap();
            for (_, value) in contents(store.as_ref()) {
                assert!(value.len() <= VALUE_MAX);
            }
            records = Records::read(store, &mut |record| found.push(record)).unwrap();
            let held: Vec<_> = model.values().cloned().collect();
            assert!(found == held, "{backend:?} in round {round}");
        }
    }
}

#[test]
fn parts_that_are_missing_or_strange_are_noticed_on_every_backend() {
    type Spoil = fn(&mut Vec<(Vec<u8>, Vec<u8>)>);
    let spoils: [(&str, Spoil); 7] = [
        ("first part lost", |it| drop(it.remove(2))),
        ("middle part lost", |it| drop(it.remove(3))),
        ("last part lost", |it| drop(it.pop())),
        ("a part of nothing", |it| it.push((vec![9; 12], vec![1]))),
        ("an unknown mark", |it| it[0].1[0] = 7),
        ("a short key", |it| it[0].0 = vec![1]),
        ("another's key", |it| it[0].0[8] ^= 8),
    ];
    for backend in backends() {
        for (what, spoil) in spoils {
            let dir = tempfile::tempdir().unwrap();
            let mut store = backend.open(dir.path()).unwrap();
            let whole = tempfile::tempdir().unwrap();
            let mut records = Records::empty(backend.open(whole.path()).unwrap());
            for (number, size) in [(0, 1), (1, 1), (2, 5 * VALUE_MAX)] {
                records.push(Edit::Put(record(number, size))).unwrap();
            }
            records.write().unwrap();
            let mut values = contents(records.store());
            spoil(&mut values);
            let edits = values.into_iter().map(|(key, value)| (key, Some(value)));
            store.write(edits.collect()).unwrap();
            let read = Records::read(store, &mut |_| {});
            assert!(read.is_err(), "{backend:?}: {what}");
        }
    }
}

#[test]
fn a_saved_state_serves_one_start_and_only_one() {
    for backend in backends() {
        let scene = Scene::new(backend);
        assert!(scene.take().is_none());
        let saved = applied(3000);
        scene.save(&saved);
        let found = scene.take().unwrap().applied;
        assert_eq!(found.head(), saved.head());
        assert_eq!(found.state.digest(), saved.state.digest());
        assert!(scene.take().is_none());
        drop(scene.worker(applied(1), None));
        let left = scene.place.generations().unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn what_changed_since_the_last_start_is_added_to_what_was_saved() {
    for backend in backends() {
        let scene = Scene::new(backend);
        let mut saved = None;
        for count in [100, 101, 300] {
            let now = applied(count);
            let worker = scene.worker(now.clone(), saved.take());
            worker.finish(Duration::from_secs(60)).unwrap();
            let found = scene.take().unwrap();
            assert_eq!(found.generation, 1, "in the same place");
            assert_eq!(found.applied.state.digest(), now.state.digest());
            saved = Some(found);
        }
    }
}

#[test]
fn a_stop_that_is_not_in_good_order_leaves_nothing_to_use() {
    for backend in backends() {
        let scene = Scene::new(backend);
        scene.save(&applied(10));
        let saved = scene.take();
        assert!(saved.is_some());
        drop(scene.worker(applied(20), saved));
        assert!(scene.take().is_none());
        // The lock is free, and what is left behind is not taken for the next.
        drop(scene.worker(applied(30), None));
        scene.save(&applied(40));
        assert_eq!(
            scene.take().unwrap().applied.last.unwrap().index,
            LogIndex(40)
        );
    }
}

#[test]
fn a_damaged_marker_or_state_is_never_used() {
    let saved = applied(300);
    let damage = |path: &Path, share: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        if !bytes.is_empty() {
            let at = bytes.len() * share / 10;
            bytes[at] ^= 0x20;
            std::fs::write(path, bytes).unwrap();
        }
    };
    let cut = |path: &Path, share: usize| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() * share / 10]).unwrap();
    };
    for backend in backends() {
        let scene = Scene::new(backend);
        scene.save(&saved);
        damage(&scene.dir.path().join(MARKER), 5);
        assert!(scene.take().is_none());
        for spoil in [&damage as &dyn Fn(&Path, usize), &cut] {
            for share in 0..10 {
                scene.save(&saved);
                scene.files().iter().for_each(|path| spoil(path, share));
                // Some bytes mean nothing to a backend; then the state must be the one that was saved.
                if let Some(found) = scene.take() {
                    assert_eq!(found.applied.state.digest(), saved.state.digest());
                }
            }
        }
    }
}

/// A backend that tells of each write.
#[derive(Clone, Debug)]
struct Watched(mpsc::SyncSender<usize>);

#[derive(Debug)]
struct WatchedStore(Watched, Box<dyn StateStore>);

impl Backend for Watched {
    fn open(&self, dir: &Path) -> Result<Box<dyn StateStore>, StateStoreError> {
        Ok(Box::new(WatchedStore(self.clone(), redb::Redb.open(dir)?)))
    }
}

impl StateStore for WatchedStore {
    fn write(&mut self, edits: Vec<ValueEdit>) -> Result<(), StateStoreError> {
        // The test may look no longer.
        let _ = self.0.0.try_send(edits.len());
        self.1.write(edits)
    }

    fn scan(&self, take: Take<'_>) -> Result<(), StateStoreError> {
        self.1.scan(take)
    }

    fn flush(&mut self) -> Result<(), StateStoreError> {
        self.1.flush()
    }
}

#[test]
fn what_changed_is_written_while_the_peer_runs_and_a_stop_does_not_wait_for_the_rate() {
    let (sender, writes) = mpsc::sync_channel(1000);
    let scene = Scene::new(Arc::new(Watched(sender)));
    let now = applied(5000);
    // The first batch is written at once, and the next one hours later.
    let rhythm = Rhythm {
        period: Duration::from_millis(1),
        bytes_per_second: 1,
    };
    let worker = scene.worker_in(rhythm, now.clone(), None);
    let first = writes.recv().unwrap();
    assert!((100..2000).contains(&first), "{first}");
    assert!(matches!(writes.try_recv(), Err(mpsc::TryRecvError::Empty)));
    worker.finish(Duration::from_secs(60)).unwrap();
    let found = scene.take().unwrap().applied;
    assert_eq!(found.state.digest(), now.state.digest());
    let rest: usize = writes.try_iter().sum();
    assert_eq!(first + rest, 1 + 5000, "each record once");
}

#[test]
fn what_became_of_keys_lately_is_written_at_a_stop_alone() {
    let (sender, writes) = mpsc::sync_channel(1000);
    let scene = Scene::new(Arc::new(Watched(sender)));
    let rhythm = Rhythm {
        period: Duration::from_millis(1),
        ..Rhythm::default()
    };
    let worker = scene.worker_in(rhythm, put(5000, 100), None);
    assert_eq!(writes.recv().unwrap(), 2, "the head and the key");
    worker.finish(Duration::from_secs(60)).unwrap();
    let rest: usize = writes.try_iter().sum();
    assert_eq!(rest, 5000, "each change once");
    let found = scene.take().unwrap().applied;
    assert_eq!(found.state.digest(), put(5000, 100).state.digest());
}

#[test]
fn of_what_became_of_keys_nothing_stays_that_is_no_longer_kept() {
    // Their bytes bound them, at fewer than their number would. Each is in one part all the same.
    const BYTES: usize = VALUE_MAX / 2;
    const KEPT: u64 = KV_CHANGES_BYTES_MAX / (BYTES + "key".len()) as u64;
    for backend in backends() {
        let scene = Scene::new(backend);
        let mut saved = None;
        for count in [10, 10, KEPT + 5, 2 * KEPT + 7] {
            let now = put(count, BYTES);
            let kept = now
                .state
                .key_changes_after(LogIndex(count.saturating_sub(KEPT)));
            assert_eq!(kept.unwrap().count() as u64, count.min(KEPT));
            let worker = scene.worker(now.clone(), saved.take());
            worker.finish(Duration::from_secs(60)).unwrap();
            let found = scene.take().unwrap();
            assert_eq!(found.applied.state.digest(), now.state.digest());
            saved = Some(found);
        }
    }
}

#[test]
fn a_stop_that_would_take_too_long_is_given_up() {
    let scene = Scene::new(Arc::new(sled::Sled));
    let worker = scene.worker(applied(5000), None);
    let outcome = worker.finish(Duration::ZERO);
    assert!(matches!(outcome, Err(StateStoreError::TooLong)));
}

/// A backend that does as it is told.
#[derive(Clone, Copy, Debug)]
enum Odd {
    Panics,
    PanicsAtWrite,
    Hangs,
    /// Once it is closed.
    HangsAtClose,
    Forgets,
    Alters,
    /// A read of its files fails, when it is opened or later.
    CannotOpen,
    CannotRead,
}

#[derive(Debug)]
struct OddStore(Odd, Box<dyn StateStore>);

impl Backend for Odd {
    fn open(&self, dir: &Path) -> Result<Box<dyn StateStore>, StateStoreError> {
        let is_old = std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some());
        if matches!(self, Self::CannotOpen) && is_old {
            let error = io::Error::other("injected error of a read");
            return Err(StateStoreError::backend(error));
        }
        Ok(Box::new(OddStore(*self, sled::Sled.open(dir)?)))
    }
}

impl StateStore for OddStore {
    fn write(&mut self, edits: Vec<ValueEdit>) -> Result<(), StateStoreError> {
        match self.0 {
            Odd::PanicsAtWrite => panic!("as sled does"),
            _ => self.1.write(edits),
        }
    }

    fn scan(&self, take: Take<'_>) -> Result<(), StateStoreError> {
        let mut left = 200;
        match self.0 {
            Odd::Panics => panic!("as sled does"),
            // Far beyond the deadline; ends with the process.
            Odd::Hangs => loop {
                std::thread::park();
            },
            Odd::Forgets => self.1.scan(&mut |key, value| {
                left -= 1;
                if left == 0 {
                    ControlFlow::Continue(())
                } else {
                    take(key, value)
                }
            }),
            Odd::Alters => self.1.scan(&mut |key, value| {
                left -= 1;
                let mut value = value.to_vec();
                if left == 0 {
                    // A client session's last use.
                    value[4] ^= 1;
                }
                take(key, &value)
            }),
            Odd::CannotRead => {
                self.1.scan(&mut |key, value| {
                    left -= 1;
                    match left {
                        0 => ControlFlow::Break(()),
                        _ => take(key, value),
                    }
                })?;
                Err(StateStoreError::backend(io::Error::other(
                    "injected error of a read",
                )))
            }
            Odd::PanicsAtWrite | Odd::HangsAtClose | Odd::CannotOpen => self.1.scan(take),
        }
    }

    fn flush(&mut self) -> Result<(), StateStoreError> {
        self.1.flush()
    }
}

impl Drop for OddStore {
    fn drop(&mut self) {
        if matches!(self.0, Odd::HangsAtClose) {
            loop {
                std::thread::park();
            }
        }
    }
}

#[test]
fn a_backend_that_hangs_when_it_is_closed_does_not_hold_up_a_start_that_was_refused() {
    let scene = Scene::new(Arc::new(sled::Sled));
    scene.save(&applied(300));
    let marker = scene.place.vouched().unwrap().unwrap();
    // One that does not hang is closed by then: it can be opened again at once.
    for _ in 0..3 {
        drop(scene.place.read_only_copy(marker.clone()).unwrap());
    }
    let hangs = Arc::new(Odd::HangsAtClose);
    let place = Place::with_backend(hangs, Arc::new(RealDisk), scene.dir.path());
    let mut saved = place.take(marker).unwrap().unwrap();
    saved.records.close_within(Duration::from_millis(20));
    drop(saved);
}

#[test]
fn a_backend_that_panics_hangs_forgets_alters_or_fails_only_makes_the_start_slower() {
    for odd in [
        Odd::Panics,
        Odd::Hangs,
        Odd::Forgets,
        Odd::Alters,
        Odd::CannotOpen,
        Odd::CannotRead,
    ] {
        let scene = Scene::new(Arc::new(odd));
        scene.save(&applied(300));
        let deadline = Duration::from_millis(match odd {
            Odd::Hangs => 20,
            _ => 10_000,
        });
        assert!(scene.take_within(deadline).is_none(), "{odd:?}");
        // A thread left behind has its own directory.
        let place = Place::with_backend(Arc::new(sled::Sled), Arc::new(RealDisk), scene.dir.path());
        let next = Scene {
            place,
            dir: scene.dir,
        };
        next.save(&applied(7));
        assert_eq!(next.take().unwrap().generation, 2);
    }
}

#[test]
fn a_backend_that_panics_while_it_is_written_is_not_vouched_for() {
    let scene = Scene::new(Arc::new(Odd::PanicsAtWrite));
    let outcome = scene
        .worker(applied(3), None)
        .finish(Duration::from_secs(60));
    assert!(matches!(outcome, Err(StateStoreError::Ended)));
    assert!(scene.take().is_none());
}

#[test]
fn what_vouches_for_a_state_has_the_bytes_it_always_had() {
    let scene = Scene::new(Arc::new(sled::Sled));
    let applied = applied(3);
    std::fs::create_dir_all(scene.place.state_dir(300)).unwrap();
    scene.place.vouch(300, &applied).unwrap();
    let bytes = std::fs::read(scene.dir.path().join(MARKER)).unwrap();
    crate::fixture::same_as("checkpoint", &bytes);
    let expected = Marker {
        generation: 300,
        head: applied.head(),
        digest: applied.state.digest(),
    };
    let kept = crate::fixture::read("checkpoint");
    assert_eq!(decode_marker(&kept), Some(expected));
}
