use raftserve_model::{LogIndex, LogTime, NodeId};

use super::*;
use crate::command::{Action, Command};
use crate::disk::simulated::{Fault, Random, SimulatedDisk};

const DIR: &str = "/snap";

/// Above what one write of a snapshot of small records has.
const BLOCK_BYTES: usize = 128 << 10;

fn head(index: u64) -> SnapshotHead {
    SnapshotHead {
        last: Some(LogId {
            term: 1,
            node: NodeId(1),
            index: LogIndex(index),
        }),
        membership: AppliedMembership::default(),
    }
}

/// A state after `count` entries.
fn state(count: u64) -> State {
    let mut state = State::default();
    for index in 1..=count {
        let command = Command::at(LogTime::default(), Action::OpenClient);
        state.apply(LogIndex(index), &command);
    }
    state
}

fn open(disk: &SimulatedDisk) -> Snapshots {
    disk.mount(Path::new(DIR));
    Snapshots::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap()
}

fn build(snapshots: &Snapshots, index: u64) -> Snapshot {
    let state = state(index);
    snapshots.build(&head(index), state.records()).unwrap()
}

#[test]
fn a_state_survives_its_snapshot() {
    let disk = SimulatedDisk::default();
    build(&open(&disk), 900);
    let current = open(&disk).current().unwrap();
    let (found, restored) = current.file.load().unwrap();
    assert_eq!((found, restored.digest()), (head(900), state(900).digest()));
}

#[test]
fn of_a_large_one_only_a_piece_waits_for_the_disk_at_a_time() {
    let disk = SimulatedDisk::default();
    let snapshots = open(&disk);
    let most = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&most);
    disk.on_operation(move |image| {
        let mut most = seen.lock().unwrap();
        *most = image.unsynced().max(*most);
    });
    let some: Vec<Record> = state(900).records().collect();
    let many = some.iter().cycle().take(100_000).cloned();
    let built = snapshots.build(&head(900), many).unwrap();
    let (size, most) = (built.file.size().unwrap() as usize, *most.lock().unwrap());
    assert!(size > 4 * pace::PIECE, "{size}");
    // One write more, at most, than what is due.
    assert!(most < pace::PIECE + BLOCK_BYTES, "{most} of {size}");
}

#[test]
fn damage_at_any_byte_is_refused_and_the_older_one_is_taken() {
    let disk = SimulatedDisk::default();
    let snapshots = open(&disk);
    build(&snapshots, 3);
    let newest = build(&snapshots, 5);
    let whole = disk.bytes(newest.file.path());
    for at in 0..whole.len() {
        disk.damage(newest.file.path(), |bytes| bytes[at] ^= 4);
        assert!(newest.file.verify().is_err(), "byte {at}");
        assert!(newest.file.load().is_err(), "byte {at}");
        disk.damage(newest.file.path(), |bytes| {
            bytes.clone_from(&whole);
            bytes.truncate(at);
        });
        assert!(newest.file.load().is_err(), "cut at {at}");
        disk.damage(newest.file.path(), |bytes| bytes.clone_from(&whole));
    }
    disk.damage(newest.file.path(), |bytes| bytes[whole.len() / 2] ^= 1);
    let snapshots = open(&disk);
    assert_eq!(snapshots.current().unwrap().head, head(3));
    assert_eq!(snapshots.log_floor(), None);
}

#[test]
fn one_whose_head_is_damaged_is_put_aside_and_one_of_another_release_is_left() {
    let pair = || {
        let disk = SimulatedDisk::default();
        let snapshots = open(&disk);
        build(&snapshots, 3);
        let newest = build(&snapshots, 5);
        (disk, newest.file.path().to_owned())
    };
    for at in 0..80 {
        let (disk, newest) = pair();
        disk.damage(&newest, |bytes| bytes[at] ^= 2);
        assert_eq!(open(&disk).current().unwrap().head, head(3), "byte {at}");
        let mut names = disk.list(Path::new(DIR)).unwrap().into_iter();
        assert!(names.any(|name| name.ends_with(".damaged")), "byte {at}");
    }
    for at in [8, 10] {
        let (disk, newest) = pair();
        disk.damage(&newest, |bytes| {
            bytes[at] += 1;
            let sum_at = bytes.len() - CHECKSUM_AT as usize;
            let sum = crc32c::crc32c(&bytes[..sum_at]);
            bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
        });
        let refused = Snapshots::open(Arc::new(disk.clone()), Path::new(DIR)).map(drop);
        assert!(matches!(refused, Err(SnapshotError::Format { .. })));
        assert!(
            disk.list(Path::new(DIR))
                .unwrap()
                .iter()
                .all(|it| it.ends_with(SUFFIX))
        );
    }
}

#[test]
fn two_are_kept_and_the_log_is_needed_from_the_older() {
    let disk = SimulatedDisk::default();
    let snapshots = open(&disk);
    assert!(snapshots.current().is_none());
    for index in [1, 2, 3] {
        build(&snapshots, index);
    }
    for snapshots in [&snapshots, &open(&disk)] {
        assert_eq!(snapshots.current().unwrap().head, head(3));
        assert_eq!(snapshots.log_floor(), head(2).last);
    }
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 2);
}

#[test]
fn a_copy_by_another_name_is_left_alone_and_a_renamed_one_is_put_aside() {
    let disk = SimulatedDisk::default();
    let snapshots = open(&disk);
    let oldest = disk.bytes(build(&snapshots, 1).file.path());
    for index in [2, 3] {
        build(&snapshots, index);
    }
    let put = |name: &str| {
        let file = disk.create(&Path::new(DIR).join(name)).unwrap();
        file.write_at(0, &oldest).unwrap();
        file.sync().unwrap();
    };
    let later = file_name(head(9).last);
    put("copy.snap");
    put("9-1-1.snap");
    put(&later);
    let snapshots = open(&disk);
    assert_eq!(snapshots.current().unwrap().head, head(3));
    assert_eq!(snapshots.log_floor(), head(2).last);
    let names = disk.list(Path::new(DIR)).unwrap();
    for left in ["copy.snap", "9-1-1.snap", &format!("{later}.damaged")] {
        assert!(names.iter().any(|name| name == left), "{left}: {names:?}");
    }
}

#[test]
fn a_received_one_replaces_an_older_and_never_a_newer() {
    let leader = open(&SimulatedDisk::default());
    let sent = build(&leader, 7);
    let bytes = sent.file.read(0, usize::MAX >> 1).unwrap();

    let disk = SimulatedDisk::default();
    let follower = open(&disk);
    build(&follower, 2);
    let received = follower.receive().unwrap();
    for (at, piece) in bytes.chunks(100).enumerate() {
        received.write(at as u64 * 100, piece).unwrap();
    }
    let (installed, restored) = follower.install(&received, head(7).last).unwrap();
    assert_eq!(
        (installed.head, restored.digest()),
        (head(7), state(7).digest())
    );
    assert_eq!(follower.current().unwrap().head, head(7));

    let wrong = follower.install(&sent.file, head(8).last);
    assert!(matches!(wrong, Err(SnapshotError::Corrupt { .. })));
    let old = build(&open(&SimulatedDisk::default()), 4);
    let refused = follower.install(&old.file, head(4).last);
    assert!(matches!(refused, Err(SnapshotError::Older { .. })));
    assert_eq!(
        build(&follower, 6).head,
        head(7),
        "a late build yields to the newer one"
    );
    assert_eq!(open(&disk).current().unwrap().head, head(7));
    assert!(
        disk.list(Path::new(DIR))
            .unwrap()
            .iter()
            .all(|it| it.ends_with(SUFFIX))
    );
}

#[test]
fn what_was_received_in_part_is_not_installed_and_goes_with_a_restart() {
    let sent = build(&open(&SimulatedDisk::default()), 7);
    let disk = SimulatedDisk::default();
    let follower = open(&disk);
    let received = follower.receive().unwrap();
    let part = sent.file.size().unwrap() as usize - 10;
    received
        .write(0, &sent.file.read(0, part).unwrap())
        .unwrap();
    assert!(matches!(
        follower.install(&received, head(7).last),
        Err(SnapshotError::Corrupt { .. })
    ));
    assert!(open(&disk).current().is_none());
    assert!(disk.list(Path::new(DIR)).unwrap().is_empty());
}

#[test]
fn there_is_always_a_whole_one_whenever_the_power_goes() {
    for seed in 0..8 {
        let mut cut = 0;
        loop {
            cut += 1;
            let disk = SimulatedDisk::default();
            let snapshots = open(&disk);
            disk.fail_at(disk.operations() + cut, Fault::PowerCut);
            let mut done = 0;
            for index in 1..=4 {
                let state = state(index);
                match snapshots.build(&head(index), state.records()) {
                    Ok(_) => done = index,
                    Err(_) => break,
                }
            }
            let was_cut = disk.is_off();
            let disk = disk.after_power_cut(&mut Random(seed << 32 | cut));
            let found = open(&disk);
            let index = found
                .current()
                .map_or(0, |it| it.head.last.unwrap().index.0);
            assert!(
                index == done || index == done + 1,
                "seed {seed}, cut {cut}: {index} for {done}"
            );
            if let Some(current) = found.current() {
                let (_, restored) = current.file.load().unwrap();
                assert_eq!(restored.digest(), state(index).digest());
            }
            build(&found, 9);
            if !was_cut {
                break;
            }
        }
    }
}

#[test]
fn a_failed_sync_leaves_the_current_one() {
    let disk = SimulatedDisk::default();
    let snapshots = open(&disk);
    build(&snapshots, 1);
    for operation in 1..20 {
        disk.fail_at(disk.operations() + operation, Fault::Error);
        let newer = state(5);
        let built = snapshots.build(&head(5), newer.records());
        disk.fail_at(u64::MAX, Fault::Error);
        if built.is_ok() {
            return;
        }
        assert_eq!(snapshots.current().unwrap().head, head(1));
    }
    panic!("a build takes fewer operations");
}

#[test]
fn what_was_received_is_kept_over_a_restart_and_for_one_snapshot_only() {
    let disk = SimulatedDisk::default();
    let id = |index, size| SnapshotId {
        last: head(index).last,
        size,
        checksum: 7,
    };
    let (file, has) = open(&disk).resume(&id(5, 10)).unwrap();
    assert_eq!(has, 0);
    file.write(0, b"abcdef").unwrap();
    let (again, has) = open(&disk).resume(&id(5, 10)).unwrap();
    assert_eq!(
        (again.read(0, 99).unwrap().as_slice(), has),
        (&b"abcdef"[..], 6)
    );

    // Of another one nothing is kept, and of one that is discarded neither.
    let (_, has) = open(&disk).resume(&id(6, 10)).unwrap();
    assert_eq!(has, 0);
    let snapshots = open(&disk);
    let (file, has) = snapshots.resume(&id(5, 10)).unwrap();
    assert_eq!(has, 0);
    file.write(0, b"abc").unwrap();
    snapshots.discard(&file);
    assert_eq!(snapshots.resume(&id(5, 10)).unwrap().1, 0);
}
