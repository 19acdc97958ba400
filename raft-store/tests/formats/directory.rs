//! A data directory as version 1 left it: it is opened, and everything in it is what it was.

use std::path::Path;

use raftserve_model::{ClusterId, LogIndex, NodeId};
use raftserve_store::codec;
use raftserve_store::entry::{LogId, Payload, Vote};
use raftserve_store::identity::IdentityError;
use raftserve_store::{DataDir, Identity, OpenError, Store};

use crate::{FIRST_ENTRIES, fixture};

/// The last entry that its log does not hold any more.
const PURGED: u64 = 10;

/// The leader that wrote all of it.
fn id(index: u64) -> LogId {
    LogId {
        term: 3,
        node: NodeId(2),
        index: LogIndex(index),
    }
}

/// Its files, where a peer may change them.
fn copy(into: &Path) {
    for folder in ["", "wal", "snap"] {
        std::fs::create_dir_all(into.join(folder)).unwrap();
        for entry in std::fs::read_dir(fixture::path("data-directory").join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let to = into.join(folder).join(entry.file_name());
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }
}

/// What its log holds: both histories and a membership.
fn payloads() -> Vec<Payload> {
    let commands = crate::commands()
        .into_iter()
        .chain(crate::further::commands());
    let payloads = commands.map(|(_, command)| Payload::Command(command));
    let membership = crate::head().membership.membership;
    payloads.chain([Payload::Membership(membership)]).collect()
}

#[test]
fn a_data_directory_is_opened_and_holds_what_it_always_held() {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    let mut data = DataDir::open(dir.path()).unwrap();
    let member = Identity::Member {
        nonce: 22,
        cluster: ClusterId([7; 16]),
        node: NodeId(2),
    };
    assert_eq!(data.identity(), member);
    let opened = Store::default().open(&mut data).unwrap();
    let (wal, payloads) = (&opened.wal, payloads());
    let last = payloads.len() as u64;
    assert_eq!(wal.torn_tail(), None);
    assert_eq!(wal.purged(), Some(id(PURGED)));
    assert_eq!(wal.range(), PURGED + 1..last + 1);
    assert_eq!(wal.committed(), Some(id(FIRST_ENTRIES + 3)));
    let vote = Vote {
        term: 3,
        node: NodeId(2),
        committed: true,
    };
    assert_eq!(wal.vote(), Some(vote));
    let entries = wal.read_blocking(wal.range()).unwrap();
    for (index, entry) in (PURGED + 1..).zip(&entries) {
        assert_eq!(entry.id, id(index));
        let payload: Payload = codec::decode(entry.payload()).unwrap();
        assert_eq!(payload, payloads[index as usize - 1], "entry {index}");
    }
    assert_eq!(opened.reader.last(), crate::head().last);
    let snapshot = opened.snapshots.current().unwrap();
    assert_eq!(snapshot.head, crate::head());
    let mut state = (*opened.reader.state()).clone();
    assert_eq!(state.digest(), crate::state().digest());

    // The whole log applied, from the entries as they were read.
    for entry in entries.iter().filter(|it| it.id.index.0 > FIRST_ENTRIES) {
        if let Payload::Command(command) = codec::decode(entry.payload()).unwrap() {
            state.apply(entry.id.index, &command);
        }
    }
    assert_eq!(state.digest(), crate::further::state().digest());
}

#[test]
fn a_new_data_directory_has_the_format_it_always_had() {
    let dir = tempfile::tempdir().unwrap();
    drop(DataDir::open(dir.path()).unwrap());
    let format = std::fs::read(dir.path().join("FORMAT")).unwrap();
    fixture::same_as("data-directory/FORMAT", &format);
}

#[test]
fn who_a_peer_is_is_read_as_it_always_was() {
    for (name, expected) in [
        ("pristine", Some(Identity::Pristine { nonce: 300 })),
        ("log-cut", None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(
            fixture::path("data-directory/FORMAT"),
            dir.path().join("FORMAT"),
        )
        .unwrap();
        std::fs::copy(
            fixture::path(&format!("node/{name}")),
            dir.path().join("NODE"),
        )
        .unwrap();
        let mut data = DataDir::open(dir.path()).unwrap();
        if let Some(expected) = expected {
            assert_eq!(data.identity(), expected);
            continue;
        }
        match Store::default().open(&mut data) {
            Err(OpenError::LogCut { .. }) => {}
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[test]
fn a_data_directory_of_the_next_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    std::fs::write(dir.path().join("FORMAT"), "2\n").unwrap();
    match DataDir::open(dir.path()) {
        Err(IdentityError::Format { found, .. }) => assert_eq!(found, "2"),
        other => panic!("not refused: {other:?}"),
    }
}
