//! Asking other peers who they are, and what their answers mean together.

use std::time::Duration;

use raftserve_model::ClusterId;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tonic::{Code, Response, Status};

use super::BootstrapError;
use crate::peer::dial::Dialer;
use crate::peer::links::{chain, client, frame};
use crate::peer::rpc::Frame;
use crate::peer::wire::{
    self, AdoptReply, AdoptRequest, HelloReply, HelloRequest, JoinReply, JoinRequest, Standing,
};

/// How long each may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How often it is said what is being waited for.
const TELL: Duration = Duration::from_secs(5);

/// What a peer answered, by its name.
pub(super) type Answer = (String, Result<Standing, String>);

/// Whether a cluster is under way: every identity of its bootstrap is on disk, so an empty directory is none of
/// its peers', or a wiped one's.
pub(super) fn knows_a_cluster(answers: &[Answer]) -> bool {
    let initialised = |standing: &Standing| {
        matches!(
            standing,
            Standing::Member {
                initialised: true,
                ..
            }
        )
    };
    answers
        .iter()
        .any(|(_, answer)| answer.as_ref().is_ok_and(initialised))
}

/// Whether anybody has an identity, initialised or not.
pub(super) fn any_member(answers: &[Answer]) -> bool {
    answers
        .iter()
        .any(|(_, answer)| matches!(answer, Ok(Standing::Member { .. })))
}

/// Whether everybody has answered that its directory is empty.
pub(super) fn all_pristine(answers: &[Answer]) -> bool {
    answers
        .iter()
        .all(|(_, answer)| matches!(answer, Ok(Standing::Pristine { .. })))
}

pub(super) fn another_bootstrap(answers: &[Answer]) -> Option<BootstrapError> {
    answers.iter().find_map(|(name, answer)| match answer {
        Ok(Standing::Member { cluster, .. }) => Some(BootstrapError::AnotherBootstrap {
            name: name.clone(),
            cluster: *cluster,
        }),
        _ => None,
    })
}

/// A peer and its cluster, if all that answered are members of one cluster other than `mine`.
pub(super) fn strangers_only(answers: &[Answer], mine: ClusterId) -> Option<(String, ClusterId)> {
    let mut standings = answers
        .iter()
        .filter_map(|(name, answer)| Some((name, answer.as_ref().ok()?)));
    let cluster = |standing: &Standing| match standing {
        Standing::Member { cluster, .. } => Some(*cluster),
        Standing::Pristine { .. } => None,
    };
    let (name, first) = standings.next()?;
    let theirs = cluster(first).filter(|theirs| *theirs != mine)?;
    let agreed = standings.all(|(_, standing)| cluster(standing) == Some(theirs));
    agreed.then(|| (name.clone(), theirs))
}

/// How many of those named have empty directories, the one who asks among them, if that is most of them while a cluster is
/// known: so many volumes are lost that it will have no quorum again.
pub(super) fn majority_lost(answers: &[Answer]) -> Option<usize> {
    let pristine = |(_, answer): &&Answer| matches!(answer, Ok(Standing::Pristine { .. }));
    let empty = 1 + answers.iter().filter(pristine).count();
    let named = 1 + answers.len();
    (knows_a_cluster(answers) && 2 * empty > named).then_some(empty)
}

pub(super) fn missing(answers: &[Answer]) -> String {
    let silent: Vec<String> = answers
        .iter()
        .filter_map(|(name, answer)| {
            let reason = answer.as_ref().err()?;
            Some(format!("{name} ({reason})"))
        })
        .collect();
    if silent.is_empty() {
        String::new()
    } else {
        format!(", no answer yet from: {}", silent.join(", "))
    }
}

/// Why a greeting was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// Another process speaks for the peer that greets.
    #[error("{0}")]
    Copy(String),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<Unanswered> for String {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.to_string()
    }
}

/// Asks whoever is at `address` who it is.
///
/// # Errors
/// [`Unanswered`].
pub(crate) async fn greet(
    dialer: &Dialer,
    address: &str,
    hello: &HelloRequest,
) -> Result<HelloReply, Unanswered> {
    let channel = dialer.connect(address);
    let channel = channel.map_err(|error| Unanswered::Other(error.to_string()))?;
    let answer = timeout(ANSWER, client(channel).hello(frame(hello))).await;
    if let Ok(Err(status)) = &answer
        && status.code() == Code::AlreadyExists
    {
        return Err(Unanswered::Copy(status.message().to_owned()));
    }
    let answer = read_answer(answer).map_err(Unanswered::Other)?;
    wire::decode(&answer.head).map_err(|error| Unanswered::Other(error.to_string()))
}

/// How long an admission may take: it needs a quorum, and a look back at who asks.
const ADMISSION: Duration = Duration::from_secs(10);

pub(super) async fn ask_to_join(
    dialer: &Dialer,
    address: &str,
    request: &JoinRequest,
) -> Result<JoinReply, String> {
    let mut client = client(dialer.connect(address).map_err(|error| error.to_string())?);
    let answer = timeout(ADMISSION, client.join(frame(request))).await;
    let answer = read_answer(answer)?;
    wire::decode(&answer.head).map_err(|error| error.to_string())
}

pub(super) async fn ask_to_adopt(
    dialer: &Dialer,
    address: &str,
    request: &AdoptRequest,
) -> Result<AdoptReply, String> {
    let mut client = client(dialer.connect(address).map_err(|error| error.to_string())?);
    let answer = timeout(ANSWER, client.adopt(frame(request))).await;
    let answer = read_answer(answer)?;
    wire::decode(&answer.head).map_err(|error| error.to_string())
}

fn read_answer(awaited: Result<Result<Response<Frame>, Status>, Elapsed>) -> Result<Frame, String> {
    match awaited {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        // So a port answers that speaks gRPC and knows nothing of peers. It says no more than that.
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            Err("it answers, but is no peer port: is that its admin port?".to_owned())
        }
        Ok(Err(status)) => Err(chain(&status)),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// Says what is waited for, but not in every round.
pub(super) struct Teller {
    said: Option<Instant>,
    /// Where it is said to whoever asks.
    waits_for: watch::Sender<String>,
}

impl Teller {
    /// One that says the same in `waits_for`.
    pub(super) fn new(waits_for: &watch::Sender<String>) -> Self {
        Self {
            said: None,
            waits_for: waits_for.clone(),
        }
    }

    pub(super) fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.is_due() {
            let text = text();
            tracing::info!("{text}");
            self.waits_for.send_replace(text);
        }
    }

    /// The same, where somebody has to do something.
    pub(super) fn alarm(&mut self, text: impl FnOnce() -> String) {
        if self.is_due() {
            let text = text();
            tracing::error!("{text}");
            self.waits_for.send_replace(text);
        }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.said.is_none_or(|said| said.elapsed() >= TELL);
        if is_due {
            self.said = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::NodeId;

    use super::*;

    const MINE: ClusterId = ClusterId([1; 16]);
    const THEIRS: ClusterId = ClusterId([2; 16]);

    fn member(cluster: ClusterId) -> Answer {
        let standing = Standing::Member {
            cluster,
            node: NodeId(1),
            nonce: 7,
            initialised: true,
        };
        ("p:1".to_owned(), Ok(standing))
    }

    #[test]
    fn who_answers_and_is_no_peer_port_is_told_from_one_that_does_not_answer() {
        let answer = |status| read_answer(Ok(Err(status))).unwrap_err();
        let said = answer(Status::unimplemented(""));
        assert!(said.contains("is that its admin port?"), "{said}");
        assert_eq!(answer(Status::unavailable("x")), "x");
    }

    #[test]
    fn most_volumes_are_lost_where_most_are_empty_beside_a_member() {
        let silent = || ("p:2".to_owned(), Err("it does not answer".to_owned()));
        let pristine = || ("p:3".to_owned(), Ok(Standing::Pristine { nonce: 7 }));
        let lost = |answers: &[Answer]| majority_lost(answers);
        assert_eq!(lost(&[member(MINE), pristine()]), Some(2));
        let three = [member(MINE), silent(), pristine(), pristine()];
        assert_eq!(lost(&three), Some(3));
        for fine in [
            vec![member(MINE), member(MINE)],
            vec![member(MINE), silent()],
            vec![member(MINE), silent(), silent(), pristine()],
            // A first install.
            vec![pristine(), pristine()],
        ] {
            assert_eq!(lost(&fine), None, "{fine:?}");
        }
    }

    #[test]
    fn only_a_company_of_strangers_is_one() {
        let silent = || ("p:2".to_owned(), Err("it does not answer".to_owned()));
        let pristine = || ("p:3".to_owned(), Ok(Standing::Pristine { nonce: 7 }));
        let found = Some(("p:1".to_owned(), THEIRS));
        assert_eq!(strangers_only(&[member(THEIRS), silent()], MINE), found);
        assert_eq!(
            strangers_only(&[member(THEIRS), member(THEIRS)], MINE),
            found
        );
        for fine in [
            vec![],
            vec![silent(), silent()],
            vec![member(MINE), silent()],
            vec![member(THEIRS), member(MINE)],
            vec![member(MINE), member(THEIRS)],
            vec![member(THEIRS), pristine()],
            vec![member(THEIRS), member(ClusterId([3; 16]))],
        ] {
            assert_eq!(strangers_only(&fine, MINE), None, "{fine:?}");
        }
    }
}
