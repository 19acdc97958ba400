use raftserve_model::LogTime;
use raftserve_store::command::Action;

use super::*;
use crate::peer::wire::kept::{Kept, complete};

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

#[test]
fn messages_keep_their_bytes() {
    let kept = Kept::of(include_str!("../v1/raft.txt"));
    let (vote, id) = (
        Vote::from(RaftVote::new_committed(3, NodeId(2))),
        LogId::from(log_id(9)),
    );
    let other = Vote::from(RaftVote::new(4, NodeId(1)));
    let entries = [
        EntryPayload::Blank,
        command(2),
        EntryPayload::Membership(members()),
    ];
    let entries = entries
        .into_iter()
        .zip(10..)
        .map(|(payload, index)| openraft::Entry {
            log_id: log_id(index),
            payload,
        });
    let request = request(entries.collect());
    let packed = PackedAppend::new(request.clone());
    kept.message("append", &packed.head);
    kept.bytes("entries", &packed.entries, |kept| {
        let head: AppendHead = super::super::decode(&super::super::encode(&packed.head)).unwrap();
        head.unpack(kept).unwrap().entries == request.entries
    });
    let payloads = request
        .entries
        .into_iter()
        .map(|entry| Entry::from(entry).payload);
    complete(&payloads.collect::<Vec<_>>());
    kept.variants(
        "append reply",
        &[
            AppendReply::Success,
            AppendReply::Partial(Some(id)),
            AppendReply::Conflict,
            AppendReply::HigherVote(other),
        ],
    );
    let request = VoteRequest {
        vote,
        last: Some(id),
        transfer: true,
    };
    kept.message("vote request", &request);
    let reply = VoteReply {
        vote,
        granted: true,
        last: Some(id),
    };
    kept.message("vote reply", &reply);
    let request = TransferRequest {
        from: vote,
        to: NodeId(5),
        last: Some(id),
    };
    kept.message("transfer request", &request);
    let before = LogId::from(log_id(8));
    kept.variants(
        "transfer reply",
        &[
            TransferReply::Accepted,
            TransferReply::VoteChanged {
                expected: vote,
                actual: other,
            },
            TransferReply::LogNotFlushed {
                expected: Some(id),
                actual: Some(before),
            },
        ],
    );
    let cut = super::super::LogCut {
        vote,
        missing: id,
        acked: 8,
    };
    kept.message("log cut", &cut);
    let head = SnapshotHead {
        vote,
        last: Some(id),
        membership_at: Some(before),
        membership: Membership::from(&members()),
        bytes: 77,
        checksum: 78,
    };
    kept.message("snapshot head", &head);
    kept.variants(
        "snapshot answer",
        &[
            SnapshotAnswer::From(1),
            SnapshotAnswer::Has(2),
            SnapshotAnswer::Installing,
            SnapshotAnswer::Done(vote),
        ],
    );
    kept.finish();
}
