//! Power cuts, kills and failing disks at every operation of random workloads over a whole store: identity, log,
//! vote, marks, snapshots built and received, purges, restarts.
//!
//! A workload does to a store what openraft does to it, in the same order. It runs once, and an image of the disk is
//! taken in the middle of every operation: each is a crash point. From some of them the workload goes on, in up to two
//! further lives that crash as well. What is found after a crash must be the
//! outcome of a prefix of what was issued, no shorter than what was acknowledged; the state, rebuilt from
//! snapshot and log by openraft's own start, must equal that of a model which applied the same entries.
//!
//! One seed decides everything. A failure names its seed and operation; [`crash_points`] says how one is run again.

mod peer;
mod reading;
mod workload;

use super::*;
use crate::disk::simulated::seeds::crash_points;
use crate::disk::simulated::{Fault, Image, Random, SimulatedDisk};
use crate::identity::{FIXED_NONCE, Identity};
use peer::Peer;
use workload::{Model, Moment, Progress, Workload};

/// Where the data directory is on the simulated disk.
const DIR: &str = "/data";

/// The lives of a peer, each but the last of which ends in a crash after some of what a workload does.
const LIVES: usize = 3;

/// One of so many crash points is the beginning of a further life.
const POINTS_PER_LIFE: u64 = 8;

/// Actions of a further life, at most.
const ACTIONS_OF_LIFE: u64 = 12;

/// Crash points of a further life that are checked. All of them would leave room for few first lives.
const CHECKS_PER_LIFE: usize = 4;

/// The variants of `Record`.
const KINDS_OF_RECORDS: usize = 11;

/// A store that was opened after a crash.
struct Revived {
    disk: SimulatedDisk,
    peer: Peer,
    found: Found,
}

/// Opens a store, and again as long as the power goes while it is opened.
fn reopen(image: &Image, random: &mut Random, what: &str) -> Revived {
    let mut image = image.clone();
    loop {
        let disk = if random.coin() {
            image.after_power_cut(random)
        } else {
            image.after_kill()
        };
        if random.coin() {
            disk.fail_at(1 + random.below(16), Fault::PowerCut);
        }
        let opened = Peer::open(&disk).map_err(|error| error.to_string());
        let opened = opened.and_then(|mut peer| {
            let found = Found::of(&peer);
            peer.start().map(|()| (peer, found))
        });
        match opened {
            Ok((peer, found)) if !disk.is_off() => {
                disk.fail_at(0, Fault::PowerCut);
                return Revived { disk, peer, found };
            }
            Ok(_) => {}
            Err(error) => assert!(disk.is_off(), "{what}: refused: {error}"),
        }
        image = disk.image();
    }
}

/// What a store holds when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    identity: Identity,
    model: Model,
    first: u64,
    restored: Option<LogId>,
}

impl Found {
    fn of(peer: &Peer) -> Self {
        Self {
            identity: peer.dir.identity(),
            model: Model::of(&peer.opened.wal),
            first: peer.opened.wal.range().start,
            restored: peer.opened.reader.last(),
        }
    }
}

/// Checks what is found after a moment, and returns which of the possible logs it is.
fn check_found<'a>(
    moment: &Moment,
    workload: &'a Workload,
    revived: &Revived,
    what: &str,
) -> &'a Model {
    let (progress, found) = (&moment.progress, &revived.found);
    check_identity(progress, found, what);
    let durable = progress.durable.max(1);
    let mut possible = workload.models[durable - 1..progress.issued.max(1)].iter();
    let model = possible.find(|model| model.allows(&found.model, found.first));
    let model = model.unwrap_or_else(|| {
        panic!(
            "{what}: {durable} of {} durable; expected {:#?} or later, found {found:#?}",
            progress.issued,
            workload.models[durable - 1]
        )
    });
    let restored = found.restored.map(|id| id.index);
    assert!(
        progress.snapshot_durable <= restored && restored <= progress.snapshot_issued,
        "{what}: restored {restored:?}, of snapshots {:?} to {:?}",
        progress.snapshot_durable,
        progress.snapshot_issued
    );
    check_state(&revived.peer, found, workload, what);
    model
}

/// Checks what is found after a moment, and that the store goes on from there.
fn check(moment: &Moment, workload: &Workload, random: &mut Random, what: &str) {
    let revived = reopen(&moment.image, random, what);
    check_found(moment, workload, &revived, what);
    let Revived {
        disk,
        mut peer,
        found,
    } = revived;
    let applied = peer.opened.reader.last();

    // It goes on, and what it acknowledges now is there after another crash.
    let next = peer
        .append_one(1 << 40)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    drop(peer);
    let Revived {
        peer, found: last, ..
    } = reopen(&disk.image(), random, what);
    assert_eq!(last.model.last, Some(next), "{what}");
    assert_eq!(
        last.model.vote.map(|vote| vote.term),
        Some(1 << 40),
        "{what}"
    );
    assert_eq!(last.identity, found.identity, "{what}");
    assert_eq!(peer.opened.reader.last(), applied, "{what}");
}

/// Lets the workload go on in a further life after a moment of the one before, and checks crashes in that, from some of
/// which there is one life more, as long as there are `lives`. Returns the number of crash points.
fn live_on(
    moment: &Moment,
    workload: &Workload,
    lives: usize,
    random: &mut Random,
    what: &str,
) -> u64 {
    let revived = reopen(&moment.image, random, what);
    let model = check_found(moment, workload, &revived, what);
    let seed = Random(random.next());
    let mut next = workload.next_life(&moment.progress, model, revived, seed);
    let actions = 1 + random.below(ACTIONS_OF_LIFE) as usize;
    let moments = next.record(|life| life.go_on(actions));
    let mut points = 0;
    for _ in 0..CHECKS_PER_LIFE {
        let at = random.below(moments.len() as u64) as usize;
        let what = format!("{what}, then operation {at} of {}", moments.len());
        check(&moments[at], &next, random, &what);
        points += 1;
        if lives > 1 && random.below(POINTS_PER_LIFE) == 0 {
            points += live_on(&moments[at], &next, lives - 1, random, &what);
        }
    }
    points
}

fn check_identity(progress: &Progress, found: &Found, what: &str) {
    let nonce = progress.nonce;
    assert!(
        nonce.is_none_or(|nonce| nonce == found.identity.nonce()),
        "{what}: another identity"
    );
    let member = matches!(found.identity, Identity::Member { .. });
    assert!(member || !progress.joined, "{what}: not a member any more");
}

fn check_state(peer: &Peer, found: &Found, workload: &Workload, what: &str) {
    let applied = peer.reader.last();
    let expected = found.restored.max(found.model.committed);
    assert_eq!(applied, expected, "{what}: applied");
    let entries = applied.map_or(0, |id| id.index.0 + 1) as usize;
    assert_eq!(
        peer.reader.state().digest(),
        workload.digests[entries],
        "{what}: the state after {entries} entries is another"
    );
}

/// Runs the workload of `seed` once, and checks a power cut or a kill in the middle of each of its operations, and in
/// lives after some of those. Returns the number of crash points.
fn crash_everywhere(seed: u64) -> u64 {
    FIXED_NONCE.set(Some(seed));
    let disk = SimulatedDisk::default();
    let mut workload = Workload::new(&disk, seed);
    let moments = workload.record(Workload::run);
    let mut points = moments.len() as u64;
    for (at, moment) in moments.iter().enumerate() {
        let mut random = Random(seed ^ (at as u64) << 32);
        let what = format!("seed {seed}, operation {at}");
        check(moment, &workload, &mut random, &what);
        if random.below(POINTS_PER_LIFE) == 0 {
            points += live_on(moment, &workload, LIVES - 1, &mut random, &what);
        }
    }
    points
}

/// Runs the workload of `seed` with `fault` at every operation. Returns how often that was.
fn fail_everywhere(seed: u64, fault: Fault) -> u64 {
    FIXED_NONCE.set(Some(seed));
    for at in 1.. {
        let disk = SimulatedDisk::failing_at(at, fault);
        let mut workload = Workload::new(&disk, seed);
        let outcome = workload.run();
        if !disk.has_faulted() {
            outcome.unwrap();
            return at - 1;
        }
        let what = format!("seed {seed}, {fault:?} at operation {at}");
        if outcome.is_err() {
            workload.check_poisoned(&what);
        }
        let moment = Moment {
            image: disk.image(),
            progress: workload.progress(),
        };
        let mut random = Random(seed ^ at << 32);
        check(&moment, &workload, &mut random, &what);
    }
    unreachable!("the workload ends")
}

#[test]
fn a_whole_store_survives_a_crash_at_every_operation() {
    crash_points(3_000, crash_everywhere);
}

#[test]
fn a_whole_store_survives_an_error_a_full_disk_or_a_lost_sync_at_every_operation() {
    for fault in [Fault::Error, Fault::Full, Fault::LostSync] {
        let points: u64 = (0..2).map(|seed| fail_everywhere(seed, fault)).sum();
        assert!(points > 100, "{fault:?}: {points} points only");
    }
}

/// A whole workload, and the disk as its peer left it, which has stopped.
fn played(seed: u64) -> (SimulatedDisk, Workload) {
    FIXED_NONCE.set(Some(seed));
    let disk = SimulatedDisk::default();
    let mut workload = Workload::new(&disk, seed);
    workload.run().unwrap();
    drop(workload.peer.take());
    (disk, workload)
}

/// What crashes are tried on is every kind of record that a state has.
#[test]
fn workloads_come_to_every_part_of_a_state() {
    let mut met = std::collections::HashSet::new();
    for seed in 0..8 {
        let (_, workload) = played(seed);
        met.extend(workload.kinds());
    }
    assert_eq!(met.len(), KINDS_OF_RECORDS, "{met:?}");
}

/// Bits that change after everything was synced.
#[test]
fn corruption_anywhere_is_refused_with_its_place_or_costs_nothing() {
    for seed in 0..3 {
        let (disk, workload) = played(seed);
        let settled = disk.image();
        let intact = Found::of(&Peer::open(&settled.after_kill()).unwrap());
        // One more group, since the last one cannot be told from a torn write.
        let mut sizes = std::collections::BTreeMap::new();
        for path in disk.paths() {
            sizes.insert(path.clone(), disk.bytes(&path).len());
        }
        let mut peer = Peer::open(&disk).unwrap();
        peer.append_one(1 << 40).unwrap();
        drop(peer);
        let settled = disk.image();
        let mut random = Random(seed);
        for _ in 0..150 {
            let disk = settled.after_kill();
            let at = random.below(sizes.len() as u64) as usize;
            let (path, size) = sizes.iter().nth(at).unwrap();
            let byte = random.below(*size as u64) as usize;
            let bit = random.below(8);
            disk.damage(path, |bytes| bytes[byte] ^= 1 << bit);
            let what = format!(
                "seed {seed}, bit {bit} of byte {byte} of {}",
                path.display()
            );
            match Peer::open(&disk) {
                Err(error) => check_refusal(&error, path, &what),
                Ok(mut peer) => {
                    let mut found = Found::of(&peer);
                    assert_eq!(found.model.last.map(|id| id.term), Some(1 << 40), "{what}");
                    assert_eq!(found.model.committed, intact.model.committed, "{what}");
                    peer.start()
                        .unwrap_or_else(|error| panic!("{what}: {error}"));
                    found.restored = found.restored.max(found.model.committed);
                    check_state(&peer, &found, &workload, &what);
                }
            }
        }
    }
}

/// The reason names the file; or the data directory, where that says enough: of `FORMAT`, and of a snapshot that
/// was put aside and is missed.
fn check_refusal(error: &OpenError, path: &Path, what: &str) {
    let said = chain(error);
    let gap = matches!(error, OpenError::Gap { .. }) && path.starts_with("/data/snap");
    let named = (gap || path.ends_with("FORMAT")) && said.contains(DIR);
    assert!(
        named || said.contains(&*path.to_string_lossy()),
        "{what}: {said}"
    );
}
