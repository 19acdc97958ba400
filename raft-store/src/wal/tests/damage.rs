//! Telling a torn write from corruption.

use super::*;
use crate::disk::simulated::{Fault, Random};

/// A log of eight groups in one segment: three entries, then five single ones. Returns where each group begins, and the
/// end.
fn written(disk: &SimulatedDisk) -> Vec<usize> {
    let mut log = Stepped::open_with(disk, WalOptions::default()).unwrap();
    let mut starts = vec![disk.bytes(&segment(1)).len()];
    log.append(
        (0..3).map(|it| entry(id(1, it), &[0x55; 40])).collect(),
        drop,
    );
    log.writer.step();
    starts.push(disk.bytes(&segment(1)).len());
    for index in 3..8 {
        log.append_one(id(1, index));
        starts.push(disk.bytes(&segment(1)).len());
    }
    starts
}

fn refusal(disk: &SimulatedDisk) -> WalError {
    match Stepped::open(disk) {
        Ok(_) => panic!("a corrupt log was opened"),
        Err(error) => error,
    }
}

#[test]
fn a_torn_tail_is_cut_at_any_byte() {
    let disk = SimulatedDisk::default();
    let starts = written(&disk);
    let whole = disk.bytes(&segment(1));
    let last = starts[starts.len() - 2];
    for end in last..whole.len() {
        disk.damage(&segment(1), |bytes| bytes.truncate(end));
        let mut log = Stepped::open(&disk).unwrap();
        assert_eq!(log.indexes(), (0..7).collect::<Vec<_>>(), "cut at {end}");
        assert_eq!(log.wal.torn_tail().is_some(), end > last);
        log.append_one(id(2, 7));
        drop(log);
        assert_eq!(Stepped::open(&disk).unwrap().indexes().len(), 8);
        disk.damage(&segment(1), |bytes| bytes.clone_from(&whole));
    }
}

#[test]
fn a_zero_tail_is_cut() {
    let disk = SimulatedDisk::default();
    let starts = written(&disk);
    let last = starts[starts.len() - 2];
    disk.damage(&segment(1), |bytes| {
        bytes[last..].fill(0);
        bytes.resize(bytes.len() + 4096, 0);
    });
    let log = Stepped::open(&disk).unwrap();
    assert_eq!(log.indexes(), (0..7).collect::<Vec<_>>());
    let torn = log.wal.torn_tail().unwrap();
    assert_eq!((torn.path.clone(), torn.offset), (segment(1), last as u64));
}

#[test]
fn what_survives_of_a_torn_group_after_its_damage_is_cut_too() {
    // Of a last group of three entries the first is damaged, in its middle; the other two are whole.
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    log.append_one(id(1, 0));
    let start = disk.bytes(&segment(1)).len();
    log.append(
        (1..4).map(|it| entry(id(1, it), &[0x55; 40])).collect(),
        drop,
    );
    log.writer.step();
    drop(log);
    disk.damage(&segment(1), |bytes| bytes[start + 30] ^= 1);
    let mut log = Stepped::open(&disk).unwrap();
    assert_eq!(log.indexes(), [0]);
    log.append_one(id(2, 1));
    drop(log);
    assert_eq!(Stepped::open(&disk).unwrap().indexes(), [0, 1]);
}

#[test]
fn a_group_cut_between_its_records_is_closed_and_later_damage_is_still_judged_right() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    log.append_one(id(1, 0));
    log.append((1..4).map(|it| entry(id(1, it), b"")).collect(), drop);
    log.writer.step();
    drop(log);
    // The group's last record is gone, exactly.
    disk.damage(&segment(1), |bytes| {
        bytes.truncate(bytes.len() - format::RECORD_HEAD - 16)
    });
    let mut log = Stepped::open(&disk).unwrap();
    assert_eq!(log.indexes(), [0, 1, 2]);
    assert_eq!(log.wal.torn_tail(), None);
    let start = disk.bytes(&segment(1)).len();
    log.append((3..6).map(|it| entry(id(2, it), &[1; 40])).collect(), drop);
    log.writer.step();
    drop(log);
    disk.damage(&segment(1), |bytes| bytes[start + 40] ^= 1);
    assert_eq!(Stepped::open(&disk).unwrap().indexes(), [0, 1, 2]);
}

#[test]
fn damage_before_a_later_group_is_refused_with_its_place() {
    let disk = SimulatedDisk::default();
    let starts = written(&disk);
    let whole = disk.bytes(&segment(1));
    for at in starts[0]..starts[starts.len() - 2] {
        disk.damage(&segment(1), |bytes| bytes[at] ^= 0x10);
        let before = disk.bytes(&segment(1));
        let WalError::Corrupt { path, offset, .. } = refusal(&disk) else {
            panic!("byte {at}: not refused as corrupt");
        };
        assert_eq!(path, segment(1));
        assert!(offset <= at as u64 && starts.iter().any(|it| *it as u64 <= offset));
        assert_eq!(
            disk.bytes(&segment(1)),
            before,
            "a refused log is not touched"
        );
        disk.damage(&segment(1), |bytes| bytes.clone_from(&whole));
    }
    let said = {
        disk.damage(&segment(1), |bytes| bytes[starts[1]] ^= 1);
        refusal(&disk).to_string()
    };
    assert!(
        said.contains("00000001.wal") && said.contains(&format!("byte {}", starts[1])),
        "{said}"
    );
}

/// A log of several segments.
fn segments(disk: &SimulatedDisk) {
    let mut log = Stepped::open(disk).unwrap();
    (0..60).for_each(|index| log.append_one(id(1, index)));
    assert!(log.writer.active.number > 3);
}

#[test]
fn damage_anywhere_in_a_sealed_segment_is_refused() {
    let disk = SimulatedDisk::default();
    segments(&disk);
    let whole = disk.bytes(&segment(2));
    for at in 0..whole.len() {
        disk.damage(&segment(2), |bytes| bytes[at] ^= 1);
        assert!(matches!(
            refusal(&disk),
            WalError::Corrupt { .. } | WalError::Format { .. }
        ));
        disk.damage(&segment(2), |bytes| {
            bytes.clone_from(&whole);
            bytes.truncate(at);
        });
        assert!(
            matches!(refusal(&disk), WalError::Corrupt { .. }),
            "cut at {at}"
        );
        disk.damage(&segment(2), |bytes| bytes.clone_from(&whole));
    }
    assert!(Stepped::open(&disk).is_ok());
}

#[test]
fn a_missing_or_exchanged_segment_is_refused() {
    for number in [1, 2] {
        let disk = SimulatedDisk::default();
        segments(&disk);
        disk.remove(&segment(number)).unwrap();
        let refused = refusal(&disk);
        assert!(
            matches!(&refused, WalError::Missing { path } if *path == segment(number)),
            "{refused}"
        );
    }
    let disk = SimulatedDisk::default();
    segments(&disk);
    let third = disk.bytes(&segment(3));
    disk.damage(&segment(2), |bytes| *bytes = third);
    assert!(matches!(refusal(&disk), WalError::Corrupt { .. }));
}

#[test]
fn a_group_that_is_missing_or_there_twice_is_refused() {
    let disk = SimulatedDisk::default();
    let starts = written(&disk);
    let whole = disk.bytes(&segment(1));
    // Each group is intact, and so is every checksum.
    for group in 2..starts.len() - 3 {
        let (start, end) = (starts[group], starts[group + 1]);
        for again in [false, true] {
            let kept = if again { end } else { start };
            let bytes_of = [&whole[..kept], &whole[if again { start } else { end }..]].concat();
            disk.damage(&segment(1), |bytes| *bytes = bytes_of);
            let WalError::Corrupt { offset, .. } = refusal(&disk) else {
                panic!("group {group}: not refused as corrupt");
            };
            assert_eq!(offset, kept as u64);
        }
    }
}

/// Votes have no indexes that would tell.
#[test]
fn a_group_without_entries_that_is_missing_or_there_twice_is_refused() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open_with(&disk, WalOptions::default()).unwrap();
    let mut starts = Vec::new();
    for term in 1..6 {
        starts.push(disk.bytes(&segment(1)).len());
        log.vote(vote(term), drop);
        log.writer.step();
    }
    drop(log);
    let whole = disk.bytes(&segment(1));
    for (start, end) in [(starts[1], starts[2]), (starts[2], starts[3])] {
        for (kept, next) in [(start, end), (end, start)] {
            let joined = [&whole[..kept], &whole[next..]].concat();
            disk.damage(&segment(1), |bytes| *bytes = joined);
            let WalError::Corrupt { offset, .. } = refusal(&disk) else {
                panic!("{kept}, then {next}: not refused as corrupt");
            };
            assert_eq!(offset, kept as u64);
        }
    }
}

/// Another intact record of the same segment's salt and group, as an older copy of the disk would have it.
#[test]
fn a_record_put_in_place_of_another_is_refused_by_the_seal() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    log.append_one(id(1, 0));
    drop(log);
    let start = disk.bytes(&segment(1)).len();
    let [one, other] = [2, 4].map(|term| {
        let disk = disk.image().after_kill();
        let mut log = Stepped::open(&disk).unwrap();
        log.vote(vote(term), drop);
        log.writer.step();
        let end = disk.bytes(&segment(1)).len();
        for index in 1..20 {
            log.append_one(id(4, index));
        }
        (disk, end)
    });
    assert_eq!(one.1, other.1);
    assert!(one.0.paths().contains(&segment(2)));
    let foreign = other.0.bytes(&segment(1))[start..other.1].to_vec();
    one.0.damage(&segment(1), |bytes| {
        bytes[start..one.1].copy_from_slice(&foreign)
    });
    let refused = refusal(&one.0);
    let by_the_seal = matches!(
        &refused,
        WalError::Corrupt { path, offset, .. } if *path == segment(1) && *offset > one.1 as u64
    );
    assert!(by_the_seal, "{refused}");
}

#[test]
fn a_segment_of_another_log_is_refused() {
    // Two logs with the same numbers, groups and sizes everywhere, of different entries.
    let disks = [b"one", b"two"].map(|payload| {
        let disk = SimulatedDisk::default();
        let mut log = Stepped::open(&disk).unwrap();
        for index in 0..60 {
            log.append(vec![entry(id(1, index), payload)], drop);
            log.writer.step();
        }
        disk
    });
    for number in 2..5 {
        let other = disks[1].bytes(&segment(number));
        let own = disks[0].bytes(&segment(number));
        assert_eq!(own.len(), other.len());
        disks[0].damage(&segment(number), |bytes| *bytes = other);
        let refused = refusal(&disks[0]);
        assert!(
            matches!(&refused, WalError::Corrupt { path, offset: 0, .. } if *path == segment(number)),
            "{refused}"
        );
        disks[0].damage(&segment(number), |bytes| *bytes = own);
    }
}

#[test]
fn a_log_of_a_later_release_is_refused_as_such() {
    let disk = SimulatedDisk::default();
    written(&disk);
    disk.damage(&segment(1), |bytes| {
        bytes[8] = 2;
        let end = format::HEADER_LEN - 4;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(matches!(refusal(&disk), WalError::Format { found: 2, .. }));
}

#[test]
fn an_entry_damaged_under_a_running_peer_is_an_error_and_ends_the_log() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    (0..60).for_each(|index| log.append_one(id(1, index)));
    disk.damage(&segment(1), |bytes| {
        let end = bytes.len() / 2;
        bytes[end] ^= 1;
    });
    assert!(log.wal.find(0..60, usize::MAX).read().is_err());
    assert!(log.wal.watch_failure().borrow().is_some());
}

/// Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020: after a failed sync the
/// pages are clean, and what they hold is not on disk.
#[test]
fn what_a_failed_sync_left_in_memory_is_on_disk_before_anything_follows_it() {
    for seed in 0..50 {
        let disk = SimulatedDisk::default();
        let mut log = Stepped::open(&disk).unwrap();
        log.append_one(id(1, 0));
        // The sync of the next group, of which any part may be on disk.
        disk.fail_at(disk.operations() + 1 + seed, Fault::LostSync);
        let mut next = 1;
        while log.wal.watch_failure().borrow().is_none() {
            log.append(vec![entry(id(1, next), &[7; 100])], drop);
            log.writer.step();
            next += 1;
        }
        drop(log);
        // The process starts again on a disk that has recovered, and what is in memory looks whole.
        let mut log = Stepped::open(&disk).unwrap();
        let found = log.indexes();
        let acknowledged = id(2, found.len() as u64);
        log.append_one(acknowledged);
        drop(log);
        let disk = disk.after_power_cut(&mut Random(seed));
        let log = Stepped::open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(log.wal.last(), Some(acknowledged), "seed {seed}");
    }
}

/// Of the directory, or in a segment that takes several reads, wherever the one is that fails.
#[test]
fn a_read_that_fails_is_no_torn_tail() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open_with(&disk, WalOptions::default()).unwrap();
    for index in 0..12 {
        log.append(vec![entry(id(1, index), &[0x55; 60 << 10])], drop);
        log.writer.step();
    }
    drop(log);
    let (settled, whole) = (disk.image(), disk.bytes(&segment(1)));
    for reads in 0.. {
        let disk = settled.after_kill();
        disk.fail_read_after(reads);
        let opened = Stepped::open_with(&disk, WalOptions::default());
        if disk.unread().is_none() {
            assert!(reads > 4, "only {reads} reads");
            opened.map(drop).unwrap();
            break;
        }
        let Err(WalError::Io { path, .. }) = opened.map(drop) else {
            panic!("read {reads} was passed over");
        };
        assert_eq!(disk.unread(), Some(path), "read {reads}");
        assert_eq!(disk.bytes(&segment(1)), whole, "read {reads}");
    }
}
