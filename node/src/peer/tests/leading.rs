use std::sync::Arc;

use raftserve_model::LogIndex;
use raftserve_store::command::Request;
use raftserve_store::state::KvCondition;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_peer_takes_a_proposal_and_every_peer_reads_it() {
    let places = Places::new(3);
    let peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let mut last = LogIndex(0);
    for (count, place) in [leader, (leader + 1) % 3, (leader + 2) % 3]
        .into_iter()
        .enumerate()
    {
        let LogIndexed(index) = open_client(peers[place].as_ref().unwrap()).await;
        assert!(index > last);
        last = index;
        for peer in peers.iter().flatten() {
            assert_eq!(clients_seen_by(peer).await, count + 1);
            assert!(*peer.consensus().applied().borrow() >= index);
        }
    }
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_returns_as_the_same_peer() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let first = leader_of(&peers).await;
    let stopped = peers[first].take().unwrap();
    open_client(&stopped).await;
    let (id, cluster) = (stopped.node_id(), stopped.cluster_id());
    stopped.stop().await;

    let second = leader_of(&peers).await;
    assert_ne!(first, second);
    open_client(peers[3 - first - second].as_ref().unwrap()).await;

    let back = places.start(first).await;
    assert_eq!((back.node_id(), back.cluster_id()), (id, cluster));
    assert_eq!(clients_seen_by(&back).await, 2);
    peers[first] = Some(back);
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_restarts_with_its_state() {
    let places = Places::new(3);
    let peers = places.start_all().await;
    let cluster = peers[0].cluster_id();
    open_client(&peers[1]).await;
    stop_all(living(peers)).await;

    let peers = places.start_all().await;
    for (peer, id) in peers.iter().zip(1..) {
        assert_eq!((peer.cluster_id(), peer.node_id()), (cluster, NodeId(id)));
        assert_eq!(clients_seen_by(peer).await, 1);
        named(peer).await;
    }
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_calls_end_in_their_time_and_say_what_is_known() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    for place in [(leader + 1) % 3, (leader + 2) % 3] {
        peers[place].take().unwrap().stop().await;
    }
    let alone = peers[leader].as_ref().unwrap().consensus();
    let mut leadership = alone.leadership();
    within(leadership.wait_for(|now| !now.is_self && now.leader.is_none()))
        .await
        .unwrap();

    let short = Duration::from_millis(300);
    let began = Instant::now();
    let refused = alone.propose(Action::OpenClient, short).await;
    assert!(matches!(refused, Err(ProposeError::NotProposed { .. })));
    let refused = alone.propose_as_leader(Action::OpenClient, short).await;
    assert!(matches!(refused, Err(ProposeError::NotProposed { .. })));
    assert!(alone.read_barrier(short).await.is_err());
    assert!(alone.transfer_leader(None, short).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(10));
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_cut_off_from_the_quorum_has_an_unknown_outcome() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let consensus = peers[leader].as_ref().unwrap().consensus();
    // A leader that has not written anything yet proposes nothing.
    open_client(peers[leader].as_ref().unwrap()).await;
    let proposing = tokio::spawn(async move {
        loop {
            let proposed = consensus
                .propose(Action::OpenClient, Duration::from_millis(500))
                .await;
            if let Err(error) = proposed {
                return error;
            }
        }
    });
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let stopping = others.map(|place| peers[place].take().unwrap().stop());
    futures_util::future::join_all(stopping).await;
    // The first to fail was on its way when the quorum went.
    let error = within(proposing).await.unwrap();
    assert!(
        matches!(error, ProposeError::OutcomeUnknown { .. }),
        "{error}"
    );
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_at_the_request_of_any_peer() {
    let places = Places::new(3);
    let peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let heir = peers[(leader + 1) % 3].as_ref().unwrap();
    let asked = peers[(leader + 2) % 3].as_ref().unwrap();
    // A transfer needs an heir that the leader knows to be caught up.
    within(async {
        while asked
            .consensus()
            .transfer_leader(Some(heir.node_id()), PATIENCE)
            .await
            .is_err()
        {}
    })
    .await;
    let mut leadership = heir.consensus().leadership();
    within(leadership.wait_for(|now| now.is_self))
        .await
        .unwrap();
    open_client(asked).await;

    let stranger = asked
        .consensus()
        .transfer_leader(Some(NodeId(9)), PATIENCE)
        .await;
    assert!(stranger.unwrap_err().reason.contains("not a voter"));
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_learn_where_the_others_are_and_exchange_news() {
    struct Echo(tokio::sync::mpsc::Sender<(NodeId, Vec<u8>)>);
    impl ExchangeHandler for Echo {
        fn has_news(&self) -> bool {
            true
        }
        fn outgoing(&self) -> Vec<u8> {
            b"ping".to_vec()
        }
        fn incoming(&self, _: NodeId, body: &[u8]) -> Vec<u8> {
            [body, b"-pong"].concat()
        }
        fn reply(&self, from: NodeId, sent_at: std::time::Duration, body: &[u8]) {
            assert!(crate::clock::boot_time() - sent_at < PATIENCE);
            // When it is full, there is enough to see.
            let _ = self.0.try_send((from, body.to_vec()));
        }
    }
    let places = Places::new(3);
    let peers = places.start_all().await;
    let (heard, mut hears) = tokio::sync::mpsc::channel(64);
    let handler = Arc::new(Echo(heard));
    for peer in &peers {
        peer.set_exchange(Arc::clone(&handler) as Arc<dyn ExchangeHandler>);
    }
    let mut missing = std::collections::BTreeSet::from([1, 2, 3].map(NodeId));
    within(async {
        while !missing.is_empty() {
            let (from, body) = hears.recv().await.unwrap();
            // Empty until the other's handler is set.
            if body == b"ping-pong" {
                missing.remove(&from);
            }
        }
    })
    .await;
    let consensus = peers[0].consensus();
    let members = consensus.members();
    assert_eq!(members.len(), 3);
    for (place, member) in members.iter().enumerate() {
        assert_eq!(member.address, places.names()[place]);
        assert_eq!(member.admin_address, Some(format!("admin-{place}:7000")));
        assert!(member.voter && member.last_contact.is_some());
        let info = consensus.peer_info(member.id).unwrap();
        assert_eq!(info.proxy_address, format!("proxy-{place}:8080"));
    }
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_peer_is_a_cluster() {
    let places = Places::new(1);
    let peer = places.start(0).await;
    open_client(&peer).await;
    peer.stop().await;
    let peer = places.start(0).await;
    assert_eq!(clients_seen_by(&peer).await, 1);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_all_moved_at_once_find_each_other() {
    let mut places = Places::new(3);
    let peers = places.start_all().await;
    open_client(&peers[0]).await;
    stop_all(living(peers)).await;
    let elsewhere = Places::new(3);
    for (place, moved) in places.0.iter_mut().zip(elsewhere.0) {
        place.address = moved.address;
    }
    let peers = places.start_all().await;
    for peer in &peers {
        assert_eq!(clients_seen_by(peer).await, 1);
    }
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_away_for_too_long_is_sent_a_snapshot() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let away = (leader + 1) % 3;
    peers[away].take().unwrap().stop().await;
    let leading = peers[leader].as_ref().unwrap();
    let raft = &leading.core.raft;
    // The log is purged up to the older of two snapshots.
    for _ in 0..2 {
        let LogIndexed(index) = open_client(leading).await;
        raft.trigger().snapshot().await.unwrap();
        raft.wait(Some(PATIENCE))
            .metrics(
                |metrics| metrics.snapshot.is_some_and(|id| id.index >= index.0),
                "a snapshot",
            )
            .await
            .unwrap();
    }
    raft.trigger().purge_log(u64::MAX).await.unwrap();
    let metrics = raft
        .wait(Some(PATIENCE))
        .metrics(|metrics| metrics.purged.is_some(), "a purge")
        .await;
    let purged = metrics.unwrap().purged.unwrap();

    let back = places.start(away).await;
    assert_eq!(clients_seen_by(&back).await, 2);
    // Raft's core hears of it a moment after the state shows it.
    back.core
        .raft
        .wait(Some(PATIENCE))
        .metrics(
            |metrics| metrics.snapshot.is_some_and(|id| id.index >= purged.index),
            "the leader's snapshot",
        )
        .await
        .unwrap();
    assert_eq!(clients_seen_by(leading).await, 2);
    peers[away] = Some(back);
    stop_all(peers).await;
}

/// A command of about `bytes` bytes that changes nothing: no control has begun under its generation.
pub(super) fn bulky(bytes: usize) -> Action {
    Action::Control {
        generation: raftserve_model::Generation(u64::MAX),
        changes: vec![raftserve_store::command::Change::CleanupFailed {
            replica: raftserve_model::ReplicaId::default(),
            reason: "x".repeat(bytes),
        }],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_one_message_of_entries_reaches_a_peer_that_was_away() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let away = (leader + 1) % 3;
    peers[away].take().unwrap().stop().await;
    let asked = peers[(leader + 2) % 3].as_ref().unwrap().consensus();
    let large = wire::COMMAND_BYTES_MAX - 1024;
    for _ in 0..2 * wire::APPEND_BYTES_MAX / large {
        let proposed = asked.propose(bulky(large), PATIENCE).await;
        assert!(matches!(proposed, Ok((_, Outcome::Fenced { .. }))));
    }
    let too_large = asked
        .propose(bulky(wire::COMMAND_BYTES_MAX), PATIENCE)
        .await;
    assert!(matches!(too_large, Err(ProposeError::NotProposed { .. })));
    open_client(peers[leader].as_ref().unwrap()).await;

    peers[away] = Some(places.start(away).await);
    assert_eq!(clients_seen_by(peers[away].as_ref().unwrap()).await, 1);
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_written_wakes_nobody_who_looks_at_other_things() {
    let places = Places::new(1);
    let peer = places.start(0).await;
    named(&peer).await;
    let consensus = peer.consensus();
    let mut told_of_keys = 0;
    // It may be told with an entry that is applied together with it, such as one of the clock: hardly every time.
    const TIMES: u32 = 5;
    for _ in 0..TIMES {
        let mut news = consensus.news();
        news.mark_unchanged();
        let mut told = Vec::new();
        let follow = async {
            while news.changed().await.is_ok() {
                told.push(*news.borrow_and_update());
            }
        };
        let write = async {
            let put = Action::Request(Request::PutKey {
                key: "a".parse().unwrap(),
                value: Arc::from(*b"1"),
                condition: KvCondition::Any,
            });
            let (key, _) = consensus.propose(put, PATIENCE).await.unwrap();
            open_client(&peer).await;
            key
        };
        tokio::select! {
            key = write => told_of_keys += u32::from(told.contains(&key)),
            () = follow => panic!("the peer has stopped"),
        }
    }
    assert!(told_of_keys < TIMES, "each key is told");
    peer.stop().await;
}
