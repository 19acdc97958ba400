//! The controller: on the leader only, it makes what runs agree with what was asked for.
//!
//! [`Controller::run`] waits until this peer leads, reigns until it no longer does, and starts over.
//! A reign begins with a barrier read and a start-of-control entry, whose index is the generation
//! that every later change carries; a change of a past generation is refused when it is applied.
//! Then, in a loop: observe, plan ([`plan::plan`], pure), put intents into the log, carry out what
//! the log demands, record what came of it.

mod effects;
pub(crate) mod one_host;
pub mod plan;
mod probe;
mod remarks;
mod sessions;
mod upstreams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::{Generation, Incarnation, LogIndex, ReplicaId};
use raftserve_store::command::{Action, Change};
use raftserve_store::state::{Claim, Phase};
use raftserve_store::{Outcome, State};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::consensus::{Consensus, Leadership, ProposeError};
use crate::kubernetes::ApiServer;
use crate::peer::Remarks;
use crate::provider::{Provider, ProviderError, ReplicaState, port};
use crate::share::Share;
use effects::Effects;
use plan::{Intent, Observed, Plan, plan};
use probe::Probes;
use upstreams::Upstreams;

/// The longest that one entry of the controller may take; past it the reign starts over.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(2);

/// How often the controller looks even if nothing tells it to: a safety net, not a pace.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How long the first look of a reign may hold up what needs none: an API server that is up answers within less.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(2);

/// The pause before a look that failed is repeated.
const BLIND_PAUSE: Duration = Duration::from_secs(1);

/// How often replicas that drain are looked at.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// How often what exists is compared with the log, to find what nobody wants.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(30);

/// The pause before a reign that failed starts over, so that a lost quorum does not spin.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// What the controller works with.
pub struct Controller {
    /// The log.
    pub consensus: Consensus,
    /// Who makes replicas exist.
    pub provider: Arc<dyn Provider>,
    /// Where Kubernetes is asked for the endpoints of its Services.
    pub api: ApiServer,
    /// Where Kubernetes Services are that are named without a namespace.
    pub namespace: Option<String>,
    /// What peers tell each other.
    pub share: Arc<Share>,
    /// This process's life.
    pub incarnation: Incarnation,
    /// What ends the replicas that this peer launches, if not only a stop.
    pub lifeline: Option<std::path::PathBuf>,
}

/// Why a reign ended.
#[derive(Debug, thiserror::Error)]
enum ReignEnd {
    #[error("this peer leads no more, or cannot tell")]
    Deposed,
    #[error("generation {current} is in force")]
    Fenced { current: Generation },
    #[error("cannot write to the log")]
    Propose(#[from] ProposeError),
    #[error("cannot read the agreed state")]
    Read(#[from] crate::consensus::ReadError),
}

impl Controller {
    /// Reigns whenever this peer leads, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut leadership = self.consensus.leadership();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                led = leadership.wait_for(|leadership| leadership.is_self) => {
                    if led.is_err() {
                        return;
                    }
                }
            }
            // Another reign of this peer's is another one, even if the time between was not seen.
            let term = leadership.borrow().term;
            let deposed = |now: &Leadership| !now.is_self || now.term != term;
            let end = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = leadership.wait_for(deposed) => ReignEnd::Deposed,
                end = self.reign() => end,
            };
            self.share.end_reign();
            self.consensus.remark(Remarks::default());
            tracing::info!(reason = %chain(&end), "control ends");
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    async fn reign(&self) -> ReignEnd {
        let generation = match self.begin().await {
            Ok(generation) => generation,
            Err(end) => return end,
        };
        tracing::info!(%generation, "control begins");
        self.share
            .begin_reign(generation, self.consensus.state().fence());
        let mut reign = Reign::new(self, generation);
        tokio::select! {
            end = reign.run() => end,
            end = sessions::keep(&self.consensus, &self.share, generation) => end,
        }
    }

    async fn begin(&self) -> Result<Generation, ReignEnd> {
        self.consensus.read_barrier(PROPOSE_DEADLINE).await?;
        let action = Action::StartControl {
            node: self.consensus.node_id(),
            incarnation: self.incarnation,
        };
        let (index, _) = self
            .consensus
            .propose_as_leader(action, PROPOSE_DEADLINE)
            .await?;
        wait_applied(&self.consensus, index).await?;
        Ok(Generation(index.0))
    }
}

/// One reign: what is known only within it.
struct Reign<'a> {
    controller: &'a Controller,
    generation: Generation,
    effects: Effects,
    probes: Probes,
    upstreams: Upstreams,
    exists: BTreeMap<ReplicaId, ReplicaState>,
    /// The look at all that exists without which nothing is known of it in this reign, while it lasts.
    first_look: Option<AbortOnDropHandle<Result<(), ProviderError>>>,
    /// When to look again after a look that failed; none if what was seen last holds.
    blind_until: Option<Instant>,
    orphans_checked: Option<Instant>,
    news: watch::Receiver<LogIndex>,
    provider_changes: watch::Receiver<u64>,
    /// The last change to the state that the present plan was made from.
    planned_from: LogIndex,
    /// Whether the parent's replicas were made ours in this reign.
    taken_over: bool,
    /// Whether it was told in this reign that replicas may be elsewhere.
    told_elsewhere: bool,
    /// Why what exists could not be seen, as it was told last; none if it is seen.
    told_unseen: Option<String>,
}

impl<'a> Reign<'a> {
    fn new(controller: &'a Controller, generation: Generation) -> Self {
        Self {
            controller,
            generation,
            effects: Effects::new(
                Arc::clone(&controller.provider),
                controller.consensus.clone(),
                controller.lifeline.clone(),
            ),
            probes: Probes::new(controller.share.suspected()),
            upstreams: Upstreams::new(controller.api.clone(), controller.namespace.clone()),
            exists: BTreeMap::new(),
            first_look: None,
            blind_until: None,
            orphans_checked: None,
            news: controller.consensus.news(),
            provider_changes: controller.provider.changes(),
            planned_from: LogIndex(0),
            taken_over: false,
            told_elsewhere: false,
            told_unseen: None,
        }
    }

    async fn run(&mut self) -> ReignEnd {
        loop {
            match self.round().await {
                Ok(wake_after) => self.wait(wake_after).await,
                Err(end) => return end,
            }
        }
    }

    /// Observe, plan, write, execute. Returns when to do so again at the latest.
    async fn round(&mut self) -> Result<Duration, ReignEnd> {
        let resting = self.blind_until.is_some_and(|until| Instant::now() < until);
        if !resting {
            self.blind_until = None;
            let unseen = self.observe().await?.err();
            self.tell_unseen(unseen.as_ref());
            if let Some(error) = unseen {
                // Probes and static services need no look. Where another cluster has the replicas, it sees to them.
                if !matches!(error, ProviderError::Unavailable { .. }) {
                    self.stand_aside(&error);
                    return Ok(BLIND_PAUSE);
                }
                self.exists.clear();
                self.blind_until = Some(Instant::now() + BLIND_PAUSE);
            }
        }
        self.news.mark_unchanged();
        let state = self.controller.consensus.state();
        self.planned_from = state.plan_changed();
        self.probes.follow(&state);
        self.upstreams.follow(&state);
        let not_shared = self.not_shared();
        let observed = self.observed(&state, not_shared.as_deref());
        self.controller
            .consensus
            .remark(remarks::remarks(&state, &observed));
        let plan = plan(&state, &observed);
        let wake_after = self.wake_after(&state, &plan);
        self.effects.start(&state, &plan.effects);
        if plan.intents.is_empty() {
            return Ok(wake_after);
        }
        let shares_host = self.controller.provider.shares_host();
        let changes = with_ports(&state, plan.intents, shares_host);
        if changes.is_empty() {
            tracing::warn!("no port is free for another replica");
            return Ok(BLIND_PAUSE);
        }
        self.write(changes).await?;
        Ok(Duration::ZERO)
    }

    /// What cannot be seen now is looked at again, and nothing is concluded from it meanwhile. Said whenever the reason is
    /// another one.
    fn tell_unseen(&mut self, error: Option<&ProviderError>) {
        let said = error.map(|error| chain(error));
        if let Some(error) = said.as_ref().filter(|_| said != self.told_unseen) {
            tracing::warn!(error, "cannot see what exists");
        }
        self.told_unseen = said;
    }

    /// Does nothing about replicas, and has their services' status say why.
    fn stand_aside(&mut self, error: &ProviderError) {
        self.news.mark_unchanged();
        let state = self.controller.consensus.state();
        self.planned_from = state.plan_changed();
        let services = state.services();
        let makers = services.filter(|it| it.spec().provider.makes_replicas());
        let mut told = self.upstreams.troubles();
        told.extend(makers.map(|it| (it.id, chain(error))));
        self.controller.consensus.remark(Remarks {
            services: told,
            ..Remarks::default()
        });
    }

    /// Waits until something may have changed what is to be done.
    async fn wait(&mut self, at_most: Duration) {
        if at_most.is_zero() {
            return;
        }
        let (consensus, planned_from) = (&self.controller.consensus, self.planned_from);
        let news = &mut self.news;
        let replanned = async {
            while consensus.state().plan_changed() <= planned_from {
                if news.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = replanned => {}
            _ = self.provider_changes.changed() => {}
            () = self.probes.changed() => {}
            () = self.upstreams.changed() => {}
            () = self.effects.finished() => {}
            () = tokio::time::sleep(at_most) => {}
        }
    }

    async fn observe(&mut self) -> Result<Result<(), ProviderError>, ReignEnd> {
        self.provider_changes.mark_unchanged();
        // What was the parent's must be ours before anything is missed.
        if let Err(error) = self.take_over().await {
            return Ok(Err(error));
        }
        let due = self
            .orphans_checked
            .is_none_or(|checked| checked.elapsed() >= ORPHAN_INTERVAL);
        let mut listed = false;
        if due {
            let occupied = is_occupied(&self.controller.consensus.state());
            let looked = match self.orphans_checked {
                // What the former leader made must not seem to be missing.
                None => match self.look_first(occupied).await {
                    Ok(()) => Ok(()),
                    Err(error) => return Ok(Err(error)),
                },
                Some(_) => self.controller.provider.refresh(occupied).await,
            };
            listed = match looked {
                Ok(()) => true,
                // What was seen before still holds as far as anybody knows. All else goes on.
                Err(error @ ProviderError::Unavailable { .. }) => {
                    tracing::warn!(error = %chain(&error), "cannot look for orphans");
                    self.orphans_checked = Some(Instant::now());
                    false
                }
                // It does not hold: they are another cluster's by now, say.
                Err(error) => return Ok(Err(error)),
            };
        }
        let observations = match self.controller.provider.observe().await {
            Ok(observations) => observations,
            Err(error) => return Ok(Err(error)),
        };
        if listed {
            // What exists was listed first; read the log after it, so that nothing that the log
            // has come to know meanwhile looks like an orphan.
            self.controller
                .consensus
                .read_barrier(PROPOSE_DEADLINE)
                .await?;
            let state = self.controller.consensus.state();
            self.effects.reap_orphans(&state, &observations);
            self.orphans_checked = Some(Instant::now());
        }
        self.exists = observations
            .into_iter()
            .map(|observation| (observation.replica.id, observation.state))
            .collect();
        Ok(Ok(()))
    }

    /// Lists what exists for the first time in this reign. One that takes long goes on behind, and is asked for again.
    async fn look_first(&mut self, occupied: bool) -> Result<(), ProviderError> {
        let provider = Arc::clone(&self.controller.provider);
        let patience = match self.first_look {
            Some(_) => Duration::ZERO,
            None => FIRST_LOOK_MAX,
        };
        let look = self.first_look.get_or_insert_with(|| {
            let look = async move { provider.refresh(occupied).await };
            AbortOnDropHandle::new(tokio::spawn(look))
        });
        let looked = tokio::time::timeout(patience, look).await;
        let unavailable = |reason: String| ProviderError::Unavailable {
            doing: "see what exists",
            reason,
        };
        let Ok(looked) = looked else {
            let reason = format!("there is no answer within {FIRST_LOOK_MAX:?}");
            return Err(unavailable(reason));
        };
        self.first_look = None;
        looked.unwrap_or_else(|failed| Err(unavailable(failed.to_string())))
    }

    /// Makes the replicas of the cluster that this one took over from its own.
    async fn take_over(&mut self) -> Result<(), ProviderError> {
        let lineage = self.controller.consensus.state().lineage();
        let claimed = lineage.filter(|it| it.claim == Claim::TakeOver && !self.taken_over);
        if let Some(lineage) = claimed {
            self.controller.provider.take_over(lineage.parent).await?;
            self.taken_over = true;
        }
        Ok(())
    }

    /// Why this peer may not see every replica.
    fn not_shared(&mut self) -> Option<String> {
        let controller = self.controller;
        let said = one_host::not_shared(&controller.consensus, controller.provider.as_ref());
        if let Some(reason) = said.as_ref().filter(|_| !self.told_elsewhere) {
            self.told_elsewhere = true;
            tracing::warn!(
                reason,
                "cannot see all replicas: those that are not found here are left alone"
            );
        }
        said
    }

    fn observed(&self, state: &State, not_shared: Option<&str>) -> Observed {
        let members = self.controller.consensus.members();
        let drained = state
            .replicas()
            .filter(|replica| matches!(replica.phase, Phase::Stopping { .. }))
            .filter(|replica| {
                self.controller
                    .share
                    .is_drained(replica.id, replica.changed, &members)
            })
            .map(|replica| replica.id)
            .collect();
        let mut launch_failures = self.effects.launch_failures();
        if let Some(said) = not_shared {
            let unstarted = state
                .replicas()
                .filter(|replica| matches!(replica.phase, Phase::Pending));
            launch_failures.extend(unstarted.map(|replica| (replica.id, said.to_owned())));
        }
        Observed {
            ports_lost: self.ports_lost(state),
            exists: self.exists.clone(),
            elsewhere: not_shared.is_some(),
            blind: self.blind_until.is_some(),
            notes: self.controller.provider.notes(),
            probes: self.probes.views(),
            drained,
            launch_failures,
            held_up: self.effects.held_up(),
            stop_failures: self.effects.stop_failures(),
            stopped: self.effects.stopped(),
            upstreams: self.upstreams.found(),
            upstream_troubles: self.upstreams.troubles(),
            now: self.controller.consensus.log_now(),
        }
    }

    /// A port is found free and bound a moment later, by the replica; another process may be first.
    fn ports_lost(&self, state: &State) -> BTreeSet<ReplicaId> {
        if !self.controller.provider.shares_host() {
            return BTreeSet::new();
        }
        let ended = self.exists.iter();
        let ended = ended.filter(|(_, exists)| matches!(exists, ReplicaState::Exited(_)));
        let replicas = ended.filter_map(|(id, _)| state.replica(*id));
        let lost = replicas.filter(|it| it.is_live() && it.first_ready_at.is_none());
        lost.filter(|replica| port::is_held(replica.port))
            .map(|replica| replica.id)
            .collect()
    }

    fn wake_after(&self, state: &State, plan: &Plan) -> Duration {
        let draining = state
            .replicas()
            .any(|replica| matches!(replica.phase, Phase::Stopping { .. }));
        let regular = if draining {
            DRAIN_INTERVAL
        } else {
            LOOK_INTERVAL
        };
        let regular = match self.blind_until {
            Some(_) => regular.min(BLIND_PAUSE),
            None => regular,
        };
        plan.wake_after.map_or(regular, |after| after.min(regular))
    }

    async fn write(&mut self, changes: Vec<Change>) -> Result<(), ReignEnd> {
        for change in &changes {
            tracing::info!(?change, "recording");
        }
        let action = Action::Control {
            generation: self.generation,
            changes,
        };
        let (index, outcome) = self
            .controller
            .consensus
            .propose_as_leader(action, PROPOSE_DEADLINE)
            .await?;
        if let Outcome::Fenced { current } = outcome {
            return Err(ReignEnd::Fenced { current });
        }
        wait_applied(&self.controller.consensus, index).await
    }
}

/// Whether there are replicas that a provider has made, or is about to make.
fn is_occupied(state: &State) -> bool {
    state.replicas().any(|replica| {
        let service = state.service(replica.id.service);
        replica.occupies_resources()
            && service.is_some_and(|it| it.spec_of(replica.version).provider.makes_replicas())
    })
}

/// Gives each creation a port: the declared one, or where replicas share a host, one that is free on it and promised
/// to no other replica. A creation without one is left out, and planned again.
fn with_ports(state: &State, intents: Vec<Intent>, shares_host: bool) -> Vec<Change> {
    let mut in_use: BTreeSet<u16> = state.replica_ports();
    let mut last = match state.last_port() {
        0 => port_before_the_first(state),
        port => port,
    };
    intents
        .into_iter()
        .filter_map(|intent| match intent {
            Intent::Record(change) => Some(change),
            Intent::Create(service, version) => {
                let spec = state.service(service)?.specs.get(&version)?;
                let port = if shares_host && spec.provider.makes_replicas() {
                    let port = port::free_port_after(last, &in_use)?;
                    in_use.insert(port);
                    last = port;
                    port
                } else {
                    spec.port
                };
                Some(Change::Create {
                    service,
                    version,
                    port,
                })
            }
        })
        .collect()
}

/// Where the first search for a free port begins. Clusters that share a host begin apart: a port that
/// is free now can be taken before the replica binds it, and then probes and requests would reach
/// another cluster's replica.
fn port_before_the_first(state: &State) -> u16 {
    let cluster = state.cluster().unwrap_or_default().0;
    let ports = port::REPLICA_PORTS;
    let count = ports.end() - ports.start();
    ports.start() + u16::from_be_bytes([cluster[0], cluster[1]]) % count
}

async fn wait_applied(consensus: &Consensus, index: LogIndex) -> Result<(), ReignEnd> {
    let mut applied = consensus.applied();
    match tokio::time::timeout(
        PROPOSE_DEADLINE,
        applied.wait_for(|applied| *applied >= index),
    )
    .await
    {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(ReignEnd::Read(crate::consensus::ReadError {
            reason: format!("entry {index} was not applied here in time"),
        })),
    }
}

/// An error with all its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
