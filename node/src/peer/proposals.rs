//! A leader's proposals, gathered into groups.
//!
//! Each message that Raft handles costs it a round through its core, a wake of the log's writer and of each
//! follower's replication, whether it carries one proposal or a hundred. So proposals that come while a group is on its
//! way wait and make up the next one. That is how the log groups what it syncs, one level higher up.
//!
//! Whoever has one proposal under way at a time comes back with the next one a moment after its answer, and the first to
//! come back must not go alone while the others wait out another round. So a group that follows another closely waits
//! for as many as were answered just now, or were waiting already; if they do not come, no group waits for a while. A
//! single caller, and one that comes out of the blue, never waits.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use raftserve_model::NodeId;
use raftserve_store::Command;
use raftserve_store::raft::TypeConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::wire::ProposeReply;

/// The most proposals in a group: one write of the log.
const GROUP_MAX: usize = 4_096;

/// Proposals that may wait for the next group. Beyond it callers see that the peer is busy.
const QUEUE_MAX: usize = 4_096;

/// For so long a group keeps others from being sent: longer than a commit takes within a data centre. A quorum that is
/// far away, or gone, keeps no proposal from Raft for more than that.
const HOLD_MAX: Duration = Duration::from_millis(20);

/// So soon after their answers callers come back that have nothing else to do, with room for a busy machine.
const COME_BACK_MAX: Duration = Duration::from_millis(1);

/// How many groups wait for nobody after one waited in vain; twice as many each time, up to the second.
const ALONE: std::ops::RangeInclusive<u32> = 32..=1_024;

struct Proposal {
    command: Command,
    answer: oneshot::Sender<ProposeReply>,
}

/// Where proposals are handed in.
pub(crate) struct Proposals {
    queue: mpsc::Sender<Proposal>,
}

/// Hands the groups to Raft.
pub(crate) struct Groups {
    queue: mpsc::Receiver<Proposal>,
    me: NodeId,
}

/// Both ends, for peer `me`.
pub(crate) fn proposals(me: NodeId) -> (Proposals, Groups) {
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    (Proposals { queue: sender }, Groups { queue, me })
}

impl Proposals {
    /// Proposes to this peer's own Raft, and waits until it is applied.
    pub(crate) async fn propose(&self, command: Command, until: Instant) -> ProposeReply {
        let (answer, answered) = oneshot::channel();
        let proposal = Proposal { command, answer };
        if !matches!(
            timeout_at(until, self.queue.send(proposal)).await,
            Ok(Ok(()))
        ) {
            return ProposeReply::NotProposed("too many proposals wait on this peer".to_owned());
        }
        match timeout_at(until, answered).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => ProposeReply::Unknown("this peer is stopping".to_owned()),
            Err(_) => ProposeReply::Unknown("no quorum confirmed it in time".to_owned()),
        }
    }
}

impl Groups {
    /// Hands each group to `submit`, which gives the results in order, until nobody can propose any more.
    pub(crate) async fn run<F, S>(mut self, submit: impl Fn(Vec<Command>) -> F)
    where
        F: Future<Output = Result<S, Fatal<TypeConfig>>>,
        S: Results,
    {
        let turn = Arc::new(Semaphore::new(1));
        let answered = Arc::new(AtomicUsize::new(0));
        let mut company = Company::default();
        let mut gathered = Vec::new();
        while let Ok(permit) = Arc::clone(&turn).acquire_owned().await {
            let expected = answered.swap(0, Ordering::Relaxed) + self.queue.len();
            let expected = expected.min(GROUP_MAX);
            let until = Instant::now() + COME_BACK_MAX;
            if self.queue.recv_many(&mut gathered, GROUP_MAX).await == 0 {
                return;
            }
            if gathered.len() < expected && Instant::now() < until && company.is_expected() {
                company.note(self.gather(&mut gathered, expected, until).await);
            }
            // What nobody waits for any more is not begun.
            gathered.retain(|proposal: &Proposal| !proposal.answer.is_closed());
            if gathered.is_empty() {
                continue;
            }
            let (commands, answers): (Vec<_>, Vec<_>) = gathered
                .drain(..)
                .map(|proposal| (proposal.command, proposal.answer))
                .unzip();
            match submit(commands).await {
                Ok(results) => {
                    let answered = Arc::clone(&answered);
                    tokio::spawn(settle(self.me, results, answers, answered, permit));
                }
                Err(fatal) => refuse(answers, &fatal),
            }
        }
    }

    /// Waits until so many, [`GROUP_MAX`] at most, have `gathered`, but not beyond `until`. Returns whether they have.
    async fn gather(
        &mut self,
        gathered: &mut Vec<Proposal>,
        expected: usize,
        until: Instant,
    ) -> bool {
        while gathered.len() < expected {
            let room = GROUP_MAX - gathered.len();
            match timeout_at(until, self.queue.recv_many(gathered, room)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }
}

/// Whether callers come back as soon as they are answered.
struct Company {
    /// Groups that still wait for nobody.
    alone: u32,
    /// How many will, if the next one waits in vain.
    next_alone: u32,
}

impl Default for Company {
    fn default() -> Self {
        Self {
            alone: 0,
            next_alone: *ALONE.start(),
        }
    }
}

impl Company {
    /// Whether this group is to wait.
    fn is_expected(&mut self) -> bool {
        let waits = self.alone == 0;
        self.alone = self.alone.saturating_sub(1);
        waits
    }

    /// Notes whether those came for whom a group waited.
    fn note(&mut self, came: bool) {
        if came {
            self.next_alone = *ALONE.start();
        } else {
            self.alone = self.next_alone;
            self.next_alone = (self.next_alone * 2).min(*ALONE.end());
        }
    }
}

/// What becomes of the proposals of a group, one after the other.
pub(crate) trait Results:
    Stream<Item = Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>> + Unpin + Send + 'static
{
}

impl<S> Results for S where
    S: Stream<Item = Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>> + Unpin + Send + 'static
{
}

/// Answers the proposals of a group as their results come, which is in order. Tells in `answered` how many there were if
/// the next group waited for them.
async fn settle(
    me: NodeId,
    mut results: impl Results,
    answers: Vec<oneshot::Sender<ProposeReply>>,
    answered: Arc<AtomicUsize>,
    permit: OwnedSemaphorePermit,
) {
    let size = answers.len();
    let mut answers = answers.into_iter();
    let mut permit = Some(permit);
    let mut patience = std::pin::pin!(sleep(HOLD_MAX));
    loop {
        let result = tokio::select! {
            biased;
            result = results.next() => result,
            () = &mut patience, if permit.is_some() => {
                permit = None;
                continue;
            }
        };
        match (result, answers.next()) {
            // One that no longer waits needs no answer.
            (Some(Ok(result)), Some(answer)) => drop(answer.send(reply(me, result))),
            (Some(Err(fatal)), Some(answer)) => {
                return refuse(std::iter::once(answer).chain(answers), &fatal);
            }
            // Without an answer each hears that this peer is stopping.
            (None, _) | (_, None) => {
                if permit.is_some() {
                    answered.store(size, Ordering::Relaxed);
                }
                return;
            }
        }
    }
}

fn reply(me: NodeId, result: WriteResult<TypeConfig>) -> ProposeReply {
    match result {
        Ok(written) => ProposeReply::Done {
            index: written.log_id.index,
            outcome: written.response,
        },
        Err(ClientWriteError::ForwardToLeader(to)) => ProposeReply::NotLeader {
            leader: to.leader_id.filter(|leader| *leader != me),
        },
        Err(error) => ProposeReply::Unknown(error.to_string()),
    }
}

fn refuse(
    answers: impl IntoIterator<Item = oneshot::Sender<ProposeReply>>,
    fatal: &Fatal<TypeConfig>,
) {
    for answer in answers {
        // One that no longer waits needs no answer.
        let _ = answer.send(ProposeReply::Unknown(fatal.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use openraft::raft::WriteResponse;
    use raftserve_model::LogIndex;
    use raftserve_store::Outcome;
    use raftserve_store::command::Action;
    use raftserve_store::entry::LogId;
    use raftserve_store::raft::log_id_to;
    use tokio::sync::Mutex;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    type Told = Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>;

    /// The size of a group, and where its results are told.
    type Taken = (usize, mpsc::Sender<Told>);

    fn command() -> Command {
        Command {
            now: Default::default(),
            wall: Default::default(),
            action: Action::Tick,
        }
    }

    fn applied(index: u64) -> Told {
        let id = LogId {
            index: LogIndex(index),
            ..LogId::default()
        };
        Ok(Ok(WriteResponse {
            log_id: log_id_to(id),
            response: Outcome::Done,
        }))
    }

    /// A Raft that takes groups and answers when it is told to.
    struct Raft {
        proposals: Arc<Proposals>,
        groups: Arc<Mutex<Vec<Taken>>>,
    }

    impl Raft {
        fn start() -> Self {
            let (proposals, groups) = proposals(NodeId(1));
            let taken: Arc<Mutex<Vec<_>>> = Arc::default();
            let submitted = Arc::clone(&taken);
            tokio::spawn(groups.run(move |commands| {
                let submitted = Arc::clone(&submitted);
                async move {
                    let (results, stream) = mpsc::channel(GROUP_MAX);
                    submitted.lock().await.push((commands.len(), results));
                    Ok(ReceiverStream::new(stream))
                }
            }));
            Self {
                proposals: Arc::new(proposals),
                groups: taken,
            }
        }

        fn propose(&self) -> tokio::task::JoinHandle<ProposeReply> {
            let proposals = Arc::clone(&self.proposals);
            let until = Instant::now() + Duration::from_secs(1);
            tokio::spawn(async move { proposals.propose(command(), until).await })
        }

        /// The sizes of the groups taken so far, once nothing else moves.
        async fn sizes(&self) -> Vec<usize> {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            self.groups.lock().await.iter().map(|it| it.0).collect()
        }

        async fn answer(&self, group: usize, results: impl IntoIterator<Item = Told>) {
            let sender = self.groups.lock().await[group].1.clone();
            for result in results {
                sender.send(result).await.unwrap();
            }
            // A group whose results are all told ends.
            self.groups.lock().await[group].1 = mpsc::channel(1).0;
        }
    }

    fn index(reply: &ProposeReply) -> Option<u64> {
        match reply {
            ProposeReply::Done { index, .. } => Some(*index),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn proposals_gather_while_a_group_is_on_its_way() {
        let raft = Raft::start();
        let mut waiting = vec![raft.propose()];
        assert_eq!(raft.sizes().await, [1]);
        waiting.extend([raft.propose(), raft.propose(), raft.propose()]);
        assert_eq!(raft.sizes().await, [1]);
        raft.answer(0, [applied(7)]).await;
        assert_eq!(raft.sizes().await, [1], "the first is waited for");
        waiting.push(raft.propose());
        assert_eq!(raft.sizes().await, [1, 4]);
        raft.answer(1, (8..12).map(applied)).await;
        for (proposal, expected) in waiting.into_iter().zip(7..) {
            assert_eq!(index(&proposal.await.unwrap()), Some(expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_do_not_come_back_are_waited_for_once_and_no_more_for_a_while() {
        let raft = Raft::start();
        let mut waiting = vec![raft.propose()];
        raft.sizes().await;
        waiting.push(raft.propose());
        raft.sizes().await;
        raft.answer(0, [applied(1)]).await;
        assert_eq!(raft.sizes().await, [1]);
        sleep(COME_BACK_MAX).await;
        let mut groups = vec![1, 1];
        assert_eq!(raft.sizes().await, groups);
        for group in 1..=*ALONE.start() as usize {
            waiting.push(raft.propose());
            assert_eq!(raft.sizes().await, groups);
            raft.answer(group, [applied(group as u64)]).await;
            groups.push(1);
            assert_eq!(raft.sizes().await, groups, "{group} waited for nobody");
        }
        waiting.push(raft.propose());
        raft.sizes().await;
        raft.answer(groups.len() - 1, [applied(99)]).await;
        assert_eq!(raft.sizes().await, groups, "now it is tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_out_of_the_blue_goes_at_once() {
        let raft = Raft::start();
        let _first = raft.propose();
        raft.sizes().await;
        let _more = [raft.propose(), raft.propose()];
        raft.sizes().await;
        raft.answer(0, [applied(1)]).await;
        raft.sizes().await;
        sleep(COME_BACK_MAX).await;
        assert_eq!(raft.sizes().await, [1, 2]);
        raft.answer(1, [applied(2), applied(3)]).await;
        raft.sizes().await;
        sleep(COME_BACK_MAX * 2).await;
        let _late = raft.propose();
        assert_eq!(raft.sizes().await, [1, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_takes_long_lets_others_go() {
        let raft = Raft::start();
        let _held = raft.propose();
        assert_eq!(raft.sizes().await, [1]);
        let _more = raft.propose();
        assert_eq!(raft.sizes().await, [1]);
        tokio::time::advance(HOLD_MAX).await;
        assert_eq!(raft.sizes().await, [1, 1], "its callers are not waited for");
        raft.answer(0, [applied(1)]).await;
        let _third = raft.propose();
        assert_eq!(raft.sizes().await, [1, 1]);
        tokio::time::advance(HOLD_MAX).await;
        assert_eq!(raft.sizes().await, [1, 1, 1], "nor once it is answered");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_late_does_not_tell_that_nobody_comes_back() {
        let raft = Raft::start();
        let _two = [raft.propose(), raft.propose()];
        assert_eq!(raft.sizes().await, [2]);
        raft.answer(0, [applied(1), applied(2)]).await;
        raft.sizes().await;
        sleep(COME_BACK_MAX * 2).await;
        let _late = raft.propose();
        assert_eq!(raft.sizes().await, [2, 1]);
        let _next = raft.propose();
        raft.sizes().await;
        raft.answer(1, [applied(3)]).await;
        assert_eq!(raft.sizes().await, [2, 1], "the late one is waited for");
        let _late = raft.propose();
        assert_eq!(raft.sizes().await, [2, 1, 2]);
    }

    #[test]
    fn the_more_often_callers_stay_away_the_more_seldom_a_group_waits() {
        fn waited_in_vain(company: &mut Company) -> u32 {
            company.note(false);
            let mut alone = 0;
            while !company.is_expected() {
                alone += 1;
            }
            alone
        }
        let mut company = Company::default();
        assert!(company.is_expected());
        for alone in [32, 64, 128, 256, 512, 1_024, 1_024] {
            assert_eq!(waited_in_vain(&mut company), alone);
        }
        company.note(true);
        assert!(company.is_expected(), "who comes is waited for again");
        assert_eq!(waited_in_vain(&mut company), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_not_begun_and_the_rest_keeps_its_place() {
        let raft = Raft::start();
        let held = raft.propose();
        assert_eq!(raft.sizes().await, [1]);
        let gone = raft.propose();
        let kept = raft.propose();
        raft.sizes().await;
        gone.abort();
        let _ = gone.await;
        raft.answer(0, [applied(1)]).await;
        raft.sizes().await;
        sleep(COME_BACK_MAX).await;
        assert_eq!(raft.sizes().await, [1, 1]);
        raft.answer(1, [applied(3)]).await;
        assert_eq!(index(&kept.await.unwrap()), Some(3));
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn each_proposal_of_a_group_gets_its_own_outcome() {
        let raft = Raft::start();
        let held = raft.propose();
        raft.sizes().await;
        let asked = [(); 4].map(|()| raft.propose());
        raft.sizes().await;
        raft.answer(0, [applied(1)]).await;
        raft.sizes().await;
        sleep(COME_BACK_MAX).await;
        raft.sizes().await;
        let led_by = |leader| {
            let elsewhere = openraft::errors::ForwardToLeader {
                leader_id: Some(NodeId(leader)),
                ..openraft::errors::ForwardToLeader::empty()
            };
            Ok(Err(ClientWriteError::ForwardToLeader(elsewhere)))
        };
        // Who does not lead any more may not know that yet, and nobody is sent back to where it was.
        let results = [applied(3), led_by(2), led_by(1), Err(Fatal::Stopped)];
        raft.answer(1, results).await;
        let [first, second, back, third] = asked;
        assert_eq!(index(&first.await.unwrap()), Some(3));
        let leader = Some(NodeId(2));
        assert_eq!(second.await.unwrap(), ProposeReply::NotLeader { leader });
        let nobody = ProposeReply::NotLeader { leader: None };
        assert_eq!(back.await.unwrap(), nobody);
        assert!(matches!(third.await.unwrap(), ProposeReply::Unknown(_)));
        drop(held);
    }
}
