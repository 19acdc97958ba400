//! Session bindings as the proxy asks for them: local look-ups while this peer holds a lease, and
//! binds through the log, many keys to an entry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::WithoutQuorum;
use raftserve_model::{ServiceId, SessionKey};
use raftserve_proxy::{BindError, BindFuture, BoundReplica, Lookup, Sessions};
use raftserve_store::command::{Action, BIND_KEYS_MAX, BindRefusal, Binding};
use raftserve_store::{Outcome, State};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::share::Share;

/// The most keys that wait to be bound from this peer; further requests are told to come back. Each
/// waits a few milliseconds in good times, so this is far beyond what the log can bind.
const WAITING_MAX: usize = 8_192;

/// How many entries with binds this peer has under way at a time: enough to fill the log's groups,
/// few enough that keys gather into large entries under load.
const ENTRIES_MAX: usize = 4;

/// How long a bind is tried, through changes of leader.
const BIND_PATIENCE: Duration = Duration::from_secs(5);

/// The longest that one try may take.
const TRY_DEADLINE: Duration = Duration::from_secs(2);

/// The pause before a failed try is repeated.
const TRY_PAUSE: Duration = Duration::from_millis(50);

type Answer = Result<BoundReplica, BindError>;

/// A key to be bound, or renewed if nobody waits for the answer.
struct Wanted {
    service: ServiceId,
    key: SessionKey,
    answer: Option<oneshot::Sender<Answer>>,
}

/// The proxy's view of session bindings. Cheap to clone.
#[derive(Clone)]
pub struct Bindings {
    consensus: Consensus,
    share: Arc<Share>,
    wanted: mpsc::Sender<Wanted>,
    changed: watch::Receiver<u64>,
}

impl Bindings {
    /// Begins; the returned future binds what is wanted, and must be kept running.
    pub fn new(
        consensus: Consensus,
        share: Arc<Share>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, queue) = mpsc::channel(WAITING_MAX);
        let (moved, changed) = watch::channel(0);
        let binder = Binder {
            consensus: consensus.clone(),
            entries: Arc::new(Semaphore::new(ENTRIES_MAX)),
        };
        let lease = Arc::clone(&share);
        let news = consensus.news();
        let run = async move {
            tokio::join!(binder.run(queue), announce(news, lease, moved));
        };
        let bindings = Self {
            consensus,
            share,
            wanted,
            changed,
        };
        (bindings, run)
    }

    fn usable(&self, state: &State, service: ServiceId, key: SessionKey) -> Lookup {
        let Some(session) = state.session(service, &key) else {
            return Lookup::Unbound;
        };
        let kept = state
            .replica(session.replica)
            .is_some_and(|replica| replica.keeps_sessions());
        if !kept || session.expires_at <= state.now() {
            return Lookup::Unbound;
        }
        if session.usable_from > state.fence() {
            return Lookup::Wait;
        }
        Lookup::Bound(BoundReplica {
            replica: session.replica,
            epoch: session.epoch,
        })
    }

    /// Has a binding renewed once half of its life has passed; a lost renewal is made good by the
    /// next request.
    fn renew(&self, state: &State, service: ServiceId, key: SessionKey, ttl: Duration) {
        let due = state
            .session(service, &key)
            .is_some_and(|session| session.expires_at.since(state.now()) < ttl / 2);
        if due {
            let _ = self.wanted.try_send(Wanted {
                service,
                key,
                answer: None,
            });
        }
    }
}

impl Sessions for Bindings {
    fn lookup(&self, service: ServiceId, key: SessionKey) -> Lookup {
        let state = self.consensus.state();
        let Some(affinity) = state
            .service(service)
            .and_then(|service| service.spec().affinity.as_ref())
        else {
            return Lookup::Unbound;
        };
        if !self.share.holds_lease() {
            match affinity.without_quorum {
                WithoutQuorum::Refuse => return Lookup::Wait,
                WithoutQuorum::ServeStale => {}
            }
        }
        let found = self.usable(&state, service, key);
        if matches!(found, Lookup::Bound(_)) {
            self.renew(&state, service, key, affinity.ttl);
        }
        found
    }

    fn bind<'a>(&'a self, service: ServiceId, key: SessionKey) -> BindFuture<'a> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let wanted = Wanted {
                service,
                key,
                answer: Some(answer),
            };
            self.wanted.try_send(wanted).map_err(|_| {
                BindError::Unavailable("too many sessions wait to be bound".to_owned())
            })?;
            answered
                .await
                .unwrap_or_else(|_| Err(BindError::Unavailable("this peer is stopping".to_owned())))
        })
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}

/// Moves with everything that may change an answer of `lookup`: news of the state, and the lease.
async fn announce(
    mut news: watch::Receiver<raftserve_model::LogIndex>,
    share: Arc<Share>,
    moved: watch::Sender<u64>,
) {
    let mut held = share.holds_lease();
    let mut lease_checks = tokio::time::interval(TRY_PAUSE);
    loop {
        tokio::select! {
            changed = news.changed() => {
                if changed.is_err() {
                    return;
                }
                moved.send_modify(|count| *count += 1);
            }
            _ = lease_checks.tick() => {
                let holds = share.holds_lease();
                if holds != held {
                    held = holds;
                    moved.send_modify(|count| *count += 1);
                }
            }
        }
    }
}

/// Turns wanted keys into entries.
struct Binder {
    consensus: Consensus,
    entries: Arc<Semaphore>,
}

impl Binder {
    async fn run(self, mut queue: mpsc::Receiver<Wanted>) {
        let mut batch = Vec::with_capacity(BIND_KEYS_MAX);
        while queue.recv_many(&mut batch, BIND_KEYS_MAX).await > 0 {
            let mut by_service: BTreeMap<ServiceId, Vec<Wanted>> = BTreeMap::new();
            for wanted in batch.drain(..) {
                by_service.entry(wanted.service).or_default().push(wanted);
            }
            for (service, wanted) in by_service {
                let Ok(permit) = Arc::clone(&self.entries).acquire_owned().await else {
                    return;
                };
                let consensus = self.consensus.clone();
                tokio::spawn(async move {
                    bind_all(&consensus, service, wanted).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn bind_all(consensus: &Consensus, service: ServiceId, wanted: Vec<Wanted>) {
    let keys: BTreeSet<SessionKey> = wanted.iter().map(|wanted| wanted.key).collect();
    let keys: Vec<SessionKey> = keys.into_iter().collect();
    let bound = propose(consensus, service, &keys).await;
    for Wanted { key, answer, .. } in wanted {
        let Some(answer) = answer else { continue };
        let result = match (&bound, keys.binary_search(&key)) {
            (Ok(bound), Ok(at)) => bound
                .get(at)
                .map_or_else(|| Err(unavailable("an answer is missing")), answer_of),
            (Err(error), _) => Err(error.clone()),
            (Ok(_), Err(_)) => Err(unavailable("an answer is missing")),
        };
        // Who asked may have gone.
        let _ = answer.send(result);
    }
}

/// Binds are safe to repeat, so any failed try is repeated while there is patience.
async fn propose(
    consensus: &Consensus,
    service: ServiceId,
    keys: &[SessionKey],
) -> Result<Vec<Result<Binding, BindRefusal>>, BindError> {
    let give_up = Instant::now() + BIND_PATIENCE;
    loop {
        let action = Action::BindSessions {
            service,
            keys: keys.to_vec(),
        };
        let deadline = TRY_DEADLINE.min(give_up.saturating_duration_since(Instant::now()));
        let said = match consensus.propose(action, deadline).await {
            Ok((index, Outcome::Bound(bound))) => {
                let mut applied = consensus.applied();
                let reached = applied.wait_for(|applied| *applied >= index);
                let _ = tokio::time::timeout_at(give_up, reached).await;
                return Ok(bound);
            }
            Ok((_, other)) => format!("the log answered {other}"),
            Err(error) => error.to_string(),
        };
        if Instant::now() + TRY_PAUSE >= give_up {
            return Err(BindError::Unavailable(said));
        }
        tokio::time::sleep(TRY_PAUSE).await;
    }
}

fn answer_of(bound: &Result<Binding, BindRefusal>) -> Answer {
    match bound {
        Ok(binding) => Ok(BoundReplica {
            replica: binding.replica,
            epoch: binding.epoch,
        }),
        Err(BindRefusal::NoReplica) => Err(unavailable("no replica is ready")),
        Err(BindRefusal::NoService) => Err(unavailable("the service is going")),
        Err(BindRefusal::TooMany) => Err(BindError::Refused(
            "the service holds as many sessions as it may (max_sessions)".to_owned(),
        )),
    }
}

fn unavailable(said: &str) -> BindError {
    BindError::Unavailable(said.to_owned())
}
