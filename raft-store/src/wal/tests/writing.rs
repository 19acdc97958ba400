//! How groups are formed, and what happens when the disk fails.

use std::sync::mpsc;

use super::*;
use crate::disk::simulated::Fault;
use crate::disk::{DiskFile, RealDisk};
use crate::wal::view::Fetch;

#[test]
fn all_that_waits_is_written_with_one_sync_and_reported_in_order() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open_with(&disk, WalOptions::default()).unwrap();
    let (sender, order) = mpsc::sync_channel(200);
    for index in 0..100 {
        let sender = sender.clone();
        log.append(vec![entry(id(1, index), b"x")], move |durable| {
            assert!(durable);
            sender.send(index).unwrap();
        });
    }
    log.vote(vote(2), move |_| sender.send(100).unwrap());
    let before = disk.file_syncs();
    assert!(log.writer.step());
    assert_eq!(disk.file_syncs() - before, 1);
    assert!(order.iter().eq(0..=100));
}

#[test]
fn a_commit_mark_waits_for_company() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    log.append_one(id(1, 1));
    let before = disk.file_syncs();
    for _ in 0..3 {
        log.wal.save_committed(Some(id(1, 1)));
    }
    assert!(!log.wal.shared.has_work());
    log.append_one(id(1, 2));
    assert_eq!(disk.file_syncs() - before, 1);
    drop(log);
    assert_eq!(
        Stepped::open(&disk).unwrap().wal.committed(),
        Some(id(1, 1))
    );
}

#[test]
fn the_first_failure_ends_writing_and_everyone_is_told() {
    // The write, then the sync, of the first group after opening.
    for kind in [1, 2] {
        let disk = SimulatedDisk::default();
        let mut log = Stepped::open(&disk).unwrap();
        disk.fail_at(disk.operations() + kind, Fault::Error);
        let (sender, told) = mpsc::sync_channel(200);
        for index in 1..=3 {
            let sender = sender.clone();
            log.append(vec![entry(id(1, index), b"x")], move |durable| {
                sender.send(durable).unwrap();
            });
        }
        let failure = log.wal.watch_failure();
        assert!(failure.borrow().is_none());
        log.writer.step();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [false; 3]);
        let reason = failure.borrow().clone().unwrap().reason;
        assert!(
            reason.contains("00000001.wal") && reason.contains("injected error"),
            "{reason}"
        );

        // Nothing is tried again, even if the disk recovers.
        disk.fail_at(0, Fault::Error);
        let (operations, sender) = (disk.operations(), sender.clone());
        log.vote(vote(1), move |durable| sender.send(durable).unwrap());
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [false]);
        assert_eq!(disk.operations(), operations);
    }
}

#[test]
fn a_hole_is_refused() {
    let mut log = Stepped::open(&SimulatedDisk::default()).unwrap();
    log.append_one(id(1, 5));
    for wrong in [5, 7] {
        let append = log.wal.append(vec![entry(id(1, wrong), b"x")], |_| {});
        let refused = append.now_or_never().unwrap();
        assert!(matches!(refused, Err(AppendError::OutOfOrder(_))));
    }
}

#[test]
fn entries_are_read_from_the_file_once_they_leave_the_cache() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    (0..50).for_each(|index| log.append_one(id(1, index)));
    let fetches = lock(&log.wal.shared.view).fetch(0..50, usize::MAX);
    assert!(matches!(fetches[0], Fetch::Stored(_)));
    assert!(matches!(fetches.last(), Some(Fetch::Cached(_))));
    assert!(log.indexes().into_iter().eq(0..50));
    let few = log.wal.find(3..50, 100).read().unwrap();
    assert!((1..10).contains(&few.len()));
}

#[test]
fn a_truncation_and_its_successors_in_one_group_are_read_back_right() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    log.append((0..4).map(|it| entry(id(1, it), b"old")).collect(), drop);
    log.truncate(Some(id(1, 1)), drop);
    log.append((2..4).map(|it| entry(id(2, it), b"new")).collect(), drop);
    log.writer.step();
    (4..40).for_each(|index| log.append_one(id(2, index)));
    let check = |log: &Stepped| {
        let entries = log.wal.read_blocking(0..4).unwrap();
        let payloads: Vec<&[u8]> = entries.iter().map(EncodedEntry::payload).collect();
        assert_eq!(payloads, [&b"old"[..], b"old", b"new", b"new"]);
    };
    check(&log);
    let unwritten = |fetch: &Fetch| matches!(fetch, Fetch::Cached(_));
    assert!(
        !lock(&log.wal.shared.view)
            .fetch(0..4, usize::MAX)
            .iter()
            .any(unwritten)
    );
    drop(log);
    check(&Stepped::open(&disk).unwrap());
}

#[test]
fn purging_removes_whole_segments_and_keeps_the_vote() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open(&disk).unwrap();
    log.vote(vote(9), drop);
    (0..60).for_each(|index| log.append_one(id(1, index)));
    let before = disk.list(Path::new(DIR)).unwrap().len();
    log.wal.purge(id(1, 50), Some(id(1, 50)));
    log.writer.step();
    let after = disk.list(Path::new(DIR)).unwrap();
    assert!(before > 4 && after.len() < before && !after.contains(&"00000001.wal".to_owned()));
    drop(log);
    let log = Stepped::open(&disk).unwrap();
    assert_eq!(log.wal.vote(), Some(vote(9)));
    assert!(log.indexes().into_iter().eq(51..60));
}

#[test]
fn an_append_above_the_bound_of_a_group_is_parted_and_reported_once() {
    let disk = SimulatedDisk::default();
    let mut log = Stepped::open_with(&disk, WalOptions::default()).unwrap();
    let payload = vec![7; GROUP_BYTES_MAX / 4];
    let (sender, told) = mpsc::sync_channel(2);
    let entries = (0..10).map(|it| entry(id(1, it), &payload)).collect();
    log.append(entries, move |durable| sender.send(durable).unwrap());
    for _ in 0..3 {
        assert!(log.writer.step());
        assert!(told.try_recv().is_err());
    }
    assert!(log.writer.step());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [true]);
    assert_eq!(log.indexes().len(), 10);
}

/// A disk whose syncs take as long as the test wants.
#[derive(Debug, Default)]
struct Stalling(Arc<(Mutex<bool>, std::sync::Condvar)>);

impl Stalling {
    fn stall(&self, stalled: bool) {
        *self.0.0.lock().unwrap() = stalled;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let stalled = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(stalled, |stalled| *stalled).unwrap());
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_reported_while_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let stalling = Arc::new(Stalling::default());
    let waiting = Arc::clone(&stalling);
    let disk = Arc::new(Observed::new(move || waiting.wait()));
    let options = WalOptions {
        stall: Duration::from_millis(20),
        ..WalOptions::default()
    };
    let wal = Wal::open(disk, dir.path(), options).unwrap();
    let mut stall = wal.watch_stall();
    wal.save_vote(vote(1)).await.unwrap();
    stalling.stall(true);
    let saving = wal.save_vote(vote(2));
    let told = async {
        assert!(stall.wait_for(Option::is_some).await.is_ok());
        assert_eq!(wal.vote(), Some(vote(1)));
        stalling.stall(false);
        assert!(stall.wait_for(Option::is_none).await.is_ok());
    };
    let (saved, ()) = tokio::join!(saving, told);
    saved.unwrap();
    assert_eq!(wal.work().groups, 3);
    assert!(wal.work().longest >= Duration::from_millis(20));
}

/// Counts how many syncs many concurrent appends cost on a real disk with the real thread.
#[tokio::test]
async fn concurrent_waiters_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Arc::clone(&syncs);
    let disk = Arc::new(Observed::new(move || {
        counting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }));
    let wal = Wal::open(disk, dir.path(), WalOptions::default()).unwrap();
    let (sender, mut durable) = tokio::sync::mpsc::channel(2000);
    for index in 0..2000 {
        let sender = sender.clone();
        let done = move |outcome: Result<(), Failed>| sender.try_send(outcome).unwrap();
        wal.append(vec![entry(id(1, index), &[7; 200])], done)
            .await
            .unwrap();
    }
    for _ in 0..2000 {
        durable.recv().await.unwrap().unwrap();
    }
    let syncs = syncs.load(std::sync::atomic::Ordering::SeqCst);
    assert!(syncs < 1000, "{syncs} syncs for 2000 appends");
}

type Look = Arc<dyn Fn() + Send + Sync>;

/// A real disk that calls a function before each sync of a file that it made.
struct Observed(Look);

struct ObservedFile(Arc<dyn DiskFile>, Look);

impl Observed {
    fn new(look: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observed")
    }
}

impl std::fmt::Debug for ObservedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Disk for Observed {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        RealDisk.is_dir(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(ObservedFile(
            RealDisk.create(path)?,
            Arc::clone(&self.0),
        )))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        RealDisk.exchange(one, other)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
}

impl DiskFile for ObservedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }
    fn sync(&self) -> io::Result<()> {
        (self.1)();
        self.0.sync()
    }
}
