//! A store as a whole: what is there after it is closed and opened again.

mod checkpoint;
mod crash;
mod unread;

use futures_util::stream;
use openraft::alias::EntryOf;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use raftserve_model::{LogIndex, LogTime, NodeId};

use super::*;
use crate::command::{Action, Command};
use crate::entry::Vote;
use crate::raft::{Turn, TypeConfig, log_id_to, vote_to};

fn id(index: u64) -> LogId {
    LogId {
        term: 1,
        node: NodeId(1),
        index: LogIndex(index),
    }
}

fn entry(index: u64) -> EntryOf<TypeConfig> {
    let command = Command::at(LogTime::default(), Action::OpenClient);
    EntryOf::<TypeConfig>::new(log_id_to(id(index)), EntryPayload::Normal(command))
}

fn open(path: &Path) -> Result<Opened, OpenError> {
    Store::default().open(&mut DataDir::open(path)?)
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push_str(": ");
        said.push_str(&error.to_string());
        cause = error.source();
    }
    said
}

async fn apply(opened: &mut Opened, range: std::ops::RangeInclusive<u64>) {
    let entries = stream::iter(range.map(|index| Ok((entry(index), None))));
    opened.machine.apply(entries).await.unwrap();
}

#[tokio::test]
async fn entries_vote_and_marks_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    let vote = Vote {
        term: 3,
        node: NodeId(2),
        committed: true,
    };
    opened.log.save_vote(&vote_to(vote)).await.unwrap();
    opened
        .log
        .blocking_append((0..=20).map(entry))
        .await
        .unwrap();
    opened
        .log
        .save_committed(Some(log_id_to(id(15))))
        .await
        .unwrap();
    opened
        .log
        .truncate_after(Some(log_id_to(id(18))))
        .await
        .unwrap();
    drop(opened);

    let mut opened = open(dir.path()).unwrap();
    let mut reader = opened.log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote_to(vote)));
    assert_eq!(
        opened.log.read_committed().await.unwrap(),
        Some(log_id_to(id(15)))
    );
    let entries = reader.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (0..=18).map(entry).collect::<Vec<_>>());
    let state = opened.log.get_log_state().await.unwrap();
    assert_eq!(state.last_log_id, Some(log_id_to(id(18))));
}

#[tokio::test]
async fn the_log_reaches_back_to_the_older_of_two_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened
        .log
        .blocking_append((0..=30).map(entry))
        .await
        .unwrap();
    apply(&mut opened, 0..=10).await;
    opened
        .machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    opened.log.purge(log_id_to(id(10))).await.unwrap();
    apply(&mut opened, 11..=20).await;
    opened
        .machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    opened.log.purge(log_id_to(id(20))).await.unwrap();
    assert_eq!(opened.wal.range(), 21..31, "readers see the purge at once");
    let digest = opened.reader.state().digest();
    drop(opened);

    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(20)));
    assert_eq!(opened.reader.state().digest(), digest);
    assert_eq!(opened.wal.range(), 11..31);
    drop(opened);

    // The newest is damaged: the older one and the log give the same state.
    let newest = std::fs::read_dir(dir.path().join(SNAPSHOT_DIR)).unwrap();
    let newest = newest.map(|it| it.unwrap().path()).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let mut opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(10)));
    apply(&mut opened, 11..=20).await;
    assert_eq!(opened.reader.state().digest(), digest);
}

/// The turn of a peer that is the only one.
const ALONE: Turn = Turn { rank: 0, of: 1 };

#[tokio::test]
async fn the_log_that_makes_a_snapshot_due_is_counted_over_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    let entries = (0..=10).map(entry);
    opened.log.blocking_append(entries).await.unwrap();
    apply(&mut opened, 0..=10).await;
    let mut builder = opened.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    assert_eq!(opened.trigger.bytes(), 0);
    let entries = (11..=30).map(entry);
    opened.log.blocking_append(entries).await.unwrap();
    let held = opened.wal.bytes_after(Some(id(10)));
    assert!(held > opened.wal.bytes_after(Some(id(11))));
    assert!(opened.trigger.bytes() >= held);
    drop((builder, opened));

    let opened = open(dir.path()).unwrap();
    assert!(opened.trigger.bytes() >= held);
}

#[tokio::test]
async fn a_peer_whose_log_is_gone_does_not_start_with_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    std::fs::remove_dir_all(dir.path().join(WAL_DIR)).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::LogLost { .. })));
}

#[tokio::test]
async fn a_copy_of_a_segment_by_another_name_is_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    let entries = (0..=3).map(entry);
    opened.log.blocking_append(entries).await.unwrap();
    drop(opened);
    let segment = |name: &str| dir.path().join(WAL_DIR).join(name);
    for name in ["copy.wal", "1.wal", "+0000001.wal"] {
        std::fs::copy(segment("00000001.wal"), segment(name)).unwrap();
    }
    assert_eq!(open(dir.path()).unwrap().wal.range(), 0..4);
    std::fs::remove_file(segment("00000001.wal")).unwrap();
    let error = open(dir.path()).map(drop).unwrap_err();
    assert!(
        matches!(error, OpenError::Wal(WalError::Missing { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_first_segment_that_was_emptied_or_shortened_is_no_fresh_log() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let segment = dir.path().join(WAL_DIR).join("00000001.wal");
    let first_group = std::fs::metadata(&segment).unwrap().len();
    let mut opened = open(dir.path()).unwrap();
    let entries = (0..=3).map(entry);
    opened.log.blocking_append(entries).await.unwrap();
    drop(opened);
    let whole = std::fs::read(&segment).unwrap();
    for length in 0..first_group {
        let cut = &whole[..usize::try_from(length).unwrap()];
        std::fs::write(&segment, cut).unwrap();
        let error = open(dir.path()).map(drop).unwrap_err();
        let OpenError::Wal(WalError::Corrupt { path, .. }) = error else {
            panic!("{length} bytes: {error}");
        };
        assert_eq!(path, segment);
        assert_eq!(std::fs::read(&segment).unwrap(), cut, "nothing is repaired");
    }
    std::fs::write(&segment, whole).unwrap();
    assert_eq!(open(dir.path()).unwrap().wal.range(), 0..4);
}

#[test]
fn a_peer_whose_log_was_found_cut_never_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    DataDir::open(dir.path()).unwrap().note_log_cut().unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::LogCut { .. })));
}

#[tokio::test]
async fn a_log_that_no_snapshot_reaches_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    // A snapshot was received up to 50, and the log begins anew after it.
    apply(&mut opened, 50..=50).await;
    opened
        .machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    opened.log.purge(log_id_to(id(50))).await.unwrap();
    opened.log.blocking_append([entry(51)]).await.unwrap();
    drop(opened);
    drop(open(dir.path()).unwrap());
    std::fs::remove_dir_all(dir.path().join(SNAPSHOT_DIR)).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Gap { .. })));
}

#[tokio::test]
async fn blank_and_membership_entries_move_the_applied_index() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    let applied = opened.reader.applied();
    for (index, payload) in [
        (4, EntryPayload::Blank),
        (5, EntryPayload::Membership(openraft::Membership::default())),
    ] {
        let entry = EntryOf::<TypeConfig>::new(log_id_to(id(index)), payload);
        opened
            .machine
            .apply(stream::iter([Ok((entry, None))]))
            .await
            .unwrap();
        assert_eq!(*applied.borrow(), LogIndex(index));
    }
    let (_, membership) = opened.machine.applied_state().await.unwrap();
    assert_eq!(*membership.log_id(), Some(log_id_to(id(5))));
}

#[tokio::test]
async fn appended_entries_can_be_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened
        .log
        .append([entry(1)], IOFlushed::noop())
        .await
        .unwrap();
    let mut reader = opened.log.get_log_reader().await;
    assert_eq!(reader.try_get_log_entries(1..=1).await.unwrap(), [entry(1)]);
}
