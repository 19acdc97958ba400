use std::collections::VecDeque;
use std::sync::Arc;

use raftserve_store::state::KvCondition;
use raftserve_store::{Command, State};
use tonic::Code;

use super::*;

/// How an attempt fares.
enum Fate {
    Applied,
    /// Applied, and the answer lost.
    AppliedUnseen,
    Refused,
    /// The cluster's version does not allow it.
    TooEarly,
    Lost,
    /// No answer at all.
    Silent,
}

/// A log in memory whose attempts fare as scripted, and are applied once the script has ended.
#[derive(Default)]
struct Inner {
    state: State,
    index: u64,
    script: VecDeque<Fate>,
    seen: Vec<Action>,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Inner>>);

impl Log for Scripted {
    async fn propose(
        &self,
        action: Action,
        _deadline: Duration,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        let reason = || "scripted".to_owned();
        let (fate, applied) = {
            let mut inner = self.0.lock().unwrap();
            inner.seen.push(action.clone());
            let fate = inner.script.pop_front().unwrap_or(Fate::Applied);
            let applied = matches!(fate, Fate::Applied | Fate::AppliedUnseen).then(|| {
                inner.index += 1;
                let (index, now) = (LogIndex(inner.index), Default::default());
                (index, inner.state.apply(index, &Command::at(now, action)))
            });
            (fate, applied)
        };
        match fate {
            Fate::Applied => Ok(applied.unwrap()),
            Fate::Refused => Err(ProposeError::NotProposed { reason: reason() }),
            Fate::TooEarly => Err(ProposeError::NotFinalized { reason: reason() }),
            Fate::AppliedUnseen | Fate::Lost => {
                Err(ProposeError::OutcomeUnknown { reason: reason() })
            }
            Fate::Silent => std::future::pending().await,
        }
    }
}

impl Scripted {
    fn script(&self, fates: impl IntoIterator<Item = Fate>) {
        self.0.lock().unwrap().script.extend(fates);
    }

    fn attempts(&self) -> usize {
        self.0.lock().unwrap().seen.len()
    }

    fn sequences(&self) -> Vec<u64> {
        let sequence = |action: &Action| match action {
            Action::Client { sequence, .. } => Some(*sequence),
            _ => None,
        };
        self.0
            .lock()
            .unwrap()
            .seen
            .iter()
            .filter_map(sequence)
            .collect()
    }
}

fn delete(name: &str) -> Request {
    Request::DeleteService {
        name: name.parse().unwrap(),
        purge: false,
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_retried_under_the_same_number() {
    let log = Scripted::default();
    let proposer = Proposer::new(log.clone());
    log.script([
        Fate::Applied,
        Fate::AppliedUnseen,
        Fate::Lost,
        Fate::Refused,
    ]);
    let status = proposer.execute(None, delete("web")).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::NoSuchService));
    assert_eq!(log.sequences(), [1, 1, 1, 1]);
    proposer.execute(None, delete("web")).await.unwrap_err();
    assert_eq!(log.sequences(), [1, 1, 1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn outside_a_session_nothing_is_proposed_again_that_may_have_been() {
    let log = Scripted::default();
    let proposer = Proposer::new(log.clone());
    let put = || Request::PutKey {
        key: "k".parse().unwrap(),
        value: b"v".as_slice().into(),
        condition: KvCondition::Any,
    };
    log.script([Fate::Refused, Fate::Refused]);
    let (_, outcome) = proposer.execute_at_most_once(put()).await.unwrap();
    assert!(matches!(outcome, Outcome::KeyPut { version: 1, .. }));
    assert_eq!(log.attempts(), 3);

    for fate in [Fate::AppliedUnseen, Fate::Lost, Fate::Silent] {
        let before = log.attempts();
        log.script([fate]);
        let begun = Instant::now();
        let status = proposer.execute_at_most_once(put()).await.unwrap_err();
        assert_eq!(Reason::of(&status), Some(Reason::OutcomeUnknown));
        assert_eq!(log.attempts(), before + 1);
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_the_answer_comes_within_two_seconds() {
    for fate in [|| Fate::Silent, || Fate::Lost, || Fate::Refused] {
        let log = Scripted::default();
        let proposer = Proposer::new(log.clone());
        log.script([Fate::Applied]);
        log.script((0..1_000).map(|_| fate()));
        let begun = Instant::now();
        let status = proposer.execute(None, delete("web")).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(status.code(), Code::Unavailable);
        let expected = match fate() {
            Fate::Refused => Reason::NotProposed,
            _ => Reason::OutcomeUnknown,
        };
        assert_eq!(Reason::of(&status), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_s_version_does_not_allow_is_told_at_once_and_not_tried_again() {
    let ensure = |status: &Status, log: &Scripted, attempts: usize| {
        assert_eq!(Reason::of(status), Some(Reason::NotFinalized), "{status}");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(!status.message().contains("again"), "{status}");
        assert_eq!(log.attempts(), attempts);
    };
    let log = Scripted::default();
    let proposer = Proposer::new(log.clone());
    log.script([Fate::TooEarly]);
    let status = proposer.execute(None, delete("web")).await.unwrap_err();
    ensure(&status, &log, 1);
    // Opened, and then a try of which nothing is known.
    log.script([Fate::Applied, Fate::Lost, Fate::TooEarly]);
    let status = proposer.execute(None, delete("web")).await.unwrap_err();
    ensure(&status, &log, 4);
    log.script([Fate::TooEarly]);
    let status = proposer.execute_at_most_once(delete("web")).await;
    ensure(&status.unwrap_err(), &log, 5);
}

#[tokio::test(start_paused = true)]
async fn an_expired_own_session_is_replaced_unnoticed() {
    let log = Scripted::default();
    let proposer = Proposer::new(log.clone());
    proposer.execute(None, delete("web")).await.unwrap_err();
    log.0.lock().unwrap().state = State::default();
    let status = proposer.execute(None, delete("web")).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::NoSuchService));
    assert_eq!(log.sequences(), [1, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expired_under_an_unknown_outcome_leaves_it_unknown() {
    let log = Scripted::default();
    let proposer = Proposer::new(log.clone());
    proposer.execute(None, delete("web")).await.unwrap_err();
    log.0.lock().unwrap().state = State::default();
    log.script([Fate::Lost]);
    let status = proposer.execute(None, delete("web")).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::OutcomeUnknown));
}

#[tokio::test(start_paused = true)]
async fn a_callers_repetition_gets_the_first_outcome() {
    let log = Scripted::default();
    let proposer = Proposer::new(log.clone());
    let client_id = proposer.open_client().await.unwrap().0;
    let id = v1::RequestId {
        client_id,
        sequence: 1,
        acknowledged: 0,
    };
    for _ in 0..2 {
        let status = proposer.execute(Some(id), delete("web")).await.unwrap_err();
        assert_eq!(Reason::of(&status), Some(Reason::NoSuchService));
    }
    let unknown = v1::RequestId {
        client_id: 99,
        ..id
    };
    let status = proposer
        .execute(Some(unknown), delete("web"))
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::UnknownClient));
    let malformed = v1::RequestId {
        acknowledged: 1,
        ..id
    };
    let status = proposer
        .execute(Some(malformed), delete("web"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_first_requests_opens_one_session() {
    let log = Scripted::default();
    let proposer = Arc::new(Proposer::new(log.clone()));
    let all = (0..10).map(|_| {
        let proposer = Arc::clone(&proposer);
        tokio::spawn(async move { proposer.execute(None, delete("web")).await })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap().unwrap_err();
    }
    assert_eq!(log.0.lock().unwrap().state.client_count(), 1);
    assert_eq!(log.sequences(), (1..=10).collect::<Vec<_>>());
}
