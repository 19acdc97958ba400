//! Every variant of every enum that is stored has a fixture: one that is added has none yet, and fails here.

use std::collections::BTreeSet;
use std::fmt::Debug;

use bincode::error::{AllowedEnumVariants, DecodeError};
use bincode::{Decode, Encode};
use raftserve_model::status::ReplicaStatus;
use raftserve_model::{
    ClusterVersion, Generation, LogIndex, LogTime, NodeId, ReplicaId, ServiceId, ServiceName,
    ServiceVersion,
};
use raftserve_store::Outcome;
use raftserve_store::codec::{self, CodecError};
use raftserve_store::command::{
    Action, BindRefusal, Binding, Precondition, Refusal, Request, StopReason,
};
use raftserve_store::entry::Payload;
use raftserve_store::state::{
    Claim, EventKind, KvCondition, PeerStanding, Phase, Promotion, Record,
};

use crate::frame;

/// A variant's number that no enum comes near, and that is one byte all the same.
const NO_VARIANT: u8 = 250;

/// How many variants an enum has, as its decoder says.
fn count<T: Decode<()>>() -> u32 {
    match codec::decode::<T>(&[1, NO_VARIANT]) {
        Err(CodecError::Decode(DecodeError::UnexpectedVariant {
            allowed: AllowedEnumVariants::Range { max, .. },
            ..
        })) => max + 1,
        _ => panic!("{} is no enum", std::any::type_name::<T>()),
    }
}

/// Whether there is a value of each variant.
fn complete<'a, T: Encode + Decode<()> + 'a>(values: impl IntoIterator<Item = &'a T>) {
    let number = |value| u32::from(codec::encode(value).unwrap()[1]);
    let there: BTreeSet<u32> = values.into_iter().map(number).collect();
    let all: BTreeSet<u32> = (0..count::<T>()).collect();
    let name = std::any::type_name::<T>();
    assert_eq!(there, all, "{name}: the numbers of variants with a fixture");
}

/// A frame for each value, and a value of each variant.
fn each<T>(folder: &str, values: &[(&str, T)])
where
    T: Encode + Decode<()> + PartialEq + Debug,
{
    for (name, value) in values {
        frame(&format!("{folder}/{name}"), value);
    }
    complete(values.iter().map(|(_, value)| value));
}

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn stop_reasons() -> Vec<(&'static str, StopReason)> {
    let why = || "why".to_owned();
    vec![
        ("scale-down", StopReason::ScaleDown),
        ("outdated", StopReason::Outdated),
        ("service-down", StopReason::ServiceDown),
        ("terminated", StopReason::Terminated),
        ("exited", StopReason::Exited(why())),
        ("initial-delay", StopReason::InitialDelay(why())),
        ("probing", StopReason::Probing(why())),
        ("provision", StopReason::Provision(why())),
        ("preempted", StopReason::Preempted(why())),
    ]
}

#[test]
fn every_entry_has_a_fixture() {
    let commands: Vec<_> = crate::commands()
        .into_iter()
        .chain(crate::further::commands())
        .map(|(_, command)| command)
        .collect();
    complete(commands.iter().map(|command| &command.action));
    let changes = commands.iter().filter_map(|command| match &command.action {
        Action::Control { changes, .. } => Some(changes),
        _ => None,
    });
    complete(changes.flatten());
    let requests: Vec<&Request> = commands
        .iter()
        .filter_map(|command| match &command.action {
            Action::Client { request, .. } | Action::Request(request) => Some(request),
            _ => None,
        })
        .collect();
    complete(requests.iter().copied());
    complete::<Precondition>(requests.iter().filter_map(|request| match request {
        Request::PutService { precondition, .. }
        | Request::PutServiceWithFiles { precondition, .. } => Some(precondition),
        _ => None,
    }));
    complete::<KvCondition>(requests.iter().filter_map(|request| match request {
        Request::PutKey { condition, .. } | Request::DeleteKey { condition, .. } => Some(condition),
        _ => None,
    }));
    complete::<Promotion>(commands.iter().filter_map(|command| match &command.action {
        Action::AdmitPeer { promotion, .. } => Some(promotion),
        _ => None,
    }));
    complete(&[
        Payload::Blank,
        Payload::Command(commands[0].clone()),
        Payload::Membership(crate::head().membership.membership),
    ]);
    each("stop-reason", &stop_reasons());
}

#[test]
fn every_outcome_has_a_fixture() {
    let (service, replica) = (ServiceId(3), 7);
    let binding = Binding {
        replica: ReplicaId {
            service,
            number: replica,
        },
        epoch: LogIndex(300),
        usable_from: LogIndex(301),
    };
    let refusals = vec![
        ("unknown-client", Refusal::UnknownClient),
        ("already-acknowledged", Refusal::AlreadyAcknowledged),
        ("service-exists", Refusal::ServiceExists(web())),
        ("no-such-service", Refusal::NoSuchService(web())),
        ("service-going-down", Refusal::ServiceGoingDown(web())),
        ("no-such-replica", Refusal::NoSuchReplica(web(), replica)),
        ("already-stopping", Refusal::AlreadyStopping(web(), replica)),
        ("needs-purge", Refusal::NeedsPurge(web(), replica)),
        ("limit", Refusal::Limit("too much".to_owned())),
        (
            "key-conflict",
            Refusal::KeyConflict {
                key: "a/b".parse().unwrap(),
                modified: Some(LogIndex(300)),
            },
        ),
        ("peer-removed", Refusal::PeerRemoved(NodeId(2))),
        ("no-such-peer", Refusal::NoSuchPeer(NodeId(2))),
        ("peer-id-taken", Refusal::PeerIdTaken(NodeId(2))),
    ];
    each("refusal", &refusals);
    let refused = [
        BindRefusal::NoService,
        BindRefusal::NoReplica,
        BindRefusal::TooMany,
    ];
    complete(&refused);
    let bound = std::iter::once(Ok(binding)).chain(refused.map(Err));
    let outcomes = vec![
        ("done", Outcome::Done),
        ("index", Outcome::Index(LogIndex(7))),
        (
            "service-put",
            Outcome::ServicePut {
                service,
                version: ServiceVersion(2),
            },
        ),
        (
            "fenced",
            Outcome::Fenced {
                current: Generation(300),
            },
        ),
        ("bound", Outcome::Bound(bound.collect())),
        ("refused", Outcome::Refused(Refusal::NoSuchService(web()))),
        (
            "key-put",
            Outcome::KeyPut {
                created: LogIndex(7),
                modified: LogIndex(300),
                version: 2,
            },
        ),
        (
            "key-deleted",
            Outcome::KeyDeleted {
                modified: Some(LogIndex(300)),
            },
        ),
    ];
    each("outcome", &outcomes);
}

#[test]
fn every_record_has_a_fixture() {
    let state = crate::further::state();
    let records: Vec<Record> = crate::state().records().chain(state.records()).collect();
    complete(&records);
    let peers = records.iter().filter_map(|record| match record {
        Record::Peer(peer) => Some(&peer.standing),
        _ => None,
    });
    complete::<PeerStanding>(peers);
    each(
        "claim",
        &[("take-over", Claim::TakeOver), ("fork", Claim::Fork)],
    );
    let why = || "why".to_owned();
    let phases = vec![
        ("pending", Phase::Pending),
        ("provisioning", Phase::Provisioning),
        ("starting", Phase::Starting),
        ("ready", Phase::Ready),
        ("not-ready", Phase::NotReady { reason: why() }),
        (
            "stopping",
            Phase::Stopping {
                reason: StopReason::ScaleDown,
                since: LogTime(1_000),
                drain_until: LogTime(2_000),
            },
        ),
        (
            "failed",
            Phase::Failed {
                reason: StopReason::Exited(why()),
                at: LogTime(3_000),
            },
        ),
        (
            "cleanup-failed",
            Phase::CleanupFailed {
                reason: StopReason::Outdated,
                error: why(),
            },
        ),
    ];
    each("phase", &phases);
}

#[test]
fn every_event_has_a_fixture() {
    for number in 0..count::<ReplicaStatus>() {
        let number = u8::try_from(number).unwrap();
        let status: ReplicaStatus = codec::decode(&[1, number]).unwrap();
        let event = EventKind::Replica {
            number: 7,
            status,
            reason: Some("why".to_owned()),
        };
        frame(&format!("event/replica-{status}"), &event);
    }
    let node = NodeId(2);
    let events = vec![
        ("control-started", EventKind::ControlStarted { node }),
        ("service-created", EventKind::ServiceCreated),
        (
            "service-updated",
            EventKind::ServiceUpdated {
                version: ServiceVersion(2),
            },
        ),
        ("service-going-down", EventKind::ServiceGoingDown),
        ("service-deleted", EventKind::ServiceDeleted),
        (
            "replica",
            EventKind::Replica {
                number: 7,
                status: ReplicaStatus::Ready,
                reason: None,
            },
        ),
        ("replica-removed", EventKind::ReplicaRemoved { number: 7 }),
        (
            "version-raised",
            EventKind::VersionRaised {
                version: ClusterVersion(2),
            },
        ),
        (
            "peer-admitted",
            EventKind::PeerAdmitted {
                node,
                address: "peer-2:7001".to_owned(),
            },
        ),
        ("peer-removed", EventKind::PeerRemoved { node }),
    ];
    each("event", &events);
}
