use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::{EntryPayload, Vote};
use raftserve_model::LogTime;
use raftserve_store::Command;
use raftserve_store::raft::PeerRecord;

use super::*;

/// A follower takes as much of an append as fits one message, and the leader hears how much that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_above_one_message_is_answered_for_what_was_sent() {
    let places = Places::new(3);
    let cluster = ClusterId([5; 16]);
    let mut dir = DataDir::open(places.0[1].folder.path()).unwrap();
    dir.join(cluster, NodeId(2)).unwrap();
    drop(dir);
    let follower = places.start(1).await;

    let me = Caller {
        cluster,
        target: NodeId(1),
        node: NodeId(1),
        nonce: 1,
        life: None,
    };
    let record = PeerRecord {
        nonce: 2,
        address: places.0[1].address.clone(),
    };
    let directory = Arc::new(Directory::new(cluster, NodeId(1)));
    directory.set_roster(directory::Roster {
        decided_at: None,
        members: [(NodeId(2), record.clone())].into(),
    });
    let links = Arc::new(Links::new(
        me,
        None,
        Dialer::default(),
        directory,
        Handle::current(),
    ));
    let mut network = Network::new(NodeId(1), links, Arc::default());
    let mut wire = network.new_client(NodeId(2), &record).await;

    let vote = Vote::new_committed(1, NodeId(1));
    let members = openraft::Membership::new(
        vec![[NodeId(1), NodeId(2)].into()],
        std::collections::BTreeMap::from([(NodeId(1), record.clone()), (NodeId(2), record)]),
    );
    let bulky = EntryPayload::Normal(Command::at(
        LogTime(1),
        leading::bulky(wire::APPEND_BYTES_MAX / 2),
    ));
    let payloads = [
        EntryPayload::Membership(members.unwrap()),
        bulky.clone(),
        bulky.clone(),
        bulky,
    ];
    let entries = payloads.into_iter().zip(0..).map(|(payload, index)| {
        let leader_id = vote.leader_id;
        openraft::Entry {
            log_id: openraft::LogId { leader_id, index },
            payload,
        }
    });
    let request = AppendEntriesRequest {
        vote,
        prev_log_id: None,
        entries: entries.collect(),
        leader_commit: None,
    };
    let answer = wire
        .append_entries(request, RPCOption::new(PATIENCE))
        .await
        .unwrap();
    let AppendEntriesResponse::PartialSuccess(Some(upto)) = answer else {
        panic!("{answer}");
    };
    assert_eq!(upto.index, 1);
    let held = follower.core.raft.wait(Some(PATIENCE));
    held.log_index(Some(1), "what was sent").await.unwrap();
    follower.stop().await;
}
