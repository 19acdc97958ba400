//! Properties of the state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use raftserve_model::spec::{
    LoadBalancingPolicy, ProbeKind, Provider, ReadinessProbe, ServiceSpec, SessionAffinity,
    SessionKeySource, Traffic, WithoutQuorum,
};
use raftserve_model::{ReplicaId, ServiceVersion};

use super::*;
use crate::command::{BindRefusal, Change, Precondition, Refusal, Request, StopReason};

fn spec(run: &str, replicas: u32) -> Arc<ServiceSpec> {
    Arc::new(ServiceSpec {
        source: String::new(),
        replicas,
        readiness: ReadinessProbe {
            kind: ProbeKind::Http,
            path: "/".into(),
            post_data: None,
            headers: Default::default(),
            initial_delay: Duration::from_secs(1200),
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
        envs: Default::default(),
        secrets: Default::default(),
        resources: Default::default(),
        placement: Default::default(),
        affinity: Some(SessionAffinity {
            key: SessionKeySource::Header("x-session".into()),
            ttl: Duration::from_secs(60),
            max_sessions: 20,
            without_quorum: WithoutQuorum::Refuse,
        }),
        drain_timeout: Duration::from_secs(30),
        stop_grace: Duration::from_secs(10),
        traffic: Traffic::default(),
        file_mounts: Vec::new(),
    })
}

/// A log under construction, applied as it grows.
#[derive(Default)]
struct Log {
    state: State,
    index: u64,
    time: u64,
    client: Option<LogIndex>,
    sequence: u64,
}

impl Log {
    fn apply(&mut self, action: Action) -> Outcome {
        self.index += 1;
        let command = Command::at(LogTime(self.time), action);
        self.state.apply(LogIndex(self.index), &command)
    }

    fn request(&mut self, request: Request) -> Outcome {
        if self.client.is_none() {
            self.apply(Action::OpenClient);
            self.client = Some(LogIndex(self.index));
        }
        self.sequence += 1;
        self.apply(Action::Client {
            client: self.client.unwrap(),
            sequence: self.sequence,
            acknowledged: self.sequence - 1,
            request,
        })
    }

    fn put(&mut self, name: &str, run: &str, precondition: Precondition) -> Outcome {
        self.request(Request::PutService {
            name: name.parse().unwrap(),
            spec: spec(run, 2),
            precondition,
        })
    }

    fn reign(&mut self) {
        self.apply(Action::StartControl {
            node: NodeId(1),
            incarnation: Incarnation(1),
        });
    }

    fn control(&mut self, changes: Vec<Change>) -> Outcome {
        let generation = self.state.control().generation;
        self.apply(Action::Control {
            generation,
            changes,
        })
    }

    fn service(&mut self, name: &str) -> ServiceId {
        match self.put(name, "serve", Precondition::Absent) {
            Outcome::ServicePut { service, .. } => service,
            other => panic!("{other:?}"),
        }
    }

    fn ready_replica(&mut self, service: ServiceId) -> ReplicaId {
        let version = self.state.service(service).unwrap().version;
        let number = self.state.service(service).unwrap().next_number;
        let replica = ReplicaId { service, number };
        self.control(vec![
            Change::Create {
                service,
                version,
                port: 20_000,
            },
            Change::Started {
                replica,
                address: "127.0.0.1:20000".into(),
            },
            Change::Ready { replica },
        ]);
        assert_eq!(
            self.state.replica(replica).unwrap().status(),
            ReplicaStatus::Ready
        );
        replica
    }

    fn stop(&mut self, replica: ReplicaId, reason: StopReason) {
        self.control(vec![Change::Stop {
            replica,
            reason,
            drain: Duration::ZERO,
        }]);
    }

    fn bind(
        &mut self,
        service: ServiceId,
        key: u8,
    ) -> Result<crate::command::Binding, BindRefusal> {
        let keys = vec![SessionKey([key; 16])];
        match self.apply(Action::BindSessions { service, keys }) {
            Outcome::Bound(bound) => bound[0],
            other => panic!("{other:?}"),
        }
    }

    fn advance_fence(&mut self) {
        let (generation, upto) = (self.state.control().generation, LogIndex(self.index));
        self.apply(Action::AdvanceFence { generation, upto });
    }
}

#[test]
fn a_past_generation_changes_nothing() {
    let mut log = Log::default();
    log.reign();
    let past = log.state.control().generation;
    let service = log.service("a");
    log.reign();
    let outcome = log.apply(Action::Control {
        generation: past,
        changes: vec![Change::Create {
            service,
            version: ServiceVersion(1),
            port: 20_000,
        }],
    });
    let current = log.state.control().generation;
    assert_eq!(outcome, Outcome::Fenced { current });
    assert_eq!(log.state.replicas().count(), 0);
}

#[test]
fn a_service_name_is_taken_once() {
    let mut log = Log::default();
    log.service("a");
    assert!(matches!(
        log.put("a", "serve", Precondition::Absent),
        Outcome::Refused(Refusal::ServiceExists(_))
    ));
    assert!(matches!(
        log.put("A", "serve", Precondition::Any),
        Outcome::Refused(Refusal::ServiceExists(name)) if name.as_str() == "a"
    ));
    assert!(matches!(
        log.put("b", "serve", Precondition::Present),
        Outcome::Refused(Refusal::NoSuchService(_))
    ));
}

#[test]
fn replica_numbers_are_never_reused() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let first = log.ready_replica(service);
    log.stop(first, StopReason::ScaleDown);
    log.control(vec![Change::Gone { replica: first }]);
    assert!(log.state.replica(first).is_none());
    assert_eq!(log.ready_replica(service).number, 2);
}

#[test]
fn a_failed_replica_leaves_a_bounded_history() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    for _ in 0..15 {
        let replica = log.ready_replica(service);
        log.stop(replica, StopReason::Exited("exit status 1".into()));
        log.control(vec![Change::Gone { replica }]);
    }
    let numbers: Vec<u32> = log
        .state
        .replicas_of(service)
        .map(|it| it.id.number)
        .collect();
    assert_eq!(numbers, (6..=15).collect::<Vec<_>>());
}

#[test]
fn an_update_that_runs_the_same_relabels_replicas() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let replica = log.ready_replica(service);
    log.put("a", "serve", Precondition::Present);
    assert_eq!(
        log.state.replica(replica).unwrap().version,
        ServiceVersion(2)
    );
    log.put("a", "serve otherwise", Precondition::Present);
    let replica = log.state.replica(replica).unwrap();
    assert_eq!(replica.version, ServiceVersion(2));
    assert_eq!(replica.launched_as, ServiceVersion(1));
    assert!(
        log.state
            .service(service)
            .unwrap()
            .specs
            .contains_key(&ServiceVersion(1))
    );
}

#[test]
fn sessions_spread_evenly_and_stay() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let replicas = [log.ready_replica(service), log.ready_replica(service)];
    let first: Vec<_> = (0..10).map(|key| log.bind(service, key).unwrap()).collect();
    for replica in replicas {
        assert_eq!(first.iter().filter(|it| it.replica == replica).count(), 5);
    }
    let again: Vec<_> = (0..10).map(|key| log.bind(service, key).unwrap()).collect();
    assert_eq!(first, again);
}

#[test]
fn a_rebound_session_waits_for_the_fence_unless_its_replica_is_gone() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let old = log.ready_replica(service);
    let (draining, gone) = (log.bind(service, 1).unwrap(), log.bind(service, 2).unwrap());
    let new = log.ready_replica(service);
    log.stop(old, StopReason::Outdated);

    let moved = log.bind(service, 1).unwrap();
    assert_eq!(moved.replica, new);
    assert!(moved.epoch > draining.epoch);
    assert_eq!(moved.usable_from, moved.epoch);
    assert!(log.state.fence() < moved.usable_from);
    assert_eq!(log.state.fence_wanted(), Some(moved.epoch));
    log.advance_fence();
    assert!(log.state.fence() >= moved.usable_from);
    assert_eq!(log.state.fence_wanted(), None);

    log.control(vec![Change::Gone { replica: old }]);
    let moved = log.bind(service, 2).unwrap();
    assert!(moved.epoch > gone.epoch);
    assert_eq!(moved.usable_from, LogIndex(0));
}

#[test]
fn a_session_moved_twice_still_waits_for_the_first_move() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let first = log.ready_replica(service);
    log.bind(service, 1).unwrap();
    let second = log.ready_replica(service);
    log.stop(first, StopReason::Outdated);
    let moved = log.bind(service, 1).unwrap();
    assert_eq!((moved.replica, moved.usable_from), (second, moved.epoch));
    let third = log.ready_replica(service);
    log.stop(second, StopReason::Exited("killed".into()));
    log.control(vec![Change::Gone { replica: second }]);
    let again = log.bind(service, 1).unwrap();
    assert_eq!(again.replica, third);
    assert_eq!(
        again.usable_from, moved.epoch,
        "somebody may still act on the first binding"
    );
    log.advance_fence();
    let key = SessionKey([1; 16]);
    assert!(log.state.session(service, &key).unwrap().usable_from <= log.state.fence());
}

#[test]
fn specifications_are_kept_while_they_may_be_needed_and_no_longer() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    log.ready_replica(service);
    for _ in 0..5 {
        log.put("a", "serve", Precondition::Present);
    }
    let kept = |log: &Log| -> Vec<u32> {
        let service = log.state.service(service).unwrap();
        service.specs.keys().map(|version| version.0).collect()
    };
    assert_eq!(
        kept(&log),
        [1, 6],
        "what it was launched from, and the newest"
    );
    for run in ["one", "two", "three"] {
        log.put("a", run, Precondition::Present);
    }
    assert_eq!(kept(&log), [1, 6, 9], "and the last good one");
}

#[test]
fn a_replica_that_fails_one_probe_keeps_its_sessions() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let replica = log.ready_replica(service);
    let before = log.bind(service, 1).unwrap();
    log.ready_replica(service);
    log.control(vec![Change::NotReady {
        replica,
        reason: "timeout".into(),
    }]);
    assert_eq!(log.bind(service, 1).unwrap(), before);
    assert_ne!(log.bind(service, 2).unwrap().replica, replica);
}

#[test]
fn expired_sessions_are_removed_only_behind_the_fence() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    log.ready_replica(service);
    for key in 0..20 {
        log.bind(service, key).unwrap();
    }
    assert_eq!(log.bind(service, 99), Err(BindRefusal::TooMany));
    log.time += 30_000;
    log.bind(service, 3).unwrap();
    log.time += 30_000;
    log.apply(Action::Tick);
    assert_eq!(log.state.session_count(service), 20);
    assert_eq!(log.state.fence_wanted(), Some(LogIndex(log.index)));
    log.advance_fence();
    assert_eq!(log.state.session_count(service), 1);
    assert_eq!(log.state.fence_wanted(), None);
}

#[test]
fn a_service_is_forgotten_once_nothing_of_it_runs() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    let replica = log.ready_replica(service);
    log.request(Request::DeleteService {
        name: "a".parse().unwrap(),
        purge: false,
    });
    log.control(vec![Change::Forget { service }]);
    assert!(log.state.service(service).is_some());
    log.control(vec![Change::Gone { replica }, Change::Forget { service }]);
    assert!(log.state.service(service).is_none());
    assert!(
        log.state
            .records()
            .all(|it| !matches!(it, Record::Sessions(..)))
    );
}

#[test]
fn a_session_has_its_final_size() {
    let encoded = |session: Session| {
        let key = SessionKey([0xff; 16]);
        let none = Record::Sessions(session.replica.service, Vec::new());
        let one = Record::Sessions(session.replica.service, vec![(key, session)]);
        crate::codec::encode(&one).unwrap().len() - crate::codec::encode(&none).unwrap().len()
    };
    let session = |number: u64, replica: u32| Session {
        replica: ReplicaId {
            service: ServiceId(number),
            number: replica,
        },
        epoch: LogIndex(number),
        usable_from: LogIndex(number),
        expires_at: LogTime(number),
    };
    assert_eq!(encoded(session(u64::MAX, u32::MAX)), 57);
    let usual = Session {
        usable_from: LogIndex(0),
        ..session(1 << 30, 3)
    };
    assert_eq!(encoded(usual), 33);
    assert_eq!(size_of::<(SessionKey, Session)>(), 56);
    assert_eq!(size_of::<(LogTime, SessionKey)>(), 24);
}

/// The largest specification: as much text as the API takes, and all of it in use.
fn largest_spec(run: &str) -> Arc<ServiceSpec> {
    let mut spec = ServiceSpec::clone(&spec(run, 1));
    spec.source = "#".repeat(1 << 20);
    spec.run = format!("{run} #{}", "#".repeat(1 << 20));
    Arc::new(spec)
}

#[test]
fn a_service_with_many_versions_of_the_largest_specification_fits_a_snapshot() {
    let mut log = Log::default();
    log.reign();
    let service = log.service("a");
    for version in 2..=12_u32 {
        log.request(Request::PutService {
            name: "a".parse().unwrap(),
            spec: largest_spec(&version.to_string()),
            precondition: Precondition::Present,
        });
        log.control(vec![Change::Create {
            service,
            version: ServiceVersion(version),
            port: 20_000,
        }]);
    }
    assert!(log.state.service(service).unwrap().specs.len() > 10);
    for record in log.state.records() {
        let frame = crate::codec::encode(&record).unwrap();
        assert!(frame.len() < 3 << 20, "{} bytes", frame.len());
    }
    let back = State::from_records(log.state.records()).unwrap();
    assert_eq!(back.digest(), log.state.digest());
}

#[test]
fn records_without_a_services_newest_specification_are_no_state() {
    let mut log = Log::default();
    let service = log.service("a");
    let lacking = log
        .state
        .records()
        .filter(|it| !matches!(it, Record::Spec { .. }));
    assert!(matches!(
        State::from_records(lacking),
        Err(RecordError::NoSpec { service: of }) if of == service
    ));
}

#[test]
fn events_resume_or_say_that_they_cannot() {
    let mut log = Log::default();
    log.reign();
    let start = log.state.events_after(LogIndex(0)).unwrap().count();
    assert_eq!(start, 1);
    for _ in 0..EVENTS_MAX {
        log.reign();
    }
    let compacted = log.state.events_after(LogIndex(0)).err().unwrap();
    assert_eq!(compacted.upto, LogIndex(1));
    let mut rest = log.state.events_after(compacted.upto).unwrap();
    assert_eq!(rest.next().unwrap().index, LogIndex(2));
    assert_eq!(rest.count(), EVENTS_MAX - 1);
    let restored = State::from_records(log.state.records()).unwrap();
    assert_eq!(restored.digest(), log.state.digest());

    let before = log.state.clone();
    let edits = |base: &State, now: &State| {
        let (mut puts, mut removals) = (0, 0);
        for edit in now
            .edits_since(base)
            .chain(now.trail_edits_since(&base.trails()))
        {
            match edit {
                Edit::Put(_) => puts += 1,
                Edit::Remove(_) => removals += 1,
            }
        }
        (puts, removals)
    };
    log.reign();
    log.reign();
    assert_eq!(edits(&before, &log.state), (3, 2));
    for _ in 0..EVENTS_MAX {
        log.reign();
    }
    assert_eq!(edits(&before, &log.state), (1 + EVENTS_MAX, EVENTS_MAX));
}

fn put_key(key: &str, value: &[u8], condition: KvCondition) -> Action {
    Action::Request(Request::PutKey {
        key: key.parse().unwrap(),
        value: value.into(),
        condition,
    })
}

#[test]
fn a_key_keeps_its_birth_and_counts_its_puts_until_it_is_deleted() {
    let mut log = Log::default();
    let put = |log: &mut Log, condition| match log.apply(put_key("k", b"v", condition)) {
        Outcome::KeyPut {
            created,
            modified,
            version,
        } => Ok((created.0, modified.0, version)),
        Outcome::Refused(Refusal::KeyConflict { modified, .. }) => Err(modified),
        other => panic!("{other:?}"),
    };
    let at = |index| KvCondition::ModifiedAt(LogIndex(index));
    assert_eq!(put(&mut log, at(1)), Err(None));
    assert_eq!(put(&mut log, KvCondition::Absent), Ok((2, 2, 1)));
    assert_eq!(put(&mut log, KvCondition::Absent), Err(Some(LogIndex(2))));
    assert_eq!(put(&mut log, at(2)), Ok((2, 4, 2)));
    assert_eq!(put(&mut log, at(2)), Err(Some(LogIndex(4))));
    assert_eq!(log.state.key("k").unwrap().modified, LogIndex(4));
    let delete = |condition| {
        Action::Request(Request::DeleteKey {
            key: "k".parse().unwrap(),
            condition,
        })
    };
    let gone = |modified| Outcome::KeyDeleted { modified };
    assert_eq!(log.apply(delete(KvCondition::Any)), gone(Some(LogIndex(4))));
    assert_eq!(log.apply(delete(KvCondition::Any)), gone(None));
    assert_eq!((log.state.key_count(), log.state.key_bytes()), (0, 0));
    assert_eq!(put(&mut log, KvCondition::Any), Ok((8, 8, 1)));
}

#[test]
fn keys_are_listed_by_prefix_from_where_the_last_page_ended() {
    let mut log = Log::default();
    for key in ["a", "b/1", "b/2", "b/3", "b0", "c"] {
        log.apply(put_key(key, b"", KvCondition::Any));
    }
    let listed = |prefix, after| {
        let keys = log.state.keys_with(prefix, after);
        keys.map(|(key, _)| key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed("b/", None), ["b/1", "b/2", "b/3"]);
    assert_eq!(listed("b/", Some("b/1")), ["b/2", "b/3"]);
    assert_eq!(listed("b/", Some("a")), ["b/1", "b/2", "b/3"]);
    assert_eq!(listed("b/", Some("c")), [""; 0]);
    assert_eq!(listed("", None).len(), 6);
}

#[test]
fn what_keys_hold_together_is_bounded() {
    let mut log = Log::default();
    let largest = vec![7; KV_VALUE_BYTES_MAX];
    let fits = KV_BYTES_MAX / (KV_VALUE_BYTES_MAX as u64 + 4);
    for number in 0..fits {
        let put = log.apply(put_key(&format!("{number:04}"), &largest, KvCondition::Any));
        assert!(matches!(put, Outcome::KeyPut { .. }), "{put:?}");
    }
    let limit = |outcome| matches!(outcome, Outcome::Refused(Refusal::Limit(_)));
    assert!(limit(log.apply(put_key(
        "more",
        &largest,
        KvCondition::Any
    ))));
    let again = log.apply(put_key("0000", &largest, KvCondition::Any));
    assert!(matches!(again, Outcome::KeyPut { version: 2, .. }));
    assert!(log.state.key_bytes() <= KV_BYTES_MAX);
    for record in log.state.records() {
        assert!(crate::codec::encode(&record).unwrap().len() < 256 << 10);
    }
    let back = State::from_records(log.state.records()).unwrap();
    assert_eq!(back.key_bytes(), log.state.key_bytes());
    assert_eq!(back.digest(), log.state.digest());

    let mut log = Log::default();
    for number in 0..KV_KEYS_MAX {
        log.apply(put_key(&number.to_string(), b"", KvCondition::Any));
    }
    assert!(limit(log.apply(put_key("more", b"", KvCondition::Any))));
    assert_eq!(log.state.key_count(), KV_KEYS_MAX);
}

fn a_change() -> impl Strategy<Value = Change> {
    let service = prop_oneof![
        Just(ServiceId(2)),
        Just(ServiceId(3)),
        (0..40u64).prop_map(ServiceId)
    ];
    let replica =
        (service.clone(), 1..6u32).prop_map(|(service, number)| ReplicaId { service, number });
    let reason = prop_oneof![
        Just(StopReason::ScaleDown),
        Just(StopReason::Outdated),
        Just(StopReason::Exited("exit status 1".into())),
        Just(StopReason::InitialDelay("no answer".into())),
    ];
    prop_oneof![
        3 => (service.clone(), 1..4u32, 20_000..20_010u16).prop_map(|(service, version, port)| {
            Change::Create { service, version: ServiceVersion(version), port }
        }),
        1 => replica.clone().prop_map(|replica| Change::Provisioning { replica }),
        3 => replica.clone().prop_map(|replica| Change::Started { replica, address: "h:1".into() }),
        4 => replica.clone().prop_map(|replica| Change::Ready { replica }),
        1 => replica.clone().prop_map(|replica| Change::NotReady { replica, reason: "timeout".into() }),
        2 => (replica.clone(), reason).prop_map(|(replica, reason)| {
            Change::Stop { replica, reason, drain: Duration::from_secs(1) }
        }),
        2 => replica.clone().prop_map(|replica| Change::Gone { replica }),
        1 => replica.prop_map(|replica| Change::CleanupFailed { replica, reason: "busy".into() }),
        1 => service.prop_map(|service| Change::Forget { service }),
    ]
}

fn a_change_of_a_key() -> impl Strategy<Value = Request> {
    let key = prop_oneof![Just("a"), Just("a/b"), Just("b")].prop_map(|key| key.parse().unwrap());
    let condition = prop_oneof![
        3 => Just(KvCondition::Any),
        1 => Just(KvCondition::Absent),
        2 => (0..40u64).prop_map(|index| KvCondition::ModifiedAt(LogIndex(index))),
    ];
    (key, condition, 0..4u8).prop_map(|(key, condition, value)| match value {
        0 => Request::DeleteKey { key, condition },
        byte => Request::PutKey {
            key,
            value: [byte; 3].as_slice().into(),
            condition,
        },
    })
}

fn an_action() -> impl Strategy<Value = Action> {
    let name =
        prop_oneof![Just("a"), Just("b")].prop_map(|name| name.parse::<ServiceName>().unwrap());
    let request = prop_oneof![
        4 => (name.clone(), prop_oneof![Just("x"), Just("y")], 0..4u32).prop_map(|(name, run, replicas)| {
            Request::PutService { name, spec: spec(run, replicas), precondition: Precondition::Any }
        }),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, purge)| Request::DeleteService { name, purge }),
        1 => (name, 1..6u32, any::<bool>())
            .prop_map(|(name, number, purge)| Request::TerminateReplica { name, number, purge }),
        4 => a_change_of_a_key(),
    ];
    prop_oneof![
        1 => Just(Action::OpenClient),
        1 => (1..4u64).prop_map(|node| Action::StartControl {
            node: NodeId(node), incarnation: Incarnation(node),
        }),
        4 => (0..3u64, 1..12u64, 0..8u64, request).prop_map(|(client, sequence, acknowledged, request)| {
            Action::Client { client: LogIndex(client), sequence, acknowledged, request }
        }),
        8 => (0..40u64, prop::collection::vec(a_change(), 1..5)).prop_map(|(generation, changes)| {
            Action::Control { generation: Generation(generation), changes }
        }),
        4 => (prop_oneof![Just(2u64), Just(3u64)], prop::collection::vec(0..30u8, 1..6)).prop_map(|(service, keys)| {
            let keys = keys.into_iter().map(|key| SessionKey([key; 16])).collect();
            Action::BindSessions { service: ServiceId(service), keys }
        }),
        1 => (0..40u64, 0..60u64).prop_map(|(generation, upto)| Action::AdvanceFence {
            generation: Generation(generation), upto: LogIndex(upto),
        }),
        1 => Just(Action::Tick),
        4 => a_change_of_a_key().prop_map(Action::Request),
    ]
}

/// A log whose commands mostly make sense: a client is open, and control is of the reign in force.
fn a_log() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec((0..40_000u64, an_action(), any::<bool>()), 1..120).prop_map(|steps| {
        let mut shadow = State::default();
        let mut commands = vec![Action::OpenClient];
        commands.extend(
            ["a", "b"]
                .into_iter()
                .zip(1..)
                .map(|(name, sequence)| Action::Client {
                    client: LogIndex(1),
                    sequence,
                    acknowledged: 0,
                    request: Request::PutService {
                        name: name.parse().unwrap(),
                        spec: spec("x", 2),
                        precondition: Precondition::Absent,
                    },
                }),
        );
        let mut time = 0;
        let mut log: Vec<Command> = Vec::new();
        let prefix = commands.into_iter().map(|action| (0, action, false));
        for (step, mut action, genuine) in prefix.chain(steps) {
            time += step;
            if genuine {
                let current = shadow.control().generation;
                match &mut action {
                    Action::Control { generation, .. }
                    | Action::AdvanceFence { generation, .. } => {
                        *generation = current;
                    }
                    Action::Client { client, .. } => *client = LogIndex(1),
                    _ => {}
                }
            }
            let command = Command::at(LogTime(time), action);
            shadow.apply(LogIndex(log.len() as u64 + 1), &command);
            log.push(command);
        }
        log
    })
}

/// What must hold after every entry.
fn check_invariants(
    state: &State,
    epochs: &mut BTreeMap<(ServiceId, SessionKey, LogIndex), ReplicaId>,
) {
    assert_eq!(state.names.len(), state.services.len());
    for replica in state.replicas() {
        let service = state
            .service(replica.id.service)
            .expect("a replica has its service");
        assert!(replica.id.number < service.next_number);
    }
    for service in state.services() {
        let table = &state.sessions[&service.id];
        let mut counts: BTreeMap<ReplicaId, u32> = BTreeMap::new();
        for (key, session) in table.iter_after(None) {
            *counts.entry(session.replica).or_default() += 1;
            let known = *epochs
                .entry((service.id, *key, session.epoch))
                .or_insert(session.replica);
            assert_eq!(
                known, session.replica,
                "one replica for each session and epoch"
            );
        }
        assert!(table.len() <= 20);
        let ready: BTreeSet<(u32, ReplicaId)> = state
            .replicas_of(service.id)
            .filter(|replica| replica.status() == ReplicaStatus::Ready)
            .map(|replica| (counts.get(&replica.id).copied().unwrap_or(0), replica.id))
            .collect();
        assert_eq!(table.candidates(), ready);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Equal logs give equal states and outcomes, also through a snapshot at any point.
    #[test]
    fn apply_is_deterministic_and_snapshots_are_complete(log in a_log(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(log.len());
        let (mut first, mut second) = (State::default(), State::default());
        let mut epochs = BTreeMap::new();
        for (index, command) in (1..).map(LogIndex).zip(&log) {
            if index.0 as usize == cut {
                second = State::from_records(second.records()).unwrap();
                prop_assert_eq!(first.digest(), second.digest());
            }
            let before = first.now();
            prop_assert_eq!(first.apply(index, command), second.apply(index, command));
            prop_assert!(first.now() >= before);
            check_invariants(&first, &mut epochs);
            prop_assert_eq!(first.digest(), second.digest());
        }
        prop_assert_eq!(first.digest(), second.digest());
    }

    /// Whatever the order of requests, each (client, sequence) takes effect once.
    #[test]
    fn a_request_repeated_changes_nothing(log in a_log()) {
        let mut state = State::default();
        let mut index = 0;
        for command in &log {
            index += 1;
            let outcome = state.apply(LogIndex(index), command);
            if let Action::Client { .. } = command.action {
                let services: Vec<_> = state.services().cloned().collect();
                let keys: Vec<_> = state.keys.records().collect();
                index += 1;
                let again = state.apply(LogIndex(index), command);
                let refused = matches!(again, Outcome::Refused(_));
                prop_assert!(again == outcome || refused, "{outcome:?} then {again:?}");
                prop_assert_eq!(services, state.services().cloned().collect::<Vec<_>>());
                prop_assert_eq!(keys, state.keys.records().collect::<Vec<_>>());
            }
        }
    }

    /// Edits from one state to another, whatever lies between, leave a store with exactly the other's records.
    #[test]
    fn edits_lead_from_one_state_to_another(
        log in a_log(),
        stops in prop::collection::vec(any::<bool>(), 125),
    ) {
        let (mut state, mut base) = (State::default(), State::default());
        let mut store: BTreeMap<Key, Record> = BTreeMap::new();
        for ((index, command), stop) in (1..).map(LogIndex).zip(&log).zip(stops) {
            state.apply(index, command);
            if stop {
                for edit in state.edits_since(&base).chain(state.trail_edits_since(&base.trails())) {
                    match edit {
                        Edit::Put(record) => drop(store.insert(record.key(), record)),
                        Edit::Remove(key) => prop_assert!(store.remove(&key).is_some()),
                    }
                }
                base = state.clone();
                let read = State::from_records(store.values().cloned()).unwrap();
                prop_assert_eq!(read.digest(), state.digest());
                prop_assert_eq!(state.edits_since(&base).count(), 1, "the head alone");
                prop_assert_eq!(state.trail_edits_since(&base.trails()).count(), 0);
            }
        }
    }

    /// The digest is that of the records, however the state came to hold them, and no two contents of one
    /// history share it.
    #[test]
    fn the_digest_tells_contents_apart_and_nothing_else(log in a_log()) {
        let mut state = State::default();
        let mut seen: BTreeMap<Digest, Vec<Record>> = BTreeMap::new();
        for (index, command) in (1..).map(LogIndex).zip(&log) {
            state.apply(index, command);
            let records: Vec<Record> = state.records().collect();
            let rebuilt = State::from_records(records.clone()).unwrap();
            prop_assert_eq!(state.digest(), rebuilt.digest());
            let first = seen.entry(state.digest()).or_insert_with(|| records.clone());
            prop_assert_eq!(&*first, &records);
        }
        for (digest, records) in &seen {
            let other = seen.iter().find(|(it, other)| *it != digest && *other == records);
            prop_assert!(other.is_none(), "equal contents, different digests");
        }
    }
}
