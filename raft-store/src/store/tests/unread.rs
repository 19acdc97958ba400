//! Snapshots that are damaged, or cannot be read and may yet be whole.

use std::path::PathBuf;

use super::*;
use crate::disk::Disk;
use crate::disk::failing::FailingReads;

fn dir_on(path: &Path, bad: &[&Path]) -> DataDir {
    let disk: Arc<dyn Disk> = Arc::new(FailingReads::of(bad));
    let lock = DirectoryLock::take(path).unwrap();
    DataDir::open_on(disk, path, lock).unwrap()
}

/// Opens the store where each read of the files `bad` fails.
fn open_with_bad(path: &Path, bad: &[&Path]) -> Result<Opened, OpenError> {
    Store::default().open(&mut dir_on(path, bad))
}

/// Reads it likewise, as a recovery does; says what the snapshot ends with that was taken.
fn read_with_bad(path: &Path, bad: &[&Path]) -> Result<Option<LogId>, OpenError> {
    let (_, applied) = Store::default().read(&dir_on(path, bad))?;
    Ok(applied.last)
}

async fn build(opened: &mut Opened) {
    let mut builder = opened.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
}

/// The snapshots' files, the older one first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir.join(SNAPSHOT_DIR)).unwrap();
    let mut files: Vec<_> = files.map(|it| it.unwrap().path()).collect();
    files.sort_unstable();
    files
}

fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

fn assert_refused<T>(outcome: Result<T, OpenError>, bad: &Path) {
    let error = outcome.map(drop).unwrap_err();
    let OpenError::Snapshot(SnapshotError::Io { path, .. }) = &error else {
        panic!("{}", chain(&error));
    };
    assert_eq!(path, bad);
}

/// Snapshots up to 10 and 20, of a log from 11 to 30.
async fn settled(dir: &Path) {
    let mut opened = open(dir).unwrap();
    let log = opened.log.blocking_append((0..=30).map(entry));
    log.await.unwrap();
    for (from, upto) in [(0, 10), (11, 20)] {
        apply(&mut opened, from..=upto).await;
        build(&mut opened).await;
        opened.log.purge(log_id_to(id(upto))).await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_is_passed_over_where_another_and_the_log_hold_as_much() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    settled(dir).await;
    let whole = open(dir).unwrap().reader.state().digest();
    let both = files(dir);
    for (bad, other) in [(&both[1], 10), (&both[0], 20)] {
        let bytes = std::fs::read(bad).unwrap();
        assert_eq!(read_with_bad(dir, &[bad]).unwrap(), Some(id(other)));
        let mut opened = open_with_bad(dir, &[bad]).unwrap();
        assert_eq!(opened.reader.last(), Some(id(other)));
        // While one may be gone for good, the log stays as it is.
        assert_eq!(opened.snapshots.log_floor(), None);
        apply(&mut opened, other + 1..=20).await;
        assert_eq!(opened.reader.state().digest(), whole);
        drop(opened);
        assert_eq!(files(dir), both);
        assert_eq!(std::fs::read(bad).unwrap(), bytes);
        assert_eq!(open(dir).unwrap().snapshots.log_floor(), Some(id(10)));
    }
    // It is out of the way once there are two others, and what was built at the same entry takes its place.
    let mut opened = open_with_bad(dir, &[&both[1]]).unwrap();
    apply(&mut opened, 11..=20).await;
    build(&mut opened).await;
    drop(opened);
    assert_eq!(files(dir), both);
    assert_eq!(open(dir).unwrap().reader.state().digest(), whole);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_and_is_needed_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    settled(dir).await;
    let both = files(dir);
    let bad: Vec<&Path> = both.iter().map(PathBuf::as_path).collect();
    assert_refused(open_with_bad(dir, &bad), &both[1]);
    assert_refused(read_with_bad(dir, &bad), &both[1]);
    assert_eq!(files(dir), both);

    // There is no other, and one that is damaged is none.
    let whole = std::fs::read(&both[0]).unwrap();
    std::fs::write(&both[0], &whole[..9]).unwrap();
    assert_refused(read_with_bad(dir, &[&both[1]]), &both[1]);
    std::fs::remove_file(&both[0]).unwrap();
    assert_refused(open_with_bad(dir, &[&both[1]]), &both[1]);
    assert_refused(read_with_bad(dir, &[&both[1]]), &both[1]);

    // There is another, which the log does not reach back to.
    std::fs::write(&both[0], whole).unwrap();
    std::fs::copy(&both[0], dir.join("aside")).unwrap();
    let mut opened = open(dir).unwrap();
    apply(&mut opened, 21..=25).await;
    build(&mut opened).await;
    opened.log.purge(log_id_to(id(25))).await.unwrap();
    drop(opened);
    let newest = files(dir).pop().unwrap();
    std::fs::rename(dir.join("aside"), &both[0]).unwrap();
    assert_refused(open_with_bad(dir, &[&newest, &both[1]]), &newest);
    assert_refused(read_with_bad(dir, &[&newest, &both[1]]), &newest);
}

/// As it is where a crash came between a snapshot's receipt and the purge of the log before it.
#[tokio::test]
async fn a_snapshot_that_the_log_does_not_come_up_to_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut opened = open(dir).unwrap();
    let log = opened.log.blocking_append((0..=30).map(entry));
    log.await.unwrap();
    apply(&mut opened, 0..=10).await;
    build(&mut opened).await;
    apply(&mut opened, 11..=31).await;
    build(&mut opened).await;
    drop(opened);
    let both = files(dir);
    assert_refused(open_with_bad(dir, &[&both[1]]), &both[1]);
    assert_refused(read_with_bad(dir, &[&both[1]]), &both[1]);
    assert_eq!(read_with_bad(dir, &[&both[0]]).unwrap(), Some(id(31)));

    // Nor is it given up where it is damaged, however often that is tried.
    damage(&both[1]);
    for _ in 0..2 {
        for refused in [open(dir).map(drop), read_with_bad(dir, &[]).map(drop)] {
            let refused = refused.unwrap_err();
            let corrupt = matches!(refused, OpenError::Snapshot(SnapshotError::Corrupt { .. }));
            assert!(corrupt, "{}", chain(&refused));
        }
    }
    assert_eq!(files(dir), both);
}

#[tokio::test]
async fn a_damaged_snapshot_is_put_aside_where_nothing_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    settled(dir).await;
    let both = files(dir);
    damage(&both[1]);
    assert_eq!(read_with_bad(dir, &[]).unwrap(), Some(id(10)));
    assert_eq!(files(dir), both);
    assert_eq!(open(dir).unwrap().reader.last(), Some(id(10)));
    assert!(!both[1].exists());
}
