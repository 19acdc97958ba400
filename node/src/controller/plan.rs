//! What should be done next: a pure function of the agreed state and what was observed.
//!
//! A plan names changes to put into the log, and effects to carry out on the provider. An effect is
//! only ever planned for what the log already says: first the intent, then the deed, then its record.
//! Planning twice from the same inputs gives the same plan, and carrying out either again does no
//! harm, so that a leader may die between any two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raftserve_model::status::ReplicaStatus;
use raftserve_model::{LogTime, ReplicaId, ServiceId, ServiceVersion};
use raftserve_store::State;
use raftserve_store::command::{Change, StopReason};
use raftserve_store::state::{Phase, Replica, Service};

use crate::provider::{End, Exit, ReplicaState, Step};

mod upstreams;

/// How many replicas a rolling update may run beyond the wanted number, those that drain among them.
const SURGE: usize = 1;

/// The most changes in one entry, so that a large service does not hold up small ones.
pub const CHANGES_MAX: usize = 128;

/// How many replicas of a version may fail before any of it was ready until the version is given up.
/// More than SkyServe's one, because one may fail by chance.
const NEVER_READY_MAX: usize = 3;

/// A replica that lived this long in readiness did not fail at its start: it is replaced at once.
const HEALTHY_LIFE: Duration = Duration::from_secs(60);

/// The pause before the third replica after two early failures; it doubles with each further one.
const RELAUNCH_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause before a replacement.
const RELAUNCH_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How probes of a replica went lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeView {
    /// The last probe's verdict; none if there was none in this reign.
    pub last: Option<Result<(), String>>,
    /// For how long every probe has failed.
    pub failing_for: Option<Duration>,
}

/// What the controller knows besides the log.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What exists, by replica; what is absent here does not exist, unless `elsewhere`.
    pub exists: BTreeMap<ReplicaId, ReplicaState>,
    /// Whether replicas may exist where this peer cannot look: another peer has another host or root. Then
    /// nothing follows from what is absent, and what is absent cannot be stopped from here.
    pub elsewhere: bool,
    /// Whether nothing could be looked at yet, as while the API server is away: `exists` tells nothing at all then.
    /// What the log and probes say, and where static services are, holds all the same.
    pub blind: bool,
    /// What the provider has to say of some.
    pub notes: BTreeMap<ReplicaId, String>,
    /// How probes went.
    pub probes: BTreeMap<ReplicaId, ProbeView>,
    /// Replicas that are being stopped and whose requests are all done, as far as any peer knows.
    pub drained: BTreeSet<ReplicaId>,
    /// Launches that failed in this reign, with what was said last.
    pub launch_failures: BTreeMap<ReplicaId, String>,
    /// Launches that are tried again later, with what was said last.
    pub held_up: BTreeMap<ReplicaId, String>,
    /// Stops that failed too often in this reign.
    pub stop_failures: BTreeMap<ReplicaId, String>,
    /// Stops that succeeded in this reign: nothing of these exists.
    pub stopped: BTreeSet<ReplicaId>,
    /// Replicas that ended before they were ever ready, and whose port somebody else has.
    pub ports_lost: BTreeSet<ReplicaId>,
    /// Where the replicas of static services are, by service; one of which nothing was told yet is absent.
    pub upstreams: BTreeMap<ServiceId, BTreeSet<String>>,
    /// Why those may not be all, by service.
    pub upstream_troubles: BTreeMap<ServiceId, String>,
    /// The leader's clock.
    pub now: LogTime,
}

/// A change that is to enter the log. A creation lacks only a port, which is found on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Create a replica of that version.
    Create(ServiceId, ServiceVersion),
    /// Any other change, as it stands.
    Record(Change),
}

/// A deed on the provider, safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Create the replica or adopt it.
    Ensure(ReplicaId),
    /// Stop it.
    Stop(ReplicaId),
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// At most [`CHANGES_MAX`], in order.
    pub intents: Vec<Intent>,
    /// What the log already demands.
    pub effects: BTreeSet<Effect>,
    /// When to plan again even if nothing changes.
    pub wake_after: Option<Duration>,
}

impl Plan {
    fn record(&mut self, change: Change) {
        self.intents.push(Intent::Record(change));
    }

    fn wake(&mut self, after: Duration) {
        self.wake_after = Some(self.wake_after.map_or(after, |before| before.min(after)));
    }
}

/// Plans for every service.
#[must_use]
pub fn plan(state: &State, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    for service in state.services() {
        let replicas: Vec<&Replica> = state.replicas_of(service.id).map(AsRef::as_ref).collect();
        for replica in &replicas {
            if upstreams::is_static(service, replica) {
                upstreams::advance(&mut plan, service, replica, observed);
            } else if observed.blind {
                let seen = observed.probes.get(&replica.id);
                let last = seen.and_then(|view| view.last.as_ref());
                answered(&mut plan, replica, last);
            } else {
                advance(&mut plan, service, replica, observed);
            }
        }
        if service.going_down.is_none() && !service.spec().provider.makes_replicas() {
            upstreams::follow(&mut plan, service, &replicas, observed);
        } else if service.going_down.is_none() {
            scale(&mut plan, service, &replicas, observed);
        } else if !replicas.iter().any(|replica| replica.occupies_resources()) {
            plan.record(Change::Forget {
                service: service.id,
            });
        }
        if plan.intents.len() >= CHANGES_MAX {
            plan.intents.truncate(CHANGES_MAX);
            plan.wake(Duration::ZERO);
            break;
        }
    }
    plan
}

/// What one replica's life demands.
fn advance(plan: &mut Plan, service: &Service, replica: &Replica, observed: &Observed) {
    let (id, exists) = (replica.id, observed.exists.get(&replica.id));
    match &replica.phase {
        Phase::Pending | Phase::Provisioning => match exists {
            None if replica.phase == Phase::Provisioning && observed.elsewhere => {}
            // It was let run, so that it must not be made a second time.
            None if replica.phase == Phase::Provisioning => plan.record(stop_now(
                id,
                StopReason::Provision("nothing of it exists any more".to_owned()),
            )),
            None | Some(ReplicaState::Prepared) => launch(plan, replica, observed),
            Some(ReplicaState::SettingUp) if replica.phase == Phase::Pending => {
                plan.record(Change::Provisioning { replica: id });
            }
            Some(ReplicaState::SettingUp) => {}
            Some(ReplicaState::Running { address }) => plan.record(Change::Started {
                replica: id,
                address: address.clone(),
            }),
            Some(ReplicaState::Exited(exit)) => {
                plan.record(stop_now(id, ended(replica, exit, observed)))
            }
            Some(ReplicaState::Preempted) => {
                plan.record(stop_now(id, preempted(replica, observed)));
            }
            Some(ReplicaState::Stopping | ReplicaState::Stopped) => {
                plan.record(stop_now(id, stopped_by_another(replica, observed)));
            }
        },
        Phase::Starting | Phase::Ready | Phase::NotReady { .. } => match exists {
            Some(ReplicaState::Running { .. } | ReplicaState::SettingUp) => {
                probed(plan, service, replica, observed);
            }
            Some(ReplicaState::Exited(exit)) => {
                plan.record(stop_now(id, ended(replica, exit, observed)))
            }
            Some(ReplicaState::Preempted) => {
                plan.record(stop_now(id, preempted(replica, observed)));
            }
            Some(ReplicaState::Stopping | ReplicaState::Stopped) => {
                plan.record(stop_now(id, stopped_by_another(replica, observed)));
            }
            None if observed.elsewhere => {}
            None | Some(ReplicaState::Prepared) => plan.record(stop_now(
                id,
                lost(replica, "nothing of it exists any more".to_owned()),
            )),
        },
        Phase::Stopping {
            reason,
            drain_until,
            ..
        } => stopping(plan, replica, reason, *drain_until, observed),
        // Gone after all, say with its node: that is recorded by way of another stop.
        Phase::CleanupFailed { reason, .. } if exists.is_none() && !observed.elsewhere => {
            plan.record(stop_now(id, reason.clone()));
        }
        Phase::Failed { .. } | Phase::CleanupFailed { .. } => {}
    }
}

/// What the `last` probe alone says of a replica that is neither made nor stopped now: whether it gets requests.
fn answered(plan: &mut Plan, replica: &Replica, last: Option<&Result<(), String>>) {
    let id = replica.id;
    match (last, &replica.phase) {
        (Some(Ok(())), Phase::Starting | Phase::NotReady { .. }) => {
            plan.record(Change::Ready { replica: id });
        }
        (Some(Err(said)), Phase::Ready) => plan.record(Change::NotReady {
            replica: id,
            reason: said.clone(),
        }),
        _ => {}
    }
}

fn launch(plan: &mut Plan, replica: &Replica, observed: &Observed) {
    match observed.launch_failures.get(&replica.id) {
        Some(said) => plan.record(stop_now(replica.id, StopReason::Provision(said.clone()))),
        None => {
            plan.effects.insert(Effect::Ensure(replica.id));
        }
    }
}

fn stopping(
    plan: &mut Plan,
    replica: &Replica,
    reason: &StopReason,
    drain_until: LogTime,
    observed: &Observed,
) {
    let (id, exists) = (replica.id, observed.exists.get(&replica.id));
    if observed.stopped.contains(&id) || exists == Some(&ReplicaState::Stopped) {
        plan.record(Change::Gone { replica: id });
    } else if let Some(said) = observed.stop_failures.get(&id) {
        plan.record(Change::CleanupFailed {
            replica: id,
            reason: said.clone(),
        });
    } else if exists.is_none() && observed.elsewhere && !never_launched(replica, reason) {
        // Who finds nothing would say that it is stopped. A leader that sees it stops it.
    } else if observed.now >= drain_until
        || observed.drained.contains(&id)
        || matches!(reason, StopReason::Exited(_) | StopReason::Preempted(_))
        || matches!(exists, Some(ReplicaState::Exited(_)))
        || replica.address.is_none()
    {
        plan.effects.insert(Effect::Stop(id));
    } else {
        plan.wake(drain_until.since(observed.now));
    }
}

/// Whether a replica was refused before anything of it ran.
fn never_launched(replica: &Replica, reason: &StopReason) -> bool {
    replica.address.is_none() && matches!(reason, StopReason::Provision(_))
}

fn stop_now(replica: ReplicaId, reason: StopReason) -> Change {
    Change::Stop {
        replica,
        reason,
        drain: Duration::ZERO,
    }
}

fn stopped_by_another(replica: &Replica, observed: &Observed) -> StopReason {
    let said = observed.notes.get(&replica.id).cloned();
    lost(
        replica,
        said.unwrap_or_else(|| "it was stopped by something else".to_owned()),
    )
}

/// Why a replica's place was taken from it, as far as anybody says.
fn preempted(replica: &Replica, observed: &Observed) -> StopReason {
    let said = observed.notes.get(&replica.id).cloned();
    StopReason::Preempted(said.unwrap_or_else(|| "its place was taken".to_owned()))
}

/// Why a replica is no more that did not end by itself. Before it was ever ready that must not count against its version,
/// which a few drained nodes would have given up.
fn lost(replica: &Replica, said: String) -> StopReason {
    match replica.first_ready_at {
        None => StopReason::Provision(said),
        Some(_) => StopReason::Exited(said),
    }
}

fn ended(replica: &Replica, exit: &Exit, observed: &Observed) -> StopReason {
    if observed.ports_lost.contains(&replica.id) {
        // No fault of the version's: the next one gets another port.
        let port = replica.port;
        return StopReason::Provision(format!(
            "another process took its port {port} before it could: {}",
            exit.message
        ));
    }
    match exit.step {
        _ if exit.end == End::Preempted => StopReason::Preempted(exit.message.clone()),
        // Gone with what watched over it, say.
        Step::Run if exit.end == End::Lost => lost(replica, exit.message.clone()),
        Step::Setup => StopReason::Provision(exit.message.clone()),
        Step::Run => StopReason::Exited(exit.message.clone()),
    }
}

/// SkyServe's rules: one success makes a replica ready, one failure not ready; never ready for the
/// initial delay, or not ready for the threshold, and it is replaced. The initial delay counts from
/// the start of `run`, so that it survives a change of leader.
fn probed(plan: &mut Plan, service: &Service, replica: &Replica, observed: &Observed) {
    let Some(ProbeView {
        last: Some(last),
        failing_for,
    }) = observed.probes.get(&replica.id)
    else {
        return;
    };
    let (id, readiness) = (replica.id, &service.spec_of(replica.version).readiness);
    let failing_for = failing_for.unwrap_or_default();
    // Who makes it may know why it does not answer.
    let last = last.as_ref();
    let last = last.map_err(|said| observed.notes.get(&id).unwrap_or(said).clone());
    match (last, &replica.phase) {
        (Ok(()), Phase::Ready) => {}
        (Ok(()), _) => plan.record(Change::Ready { replica: id }),
        (Err(said), Phase::Ready) => plan.record(Change::NotReady {
            replica: id,
            reason: said,
        }),
        (Err(said), Phase::NotReady { .. }) => {
            if failing_for >= readiness.failure_threshold {
                plan.record(stop_now(id, StopReason::Probing(said)));
            }
        }
        (Err(said), _) => {
            let since = replica.started_at.unwrap_or(replica.created_at.log);
            if observed.now.since(since) > readiness.initial_delay {
                plan.record(stop_now(id, StopReason::InitialDelay(said)));
            }
        }
    }
}

/// Brings the number of replicas of the right version to what that version wants: a failed update
/// does not change how many of the healthy one run, either.
fn scale(plan: &mut Plan, service: &Service, replicas: &[&Replica], observed: &Observed) {
    let wanted = version_to_run(service, replicas);
    let target = service.spec_of(wanted).replicas as usize;
    let (mut new, mut other) = (Vec::new(), Vec::new());
    for replica in replicas.iter().filter(|replica| replica.is_live()) {
        if replica.version == wanted {
            new.push(*replica);
        } else {
            other.push(*replica);
        }
    }
    let ready = new.iter().filter(|it| it.phase == Phase::Ready).count();
    let held = match (target, ready) {
        (1.., 0) => proven(service, &other),
        _ => 0,
    };
    let draining = replicas.iter().filter(|it| drains(it, observed)).count();
    let room = if other.is_empty() && draining == 0 {
        target
    } else {
        // Those that drain take the surge, and no more of it: what is wanted never waits for their ends.
        target.max(held) + SURGE.saturating_sub(draining)
    };
    let create = target
        .saturating_sub(new.len())
        .min(room.saturating_sub(new.len() + other.len()));
    if create > 0 {
        match relaunch_pause(wanted, replicas, observed.now) {
            Some(pause) => plan.wake(pause),
            None if given_up(wanted, replicas) => {}
            None => plan.intents.extend(std::iter::repeat_n(
                Intent::Create(service.id, wanted),
                create,
            )),
        }
    }
    let drain = service.spec().drain_timeout;
    surplus(plan, &mut new, target, &StopReason::ScaleDown, drain);
    surplus(
        plan,
        &mut other,
        target.saturating_sub(ready).max(held),
        &StopReason::Outdated,
        drain,
    );
}

/// Whether a newer version has taken the replica's place, and it runs on until its requests end: it needs room as ever.
fn drains(replica: &Replica, observed: &Observed) -> bool {
    let is_outdated = matches!(
        replica.phase,
        Phase::Stopping {
            reason: StopReason::Outdated,
            ..
        }
    );
    let exists = observed.exists.get(&replica.id);
    is_outdated && matches!(exists, Some(ReplicaState::Running { .. }))
}

/// How many of the replicas of other versions were ready once, and no more than such a version wanted:
/// they stay until the first of the new version is ready, even if the new one wants fewer.
fn proven(service: &Service, other: &[&Replica]) -> usize {
    let proven = other.iter().filter(|it| it.first_ready_at.is_some());
    let wanted = proven
        .clone()
        .map(|it| service.spec_of(it.version).replicas as usize)
        .max();
    proven.count().min(wanted.unwrap_or_default())
}

/// Stops what is beyond `keep`, in SkyServe's order: the least far along first, the older version
/// first, the newest replica first.
fn surplus(
    plan: &mut Plan,
    replicas: &mut [&Replica],
    keep: usize,
    reason: &StopReason,
    drain: Duration,
) {
    let count = replicas.len().saturating_sub(keep);
    replicas.sort_by_key(|it| {
        (
            scale_down_rank(it.status()),
            it.version,
            std::cmp::Reverse(it.id.number),
        )
    });
    for replica in &replicas[..count] {
        plan.record(Change::Stop {
            replica: replica.id,
            reason: reason.clone(),
            drain,
        });
    }
}

fn scale_down_rank(status: ReplicaStatus) -> u8 {
    match status {
        ReplicaStatus::Pending => 0,
        ReplicaStatus::Provisioning => 1,
        ReplicaStatus::Starting => 2,
        ReplicaStatus::NotReady => 3,
        ReplicaStatus::Ready => 4,
        ReplicaStatus::ShuttingDown
        | ReplicaStatus::Failed
        | ReplicaStatus::FailedInitialDelay
        | ReplicaStatus::FailedProbing
        | ReplicaStatus::FailedProvision
        | ReplicaStatus::FailedCleanup
        | ReplicaStatus::Preempted => 5,
    }
}

/// The newest version, unless it is given up and an older one was good: a failed update must not
/// keep the healthy version from being healed.
fn version_to_run(service: &Service, replicas: &[&Replica]) -> ServiceVersion {
    let newest = service.version;
    if !given_up(newest, replicas) {
        return newest;
    }
    service
        .last_good
        .filter(|version| service.specs.contains_key(version))
        .unwrap_or(newest)
}

/// Whether a version never became ready and failed too often at it.
fn given_up(version: ServiceVersion, replicas: &[&Replica]) -> bool {
    let of_version = || replicas.iter().filter(|it| it.version == version);
    let ever_ready = of_version().any(|it| it.first_ready_at.is_some());
    let failed = of_version()
        .filter_map(|it| failure(it))
        .filter(|(reason, _)| matches!(reason, StopReason::Exited(_) | StopReason::InitialDelay(_)))
        .count();
    !ever_ready && failed >= NEVER_READY_MAX
}

/// What went wrong with a replica and when, whether or not its remains are gone yet.
fn failure(replica: &Replica) -> Option<(&StopReason, LogTime)> {
    match &replica.phase {
        Phase::Stopping { reason, since, .. } if reason.is_failure() => Some((reason, *since)),
        Phase::Failed { reason, at } => Some((reason, *at)),
        Phase::Pending
        | Phase::Provisioning
        | Phase::Starting
        | Phase::Ready
        | Phase::NotReady { .. }
        | Phase::Stopping { .. }
        | Phase::CleanupFailed { .. } => None,
    }
}

/// How long to wait before the next replica, where earlier ones failed soon after their start.
fn relaunch_pause(
    version: ServiceVersion,
    replicas: &[&Replica],
    now: LogTime,
) -> Option<Duration> {
    let mut early = 0;
    let mut last = LogTime(0);
    for replica in replicas.iter().filter(|it| it.version == version) {
        if let Some((_, at)) = failure(replica)
            && replica
                .first_ready_at
                .is_none_or(|ready| at.since(ready.log) < HEALTHY_LIFE)
            && now.since(at) < RELAUNCH_PAUSE_MAX * 2
        {
            early += 1;
            last = last.max(at);
        }
    }
    let doublings = u32::try_from(early).unwrap_or(u32::MAX).checked_sub(2)?;
    let pause = RELAUNCH_PAUSE
        .saturating_mul(2u32.saturating_pow(doublings))
        .min(RELAUNCH_PAUSE_MAX);
    let passed = now.since(last);
    (passed < pause).then(|| pause - passed)
}

#[cfg(test)]
mod tests;
