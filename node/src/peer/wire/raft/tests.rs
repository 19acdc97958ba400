use raftserve_model::LogTime;
use raftserve_store::command::Action;

use super::*;

fn log_id(index: u64) -> RaftLogId {
    LogId {
        term: 3,
        node: NodeId(2),
        index,
    }
    .into()
}

fn request(entries: Vec<RaftEntry>) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: RaftVote::new_committed(3, NodeId(2)),
        prev_log_id: Some(log_id(9)),
        entries,
        leader_commit: Some(log_id(8)),
    }
}

fn members() -> RaftMembership<NodeId, PeerRecord> {
    let nodes = [1, 2, 3].map(|id| {
        let record = PeerRecord {
            nonce: id * 11,
            address: format!("peer-{id}:7001"),
        };
        (NodeId(id), record)
    });
    let voters = BTreeSet::from([1, 2, 3].map(NodeId));
    RaftMembership::new(vec![voters], BTreeMap::from(nodes)).unwrap()
}

fn command(bytes: usize) -> EntryPayload<Command, NodeId, PeerRecord> {
    let change = raftserve_store::command::Change::CleanupFailed {
        replica: raftserve_model::ReplicaId::default(),
        reason: "x".repeat(bytes),
    };
    let action = Action::Control {
        generation: raftserve_model::Generation(1),
        changes: vec![change],
    };
    EntryPayload::Normal(Command::at(LogTime(5), action))
}

#[test]
fn an_append_survives_the_wire() {
    let payloads = [
        EntryPayload::Blank,
        command(10),
        EntryPayload::Membership(members()),
    ];
    let entries: Vec<RaftEntry> = payloads
        .into_iter()
        .zip(10..)
        .map(|(payload, index)| openraft::Entry {
            log_id: log_id(index),
            payload,
        })
        .collect();
    let packed = PackedAppend::new(request(entries.clone()));
    assert_eq!(packed.cut_after, None);
    let unpacked = packed.head.unpack(&packed.entries).unwrap();
    assert_eq!(unpacked.entries, entries);
    assert_eq!(unpacked.vote, request(Vec::new()).vote);
    assert_eq!(unpacked.prev_log_id, Some(log_id(9)));
    assert_eq!(unpacked.leader_commit, Some(log_id(8)));
}

#[test]
fn an_append_is_cut_to_fit_one_message() {
    let entries: Vec<RaftEntry> = (10..15)
        .map(|index| openraft::Entry {
            log_id: log_id(index),
            payload: command(APPEND_BYTES_MAX / 3),
        })
        .collect();
    let packed = PackedAppend::new(request(entries.clone()));
    assert!(packed.entries.len() <= APPEND_BYTES_MAX);
    assert_eq!(packed.cut_after, Some(log_id(11)));
    let unpacked = packed.head.unpack(&packed.entries).unwrap();
    assert_eq!(unpacked.entries, entries[..2]);
}

#[test]
fn damaged_entries_are_refused() {
    let entry = openraft::Entry {
        log_id: log_id(10),
        payload: command(10),
    };
    let packed = PackedAppend::new(request(vec![entry]));
    let short = &packed.entries[..packed.entries.len() - 1];
    assert!(matches!(
        packed.head.clone().unpack(short),
        Err(EntryError::Wire { place: 0, .. })
    ));
    let long = [&packed.entries[..], &[0]].concat();
    assert!(matches!(
        packed.head.unpack(&long),
        Err(EntryError::Trailing(1))
    ));
}

#[test]
fn a_snapshot_head_survives_the_wire() {
    let meta = openraft::alias::SnapshotMetaOf::<TypeConfig> {
        last_log_id: Some(log_id(40)),
        last_membership: Stored::new(Some(log_id(1)), members()),
    };
    let vote = RaftVote::new_committed(3, NodeId(2));
    let head = SnapshotHead::new(vote, &meta, 77, 78);
    let read: SnapshotHead = super::super::decode(&super::super::encode(&head)).unwrap();
    assert_eq!((read.id().size, read.id().checksum), (77, 78));
    assert_eq!(read.meta().unwrap(), meta);
}

/// Peers of neighbouring releases talk to each other: a change here needs a new frame version.
#[test]
fn version_1_keeps_its_bytes() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let entries = [EntryPayload::Blank, EntryPayload::Membership(members())];
    let entries = entries
        .into_iter()
        .zip(10..)
        .map(|(payload, index)| openraft::Entry {
            log_id: log_id(index),
            payload,
        });
    let packed = PackedAppend::new(request(entries.collect()));
    assert_eq!(
        hex(&super::super::encode(&packed.head)),
        "01030201010302090103020802"
    );
    assert_eq!(
        hex(&packed.entries),
        "03020a0003020b02010301020303010b0b706565722d313a3730303102160b706565722d323a3730303103210b706565722d333a37303031"
    );
    let vote = openraft::raft::VoteRequest::new(RaftVote::new(3, NodeId(2)), Some(log_id(9)));
    assert_eq!(
        hex(&super::super::encode(&VoteRequest::from(vote))),
        "010302000103020900"
    );
}
