//! A leader's proposals, gathered into groups.
//!
//! Each message that Raft handles costs it a round through its core, a wake of the log's writer and of each
//! follower's replication, whether it carries one proposal or a hundred. So proposals that come while as many groups
//! as may be are on their way wait and make up the next group; none waits for company when there is room. That is
//! how the log groups what it syncs, one level higher up.

use std::future::Future;
use std::sync::Arc;
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

/// Groups on their way: while one is written to disks, the next is replicated.
const GROUPS_MAX: usize = 2;

/// The most proposals in a group: one write of the log.
const GROUP_MAX: usize = 4_096;

/// Proposals that may wait for the next group. Beyond it callers see that the peer is busy.
const QUEUE_MAX: usize = 4_096;

/// For so long a group keeps others from being sent: longer than a commit takes within a data centre. A quorum that is
/// far away, or gone, keeps no proposal from Raft for more than that.
const HOLD_MAX: Duration = Duration::from_millis(20);

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
        let room = Arc::new(Semaphore::new(GROUPS_MAX));
        let mut gathered = Vec::new();
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await
            && self.queue.recv_many(&mut gathered, GROUP_MAX).await > 0
        {
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
                Ok(results) => drop(tokio::spawn(settle(self.me, results, answers, permit))),
                Err(fatal) => refuse(answers, &fatal),
            }
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

/// Answers the proposals of a group as their results come, which is in order.
async fn settle(
    me: NodeId,
    mut results: impl Results,
    answers: Vec<oneshot::Sender<ProposeReply>>,
    permit: OwnedSemaphorePermit,
) {
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
            (None, _) | (_, None) => return,
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
    async fn proposals_gather_only_while_there_is_no_room() {
        let raft = Raft::start();
        let mut waiting = vec![raft.propose()];
        assert_eq!(raft.sizes().await, [1]);
        waiting.push(raft.propose());
        assert_eq!(raft.sizes().await, [1, 1]);
        waiting.extend([raft.propose(), raft.propose(), raft.propose()]);
        assert_eq!(raft.sizes().await, [1, 1]);
        raft.answer(0, [applied(7)]).await;
        assert_eq!(raft.sizes().await, [1, 1, 3]);
        raft.answer(1, [applied(8)]).await;
        raft.answer(2, [applied(9), applied(10), applied(11)]).await;
        for (proposal, expected) in waiting.into_iter().zip(7..) {
            assert_eq!(index(&proposal.await.unwrap()), Some(expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_takes_long_lets_others_go() {
        let raft = Raft::start();
        let _held = [raft.propose(), {
            raft.sizes().await;
            raft.propose()
        }];
        assert_eq!(raft.sizes().await, [1, 1]);
        let _more = raft.propose();
        assert_eq!(raft.sizes().await, [1, 1]);
        tokio::time::advance(HOLD_MAX).await;
        assert_eq!(raft.sizes().await, [1, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_not_begun_and_the_rest_keeps_its_place() {
        let raft = Raft::start();
        let held = [raft.propose(), {
            raft.sizes().await;
            raft.propose()
        }];
        assert_eq!(raft.sizes().await, [1, 1]);
        let gone = raft.propose();
        let kept = raft.propose();
        raft.sizes().await;
        gone.abort();
        let _ = gone.await;
        raft.answer(0, [applied(1)]).await;
        assert_eq!(raft.sizes().await, [1, 1, 1]);
        raft.answer(2, [applied(3)]).await;
        assert_eq!(index(&kept.await.unwrap()), Some(3));
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn each_proposal_of_a_group_gets_its_own_outcome() {
        let raft = Raft::start();
        let held = [raft.propose(), {
            raft.sizes().await;
            raft.propose()
        }];
        raft.sizes().await;
        let asked = [raft.propose(), raft.propose(), raft.propose()];
        raft.answer(0, [applied(1)]).await;
        raft.sizes().await;
        let elsewhere = openraft::errors::ForwardToLeader {
            leader_id: Some(NodeId(2)),
            ..openraft::errors::ForwardToLeader::empty()
        };
        let results = [
            applied(3),
            Ok(Err(ClientWriteError::ForwardToLeader(elsewhere))),
            Err(Fatal::Stopped),
        ];
        raft.answer(2, results).await;
        let [first, second, third] = asked;
        assert_eq!(index(&first.await.unwrap()), Some(3));
        let leader = Some(NodeId(2));
        assert_eq!(second.await.unwrap(), ProposeReply::NotLeader { leader });
        assert!(matches!(third.await.unwrap(), ProposeReply::Unknown(_)));
        drop(held);
    }
}
