//! Power cuts, kills and failing disks at every operation on the files of a checkpoint: those of the state, its
//! directories, and what vouches for it. The state lies in a backend on the simulated disk; sled's own files are the
//! operating system's, and are doubted whatever they hold.

use std::sync::Mutex;

use super::*;
use crate::disk::DiskFile;
use crate::disk::simulated::seeds::crash_points;
use crate::disk::simulated::{Fault, Image, Random, SimulatedDisk};

const DIR: &str = "/data";
const STARTS: u64 = 6;

/// Keeps its values in memory, and writes all of them to a file when it is flushed.
#[derive(Clone, Debug)]
struct OneFile(SimulatedDisk);

#[derive(Debug)]
struct OneFileStore {
    file: Arc<dyn DiskFile>,
    values: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Backend for OneFile {
    fn open(&self, dir: &Path) -> Result<Box<dyn StateStore>, StateStoreError> {
        let path = dir.join("values");
        let failed = StateStoreError::io("open", &path);
        let opened = read_file(&self.0, &path).and_then(|bytes| match bytes {
            Some(bytes) => Ok((self.0.open(&path)?, bytes)),
            None => Ok((self.0.create(&path)?, Vec::new())),
        });
        let (file, bytes) = opened.map_err(failed)?;
        let values = match bytes.is_empty() {
            true => BTreeMap::new(),
            false => codec::decode(&bytes).map_err(StateStoreError::Codec)?,
        };
        Ok(Box::new(OneFileStore { file, values }))
    }
}

impl StateStore for OneFileStore {
    fn write(&mut self, edits: Vec<ValueEdit>) -> Result<(), StateStoreError> {
        for (key, value) in edits {
            match value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, take: Take<'_>) -> Result<(), StateStoreError> {
        for (key, value) in &self.values {
            if take(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StateStoreError> {
        let bytes = codec::encode(&self.values).map_err(StateStoreError::Codec)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let written = self.file.set_size(0).and_then(|()| {
            self.file.write_at(first.len() as u64, second)?;
            self.file.write_at(0, first)
        });
        written.map_err(StateStoreError::backend)
    }
}

/// What a start may find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expected {
    /// The state after so many entries; none if it may also find nothing, by now or still.
    must: Option<u64>,
    /// The only one besides.
    may: Option<u64>,
}

/// A peer that is started and stopped again and again.
struct Life {
    disk: SimulatedDisk,
    random: Random,
    expected: Arc<Mutex<Expected>>,
}

fn place(disk: &SimulatedDisk) -> Place {
    disk.mount(Path::new(DIR));
    let backend = Arc::new(OneFile(disk.clone()));
    Place::with_backend(backend, Arc::new(disk.clone()), Path::new(DIR))
}

fn reader(applied: Applied) -> StateReader {
    let disk = SimulatedDisk::default();
    disk.mount(Path::new(DIR));
    let snapshots = Snapshots::open(Arc::new(disk), Path::new(DIR)).unwrap();
    let machine: StateMachine = StateMachine::new(applied, Arc::new(snapshots));
    machine.reader()
}

/// What a start takes.
fn taken(place: &Place) -> Result<Option<Saved>, StateStoreError> {
    match place.vouched()? {
        Some(marker) => place.take(marker),
        None => place.disown().map(|()| None),
    }
}

/// Writes the rest, as a stop in good order does.
fn finish(writer: Writer) -> Result<(), StateStoreError> {
    let (orders, received) = mpsc::sync_channel(1);
    orders.send(Order::Finish).unwrap();
    writer.run(&received, &AtomicBool::new(false))
}

impl Life {
    fn new(disk: &SimulatedDisk, seed: u64) -> Self {
        Self {
            disk: disk.clone(),
            random: Random(seed),
            expected: Arc::default(),
        }
    }

    fn expect(&self, expected: Expected) {
        *self.expected.lock().unwrap() = expected;
    }

    fn expected(&self) -> Expected {
        *self.expected.lock().unwrap()
    }

    fn run(&mut self) -> Result<(), StateStoreError> {
        let mut entries = 0;
        for _ in 0..STARTS {
            let place = place(&self.disk);
            let held = self.expected().must;
            let only_copy = self.random.coin();
            self.expect(Expected {
                must: held.filter(|_| only_copy),
                may: held,
            });
            let saved = match place.vouched()? {
                Some(marker) if only_copy => Some(place.read_only_copy(marker)?),
                Some(marker) => place.take(marker)?,
                None => None,
            };
            let found = saved.as_ref().and_then(|it| it.applied.last);
            assert_eq!(found.map(|id| id.index.0), held, "what was saved is found");
            entries += self.random.below(40);
            self.expect(Expected {
                must: None,
                may: held.filter(|_| only_copy),
            });
            let reader = reader(applied(entries));
            let writer = Writer::new(place, saved, reader, Rhythm::default())?;
            // Disowned, durably, before anything of the new one is written.
            self.expect(Expected::default());
            // Else the process is killed.
            if self.random.below(4) > 0 {
                self.expect(Expected {
                    must: None,
                    may: Some(entries),
                });
                finish(writer)?;
                self.expect(Expected {
                    must: Some(entries),
                    may: Some(entries),
                });
            }
        }
        Ok(())
    }
}

/// Checks what is found after a crash, and that the peer goes on from there.
fn check(image: &Image, expected: Expected, random: &mut Random, what: &str) {
    let disk = match random.coin() {
        true => image.after_power_cut(random),
        false => image.after_kill(),
    };
    let saved = taken(&place(&disk)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = saved.as_ref().map(|it| &it.applied);
    let entries = found.and_then(|it| it.last).map(|id| id.index.0);
    match expected.must {
        Some(must) => assert_eq!(entries, Some(must), "{what}"),
        None => assert!(
            entries.is_none() || entries == expected.may,
            "{what}: {entries:?}"
        ),
    }
    if let (Some(found), Some(entries)) = (found, entries) {
        let digest = applied(entries).state.digest();
        assert_eq!(found.state.digest(), digest, "{what}");
    }
    let cut = disk.after_power_cut(random);
    assert_eq!(
        place(&cut).vouched().unwrap(),
        None,
        "{what}: it serves twice"
    );

    let writer = Writer::new(place(&disk), saved, reader(applied(77)), Rhythm::default());
    let finished = writer.and_then(finish);
    finished.unwrap_or_else(|error| panic!("{what}: {error}"));
    let again = taken(&place(&disk.after_power_cut(random))).unwrap();
    let again = again.map(|it| it.applied.state.digest());
    assert_eq!(again, Some(applied(77).state.digest()), "{what}");
}

/// Runs the life of `seed` once, and checks a crash in the midst of each of its operations. Returns how many there are.
fn crash_everywhere(seed: u64) -> u64 {
    let disk = SimulatedDisk::default();
    let mut life = Life::new(&disk, seed);
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (seen, expected) = (Arc::clone(&moments), Arc::clone(&life.expected));
    disk.on_operation(move |image| {
        let moment = (image, *expected.lock().unwrap());
        seen.lock().unwrap().push(moment);
    });
    life.run().unwrap();
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    for (at, (image, expected)) in moments.iter().enumerate() {
        let mut random = Random(seed ^ (at as u64) << 32);
        let what = format!("seed {seed}, operation {at}");
        check(image, *expected, &mut random, &what);
    }
    moments.len() as u64
}

#[test]
fn a_checkpoint_survives_a_crash_at_every_operation() {
    crash_points(400, crash_everywhere);
}

#[test]
fn a_checkpoint_survives_an_error_a_full_disk_or_a_lost_sync_at_every_operation() {
    for fault in [Fault::Error, Fault::Full, Fault::LostSync] {
        for seed in 0..2 {
            for at in 1.. {
                let disk = SimulatedDisk::failing_at(at, fault);
                let mut life = Life::new(&disk, seed);
                let outcome = life.run();
                if !disk.has_faulted() {
                    outcome.unwrap();
                    assert!(at > 20, "{at} operations only");
                    break;
                }
                let what = format!("seed {seed}, {fault:?} at operation {at}");
                let expected = life.expected();
                check(&disk.image(), expected, &mut Random(at), &what);
            }
        }
    }
}
