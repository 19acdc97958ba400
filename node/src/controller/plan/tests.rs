//! Properties of the plan: as inputs and what follows from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use raftserve_model::spec::{
    LoadBalancingPolicy, Placement, ProbeKind, Provider, ReadinessProbe, ServiceSpec, Traffic,
};
use raftserve_model::{Incarnation, LogIndex, NodeId};
use raftserve_store::command::{Action, Command, Precondition, Request};

use super::*;
use crate::provider::End;

mod upstreams;

fn spec(run: &str, replicas: u32) -> ServiceSpec {
    ServiceSpec {
        source: String::new(),
        replicas,
        readiness: ReadinessProbe {
            kind: ProbeKind::Http,
            path: "/".into(),
            post_data: None,
            headers: BTreeMap::new(),
            initial_delay: Duration::from_secs(100),
            timeout: Duration::from_secs(15),
            interval: Duration::from_secs(10),
            failure_threshold: Duration::from_secs(180),
        },
        port: 8080,
        policy: LoadBalancingPolicy::LeastLoad,
        stream_timeout: Duration::from_secs(120),
        provider: Provider::Peers,
        setup: None,
        run: run.into(),
        envs: BTreeMap::new(),
        secrets: BTreeMap::new(),
        resources: BTreeMap::new(),
        placement: Placement::default(),
        affinity: None,
        drain_timeout: Duration::from_secs(30),
        stop_grace: Duration::from_secs(10),
        traffic: Traffic::default(),
        file_mounts: Vec::new(),
    }
}

/// A leader with a simulated provider: what the log says, and what exists.
struct World {
    state: State,
    index: u64,
    sequence: u64,
    observed: Observed,
    port: u16,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            index: 0,
            sequence: 0,
            observed: Observed::default(),
            port: 20_000,
        };
        world.apply(Action::OpenClient);
        world.apply(Action::StartControl {
            node: NodeId(1),
            incarnation: Incarnation(1),
        });
        world
    }

    /// One whose service has so many ready replicas.
    fn with_ready(replicas: u32) -> Self {
        let mut world = Self::new();
        world.put("serve", replicas);
        world.settle();
        world.probe_all_ok();
        world.settle();
        world
    }

    fn apply(&mut self, action: Action) {
        self.index += 1;
        let now = self.observed.now;
        self.state
            .apply(LogIndex(self.index), &Command::at(now, action));
    }

    fn request(&mut self, request: Request) {
        self.sequence += 1;
        self.apply(Action::Client {
            client: LogIndex(1),
            sequence: self.sequence,
            acknowledged: self.sequence - 1,
            request,
        });
    }

    fn put(&mut self, run: &str, replicas: u32) {
        self.put_spec(spec(run, replicas));
    }

    fn put_spec(&mut self, spec: ServiceSpec) {
        self.request(Request::PutService {
            name: "svc".parse().unwrap(),
            spec: Arc::new(spec),
            precondition: Precondition::Any,
        });
    }

    fn pass(&mut self, secs: u64) {
        self.observed.now.0 += secs * 1_000;
    }

    /// Plans, and writes the intents; carries out effects as a provider would that never fails.
    fn round(&mut self) -> Plan {
        let plan = plan(&self.state, &self.observed);
        self.write(&plan);
        for effect in &plan.effects {
            match effect {
                Effect::Ensure(id) => {
                    let address = "127.0.0.1:1".to_owned();
                    self.observed
                        .exists
                        .entry(*id)
                        .or_insert(ReplicaState::Running { address });
                }
                Effect::Stop(id) => {
                    self.observed.exists.insert(*id, ReplicaState::Stopped);
                    self.observed.stopped.insert(*id);
                }
            }
        }
        plan
    }

    fn write(&mut self, plan: &Plan) {
        if plan.intents.is_empty() {
            return;
        }
        let changes = plan
            .intents
            .iter()
            .map(|intent| match intent {
                Intent::Record(change) => change.clone(),
                Intent::Create(service, version) => {
                    self.port += 1;
                    Change::Create {
                        service: *service,
                        version: *version,
                        port: self.port,
                    }
                }
            })
            .collect();
        let generation = self.state.control().generation;
        self.apply(Action::Control {
            generation,
            changes,
        });
    }

    /// Rounds until nothing is left to do but wait.
    fn settle(&mut self) {
        for _ in 0..100 {
            let plan = self.round();
            if plan.intents.is_empty() && plan.effects.is_empty() {
                return;
            }
        }
        panic!(
            "the plan never settles: {:?}",
            plan(&self.state, &self.observed)
        );
    }

    fn probe(&mut self, number: u32, result: Result<(), String>, failing_secs: u64) {
        let id = self.id(number);
        let failing_for = result.is_err().then(|| Duration::from_secs(failing_secs));
        let last = Some(result);
        self.observed
            .probes
            .insert(id, ProbeView { last, failing_for });
    }

    fn probe_all_ok(&mut self) {
        let numbers: Vec<u32> = self.replicas().iter().map(|(number, _)| *number).collect();
        for number in numbers {
            self.probe(number, Ok(()), 0);
        }
    }

    fn exit(&mut self, number: u32) {
        let id = self.id(number);
        self.observed.exists.insert(
            id,
            ReplicaState::Exited(Exit {
                step: Step::Run,
                end: End::Signal(9),
                message: "run was killed by signal 9".into(),
            }),
        );
    }

    fn id(&self, number: u32) -> ReplicaId {
        let service = self.state.services().next().expect("a service").id;
        ReplicaId { service, number }
    }

    fn replicas(&self) -> Vec<(u32, ReplicaStatus)> {
        self.state
            .replicas()
            .map(|replica| (replica.id.number, replica.status()))
            .collect()
    }
}

#[test]
fn the_intent_comes_before_the_deed() {
    let mut world = World::new();
    world.put("serve", 2);
    let first = world.round();
    assert_eq!(first.intents.len(), 2);
    assert!(first.effects.is_empty());
    let second = world.round();
    assert!(second.intents.is_empty());
    let ensured = BTreeSet::from([Effect::Ensure(world.id(1)), Effect::Ensure(world.id(2))]);
    assert_eq!(second.effects, ensured);
}

#[test]
fn a_leader_that_sees_nothing_yet_goes_by_probes_and_neither_makes_nor_stops() {
    use ReplicaStatus::{NotReady, Pending, Ready, Starting};
    let mut world = World::new();
    world.put("serve", 3);
    world.settle();
    world.probe(1, Ok(()), 0);
    world.probe(2, Ok(()), 0);
    world.settle();
    world.probe(2, Err("refused".into()), 0);
    world.settle();
    let before = [(1, Ready), (2, NotReady), (3, Starting)];
    assert_eq!(world.replicas(), before);
    // Another peer leads, without a look at what exists.
    let there = std::mem::take(&mut world.observed.exists);
    world.observed.probes.clear();
    world.observed.blind = true;
    world.settle();
    assert_eq!(world.replicas(), before);
    world.put("serve", 4);
    world.settle();
    assert_eq!(world.replicas()[3..], [(4, Pending)], "it is not made");
    world.pass(100_000);
    world.probe(1, Err("answered 500".into()), 100_000);
    world.probe(2, Ok(()), 0);
    world.probe(3, Err("refused".into()), 100_000);
    world.settle();
    let probed = [(1, NotReady), (2, Ready), (3, Starting), (4, Pending)];
    assert_eq!(world.replicas(), probed);
    assert!(world.observed.exists.is_empty());
    // It looks at last, and finds all as the former leader left it.
    (world.observed.blind, world.observed.exists) = (false, there);
    let plan = plan(&world.state, &world.observed);
    let stops = plan.intents.iter().filter_map(|intent| match intent {
        Intent::Record(Change::Stop { replica, .. }) => Some(replica.number),
        _ => None,
    });
    assert_eq!(stops.collect::<Vec<_>>(), [1, 3]);
    assert!(plan.effects.contains(&Effect::Ensure(world.id(4))));
}

#[test]
fn what_stops_is_left_to_a_leader_that_sees_it() {
    let mut world = World::with_ready(2);
    world.put("serve", 1);
    world.settle();
    world.pass(100_000);
    world.observed.exists.clear();
    world.observed.blind = true;
    let shown = world.replicas();
    world.settle();
    assert_eq!(world.replicas(), shown);
    assert!(world.observed.stopped.is_empty(), "{shown:?}");
}

#[test]
fn replicas_become_ready_by_their_probes() {
    use ReplicaStatus::{NotReady, Ready, Starting};
    let mut world = World::new();
    world.put("serve", 2);
    world.settle();
    assert_eq!(world.replicas(), [(1, Starting), (2, Starting)]);
    world.probe(1, Ok(()), 0);
    world.probe(2, Err("refused".into()), 1);
    world.settle();
    assert_eq!(world.replicas(), [(1, Ready), (2, Starting)]);
    world.probe(1, Err("refused".into()), 0);
    world.settle();
    assert_eq!(world.replicas(), [(1, NotReady), (2, Starting)]);
    world.probe(1, Ok(()), 0);
    world.settle();
    assert_eq!(world.replicas(), [(1, Ready), (2, Starting)]);
}

#[test]
fn a_replica_never_ready_within_the_initial_delay_is_replaced() {
    use ReplicaStatus::{FailedInitialDelay, Starting};
    let mut world = World::new();
    world.put("serve", 1);
    world.settle();
    world.pass(100);
    world.probe(1, Err("refused".into()), 100);
    world.settle();
    assert_eq!(world.replicas(), [(1, Starting)]);
    world.pass(1);
    world.settle();
    assert_eq!(world.replicas(), [(1, FailedInitialDelay), (2, Starting)]);
}

#[test]
fn what_who_makes_it_knows_of_a_replica_says_more_than_that_it_does_not_answer() {
    let mut world = World::with_ready(1);
    let lost = "node n is lost".to_owned();
    world.observed.notes.insert(world.id(1), lost.clone());
    // As long as it answers, it serves.
    world.settle();
    assert_eq!(world.replicas(), [(1, ReplicaStatus::Ready)]);
    world.probe(1, Err("no answer".into()), 1);
    world.settle();
    let replica = world.state.replica(world.id(1)).unwrap();
    assert_eq!(replica.phase, Phase::NotReady { reason: lost });
}

#[test]
fn a_replica_failing_for_the_threshold_is_replaced() {
    use ReplicaStatus::{FailedProbing, NotReady, Starting};
    let mut world = World::with_ready(1);
    world.probe(1, Err("timeout".into()), 179);
    world.settle();
    assert_eq!(world.replicas(), [(1, NotReady)]);
    world.probe(1, Err("timeout".into()), 180);
    world.settle();
    assert_eq!(world.replicas(), [(1, FailedProbing), (2, Starting)]);
}

#[test]
fn a_dead_replica_is_replaced_at_once_under_a_new_number() {
    use ReplicaStatus::{Failed, Ready, Starting};
    let mut world = World::with_ready(2);
    world.exit(1);
    world.settle();
    assert_eq!(world.replicas(), [(1, Failed), (2, Ready), (3, Starting)]);
}

#[test]
fn a_rolling_update_runs_one_extra_and_drains_an_old_one_for_each_that_is_ready() {
    let mut world = World::with_ready(3);
    world.put("serve otherwise", 3);
    for _ in 0..40 {
        world.settle();
        let live = world.state.replicas().filter(|it| it.is_live()).count();
        let ready = world
            .state
            .replicas()
            .filter(|it| it.phase == Phase::Ready)
            .count();
        assert!(live <= 4, "at most one extra");
        assert!(ready >= 3, "each is ready before an old one drains");
        world.pass(10);
        world.probe_all_ok();
    }
    let versions: Vec<u32> = world.state.replicas().map(|it| it.version.0).collect();
    assert_eq!(versions, [2, 2, 2]);
}

/// The versions of those that are ready, by number.
fn ready_versions(world: &World) -> Vec<u32> {
    let ready = world.state.replicas().filter(|it| it.phase == Phase::Ready);
    ready.map(|it| it.version.0).collect()
}

#[test]
fn an_update_runs_no_more_than_the_surge_while_old_replicas_drain() {
    let mut world = World::with_ready(3);
    world.put("serve otherwise", 3);
    let mut most = 0;
    for _ in 0..8 {
        world.settle();
        world.probe_all_ok();
        world.settle();
        let exists = world.observed.exists.values();
        let running = exists.filter(|it| matches!(it, ReplicaState::Running { .. }));
        most = most.max(running.count());
        // Half of the time that they have for it.
        world.pass(15);
    }
    assert_eq!(most, 3 + SURGE);
    world.settle();
    assert_eq!(ready_versions(&world), [2, 2, 2]);
}

#[test]
fn what_is_wanted_is_made_however_many_drain() {
    let mut world = World::with_ready(3);
    world.put("serve otherwise", 1);
    world.settle();
    world.probe_all_ok();
    world.settle();
    assert_eq!(ready_versions(&world), [2]);
    world.exit(4);
    world.settle();
    let made = world.replicas().pop().unwrap();
    assert_eq!(made, (5, ReplicaStatus::Starting));
}

#[test]
fn an_update_to_fewer_replicas_drains_none_before_a_new_one_is_ready() {
    for fewer in [1, 3] {
        let mut world = World::with_ready(4);
        world.put("serve otherwise", fewer);
        world.settle();
        assert_eq!(ready_versions(&world), [1, 1, 1, 1]);
        let starting = world.replicas().pop().unwrap();
        assert_eq!(starting, (5, ReplicaStatus::Starting), "the surge");
        for _ in 0..4 {
            world.probe_all_ok();
            world.settle();
            assert!(ready_versions(&world).len() >= fewer as usize);
            world.pass(30);
            world.settle();
        }
        assert_eq!(ready_versions(&world), vec![2; fewer as usize]);
    }
}

#[test]
fn an_update_to_fewer_replicas_that_fails_leaves_as_many_of_the_healthy_version_as_there_were() {
    let mut world = World::with_ready(4);
    world.put("fail", 1);
    for number in 5..8 {
        world.settle();
        world.exit(number);
        world.settle();
        world.pass(61);
        world.settle();
        assert_eq!(ready_versions(&world), [1, 1, 1, 1]);
    }
    world.exit(1);
    world.settle();
    world.probe_all_ok();
    world.settle();
    assert_eq!(ready_versions(&world), [1, 1, 1, 1], "and heals them");
}

#[test]
fn an_update_to_no_replicas_waits_for_none() {
    let mut world = World::with_ready(2);
    world.put("serve otherwise", 0);
    world.settle();
    assert!(ready_versions(&world).is_empty());
}

#[test]
fn what_is_absent_says_nothing_where_replicas_may_be_elsewhere() {
    use ReplicaStatus::{Failed, FailedProvision, Ready, ShuttingDown, Starting};
    let mut world = World::with_ready(3);
    let seen = std::mem::take(&mut world.observed.exists);
    world.observed.elsewhere = true;
    world.request(Request::TerminateReplica {
        name: "svc".parse().unwrap(),
        number: 3,
        purge: false,
    });
    world.pass(31);
    let blind = plan(&world.state, &world.observed);
    assert!(blind.effects.is_empty(), "{blind:?}");
    let creates = |plan: &Plan| {
        let mut intents = plan.intents.iter();
        intents.all(|intent| matches!(intent, Intent::Create(..)))
    };
    assert!(creates(&blind), "{blind:?}");
    // One that is wanted now is held up, which is told and changes nothing; then refused, and is gone for all that is known.
    world.write(&blind);
    let made = world.id(4);
    world.observed.held_up.insert(made, "not now".into());
    let held = plan(&world.state, &world.observed);
    assert!(held.effects.contains(&Effect::Ensure(made)), "{held:?}");
    let told = crate::controller::remarks::remarks(&world.state, &world.observed);
    let is_told = |said: Option<&String>| said.is_some_and(|said| said == "not now");
    assert!(is_told(told.replicas.get(&made)) && is_told(told.services.get(&made.service)));
    world.observed.held_up.clear();
    world.observed.launch_failures.insert(made, "no".into());
    for _ in 0..4 {
        world.round();
    }
    let refused = (4, FailedProvision);
    let before = [(1, Ready), (2, Ready), (3, ShuttingDown), refused];
    assert_eq!(world.replicas()[..4], before);
    // What is seen holds as ever; and so does all for a leader that sees it all.
    world
        .observed
        .exists
        .insert(world.id(1), seen[&world.id(1)].clone());
    world.exit(1);
    world.round();
    assert_ne!(world.replicas()[0], (1, Ready), "an end that was seen");
    world.observed.exists.extend(seen.into_iter().skip(1));
    world.observed.elsewhere = false;
    world.observed.launch_failures.clear();
    world.settle();
    let after = world.replicas();
    assert!(
        after.contains(&(1, Failed)) && after.contains(&(2, Ready)),
        "{after:?}"
    );
    assert!(!after.contains(&(3, ShuttingDown)), "{after:?}");
    assert!(
        after.iter().any(|(_, status)| *status == Starting),
        "{after:?}"
    );
}

#[test]
fn draining_ends_with_the_last_request_or_the_time() {
    let mut world = World::with_ready(2);
    world.put("serve", 1);
    world.settle();
    assert_eq!(world.replicas()[1], (2, ReplicaStatus::ShuttingDown));
    assert_eq!(
        plan(&world.state, &world.observed).wake_after,
        Some(Duration::from_secs(30))
    );
    let mut patient = World {
        state: world.state.clone(),
        observed: world.observed.clone(),
        ..World::new()
    };
    patient.index = world.index;
    patient.pass(30);
    patient.settle();
    assert_eq!(patient.replicas().len(), 1);
    let id = world.id(2);
    world.observed.drained.insert(id);
    world.settle();
    assert_eq!(world.replicas().len(), 1);
}

#[test]
fn scale_down_takes_the_least_far_along_then_the_newest() {
    let mut world = World::new();
    world.put("serve", 4);
    world.settle();
    for number in [1, 2, 4] {
        world.probe(number, Ok(()), 0);
    }
    world.settle();
    world.put("serve", 2);
    let stopped: Vec<u32> = plan(&world.state, &world.observed)
        .intents
        .iter()
        .map(|intent| match intent {
            Intent::Record(Change::Stop { replica, .. }) => replica.number,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(stopped, [3, 4]);
}

#[test]
fn a_version_that_never_starts_is_given_up_and_the_old_one_healed() {
    let mut world = World::with_ready(2);
    world.put("fail", 2);
    for number in 3..6 {
        world.settle();
        world.exit(number);
        world.settle();
        world.pass(61);
    }
    world.settle();
    let live = |world: &World| -> Vec<u32> {
        let live = world.state.replicas().filter(|it| it.is_live());
        live.map(|it| it.version.0).collect()
    };
    assert_eq!(
        live(&world),
        [1, 1],
        "old ones serve on, new ones are given up"
    );
    world.exit(1);
    world.settle();
    assert_eq!(
        live(&world),
        [1, 1],
        "a lost old one is replaced by its like"
    );
    for number in 1..20 {
        if matches!(
            world.observed.exists.get(&world.id(number)),
            Some(ReplicaState::Running { .. })
        ) {
            world.exit(number);
        }
    }
    for _ in 0..3 {
        world.settle();
        world.pass(61);
    }
    assert_eq!(live(&world), [1, 1], "even if all of them are lost at once");
    world.probe_all_ok();
    world.settle();
    world.put("mended", 2);
    world.settle();
    assert_eq!(live(&world), [1, 1, 3], "the next update goes on");
}

#[test]
fn a_port_that_another_process_took_does_not_count_against_the_version() {
    let last = |lost: bool| {
        let mut world = World::new();
        world.put("serve", 1);
        for number in 1..=5 {
            world.settle();
            if !world.state.replicas().any(|it| it.id.number == number) {
                return number - 1;
            }
            world.exit(number);
            if lost {
                let id = world.id(number);
                world.observed.ports_lost.insert(id);
            }
            world.settle();
            world.pass(61);
        }
        let first = world.state.replica(world.id(5)).unwrap();
        assert_eq!(first.status(), ReplicaStatus::FailedProvision);
        let port = first.port;
        let said = first.reason().unwrap();
        assert!(said.contains(&format!("took its port {port}")), "{said}");
        5
    };
    assert_eq!((last(false), last(true)), (3, 5));
}

#[test]
fn replicas_that_are_lost_before_they_are_ready_do_not_count_against_the_version() {
    let lost = ReplicaState::Exited(Exit {
        step: Step::Run,
        end: End::Lost,
        message: "its shim is gone".into(),
    });
    for (left, said) in [
        (Some(lost), "its shim is gone"),
        (
            Some(ReplicaState::Stopping),
            "it was stopped by something else",
        ),
        (None, "nothing of it exists any more"),
    ] {
        let mut world = World::new();
        world.put("serve", 1);
        for number in 1..=5 {
            world.settle();
            let id = world.id(number);
            let made = world.state.replica(id).map(|it| it.status());
            assert_eq!(made, Some(ReplicaStatus::Starting), "{number}: {said}");
            match left.clone() {
                Some(left) => world.observed.exists.insert(id, left),
                None => world.observed.exists.remove(&id),
            };
            world.settle();
            world.observed.exists.remove(&id);
            world.settle();
            world.pass(61);
        }
        let first = world.state.replica(world.id(1)).unwrap();
        assert_eq!(first.status(), ReplicaStatus::FailedProvision);
        assert_eq!(first.reason().as_deref(), Some(said));
    }
}

#[test]
fn a_replica_whose_place_is_taken_is_preempted_and_replaced_and_never_counts_against_the_version() {
    let ended = ReplicaState::Exited(Exit {
        step: Step::Run,
        end: End::Preempted,
        message: "the node evicted its pod".into(),
    });
    for (seen, was_ready) in [
        (ended.clone(), false),
        (ended, true),
        (ReplicaState::Preempted, false),
        (ReplicaState::Preempted, true),
    ] {
        let mut world = World::new();
        world.put("serve", 1);
        for number in 1..=5 {
            world.settle();
            if was_ready {
                world.probe_all_ok();
                world.settle();
            }
            let id = world.id(number);
            let said = "the node evicted its pod".to_owned();
            world.observed.notes.insert(id, said.clone());
            world.observed.exists.insert(id, seen.clone());
            world.settle();
            // At once, and not only when it is gone.
            let replica = world.state.replica(id).unwrap();
            assert_eq!(replica.status(), ReplicaStatus::Preempted, "{number}");
            assert_eq!(replica.reason(), Some(said));
            world.observed.exists.remove(&id);
            world.settle();
            let status = world.state.replica(id).unwrap().status();
            assert_eq!(status, ReplicaStatus::Preempted, "once it is gone");
            world.pass(61);
        }
        world.settle();
        assert!(world.state.replica(world.id(6)).is_some(), "{seen:?}");
    }
}

#[test]
fn early_failures_are_retried_ever_more_slowly() {
    let mut world = World::with_ready(1);
    let mut pauses = Vec::new();
    for number in 1..=5 {
        world.exit(number);
        world.settle();
        let mut pause = 0;
        while world.replicas().last().map(|last| last.0) == Some(number) {
            world.pass(1);
            pause += 1;
            world.settle();
        }
        pauses.push(pause);
        world.probe_all_ok();
        world.settle();
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8]);
}

#[test]
fn a_service_taken_down_is_forgotten_after_its_last_replica() {
    let mut world = World::new();
    world.put("serve", 2);
    world.settle();
    world.request(Request::DeleteService {
        name: "svc".parse().unwrap(),
        purge: false,
    });
    world.settle();
    assert_eq!(world.replicas().len(), 2);
    world.pass(30);
    world.settle();
    assert_eq!(world.state.services().count(), 0);
}

#[test]
fn a_stop_that_failed_is_on_record() {
    let mut world = World::new();
    world.put("serve", 1);
    world.settle();
    let id = world.id(1);
    world.put("serve", 0);
    world.write(&plan(&world.state, &world.observed));
    world
        .observed
        .stop_failures
        .insert(id, "will not die".into());
    world.write(&plan(&world.state, &world.observed));
    assert_eq!(world.replicas(), [(1, ReplicaStatus::FailedCleanup)]);
}

#[derive(Clone, Debug)]
enum Event {
    Put(u8, u32),
    Exit(u32),
    Probe(u32, bool),
    Pass(u64),
    Round,
    LeaderChange,
}

fn an_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0..3u8, 0..5u32).prop_map(|(run, replicas)| Event::Put(run, replicas)),
        2 => (1..12u32).prop_map(Event::Exit),
        4 => (1..12u32, prop::bool::weighted(0.8)).prop_map(|(number, ok)| Event::Probe(number, ok)),
        2 => (0..40u64).prop_map(Event::Pass),
        8 => Just(Event::Round),
        1 => Just(Event::LeaderChange),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, never more run than wanted and one, nothing runs that is not on record, no
    /// number is used twice; and once all is well again, exactly what is wanted runs.
    #[test]
    fn what_runs_is_what_is_wanted(events in prop::collection::vec(an_event(), 1..150)) {
        let mut world = World::new();
        world.put("serve 0", 2);
        let mut wanted_max = 2;
        for event in events {
            match event {
                Event::Put(run, replicas) => {
                    world.put(&format!("serve {run}"), replicas);
                    wanted_max = wanted_max.max(replicas as usize);
                }
                Event::Exit(number) => {
                    if matches!(world.observed.exists.get(&world.id(number)), Some(ReplicaState::Running { .. })) {
                        world.exit(number);
                    }
                }
                Event::Probe(number, ok) => {
                    let result = if ok { Ok(()) } else { Err("refused".to_owned()) };
                    world.probe(number, result, 1);
                }
                Event::Pass(secs) => world.pass(secs),
                Event::Round => { world.round(); }
                Event::LeaderChange => {
                    world.observed.probes.clear();
                    world.observed.stopped.clear();
                    world.observed.launch_failures.clear();
                    world.apply(Action::StartControl { node: NodeId(2), incarnation: Incarnation(2) });
                }
            }
            let live = world.state.replicas().filter(|it| it.is_live()).count();
            prop_assert!(live <= wanted_max + SURGE, "{live} live");
            for (id, exists) in &world.observed.exists {
                let running = matches!(exists, ReplicaState::Running { .. });
                prop_assert!(!running || world.state.replica(*id).is_some(), "{id} is an orphan");
            }
        }
        world.put("serve at last", 3);
        for _ in 0..60 {
            for _ in 0..20 { world.round(); }
            world.pass(30);
            world.probe_all_ok();
        }
        let running = world.observed.exists.values().filter(|it| matches!(it, ReplicaState::Running { .. })).count();
        let ready = world.state.replicas().filter(|it| it.phase == Phase::Ready).count();
        prop_assert_eq!((running, ready), (3, 3));
    }
}
