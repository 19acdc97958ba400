use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;

/// Something happens at some indices, of which the last few are kept.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    compacted: u64,
    at: BTreeSet<u64>,
}

/// How many are read in one go.
const PAGE: usize = 3;

#[derive(Debug, PartialEq, Eq)]
enum Told {
    At(u64),
    Bookmark(u64),
}

impl Watched for Fake {
    type Batch = Told;

    const WAITING_MAX: usize = 4;

    fn read(&self, _: &State, after: LogIndex) -> Result<Page<Told>, Compacted> {
        let kept = self.0.lock().unwrap();
        if after.0 < kept.compacted {
            return Err(Compacted {
                upto: LogIndex(kept.compacted),
            });
        }
        let mut rest = kept.at.range(after.0 + 1..);
        let batches: Vec<_> = rest.by_ref().take(PAGE).copied().collect();
        let read_upto = rest.next().and(batches.last()).copied().map(LogIndex);
        let batches = batches.into_iter();
        Ok(Page {
            batches: batches.map(|at| (LogIndex(at), Told::At(at))).collect(),
            read_upto,
        })
    }

    fn bookmark(index: LogIndex) -> Told {
        Told::Bookmark(index.0)
    }
}

struct Rig {
    kept: Fake,
    applied: watch::Sender<LogIndex>,
    closing: CancellationToken,
    told: mpsc::Receiver<Told>,
    ended: tokio::task::JoinHandle<Option<Status>>,
}

impl Rig {
    /// A watch from `begin` on, or of the oldest.
    fn new(kept: Fake, begin: Option<u64>, applied: u64) -> Self {
        let (batches, told) = mpsc::channel(Fake::WAITING_MAX);
        let begin_after = LogIndex(begin.map_or(0, |begin| begin - 1));
        let watch = Watch {
            state: Box::new(Arc::default),
            watched: kept.clone(),
            begin: begin_after,
            from_oldest: begin.is_none(),
            after: begin_after,
            caught_up: false,
            bookmark_at: Instant::now(),
            outbox: Outbox(batches),
        };
        let (applied, follow) = watch::channel(LogIndex(applied));
        let closing = CancellationToken::new();
        let ended = tokio::spawn(watch.run(follow, closing.clone()));
        Self {
            kept,
            applied,
            closing,
            told,
            ended,
        }
    }

    fn happens(&self, at: u64) {
        self.kept.0.lock().unwrap().at.insert(at);
        self.applied.send_replace(LogIndex(at));
    }

    async fn next(&mut self) -> Told {
        self.told.recv().await.unwrap()
    }
}

fn kept(compacted: u64, at: impl IntoIterator<Item = u64>) -> Fake {
    let at = at.into_iter().collect();
    Fake(Arc::new(Mutex::new(Kept { compacted, at })))
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_says_at_once_that_all_was_sent_and_then_when_nothing_happens() {
    let mut rig = Rig::new(kept(0, 1..=7), Some(1), 9);
    let begun = Instant::now();
    for at in 1..=7 {
        assert_eq!(rig.next().await, Told::At(at));
    }
    assert_eq!(rig.next().await, Told::Bookmark(9));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    rig.happens(12);
    assert_eq!(rig.next().await, Told::At(12));
    assert_eq!(rig.next().await, Told::Bookmark(12));
    assert_eq!(begun.elapsed(), BOOKMARK_EVERY);
    rig.closing.cancel();
    let why = rig.ended.await.unwrap().unwrap();
    assert_eq!(Reason::of(&why), Some(Reason::Stopping));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_of_an_index_that_is_yet_to_come() {
    let mut rig = Rig::new(kept(0, [3]), Some(20), 3);
    rig.happens(18);
    let silence = timeout(10 * BOOKMARK_EVERY, rig.told.recv()).await;
    assert!(silence.is_err(), "{silence:?}");
    rig.happens(20);
    assert_eq!(rig.next().await, Told::At(20));
    assert_eq!(rig.next().await, Told::Bookmark(20));
}

#[tokio::test(start_paused = true)]
async fn the_oldest_that_is_kept_is_where_the_trail_begins_when_it_is_read() {
    let mut rig = Rig::new(kept(4, 5..=6), None, 6);
    assert_eq!(rig.next().await, Told::At(5));
    assert_eq!(rig.next().await, Told::At(6));
    assert_eq!(rig.next().await, Told::Bookmark(6));
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_before_it_was_read_ends_the_watch() {
    let mut rig = Rig::new(kept(0, 1..=1), Some(1), 1);
    assert_eq!(rig.next().await, Told::At(1));
    assert_eq!(rig.next().await, Told::Bookmark(1));
    rig.kept.0.lock().unwrap().compacted = 5;
    rig.happens(6);
    let why = rig.ended.await.unwrap().unwrap();
    assert_eq!(why.code(), tonic::Code::OutOfRange);
    assert_eq!(Reason::of(&why), Some(Reason::Compacted));
    let details = tonic_types::StatusExt::get_error_details(&why);
    assert_eq!(details.error_info().unwrap().metadata["first_index"], "6");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_told_where_to_go_on_and_cut() {
    let mut rig = Rig::new(kept(0, 1..=9), Some(1), 9);
    let begun = Instant::now();
    let why = (&mut rig.ended).await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), UNREAD_MAX);
    assert_eq!(Reason::of(&why), Some(Reason::SlowConsumer));
    let mut last = None;
    while let Some(told) = rig.told.recv().await {
        last = Some(told);
    }
    assert_eq!(last, Some(Told::At(4)));
    let details = tonic_types::StatusExt::get_error_details(&why);
    assert_eq!(details.error_info().unwrap().metadata["next_index"], "5");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_again_in_time_goes_on_and_one_that_is_gone_ends_the_watch() {
    let mut rig = Rig::new(kept(0, 1..=9), Some(1), 9);
    tokio::time::sleep(UNREAD_MAX / 2).await;
    for at in 1..=9 {
        assert_eq!(rig.next().await, Told::At(at));
    }
    drop(rig.told);
    assert!(rig.ended.await.unwrap().is_none(), "without a word");
}
