mod crash;
mod in_place;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use raftserve_model::{ClusterVersion, LogTime, ReplicaId, ServiceId, SessionKey};

use super::*;
use crate::command::{Action, Change, Command, Precondition, Request};
use crate::raft::{TypeConfig, log_id_to, membership_to, vote_to};
use crate::state::{Phase, REPLICA_NUMBERS_SKIPPED};
use crate::wal::EncodedEntry;

const PARENT: ClusterId = ClusterId([1; 16]);
const CHILD: ClusterId = ClusterId([2; 16]);
const GRANDCHILD: ClusterId = ClusterId([3; 16]);
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

/// Its log has nothing yet that could be missed.
#[test]
fn what_was_begun_is_refused_without_its_state() {
    let (dir, _) = begun(Claim::Fork);
    let snapshots = dir.path().join(SNAPSHOT_DIR);
    let file = std::fs::read_dir(snapshots).unwrap().next().unwrap();
    let file = file.unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for _ in 0..2 {
        let mut data = DataDir::open(dir.path()).unwrap();
        let refused = Store::default().open(&mut data).map(drop);
        assert!(matches!(refused, Err(OpenError::Snapshot(_))));
    }
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
    assert_eq!(
        (begun.cluster, begun.node.0),
        (CHILD, begun.lineage.began.0)
    );
    let opened = opened(dir.path());
    let head = opened.reader.load().head();
    let last = head.last.unwrap();
    assert_eq!((last.index, last.term), (begun.lineage.began, 8));
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
            began: begun.lineage.began
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

    let generation = raftserve_model::Generation(begun.lineage.began.0 + 1);
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
    for (index, action) in (begun.lineage.began.0 + 1..).zip([start, create, started, ready, bind])
    {
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
    assert!(session.epoch > begun.lineage.began);
}

#[test]
fn watches_of_the_parent_are_told_to_begin_anew() {
    let (dir, begun) = begun(Claim::TakeOver);
    let state = opened(dir.path()).reader.state();
    for seen in [0, 8, 9, begun.lineage.began.0 - 1] {
        let compacted = state.events_after(LogIndex(seen)).err();
        assert_eq!(
            compacted.map(|it| it.upto),
            Some(begun.lineage.began),
            "{seen}"
        );
    }
    assert_eq!(state.events_after(begun.lineage.began).unwrap().count(), 0);
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

/// One above all that this release supports.
fn too_new() -> ClusterVersion {
    ClusterVersion(SUPPORTED.newest.0 + 1)
}

/// Names the version and the remedy.
fn assert_unsupported(error: &RestoreError) {
    let RestoreError::Unsupported(source) = error else {
        panic!("{error}");
    };
    let (said, version) = (source.to_string(), too_new());
    let remedy = format!("run a release that supports version {version}");
    assert!(said.contains(&remedy), "{said}");
}

#[test]
fn a_survivor_whose_log_raised_the_version_is_left_to_a_release_that_knows_it() {
    let (dir, begun) = begun(Claim::TakeOver);
    let mut opened = opened(dir.path());
    write_one(
        &mut opened,
        1,
        Action::RaiseVersion {
            version: SUPPORTED.newest,
        },
    );
    write_one(&mut opened, 2, Action::OpenClient);
    drop(opened);
    let known = Survivor::read(dir.path()).unwrap().parent;
    assert_eq!(known.last.index.0, begun.lineage.began.0 + 2);

    let mut opened = self::opened(dir.path());
    write_one(&mut opened, 3, Action::RaiseVersion { version: too_new() });
    // The leader went on, in the words of a later release.
    let id = LogId {
        index: LogIndex(begun.lineage.began.0 + 4),
        ..opened.reader.last().unwrap()
    };
    let unknown = codec::encode_as(crate::formats::FRAME + 1, &7_u32).unwrap();
    let entry = EncodedEntry::new(id, |buffer| {
        buffer.extend_from_slice(&unknown);
        Ok::<(), std::io::Error>(())
    });
    let (told, written) = tokio::sync::oneshot::channel();
    let appending = opened
        .wal
        .append(vec![entry.unwrap()], |it| told.send(it).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    runtime.block_on(appending).unwrap();
    runtime.block_on(written).unwrap().unwrap();
    drop(opened);
    let before = contents(dir.path());
    let error = Survivor::read(dir.path()).unwrap_err();
    assert_unsupported(&error);
    assert!(contents(dir.path()) == before);
}

#[test]
fn a_snapshot_of_a_later_version_is_read_and_no_cluster_begins_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(Arc::new(crate::disk::RealDisk), dir.path()).unwrap();
    let parent = parent();
    let read_at = |index, version| {
        let mut state = (*parent.state).clone();
        let index = LogIndex(index);
        state.apply(index, &command(Action::RaiseVersion { version }));
        let last = Some(LogId {
            index,
            ..parent.last
        });
        let head = SnapshotHead {
            last,
            ..Default::default()
        };
        let built = snapshots.build(&head, state.records()).unwrap();
        Parent::in_file(built.file.path()).unwrap()
    };
    read_at(9, SUPPORTED.newest).check_version().unwrap();
    let later = read_at(10, too_new());
    assert_eq!(later.last.index, LogIndex(10));
    let target = tempfile::tempdir().unwrap();
    let target = EmptyDir::take(target.path()).unwrap();
    let refused = begin(&later, &beginning(Claim::Fork), target).unwrap_err();
    for error in [refused, later.check_version().unwrap_err()] {
        assert_unsupported(&error);
    }
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
    std::fs::write(file("snap/09999999999999999999-1-1.snap"), "damaged").unwrap();
    std::fs::write(file("CHECKPOINT"), "a marker").unwrap();
    std::fs::write(file("LOCK"), "1234\n").unwrap();
    let before = contents(dir.path());
    let survivor = Survivor::read(dir.path()).unwrap();
    assert_eq!(survivor.node, begun.node);
    assert_eq!(survivor.parent.last.index, begun.lineage.began);
    let busy = DataDir::open(dir.path()).unwrap_err();
    assert!(matches!(busy, IdentityError::Locked { .. }), "{busy}");
    drop(survivor);
    assert!(contents(dir.path()) == before);
}

/// A survivor in `peer` of a volume, and what recovers it there.
fn in_place() -> (tempfile::TempDir, PathBuf, InPlace) {
    let volume = tempfile::tempdir().unwrap();
    let place = volume.path().join("peer");
    let target = EmptyDir::take(&place).unwrap();
    begin(&parent(), &beginning(Claim::TakeOver), target).unwrap();
    let recovery = InPlace::new(&place, CHILD);
    (volume, place, recovery)
}

/// Of a cluster that takes `CHILD` over.
fn recovered() -> Beginning {
    Beginning {
        cluster: GRANDCHILD,
        unix_ms: NOW + DAY,
        ..beginning(Claim::TakeOver)
    }
}

fn cluster_in(dir: &Path) -> ClusterId {
    Survivor::read(dir).unwrap().parent.cluster
}

#[test]
fn a_recovery_in_place_that_was_interrupted_goes_on_where_it_was() {
    let (_volume, place, recovery) = in_place();
    let recover = || recovery.recover(Survivor::read(&place).unwrap(), &recovered());
    let finish = || recovery.finish(&Survivor::read(&place).unwrap()).unwrap();
    assert_eq!(finish(), None, "nothing was begun");

    // What is made is not whole, or was not yet moved.
    std::fs::create_dir_all(recovery.made().join("wal")).unwrap();
    for name in ["UNFINISHED", "NODE.tmp", "wal/00000001.wal"] {
        std::fs::write(recovery.made().join(name), "half").unwrap();
    }
    let begun = recover().unwrap();
    assert_eq!(
        (cluster_in(&place), cluster_in(recovery.aside())),
        (GRANDCHILD, CHILD)
    );
    assert!(!recovery.made().exists());
    assert_eq!(finish(), Some(begun), "it was done");

    // The old data was not put aside.
    std::fs::rename(recovery.aside(), recovery.made()).unwrap();
    assert_eq!(finish(), Some(begun));
    assert_eq!(
        (cluster_in(&place), cluster_in(recovery.aside())),
        (GRANDCHILD, CHILD)
    );
    assert!(!recovery.made().exists());

    // The new data did not get the place.
    std::fs::rename(&place, recovery.made()).unwrap();
    std::fs::rename(recovery.aside(), &place).unwrap();
    assert_eq!(finish(), None);
    let again = recover().unwrap();
    assert_eq!(again.lineage, begun.lineage, "as if it was the first time");
    assert_eq!(
        (cluster_in(&place), cluster_in(recovery.aside())),
        (GRANDCHILD, CHILD)
    );
}

#[test]
fn a_recovery_in_place_removes_nothing_that_is_not_its_own_or_was_used() {
    let (_volume, place, recovery) = in_place();
    let made = recovery.made().to_owned();
    let recover = || recovery.recover(Survivor::read(&place).unwrap(), &recovered());
    let unmoved = |error: RestoreError| {
        assert_eq!(cluster_in(&place), CHILD, "{error}");
        error
    };
    std::fs::create_dir_all(made.join("letters")).unwrap();
    let error = unmoved(recover().unwrap_err());
    let foreign = matches!(
        error,
        RestoreError::Directory(IdentityError::NotEmpty { .. })
    );
    assert!(foreign && made.join("letters").exists(), "{error}");
    std::fs::remove_dir_all(&made).unwrap();

    // A peer ran on it, and wrote.
    let target = EmptyDir::take(&made).unwrap();
    let child = Survivor::read(&place).unwrap().parent;
    begin(&child, &recovered(), target).unwrap();
    let mut peer = DataDir::open(&made).unwrap();
    let error = unmoved(recover().unwrap_err());
    let locked = matches!(error, RestoreError::Directory(IdentityError::Locked { .. }));
    assert!(locked, "{error}");
    let mut opened = Store::default().open(&mut peer).unwrap();
    write_one(&mut opened, 1, Action::OpenClient);
    drop((opened, peer));
    let error = unmoved(recover().unwrap_err());
    assert!(matches!(error, RestoreError::GoneOn { .. }), "{error}");
    assert_eq!(cluster_in(&made), GRANDCHILD);
    std::fs::remove_dir_all(&made).unwrap();

    std::fs::create_dir(recovery.aside()).unwrap();
    let error = unmoved(recover().unwrap_err());
    assert!(matches!(error, RestoreError::Occupied { .. }), "{error}");
}

/// Writes an entry to the log, `after` many after what is applied.
fn write_one(opened: &mut crate::store::Opened, after: u64, action: Action) {
    let last = opened.reader.last().unwrap();
    let next = LogId {
        index: LogIndex(last.index.0 + after),
        ..last
    };
    let payload = openraft::EntryPayload::Normal(command(action));
    let entry: openraft::alias::EntryOf<TypeConfig> =
        openraft::entry::RaftEntry::new(log_id_to(next), payload);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let appended = opened.log.blocking_append([entry]);
    runtime.unwrap().block_on(appended).unwrap();
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
    assert!(!dir.path().join("UNFINISHED").exists());
    for last in ["FORMAT", "NODE"] {
        // In the opposite order of writing.
        std::fs::remove_file(dir.path().join(last)).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Foreign { .. }), "{error}");
    }
}
