//! What becomes of the state that was saved at a stop.

use super::*;
use crate::disk::failing::FailingReads;
use crate::disk::{Disk, ReadOnlyDisk};
use crate::state::Digest;

fn stop(opened: Opened) {
    opened.checkpoint.stop().unwrap();
}

/// Applies entries up to 125 of 130, with two snapshots on the way, and a log that begins after the older of them.
async fn settle(opened: &mut Opened) {
    let log = opened.log.blocking_append((0..=130).map(entry));
    log.await.unwrap();
    for upto in [10, 20] {
        apply(opened, upto - 10..=upto - 1).await;
        let mut builder = opened.machine.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        opened.log.purge(log_id_to(id(upto - 1))).await.unwrap();
    }
    apply(opened, 20..=125).await;
}

#[tokio::test]
async fn a_clean_stop_spares_the_next_start_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened
        .log
        .blocking_append((0..=30).map(entry))
        .await
        .unwrap();
    apply(&mut opened, 0..=20).await;
    let digest = opened.reader.state().digest();
    stop(opened);

    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(20)));
    assert_eq!(opened.reader.state().digest(), digest);
    drop(opened);
    // Not a clean stop this time.
    assert_eq!(open(dir.path()).unwrap().reader.last(), None);
}

#[tokio::test]
async fn a_saved_state_that_the_log_does_not_hold_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened
        .log
        .blocking_append((0..=10).map(entry))
        .await
        .unwrap();
    apply(&mut opened, 0..=20).await;
    stop(opened);
    assert_eq!(open(dir.path()).unwrap().reader.last(), None);
}

#[tokio::test]
async fn a_saved_state_that_is_the_only_copy_is_used_and_a_snapshot_is_overdue_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    settle(&mut opened).await;
    assert!(!opened.trigger.is_overdue() && !opened.trigger.is_due(ALONE));
    assert!(opened.snapshots.is_calm() && !opened.snapshots.hurries());
    stop(opened);
    std::fs::remove_dir_all(dir.path().join(SNAPSHOT_DIR)).unwrap();

    let mut opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(125)));
    assert!(opened.trigger.is_overdue() && opened.trigger.is_due(ALONE));
    assert!(opened.snapshots.hurries(), "this one is waited for");
    let mut builder = opened.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    assert!(!opened.trigger.is_overdue() && !opened.trigger.is_due(ALONE));
    assert!(opened.snapshots.is_calm() && !opened.snapshots.hurries());
    drop(opened);
    // Not a clean stop: the snapshot is what there is.
    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(125)));
    drop(opened);
    std::fs::remove_dir_all(dir.path().join(SNAPSHOT_DIR)).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Gap { .. })));
}

#[tokio::test]
async fn a_saved_state_that_spares_little_is_not_used_unless_it_is_the_only_copy() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    settle(&mut opened).await;
    let mut builder = opened.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    // One entry more, and some hundred records.
    apply(&mut opened, 126..=126).await;
    stop(opened);
    let copied = tempfile::tempdir().unwrap();
    let copy_to = |name: &str| {
        let to = copied.path().join(name);
        copy(dir.path(), &to);
        to
    };
    let last = |opened: Opened| opened.reader.last();
    assert_eq!(last(open(&copy_to("usual")).unwrap()), Some(id(125)));
    let asked_for = Store {
        saved: SavedState::WhereNewer,
        ..Store::default()
    };
    let mut data = DataDir::open(&copy_to("asked for")).unwrap();
    assert_eq!(last(asked_for.open(&mut data).unwrap()), Some(id(126)));
    let alone = copy_to("alone");
    std::fs::remove_dir_all(alone.join(SNAPSHOT_DIR)).unwrap();
    assert_eq!(last(open(&alone).unwrap()), Some(id(126)));
    // It was not kept for a later start, whose state it would not be.
    assert!(!copied.path().join("usual").join("CHECKPOINT").exists());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for found in std::fs::read_dir(from).unwrap() {
        let found = found.unwrap();
        let to = to.join(found.file_name());
        match found.file_type().unwrap().is_dir() {
            true => copy(&found.path(), &to),
            false => drop(std::fs::copy(found.path(), to).unwrap()),
        }
    }
}

/// Its state once entries up to 125 are applied, which all are in the log beyond its snapshots.
async fn state_of(opened: &mut Opened) -> Digest {
    let restored = opened.reader.last().unwrap().index.0;
    apply(opened, restored + 1..=125).await;
    opened.reader.state().digest()
}

/// Starts from what is in `settled` with each of its reads failing in turn, until none is left, and says which files failed.
/// Where two snapshots are there, and so a `floor`, nothing that is saved is needed.
/// Every read but those of sled's own files, which doubts are enough about: see [`crate::checkpoint`].
async fn with_each_read_failing(
    dir: &Path,
    settled: &Path,
    floor: Option<LogId>,
) -> std::collections::BTreeSet<std::path::PathBuf> {
    let wanted = {
        let whole = dir.join("whole");
        copy(settled, &whole);
        let mut opened = open(&whole).unwrap();
        assert_eq!(
            opened.reader.last(),
            Some(id(125)),
            "the saved state is used"
        );
        state_of(&mut opened).await
    };
    let mut failed = std::collections::BTreeSet::new();
    for reads in 0.. {
        let path = dir.join(reads.to_string());
        copy(settled, &path);
        let disk = Arc::new(FailingReads::after(reads));
        let lock = DirectoryLock::take(&path).unwrap();
        let on_disk = DataDir::open_on(Arc::clone(&disk) as Arc<dyn Disk>, &path, lock);
        let opened = on_disk.map_err(OpenError::from);
        let opened = opened.and_then(|mut on_disk| Store::default().open(&mut on_disk));
        let Some(unread) = disk.unread() else {
            opened.map(drop).unwrap();
            break;
        };
        let what = format!("read {reads}, of {}", unread.display());
        match opened.map(drop) {
            // What else there is and the log hold as much.
            Ok(()) => {
                let spared = ["CHECKPOINT", "state"].map(|name| path.join(name));
                let spared = floor.is_some() && spared.contains(&unread);
                let is_snapshot = unread.extension().is_some_and(|it| it == "snap");
                assert!(is_snapshot || spared, "{what}");
            }
            Err(error) => {
                let said = chain(&error);
                let named = match unread.ends_with("FORMAT") {
                    true => &path,
                    false => &unread,
                };
                let named = said.contains(&*named.to_string_lossy());
                assert!(
                    named || said.contains("in log segment 1 "),
                    "{what}: {said}"
                );
            }
        }
        let mut opened = open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(opened.wal.range(), 10..131, "{what}");
        assert_eq!(opened.snapshots.log_floor(), floor, "{what}");
        assert_eq!(state_of(&mut opened).await, wanted, "{what}");
        failed.insert(unread.strip_prefix(&path).unwrap().to_owned());
    }
    failed
}

#[tokio::test]
async fn a_start_whose_reads_fail_is_refused_with_their_place_or_goes_on_without_what_is_not_needed()
 {
    let dir = tempfile::tempdir().unwrap();
    let settled = dir.path().join("settled");
    let mut opened = open(&settled).unwrap();
    settle(&mut opened).await;
    stop(opened);
    let failed = with_each_read_failing(dir.path(), &settled, Some(id(9))).await;
    for met in ["FORMAT", "NODE", "wal", "snap", "CHECKPOINT", "state"] {
        assert!(failed.contains(Path::new(met)), "{met}: {failed:?}");
    }
}

#[tokio::test]
async fn a_start_whose_reads_fail_keeps_a_saved_state_that_is_the_only_copy() {
    let dir = tempfile::tempdir().unwrap();
    let settled = dir.path().join("settled");
    let mut opened = open(&settled).unwrap();
    settle(&mut opened).await;
    stop(opened);
    std::fs::remove_dir_all(settled.join(SNAPSHOT_DIR)).unwrap();
    let failed = with_each_read_failing(dir.path(), &settled, None).await;
    for met in ["wal/00000001.wal", "CHECKPOINT", "state"] {
        assert!(failed.contains(Path::new(met)), "{met}: {failed:?}");
    }
}

/// What is in a directory in which a saved state lies on bad sectors, beside snapshots and a log that hold all of it.
async fn settled_with_bad(dir: &Path, bad: &str) -> (DataDir, Digest) {
    let mut opened = open(dir).unwrap();
    settle(&mut opened).await;
    let digest = opened.reader.state().digest();
    stop(opened);
    let disk: Arc<dyn Disk> = Arc::new(FailingReads::of(&[&dir.join(bad)]));
    let lock = DirectoryLock::take(dir).unwrap();
    (DataDir::open_on(disk, dir, lock).unwrap(), digest)
}

#[tokio::test]
async fn a_marker_that_can_never_be_read_does_not_keep_a_peer_from_its_snapshots_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let (mut data, digest) = settled_with_bad(dir.path(), "CHECKPOINT").await;
    let mut opened = Store::default().open(&mut data).unwrap();
    assert_eq!(opened.reader.last(), Some(id(19)));
    assert_eq!(state_of(&mut opened).await, digest);
    assert!(!dir.path().join("CHECKPOINT").exists());
    // The next one is written in its place.
    stop(opened);
    drop(data);
    assert_eq!(open(dir.path()).unwrap().reader.last(), Some(id(125)));
}

#[tokio::test]
async fn a_peer_whose_saved_states_can_never_be_listed_keeps_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mut data, digest) = settled_with_bad(dir.path(), "state").await;
    for last in [125, 19] {
        let mut opened = Store::default().open(&mut data).unwrap();
        assert_eq!(opened.reader.last(), Some(id(last)));
        assert_eq!(state_of(&mut opened).await, digest);
        assert!(opened.checkpoint.written().is_none());
        stop(opened);
        assert!(!dir.path().join("CHECKPOINT").exists());
    }
    drop(data);
    let opened = open(dir.path()).unwrap();
    assert!(opened.checkpoint.written().is_some());
}

#[tokio::test]
async fn a_marker_of_any_size_does_not_keep_a_peer_from_its_snapshots_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    settle(&mut opened).await;
    stop(opened);
    let marker = std::fs::File::create(dir.path().join("CHECKPOINT")).unwrap();
    marker.set_len(1 << 40).unwrap();
    assert_eq!(open(dir.path()).unwrap().reader.last(), Some(id(19)));
    assert!(!dir.path().join("CHECKPOINT").exists());
}

#[tokio::test]
async fn a_marker_that_cannot_be_removed_is_moved_away_or_the_start_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut opened = open(dir).unwrap();
    settle(&mut opened).await;
    stop(opened);
    // Directories are not removed as files are, and take the place of empty ones alone.
    let [marker, aside] = ["CHECKPOINT", "CHECKPOINT.unused"].map(|name| dir.join(name));
    std::fs::remove_file(&marker).unwrap();
    std::fs::create_dir(&marker).unwrap();
    std::fs::write(marker.join("of somebody"), "").unwrap();
    assert_eq!(open(dir).unwrap().reader.last(), Some(id(19)));
    assert!(!marker.exists() && aside.join("of somebody").exists());

    std::fs::create_dir(&marker).unwrap();
    for _ in 0..2 {
        let error = open(dir).map(drop).unwrap_err();
        assert!(matches!(&error, OpenError::Disown { path, .. } if *path == marker));
        assert!(
            chain(&error).contains("remove that file by hand"),
            "{error}"
        );
    }
    std::fs::remove_dir(&marker).unwrap();
    assert_eq!(open(dir).unwrap().reader.last(), Some(id(19)));
}

/// The files in which the state is saved, and what is in them.
fn saved_files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let generations = std::fs::read_dir(dir.join("state")).unwrap();
    let inside = generations.flat_map(|it| std::fs::read_dir(it.unwrap().path()).unwrap());
    let files = inside.map(|it| it.unwrap().path());
    let files = files.filter(|path| path.is_file());
    files
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_saved_state_that_is_the_only_copy_is_kept_where_it_cannot_be_read_or_is_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    settle(&mut opened).await;
    stop(opened);
    std::fs::remove_dir_all(dir.path().join(SNAPSHOT_DIR)).unwrap();
    let marker = std::fs::read(dir.path().join("CHECKPOINT")).unwrap();
    let whole = saved_files(dir.path());
    for (path, _) in &whole {
        std::fs::write(path, "nothing of it can be read").unwrap();
    }
    for _ in 0..2 {
        let error = open(dir.path()).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::OnlyCopy { .. }), "{error}");
        assert_eq!(
            std::fs::read(dir.path().join("CHECKPOINT")).unwrap(),
            marker
        );
    }
    for (path, bytes) in &whole {
        std::fs::write(path, bytes).unwrap();
    }
    let without = Store {
        saved: SavedState::Unused,
        ..Store::default()
    };
    let error = without.open(&mut DataDir::open(dir.path()).unwrap());
    let error = error.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Gap { .. }), "{error}");
    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(125)));
}

#[tokio::test]
async fn a_saved_state_is_the_only_copy_also_where_all_snapshots_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    settle(&mut opened).await;
    stop(opened);
    for file in std::fs::read_dir(dir.path().join(SNAPSHOT_DIR)).unwrap() {
        std::fs::write(file.unwrap().path(), "nothing of it can be read").unwrap();
    }
    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.reader.last(), Some(id(125)));
}

/// All that is in a directory, by name.
fn all_files(dir: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    for found in std::fs::read_dir(dir).unwrap() {
        let path = found.unwrap().path();
        match path.is_dir() {
            true => files.extend(all_files(&path)),
            false => drop(files.insert(path.clone(), std::fs::read(path).unwrap())),
        }
    }
    files
}

#[tokio::test]
async fn a_recovery_tells_of_a_saved_state_that_is_the_only_copy_and_reads_what_a_start_makes_of_it()
 {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut opened = open(dir).unwrap();
    settle(&mut opened).await;
    stop(opened);
    let read = || {
        let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk);
        let data = DataDir::open_to_read(disk, dir, DirectoryLock::take_to_read)?;
        let (_, applied) = Store::default().read(&data)?;
        Ok::<_, OpenError>(applied.last)
    };
    // Damaged, and then gone.
    let snapshots = dir.join(SNAPSHOT_DIR);
    let files = std::fs::read_dir(&snapshots).unwrap();
    files.for_each(|file| std::fs::write(file.unwrap().path(), "not one").unwrap());
    for _ in 0..2 {
        let before = all_files(dir);
        let error = read().unwrap_err();
        let OpenError::OnlySaved { purged, saved, .. } = &error else {
            panic!("{}", chain(&error));
        };
        assert_eq!((*purged, *saved), (id(9), id(125)));
        let said = error.to_string();
        assert!(said.contains("Do not remove the directory"), "{said}");
        assert!(all_files(dir) == before, "it was changed");
        if snapshots.exists() {
            std::fs::remove_dir_all(&snapshots).unwrap();
        }
    }
    let marker = dir.join("CHECKPOINT");
    let vouching = std::fs::read(&marker).unwrap();
    std::fs::write(&marker, "").unwrap();
    assert!(matches!(read(), Err(OpenError::Gap { .. })));
    std::fs::write(&marker, vouching).unwrap();

    // What it says to do.
    let mut opened = open(dir).unwrap();
    let mut builder = opened.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    drop(opened);
    assert_eq!(read().unwrap(), Some(id(125)));
}
