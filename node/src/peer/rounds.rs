//! Answers that many may share: whoever asks is given the outcome of a round that began after the question.
//!
//! A linearizable read needs the leader's word that it led after the read began. One exchange with a quorum
//! gives it to every read that had come by then, so under load the cost of an exchange is divided by the
//! number of readers, and readers wait for at most two exchanges.

use tokio::sync::{mpsc, oneshot};

/// The most who wait for the next round. More than a peer admits requests; what is beyond waits for room.
const WAITING_MAX: usize = 4_096;

/// The asking side. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    asking: mpsc::Sender<oneshot::Sender<T>>,
}

/// The answering side.
#[derive(Debug)]
pub(crate) struct Rounds<T> {
    asked: mpsc::Receiver<oneshot::Sender<T>>,
}

/// Those who are answered together.
#[derive(Debug)]
pub(crate) struct Round<T> {
    waiting: Vec<oneshot::Sender<T>>,
}

/// Both sides.
pub(crate) fn rounds<T>() -> (Shared<T>, Rounds<T>) {
    let (asking, asked) = mpsc::channel(WAITING_MAX);
    (Shared { asking }, Rounds { asked })
}

impl<T> Shared<T> {
    /// The outcome of a round that begins after this call. Never returns once nobody answers any more, so callers
    /// bound how long they wait.
    pub(crate) async fn confirmed(&self) -> T {
        let (answer, answered) = oneshot::channel();
        if self.asking.send(answer).await.is_ok()
            && let Ok(outcome) = answered.await
        {
            return outcome;
        }
        std::future::pending().await
    }
}

impl<T> Rounds<T> {
    /// Waits until somebody asks; all who have asked by then are in the round. None once nobody can ask any more.
    pub(crate) async fn next(&mut self) -> Option<Round<T>> {
        let mut waiting = Vec::new();
        match self.asked.recv_many(&mut waiting, WAITING_MAX).await {
            0 => None,
            _ => Some(Round { waiting }),
        }
    }
}

impl<T: Clone> Round<T> {
    /// Tells the outcome to all who still wait for it.
    pub(crate) fn settle(self, outcome: T) {
        for answer in self.waiting {
            // One that no longer waits needs no answer.
            let _ = answer.send(outcome.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn nobody_is_given_the_outcome_of_a_round_that_began_before() {
        let (shared, mut rounds) = rounds();
        let shared = Arc::new(shared);
        let ask = || {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.confirmed().await })
        };
        let early = [ask(), ask()];
        tokio::task::yield_now().await;
        let first = rounds.next().await.unwrap();
        let late = ask();
        tokio::task::yield_now().await;
        first.settle(1);
        rounds.next().await.unwrap().settle(2);
        for asked in early {
            assert_eq!(asked.await.unwrap(), 1);
        }
        assert_eq!(late.await.unwrap(), 2);
    }
}
