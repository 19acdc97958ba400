//! Version 1 of every format on disk, as files that are never changed once released: each must still be read, field
//! by field, and today's writer must still write the same bytes (`docs/formats.md`).
#![expect(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod directory;
mod fixture;
mod further;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use raftserve_model::spec::{MountedFile, ParseOptions, SentFile, ServiceSpec};
use raftserve_model::{
    ClusterId, ClusterVersion, Generation, Incarnation, LogIndex, LogTime, NodeId, ReplicaId,
    ServiceId, ServiceVersion, SessionKey, WallTime,
};
use raftserve_store::codec;
use raftserve_store::command::{Action, Change, Command, Precondition, Request, StopReason};
use raftserve_store::disk::RealDisk;
use raftserve_store::entry::{AppliedMembership, LogId, Membership, Payload, PeerRecord, Vote};
use raftserve_store::snapshot::{SnapshotHead, Snapshots};
use raftserve_store::state::Record;
use raftserve_store::{Outcome, State};

use crate::fixture::same_as;

/// A frame that is as it was, and is read as what it was.
fn frame<T: Encode + Decode<()> + PartialEq + Debug>(name: &str, value: &T) {
    same_as(&format!("{name}.frame"), &codec::encode(value).unwrap());
    let kept = fixture::read(&format!("{name}.frame"));
    assert_eq!(codec::decode::<T>(&kept).unwrap(), *value, "{name}");
}

const YAML: &str = "service:\n  readiness_probe: /\n  replicas: 2\nresources:\n  ports: 8080\nrun: x\n_metadata:\n  raftserve:\n    session_affinity: {header: x-session}\n";

/// How many entries [`history`] has: it is never changed, and what came later is in `further.rs`.
const FIRST_ENTRIES: u64 = 13;

/// A request of the one client session.
fn client(sequence: u64, request: Request) -> Action {
    Action::Client {
        client: LogIndex(2),
        sequence,
        acknowledged: sequence - 1,
        request,
    }
}

/// An action as the leader proposes it that has reached this index.
fn stamped((at, (name, action)): (u64, (&'static str, Action))) -> (&'static str, Command) {
    let command = Command {
        now: LogTime(at * 1_000),
        wall: WallTime(1_790_000_000_000 + at),
        action,
    };
    (name, command)
}

fn history() -> Vec<(&'static str, Action)> {
    let spec = ServiceSpec::parse(YAML, ParseOptions::default());
    let replica = ReplicaId {
        service: ServiceId(3),
        number: 1,
    };
    let control = |changes| Action::Control {
        generation: Generation(4),
        changes,
    };
    vec![
        (
            "init-cluster",
            Action::InitCluster {
                cluster: ClusterId([7; 16]),
            },
        ),
        ("open-client", Action::OpenClient),
        (
            "put-service",
            client(
                1,
                Request::PutService {
                    name: "web".parse().unwrap(),
                    spec: Arc::new(spec.unwrap().spec),
                    precondition: Precondition::Absent,
                },
            ),
        ),
        (
            "start-control",
            Action::StartControl {
                node: NodeId(1),
                incarnation: Incarnation(300),
            },
        ),
        (
            "create",
            control(vec![
                Change::Create {
                    service: ServiceId(3),
                    version: ServiceVersion(1),
                    port: 40_000,
                },
                Change::Create {
                    service: ServiceId(3),
                    version: ServiceVersion(1),
                    port: 40_001,
                },
                Change::Provisioning { replica },
                Change::Started {
                    replica,
                    address: "127.0.0.1:40000".to_owned(),
                },
                Change::Ready { replica },
            ]),
        ),
        (
            "bind-sessions",
            Action::BindSessions {
                service: ServiceId(3),
                keys: vec![
                    SessionKey::of(ServiceId(3), b"a"),
                    SessionKey::of(ServiceId(3), b"b"),
                ],
            },
        ),
        (
            "terminate",
            client(
                2,
                Request::TerminateReplica {
                    name: "web".parse().unwrap(),
                    number: 2,
                    purge: false,
                },
            ),
        ),
        (
            "stop",
            control(vec![
                Change::NotReady {
                    replica,
                    reason: "503".to_owned(),
                },
                Change::Stop {
                    replica,
                    reason: StopReason::Probing("no answer".to_owned()),
                    drain: Duration::from_secs(5),
                },
                Change::CleanupFailed {
                    replica,
                    reason: "gone astray".to_owned(),
                },
                Change::Gone { replica },
                Change::Forget {
                    service: ServiceId(3),
                },
            ]),
        ),
        (
            "advance-fence",
            Action::AdvanceFence {
                generation: Generation(4),
                upto: LogIndex(6),
            },
        ),
        ("tick", Action::Tick),
        (
            "raise-version",
            Action::RaiseVersion {
                version: ClusterVersion(1),
            },
        ),
        ("compare-states", Action::CompareStates),
        (
            "delete-service",
            Action::Request(Request::DeleteService {
                name: "web".parse().unwrap(),
                purge: false,
            }),
        ),
    ]
}

fn commands() -> Vec<(&'static str, Command)> {
    (1..).zip(history()).map(stamped).collect()
}

fn state() -> State {
    let mut state = State::default();
    for (index, (_, command)) in (1..).zip(commands()) {
        state.apply(LogIndex(index), &command);
    }
    state
}

fn head() -> SnapshotHead {
    let nodes = [1, 2, 3].map(|id| {
        let record = PeerRecord {
            nonce: id * 11,
            address: format!("peer-{id}:7001"),
        };
        (NodeId(id), record)
    });
    let last = LogId {
        term: 3,
        node: NodeId(2),
        index: LogIndex(13),
    };
    SnapshotHead {
        last: Some(last),
        membership: AppliedMembership {
            log_id: Some(LogId {
                index: LogIndex(1),
                ..last
            }),
            membership: Membership {
                configs: vec![BTreeSet::from([1, 2, 3].map(NodeId))],
                nodes: BTreeMap::from(nodes),
            },
        },
    }
}

#[test]
fn log_entries_and_what_raft_stores_have_the_bytes_they_always_had() {
    for (name, command) in commands().into_iter().chain(further::commands()) {
        frame(&format!("entry/{name}"), &Payload::Command(command));
    }
    frame("entry/blank", &Payload::Blank);
    frame(
        "entry/membership",
        &Payload::Membership(head().membership.membership),
    );
    frame(
        "vote",
        &Vote {
            term: 300,
            node: NodeId(2),
            committed: true,
        },
    );
    frame("log-id", &head().last);
    frame("snapshot-head", &head());
    frame("outcome", &Outcome::Index(LogIndex(7)));
}

#[test]
fn records_of_the_state_have_the_bytes_they_always_had() {
    let records: Vec<Record> = state().records().collect();
    for (at, record) in records.iter().enumerate() {
        frame(&format!("record/{at:02}"), record);
    }
    let back = State::from_records(records).unwrap();
    assert_eq!(back.digest(), state().digest());
    same_as("digest", state().digest().to_string().as_bytes());
}

#[test]
fn a_specification_with_files_has_the_bytes_it_always_had() {
    let yaml = format!("{YAML}file_mounts: {{~/.ssh/id: id, conf: conf, /etc/x: x}}\n");
    let sent = |mount: &str, path: &str, mode, bytes: &[u8]| SentFile {
        mount: mount.to_owned(),
        path: path.to_owned(),
        file: MountedFile {
            mode,
            bytes: bytes.into(),
        },
    };
    let files = vec![
        sent("~/.ssh/id", "", 0o600, &[0, 1, 255]),
        sent("conf", "a/b", 0o755, b"#!"),
        sent("conf", "c", 0, b""),
        sent("/etc/x", "", 0o644, b"x"),
    ];
    let options = ParseOptions {
        files: Some(files),
        ..ParseOptions::default()
    };
    let spec = ServiceSpec::parse(&yaml, options).unwrap().spec;
    assert_eq!(spec.file_mounts.len(), 3);
    let command = Command {
        now: LogTime(1_000),
        wall: WallTime(1_790_000_000_001),
        action: Action::Request(Request::put_service(
            "web".parse().unwrap(),
            Arc::new(spec),
            Precondition::Absent,
        )),
    };
    let mut state = State::default();
    state.apply(LogIndex(1), &command);
    frame("files/put-service", &Payload::Command(command));
    let is_spec = |record: &Record| matches!(record, Record::Spec { .. });
    frame("files/record", &state.records().find(is_spec).unwrap());
}

#[test]
fn a_snapshot_has_the_bytes_it_always_had_and_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(Arc::new(RealDisk), dir.path()).unwrap();
    let built = snapshots.build(&head(), state().records()).unwrap();
    same_as("state.snap", &std::fs::read(built.file.path()).unwrap());

    let kept = tempfile::tempdir().unwrap();
    let name = built.file.path().file_name().unwrap();
    std::fs::copy(fixture::path("state.snap"), kept.path().join(name)).unwrap();
    let current = Snapshots::open(Arc::new(RealDisk), kept.path())
        .unwrap()
        .current()
        .unwrap();
    let (read, restored) = current.file.load().unwrap();
    assert_eq!(read, head());
    assert_eq!(restored.digest(), state().digest());
}
