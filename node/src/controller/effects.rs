//! Carries out effects on the provider, each in a task of its own, none twice at a time.
//!
//! What a provider holds back is let go only after the log was read again: see [`Provider::admit`].
//!
//! Dropping this ends the tasks: every call of the provider may be dropped at any await.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::ServiceSpec;
use raftserve_model::{ReplicaId, ServiceId};
use raftserve_store::State;
use raftserve_store::state::{Phase, Replica, Service};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::ledger::Ledger;
use super::plan::Effect;
use super::{PROPOSE_DEADLINE, chain};
use crate::consensus::Consensus;
use crate::provider::{
    Hold, Launched, Observation, Provider, ProviderError, ReplicaKey, ReplicaLaunch, ReplicaState,
};

/// How often a launch or a stop is tried in one reign until it is recorded as failed.
const TRIES: u32 = 3;

/// The pause before a launch or stop is tried again; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The longest such pause, while what makes replicas is away; where many launches wait, each waits longer (`ledger`).
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long an orphan may take to stop: its own specification is no longer known.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Effects in flight, and what came of the finished ones.
pub(super) struct Effects {
    provider: Arc<dyn Provider>,
    consensus: Consensus,
    lifeline: Option<PathBuf>,
    running: JoinSet<Done>,
    ledger: Ledger,
    launch_failures: BTreeMap<ReplicaId, String>,
    stop_failures: BTreeMap<ReplicaId, String>,
    /// Launches that are tried again later, with what was said last.
    held_up: BTreeMap<ReplicaId, String>,
    stopped: BTreeSet<ReplicaId>,
    /// Services whose leftovers were told to go.
    forgotten: BTreeSet<ServiceId>,
}

impl Effects {
    pub(super) fn new(
        provider: Arc<dyn Provider>,
        consensus: Consensus,
        lifeline: Option<PathBuf>,
    ) -> Self {
        Self {
            provider,
            consensus,
            lifeline,
            running: JoinSet::new(),
            ledger: Ledger::default(),
            launch_failures: BTreeMap::new(),
            stop_failures: BTreeMap::new(),
            held_up: BTreeMap::new(),
            stopped: BTreeSet::new(),
            forgotten: BTreeSet::new(),
        }
    }

    /// Starts what is planned and not under way, ends launches that are planned no more, and forgets what concerns
    /// replicas off the record.
    pub(super) fn start(&mut self, state: &State, effects: &BTreeSet<Effect>) {
        self.launch_failures
            .retain(|id, _| state.replica(*id).is_some());
        // Told to stop again, it is tried again.
        self.stop_failures.retain(|id, _| {
            let replica = state.replica(*id);
            replica.is_some_and(|replica| matches!(replica.phase, Phase::Stopping { .. }))
        });
        self.stopped.retain(|id| state.replica(*id).is_some());
        self.held_up
            .retain(|id, _| effects.contains(&Effect::Ensure(*id)));
        self.ledger.keep(effects);
        let now = Instant::now();
        for effect in effects {
            let (Effect::Ensure(id) | Effect::Stop(id)) = effect;
            let Some(replica) = state.replica(*id) else {
                continue;
            };
            let Some(service) = state.service(id.service) else {
                continue;
            };
            if !self.ledger.lets_begin(effect, now) {
                continue;
            }
            match effect {
                Effect::Ensure(_) => self.launch(effect.clone(), service, replica),
                Effect::Stop(_) => {
                    let grace = service.spec_of(replica.version).stop_grace;
                    self.spawn(effect.clone(), Deed::Stop(key(service, replica), grace));
                }
            }
        }
    }

    /// Stops what exists and is not on record. `state` was read after `observations` were made.
    pub(super) fn reap_orphans(&mut self, state: &State, observations: &[Observation]) {
        for observation in observations {
            let id = observation.replica.id;
            // Of one that has failed there is a record, and nothing else should be left.
            let on_record = |replica: &Arc<Replica>| replica.occupies_resources();
            if state.replica(id).is_some_and(on_record) {
                continue;
            }
            let effect = Effect::Stop(id);
            if observation.state == ReplicaState::Stopped {
                if state.service(id.service).is_none() && self.forgotten.insert(id.service) {
                    self.spawn(effect, Deed::Forget(id.service));
                }
            } else if self.ledger.lets_begin(&effect, Instant::now()) {
                tracing::warn!(replica = %observation.replica, "stopping a replica that is not on record");
                let deed = Deed::Stop(observation.replica.clone(), ORPHAN_GRACE);
                self.spawn(effect, deed);
            }
        }
    }

    /// Waits until an effect has finished, and remembers what came of it, or until one that was put off is due.
    pub(super) async fn finished(&mut self) {
        let due = self.ledger.next_due(Instant::now());
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            match self.running.join_next_with_id().await {
                Some(next) => next,
                None => std::future::pending().await,
            }
        };
        let (task, done) = tokio::select! {
            next = next => match next {
                Ok(next) => next,
                Err(failed) => (
                    failed.id(),
                    Done::Failed(format!("it ended badly: {failed}")),
                ),
            },
            () = due => return,
        };
        match self.ledger.ended(task, &done, Instant::now()) {
            Some(Effect::Ensure(id)) => {
                self.held_up.remove(&id);
                match done {
                    Done::Well => {}
                    Done::Failed(said) => {
                        self.launch_failures.insert(id, said);
                    }
                    Done::NotNow(said) => {
                        self.held_up.insert(id, said);
                    }
                }
            }
            Some(Effect::Stop(id)) => match done {
                Done::Well => {
                    self.stopped.insert(id);
                }
                Done::Failed(said) => {
                    self.stop_failures.insert(id, said);
                }
                Done::NotNow(_) => {}
            },
            // It was ended because nobody wants it.
            None => {}
        }
    }

    pub(super) fn launch_failures(&self) -> BTreeMap<ReplicaId, String> {
        self.launch_failures.clone()
    }

    pub(super) fn stop_failures(&self) -> BTreeMap<ReplicaId, String> {
        self.stop_failures.clone()
    }

    pub(super) fn held_up(&self) -> BTreeMap<ReplicaId, String> {
        self.held_up.clone()
    }

    pub(super) fn stopped(&self) -> BTreeSet<ReplicaId> {
        self.stopped.clone()
    }

    fn launch(&mut self, effect: Effect, service: &Service, replica: &Replica) {
        let spec = service.spec_of(replica.launched_as);
        let (setup, run) = with_port(spec, replica.port);
        let launch = ReplicaLaunch {
            replica: key(service, replica),
            version: replica.launched_as,
            setup,
            run,
            envs: spec.envs.clone(),
            secrets: spec.secrets.clone(),
            port: replica.port,
            resources: spec.resources.clone(),
            placement: spec.placement.clone(),
            file_mounts: spec.file_mounts.clone(),
            stop_grace: spec.stop_grace,
            lifeline: self.lifeline.clone(),
        };
        self.spawn(effect, Deed::Launch(Box::new(launch)));
    }

    fn spawn(&mut self, effect: Effect, deed: Deed) {
        let hand = Hand {
            provider: Arc::clone(&self.provider),
            consensus: self.consensus.clone(),
        };
        let task = self.running.spawn(async move { hand.done(deed).await });
        self.ledger.begun(effect, task);
    }
}

/// What came of an effect.
pub(super) enum Done {
    Well,
    /// Several times, with what was said last.
    Failed(String),
    /// Whoever would carry it out is away, or refuses for now, as is said.
    NotNow(String),
}

/// A deed with all that it needs.
enum Deed {
    Launch(Box<ReplicaLaunch>),
    Stop(ReplicaKey, Duration),
    Forget(ServiceId),
}

/// Does deeds.
struct Hand {
    provider: Arc<dyn Provider>,
    consensus: Consensus,
}

impl Hand {
    /// Tries up to [`TRIES`] times, but for what cannot be done now: that keeps no place while it waits. A tombstone
    /// counts as done: what exists will say so, and the plan follows from that.
    async fn done(self, deed: Deed) -> Done {
        let mut pause = RETRY_PAUSE;
        let mut tries_left = TRIES;
        loop {
            match self.tried(&deed).await {
                Ok(()) | Err(ProviderError::Tombstoned(_)) => return Done::Well,
                Err(ProviderError::Unavailable { doing, reason }) => {
                    tracing::warn!("cannot {doing}, and will try again: {reason}");
                    return Done::NotNow(reason);
                }
                Err(error) if tries_left == 1 => return Done::Failed(chain(&error)),
                Err(error) => tracing::warn!(error = %chain(&error), "will try again"),
            }
            tries_left -= 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn tried(&self, deed: &Deed) -> Result<(), ProviderError> {
        match deed {
            Deed::Launch(launch) => match self.provider.ensure(ReplicaLaunch::clone(launch)).await?
            {
                Launched::Started => Ok(()),
                Launched::Held(hold) => self.let_go(hold).await,
            },
            Deed::Stop(replica, grace) => self.provider.stop(replica, *grace).await,
            Deed::Forget(service) => self.provider.forget(*service).await,
        }
    }

    /// Admits what is held if the log wants it still. What it does not want is left to whoever reaps it.
    async fn let_go(&self, hold: Hold) -> Result<(), ProviderError> {
        let read = self.consensus.read_barrier(PROPOSE_DEADLINE).await;
        read.map_err(|error| ProviderError::Unavailable {
            doing: "see whether a replica is still wanted",
            reason: chain(&error),
        })?;
        let state = self.consensus.state();
        let wanted = state
            .replica(hold.replica.id)
            .is_some_and(|replica| matches!(replica.phase, Phase::Pending | Phase::Provisioning));
        match wanted {
            true => self.provider.admit(hold).await,
            false => Err(ProviderError::Tombstoned(hold.replica)),
        }
    }
}

fn key(service: &Service, replica: &Replica) -> ReplicaKey {
    ReplicaKey {
        name: service.name.clone(),
        id: replica.id,
    }
}

/// The texts of a replica's programs, with the declared port replaced by its own.
fn with_port(spec: &ServiceSpec, port: u16) -> (Option<String>, String) {
    let replace = |text: &String| spec.command_for_port(text, port);
    (spec.setup.as_ref().map(replace), replace(&spec.run))
}
