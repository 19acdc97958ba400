//! Readiness probes: one task for each replica that runs, at the pace its service asks for.

mod question;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};
use raftserve_proxy::Lack;
use raftserve_store::State;
use raftserve_store::state::{Phase, Replica};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::question::{Manner, Question, Unready};
use super::plan::ProbeView;
use crate::share::Suspects;

/// The longest pause between probes until the first success, so that a replica serves soon after it
/// can, whatever the interval.
const STARTING_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// The first pause after a failed probe of a starting replica; it doubles up to the longest.
const STARTING_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The verdicts so far, shared with the probing tasks.
#[derive(Default)]
struct Verdicts {
    by_replica: Mutex<BTreeMap<ReplicaId, Verdict>>,
    changed: Notify,
    lack: Lack,
}

#[derive(Clone, Debug)]
struct Verdict {
    last: Result<(), String>,
    /// Later than it was by as long as the replica could not be asked.
    failing_since: Option<Instant>,
    /// When it was last asked, or could not be.
    at: Instant,
}

impl Verdicts {
    /// Notes a verdict; tells the controller unless it only repeats a success.
    fn note(&self, replica: ReplicaId, result: Result<(), Unready>) {
        let now = Instant::now();
        let mut map = self
            .by_replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let result = match result {
            Ok(()) => Ok(()),
            Err(Unready::Not(why)) => Err(why),
            Err(Unready::Unasked(error)) => {
                if let Some(verdict) = map.get_mut(&replica) {
                    let unasked = now.saturating_duration_since(verdict.at);
                    verdict.failing_since = verdict.failing_since.map(|since| since + unasked);
                    verdict.at = now;
                }
                drop(map);
                self.lack.met(replica, &error);
                return;
            }
        };
        let before = map.get(&replica);
        let news = result.is_err() || before.is_none_or(|verdict| verdict.last.is_err());
        let failing_since = match &result {
            Ok(()) => None,
            Err(_) => Some(before.and_then(|it| it.failing_since).unwrap_or(now)),
        };
        map.insert(
            replica,
            Verdict {
                last: result,
                failing_since,
                at: now,
            },
        );
        drop(map);
        if news {
            self.changed.notify_one();
        }
    }
}

struct Task {
    question: Question,
    poke: Arc<Notify>,
    _running: AbortOnDropHandle<()>,
}

/// All probes of one reign.
pub(super) struct Probes {
    tasks: BTreeMap<ReplicaId, Task>,
    /// One for all replicas of a version: what TLS believes is read once.
    manners: BTreeMap<(ServiceId, ServiceVersion), Arc<Manner>>,
    verdicts: Arc<Verdicts>,
    suspects: Arc<Suspects>,
}

impl Probes {
    pub(super) fn new(suspects: Arc<Suspects>) -> Self {
        Self {
            tasks: BTreeMap::new(),
            manners: BTreeMap::new(),
            verdicts: Arc::default(),
            suspects,
        }
    }

    /// Probes exactly the replicas that run, each by its version's readiness rules.
    pub(super) fn follow(&mut self, state: &State) {
        let mut wanted = BTreeMap::new();
        let mut manners = BTreeMap::new();
        for replica in state.replicas() {
            if let (
                Some(address),
                Some(service),
                Phase::Starting | Phase::Ready | Phase::NotReady { .. },
            ) = (
                &replica.address,
                state.service(replica.id.service),
                &replica.phase,
            ) {
                let spec = service.spec_of(replica.version);
                if spec.provider.tells_readiness() {
                    continue;
                }
                let version = (service.id, replica.version);
                let manner = manners.entry(version).or_insert_with(|| {
                    let known = self.manners.get(&version);
                    let known = known.filter(|manner| manner.is_of(spec));
                    known.map_or_else(|| Arc::new(Manner::new(spec)), Arc::clone)
                });
                let question = Question {
                    address: address.clone(),
                    manner: Arc::clone(manner),
                };
                wanted.insert(replica.id, (question, spec, replica));
            }
        }
        self.tasks.retain(|id, task| {
            wanted.get(id).is_some_and(|(question, spec, _)| {
                let asked = &task.question;
                asked.address == question.address
                    && (Arc::ptr_eq(&asked.manner, &question.manner) || asked.manner.is_of(spec))
            })
        });
        self.manners = manners;
        self.verdicts
            .by_replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|id, _| wanted.contains_key(id));
        for (id, (question, _, replica)) in wanted {
            if !self.tasks.contains_key(&id) {
                let task = self.start(question, replica);
                self.tasks.insert(id, task);
            }
        }
    }

    /// Waits for a verdict that may matter. Probes of suspected replicas are brought forward meanwhile.
    pub(super) async fn changed(&self) {
        loop {
            tokio::select! {
                () = self.verdicts.changed.notified() => return,
                suspects = self.suspects.take() => {
                    for suspect in suspects {
                        if let Some(task) = self.tasks.get(&suspect) {
                            task.poke.notify_one();
                        }
                    }
                }
            }
        }
    }

    pub(super) fn views(&self) -> BTreeMap<ReplicaId, ProbeView> {
        self.verdicts
            .by_replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(id, verdict)| {
                let view = ProbeView {
                    last: Some(verdict.last.clone()),
                    // Up to when it was last asked: what comes after may be a lack of this peer.
                    failing_for: verdict
                        .failing_since
                        .map(|since| verdict.at.saturating_duration_since(since)),
                };
                (*id, view)
            })
            .collect()
    }

    fn start(&self, question: Question, replica: &Replica) -> Task {
        let poke = Arc::new(Notify::new());
        let prober = Prober {
            id: replica.id,
            starting: replica.phase == Phase::Starting,
            question: question.clone(),
            verdicts: Arc::clone(&self.verdicts),
            poke: Arc::clone(&poke),
        };
        Task {
            question,
            poke,
            _running: AbortOnDropHandle::new(tokio::spawn(prober.run())),
        }
    }
}

struct Prober {
    id: ReplicaId,
    starting: bool,
    question: Question,
    verdicts: Arc<Verdicts>,
    poke: Arc<Notify>,
}

impl Prober {
    async fn run(mut self) {
        let interval = self.question.manner.interval();
        let mut starting_pause = STARTING_INTERVAL_MIN;
        loop {
            let result = self.question.ask().await;
            self.starting &= result.is_err();
            self.verdicts.note(self.id, result);
            let pause = if self.starting {
                let pause = starting_pause;
                starting_pause = (pause * 2).min(STARTING_INTERVAL_MAX);
                pause.min(interval)
            } else {
                interval
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => {}
            }
        }
    }
}
