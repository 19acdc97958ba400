mod crash;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use raftserve_model::{LogTime, ReplicaId, ServiceId, SessionKey};

use super::*;
use crate::command::{Action, Change, Command, Precondition, Request};
use crate::raft::{TypeConfig, log_id_to, membership_to, vote_to};
use crate::state::{Phase, REPLICA_NUMBERS_SKIPPED};

const PARENT: ClusterId = ClusterId([1; 16]);
const CHILD: ClusterId = ClusterId([2; 16]);
/// In November 2026, in milliseconds.
const NOW: u64 = 1_795_000_000_000;
const SECOND: u64 = 1_000;
const DAY: u64 = 24 * 3600 * SECOND;

fn beginning(claim: Claim) -> Beginning {
    Beginning {
        cluster: CHILD,
        claim,
        unix_ms: NOW,
        address: "127.0.0.1:7001".to_owned(),
    }
}

/// A cluster's commands, in order: a service with one ready replica and one session, and a client session.
fn history() -> Vec<Action> {
    let yaml = "service:\n  readiness_probe: /\n  replicas: 1\nresources:\n  ports: 8080\nrun: serve\n\
                _metadata:\n  raftserve:\n    session_affinity: {header: x-session}\n";
    let spec = raftserve_model::spec::ServiceSpec::parse(yaml, Default::default())
        .expect("a good specification");
    let service = ServiceId(3);
    let replica = ReplicaId { service, number: 1 };
    let generation = raftserve_model::Generation(4);
    let control = |change| Action::Control {
        generation,
        changes: vec![change],
    };
    vec![
        Action::InitCluster { cluster: PARENT },
        Action::OpenClient,
        Action::Client {
            client: LogIndex(2),
            sequence: 1,
            acknowledged: 0,
            request: Request::PutService {
                name: "web".parse().unwrap(),
                spec: Arc::new(spec.spec),
                precondition: Precondition::Any,
            },
        },
        Action::StartControl {
            node: NodeId(1),
            incarnation: raftserve_model::Incarnation(7),
        },
        control(Change::Create {
            service,
            version: raftserve_model::ServiceVersion(1),
            port: 10_000,
        }),
        control(Change::Started {
            replica,
            address: "127.0.0.1:10000".to_owned(),
        }),
        control(Change::Ready { replica }),
        Action::BindSessions {
            service,
            keys: vec![SessionKey::of(ServiceId(3), b"key")],
        },
    ]
}

fn command(action: Action) -> Command {
    Command::at(LogTime::default(), action)
}

fn parent() -> Parent {
    let mut state = State::default();
    for (index, action) in (1..).zip(history()) {
        state.apply(LogIndex(index), &command(action));
    }
    Parent {
        cluster: PARENT,
        last: LogId {
            term: 7,
            node: NodeId(2),
            index: LogIndex(8),
        },
        membership: Membership::default(),
        state: Arc::new(state),
    }
}

fn begun(claim: Claim) -> (tempfile::TempDir, Begun) {
    let dir = tempfile::tempdir().unwrap();
    let target = EmptyDir::take(dir.path()).unwrap();
    let begun = begin(&parent(), &beginning(claim), target).unwrap();
    (dir, begun)
}

fn opened(path: &Path) -> crate::store::Opened {
    Store::default()
        .open(&mut DataDir::open(path).unwrap())
        .unwrap()
}

#[test]
fn a_new_log_begins_after_everything_that_was_published() {
    let from = |last, written, now| first_index(LogIndex(last), written, now).0;
    // However old the state is, and however fast its cluster went on writing.
    assert!(from(8, NOW - 60 * DAY, NOW) > 8 + 60 * 24 * 3600 * 10_000);
    // A clock that is far behind, or a log that is far ahead.
    assert_eq!(from(8, NOW, 0), 8 + INDEX_GAP_MIN);
    let ahead = from(8, NOW, NOW) + 5;
    assert!(from(ahead, NOW, NOW) >= ahead + INDEX_GAP_MIN);
    // Numbers that JSON carries exactly, for centuries.
    assert!(from(8, NOW, NOW + 500 * 365 * DAY) < 1 << 53);
}

/// Of a cluster of old, of one that was itself begun minutes before, of one that is ahead of the calendar, and of one
/// whose clock went wrong.
#[test]
fn two_logs_that_begin_with_the_same_state_never_overlap() {
    let begun = first_index(LogIndex(8), NOW - DAY, NOW).0;
    let minute = 60 * SECOND;
    let states = [
        (8, NOW - DAY),
        (begun + 171, NOW + minute),
        (begun + (1 << 33), NOW + minute),
        (begun + 171, 0),
    ];
    let pauses = [20, SECOND, minute, DAY, 365 * DAY];
    for (last, written) in states {
        for pause in pauses {
            let mut now = NOW + 5 * minute;
            let mut former = first_index(LogIndex(last), written, now).0;
            for _ in 0..3 {
                now += pause;
                let next = first_index(LogIndex(last), written, now).0;
                let published = pause * INDEXES_PER_SECOND / 1_000 - 1;
                assert!(next >= former + published, "{last} {written} {pause}");
                former = next;
            }
        }
    }
    // An older state after a newer one, which turned out to be of no use.
    let newer = first_index(LogIndex(begun + 10_000_000), NOW + DAY, NOW + 2 * DAY);
    let older = first_index(LogIndex(begun + 171), NOW + minute, NOW + 2 * DAY + minute);
    assert!(older.0 > newer.0 + 60 * 10_000);
}

#[test]
fn the_new_cluster_is_one_voter_that_was_never_known_before() {
    let (dir, begun) = begun(Claim::TakeOver);
    let identity = DataDir::open(dir.path()).unwrap().identity();
    let Identity::Member { nonce, .. } = identity else {
        panic!("{identity:?}");
    };
    assert_eq!(
        identity,
        Identity::Member {
            nonce,
            cluster: CHILD,
            node: begun.node
        }
    );
    assert_eq!((begun.cluster, begun.node.0), (CHILD, begun.index.0));
    let opened = opened(dir.path());
    let head = opened.reader.load().head();
    let last = head.last.unwrap();
    assert_eq!((last.index, last.term), (begun.index, 8));
    assert_eq!(head.membership.membership.configs, [[begun.node].into()]);
    let record = &head.membership.membership.nodes[&begun.node];
    assert_eq!(record.nonce, nonce);
    // No election may be held in a term that the state has seen.
    assert_eq!(opened.wal.vote().map(|vote| vote.term), Some(last.term));
}

#[test]
fn a_take_over_keeps_services_replicas_sessions_and_clients() {
    let (dir, begun) = begun(Claim::TakeOver);
    let (old, new) = (parent().state, opened(dir.path()).reader.state());
    assert_eq!(new.cluster(), Some(CHILD));
    assert_eq!(
        new.lineage(),
        Some(Lineage {
            parent: PARENT,
            parent_index: LogIndex(8),
            claim: Claim::TakeOver,
            began: begun.index
        })
    );
    let replicas = |state: &State| state.replicas().cloned().collect::<Vec<_>>();
    assert_eq!(replicas(&new), replicas(&old));
    let sessions = |state: &State| {
        let sessions = state.sessions_of(ServiceId(3), None);
        sessions.map(|(key, it)| (*key, *it)).collect::<Vec<_>>()
    };
    assert_eq!(sessions(&new), sessions(&old));
    assert_eq!(sessions(&new).len(), 1);
    assert_eq!((new.client_count(), old.client_count()), (1, 1));
    let service = |state: &State| (**state.service(ServiceId(3)).unwrap()).clone();
    let renumbered = crate::state::Service {
        next_number: REPLICA_NUMBERS_SKIPPED + 1,
        ..service(&old)
    };
    assert_eq!(service(&new), renumbered);
}

#[test]
fn a_fork_leaves_the_replicas_behind_and_moves_their_sessions() {
    let (dir, begun) = begun(Claim::Fork);
    let mut state = (*opened(dir.path()).reader.state()).clone();
    assert_eq!(state.lineage().map(|it| it.claim), Some(Claim::Fork));
    assert_eq!(state.replicas().count(), 0);
    assert_eq!(state.session_count(ServiceId(3)), 1);

    let generation = raftserve_model::Generation(begun.index.0 + 1);
    let service = ServiceId(3);
    let number = state.service(service).unwrap().next_number;
    let replica = ReplicaId { service, number };
    let control = |change| Action::Control {
        generation,
        changes: vec![change],
    };
    let start = Action::StartControl {
        node: begun.node,
        incarnation: raftserve_model::Incarnation(9),
    };
    let create = control(Change::Create {
        service,
        version: raftserve_model::ServiceVersion(1),
        port: 10_001,
    });
    let started = control(Change::Started {
        replica,
        address: "127.0.0.1:10001".to_owned(),
    });
    let ready = control(Change::Ready { replica });
    let bind = Action::BindSessions {
        service,
        keys: vec![SessionKey::of(ServiceId(3), b"key")],
    };
    for (index, action) in (begun.index.0 + 1..).zip([start, create, started, ready, bind]) {
        state.apply(LogIndex(index), &command(action));
    }
    assert_eq!(
        state.replica(replica).map(|it| &it.phase),
        Some(&Phase::Ready)
    );
    let session = state
        .session(service, &SessionKey::of(ServiceId(3), b"key"))
        .unwrap();
    assert_eq!(session.replica, replica);
    assert!(session.epoch > begun.index);
}

#[test]
fn watches_of_the_parent_are_told_to_begin_anew() {
    let (dir, begun) = begun(Claim::TakeOver);
    let state = opened(dir.path()).reader.state();
    for seen in [0, 8, 9, begun.index.0 - 1] {
        let compacted = state.events_after(LogIndex(seen)).err();
        assert_eq!(compacted.map(|it| it.upto), Some(begun.index), "{seen}");
    }
    assert_eq!(state.events_after(begun.index).unwrap().count(), 0);
}

#[tokio::test]
async fn a_survivor_is_read_with_all_of_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = DataDir::open(dir.path()).unwrap();
    data.join(PARENT, NodeId(2)).unwrap();
    let mut opened = Store::default().open(&mut data).unwrap();
    let vote = Vote {
        term: 7,
        node: NodeId(1),
        committed: true,
    };
    opened.log.save_vote(&vote_to(vote)).await.unwrap();
    let id = |index| LogId {
        term: 7,
        node: NodeId(1),
        index: LogIndex(index),
    };
    use openraft::entry::RaftEntry;
    type Entry = openraft::alias::EntryOf<TypeConfig>;
    let members = Membership {
        configs: vec![[NodeId(1), NodeId(2)].into()],
        nodes: [
            (NodeId(1), PeerRecord::default()),
            (NodeId(2), PeerRecord::default()),
        ]
        .into(),
    };
    let membership = openraft::EntryPayload::Membership(membership_to(members.clone()).unwrap());
    let mut entries = vec![Entry::new(log_id_to(id(0)), membership)];
    for (index, action) in (1..).zip(history()) {
        let payload = openraft::EntryPayload::Normal(command(action));
        entries.push(Entry::new(log_id_to(id(index)), payload));
    }
    opened.log.blocking_append(entries).await.unwrap();
    // Nothing of it is known to be committed here.
    assert_eq!(opened.machine.applied_state().await.unwrap().0, None);

    let busy = Survivor::read(dir.path()).unwrap_err();
    let locked = matches!(busy, RestoreError::Directory(IdentityError::Locked { .. }));
    assert!(locked, "{busy}");
    drop((opened, data));

    let survivor = Survivor::read(dir.path()).unwrap();
    assert_eq!(
        (survivor.node, survivor.parent.cluster),
        (NodeId(2), PARENT)
    );
    assert_eq!(survivor.parent.last, id(8));
    assert_eq!(survivor.parent.membership, members);
    assert_eq!(survivor.parent.state.digest(), parent().state.digest());
}

/// Every file beneath `dir`, and what is in it.
fn contents(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => drop(found.insert(path.clone(), std::fs::read(path).unwrap())),
            }
        }
    }
    found
}

#[test]
fn reading_a_survivor_changes_nothing_not_even_what_is_damaged() {
    let (dir, begun) = begun(Claim::TakeOver);
    drop(opened(dir.path()));
    let file = |name: &str| dir.path().join(name);
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    flip(file("wal/00000001.wal"));
    std::fs::write(file("snap/7.tmp"), "half").unwrap();
    std::fs::write(file("snap/99999999999999999999-1-1.snap"), "damaged").unwrap();
    std::fs::write(file("CHECKPOINT"), "a marker").unwrap();
    std::fs::write(file("LOCK"), "1234\n").unwrap();
    let before = contents(dir.path());
    let survivor = Survivor::read(dir.path()).unwrap();
    assert_eq!(survivor.node, begun.node);
    assert_eq!(survivor.parent.last.index, begun.index);
    let busy = DataDir::open(dir.path()).unwrap_err();
    assert!(matches!(busy, IdentityError::Locked { .. }), "{busy}");
    drop(survivor);
    assert!(contents(dir.path()) == before);
}

/// The node of the member whose data is in `dir`.
fn node_in(dir: &Path) -> NodeId {
    Survivor::read(dir).unwrap().node
}

#[test]
fn where_the_new_data_takes_the_old_ones_place_a_failure_tells_which_is_where() {
    let volume = tempfile::tempdir().unwrap();
    let [place, made] = ["peer", "peer.recovered"].map(|name| volume.path().join(name));
    let filled = |dir: &Path, unix_ms| {
        let beginning = Beginning {
            unix_ms,
            ..beginning(Claim::TakeOver)
        };
        let target = EmptyDir::take(dir).unwrap();
        begin(&parent(), &beginning, target).unwrap().node
    };
    let (old, new) = (filled(&place, NOW), filled(&made, NOW + DAY));
    let survivor = || Survivor::read(&place).unwrap();
    let aside = volume.path().join("peer.of-1");

    let missing = volume.path().join("missing");
    let error = take_place(survivor(), &missing, &aside).unwrap_err();
    assert!(matches!(error, RestoreError::Place { .. }), "{error}");
    assert_eq!((node_in(&place), node_in(&made)), (old, new));

    let nowhere = volume.path().join("missing/peer.of-1");
    let error = take_place(survivor(), &made, &nowhere).unwrap_err();
    let RestoreError::Aside { left, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((node_in(&place), node_in(left)), (new, old));

    take_place(survivor(), &made, &aside).unwrap();
    assert_eq!((node_in(&place), node_in(&aside)), (old, new));
    assert!(!made.exists());
}

#[test]
fn what_is_no_survivor_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for path in [dir.path(), &missing] {
        let error = Survivor::read(path).unwrap_err();
        assert!(matches!(error, RestoreError::NoMember { .. }), "{error}");
    }
    assert!(!missing.exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn only_an_empty_directory_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter"), "dear").unwrap();
    let error = EmptyDir::take(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::NotEmpty { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let member = dir.path().join("member");
    let running = DataDir::open(&member).unwrap();
    let error = EmptyDir::take(&member).unwrap_err();
    assert!(matches!(error, IdentityError::Locked { .. }), "{error}");
    drop(running);
    let error = EmptyDir::take(&member).unwrap_err();
    assert!(matches!(error, IdentityError::NotEmpty { .. }), "{error}");
}

#[test]
fn a_directory_that_was_not_filled_to_the_end_is_refused_by_every_start() {
    let (dir, _) = begun(Claim::TakeOver);
    for last in ["FORMAT", "NODE"] {
        // In the opposite order of writing.
        std::fs::remove_file(dir.path().join(last)).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Foreign { .. }), "{error}");
    }
}
