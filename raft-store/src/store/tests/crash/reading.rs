//! Reads that fail: of a file's bytes or length, or of the names in a directory.

use std::collections::BTreeMap;

use super::*;
use crate::identity::DirectoryLock;

/// All that a peer reads of its store: at its start, to bring its state up to date, to send old entries to a
/// follower, and to send a snapshot.
fn read_all(disk: &SimulatedDisk) -> Result<Peer, String> {
    let mut peer = Peer::open(disk).map_err(|error| chain(&error))?;
    peer.start()?;
    let entries = peer.opened.wal.read_blocking(0..u64::MAX);
    entries.map_err(|error| chain(&error))?;
    if let Some(snapshot) = peer.opened.snapshots.current() {
        let file = snapshot.file;
        let place = |error: io::Error| format!("{}: {error}", file.path().display());
        file.read(0, usize::MAX).map_err(place)?;
    }
    Ok(peer)
}

/// All that is read of a peer that is down, to recover a cluster from it.
fn read_survivor(disk: &SimulatedDisk) -> Result<(), String> {
    let (on, lock) = (Arc::new(disk.clone()), DirectoryLock::nothing());
    let dir = DataDir::open_on(on, Path::new(DIR), lock).map_err(|error| chain(&error))?;
    let read = Store::default().read(&dir);
    read.map(drop).map_err(|error| chain(&error))
}

/// Lets each read of `read` fail, one in each run from `settled`. Each must be refused with its place, which is counted,
/// but that a snapshot may be passed over; and then `check` looks at the disk.
fn fail_each_read(
    settled: &Image,
    read: impl Fn(&SimulatedDisk) -> Result<(), String>,
    check: impl Fn(&SimulatedDisk, &str),
) -> BTreeMap<PathBuf, u64> {
    let mut failed = BTreeMap::new();
    for reads in 0.. {
        let disk = settled.after_kill();
        disk.fail_read_after(reads);
        let outcome = read(&disk);
        let Some(path) = disk.unread() else {
            outcome.unwrap();
            break;
        };
        let what = format!("read {reads}, of {}", path.display());
        let is_snapshot = path.extension().is_some_and(|it| it == "snap");
        let error = match outcome {
            Ok(()) if is_snapshot => path.to_string_lossy().into_owned(),
            outcome => outcome.expect_err(&what),
        };
        let segment = path.file_stem().unwrap().to_string_lossy();
        let segment = format!("log segment {} ", segment.trim_start_matches('0'));
        let named = error.contains(&*path.to_string_lossy())
            || error.contains(&segment)
            || path.ends_with("FORMAT") && error.contains(DIR);
        assert!(named, "{what}: {error}");
        check(&disk, &what);
        *failed.entry(path).or_insert(0) += 1;
    }
    failed
}

/// A read that fails is no torn write, no damage and no missing file: nothing is cut or put aside because of it, or passed
/// over that is needed, and all is there once the disk can be read.
#[test]
fn a_read_that_fails_is_refused_with_its_place_and_costs_nothing() {
    let mut failed = BTreeMap::new();
    for seed in 0..4 {
        let (disk, workload) = played(seed);
        let settled = disk.image();
        let names = disk.paths();
        let whole = Found::of(&Peer::open(&settled.after_kill()).unwrap());
        let check = |disk: &SimulatedDisk, what: &str| {
            let what = format!("seed {seed}, {what}");
            assert_eq!(disk.paths(), names, "{what}");
            let peer = read_all(&disk.image().after_kill()).unwrap();
            let found = Found::of(&peer);
            assert_eq!(found.model, whole.model, "{what}");
            assert_eq!(found.identity, whole.identity, "{what}");
            check_state(&peer, &whole, &workload, &what);
        };
        let read = |disk: &SimulatedDisk| {
            let peer = read_all(disk)?;
            // A snapshot was passed over, and the state is what it would have been.
            if disk.unread().is_some() {
                check_state(&peer, &Found::of(&peer), &workload, &format!("seed {seed}"));
            }
            Ok(())
        };
        failed.extend(fail_each_read(&settled, read, check));
        failed.extend(fail_each_read(&settled, read_survivor, check));
    }
    println!("reads that failed: {failed:?}");
    for dir in ["/data/wal", "/data/snap"].map(Path::new) {
        assert!(failed.contains_key(dir), "the names in {}", dir.display());
        let inside = failed.keys().any(|path| path.parent() == Some(dir));
        assert!(inside, "nothing in {}", dir.display());
    }
    for name in ["FORMAT", "NODE"] {
        assert!(failed.contains_key(&Path::new(DIR).join(name)), "{name}");
    }
}

/// Where there is nothing yet, a read that fails is no reason to begin anew, nor to call the directory somebody else's.
#[test]
fn a_first_start_whose_reads_fail_is_made_up_for_by_the_next() {
    let read = |disk: &SimulatedDisk| read_all(disk).map(drop);
    let check = |disk: &SimulatedDisk, what: &str| {
        let nonce = disk.paths().contains(&Path::new(DIR).join("NODE"));
        let nonce = nonce.then(|| disk.bytes(&Path::new(DIR).join("NODE")));
        let mut peer = read_all(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        peer.append_one(1).unwrap();
        let now = disk.bytes(&Path::new(DIR).join("NODE"));
        let drawn = |node: Vec<u8>| node.split(|byte| *byte == b',').next().map(<[u8]>::to_vec);
        assert!(
            nonce.is_none_or(|nonce| drawn(nonce) == drawn(now)),
            "{what}"
        );
    };
    let failed = fail_each_read(&SimulatedDisk::default().image(), read, check);
    println!("reads that failed: {failed:?}");
    assert!(failed.contains_key(Path::new(DIR)), "the names in {DIR}");
}
