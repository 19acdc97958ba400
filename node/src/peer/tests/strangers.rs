use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::peer::calls::Method;

/// Connections by which `caller` would call the peer at `address`, whom it takes for `target`.
fn links_as(caller: Caller, address: &str) -> Links {
    let directory = Arc::new(Directory::new(caller.cluster, caller.node));
    directory.set_roster(directory::Roster {
        decided_at: None,
        members: [(
            caller.target,
            raftserve_store::raft::PeerRecord {
                nonce: 0,
                address: address.to_owned(),
            },
        )]
        .into(),
    });
    Links::new(
        caller,
        None,
        Dialer::default(),
        directory,
        Handle::current(),
    )
}

async fn call_as(
    caller: Caller,
    address: &str,
    patience: Duration,
) -> Result<(), links::CallError> {
    let links = links_as(caller, address);
    let vote = openraft::raft::VoteRequest::new(openraft::Vote::new(1000, caller.node), None);
    let message = links::frame(&raft_wire::VoteRequest::from(vote));
    links
        .call(
            caller.target,
            Purpose::Votes,
            patience,
            Method::Vote,
            message,
        )
        .await
        .map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_by_name() {
    let places = Places::new(1);
    let peer = places.start(0).await;
    let address = &places.0[0].address;
    let mine = peer.cluster_id();
    open_client(&peer).await;
    let term = peer.consensus().leadership().borrow().term;
    let caller = Caller {
        cluster: mine,
        target: NodeId(1),
        node: NodeId(1),
        nonce: 1,
        life: None,
    };

    let theirs = ClusterId([9; 16]);
    let other_cluster = Caller {
        cluster: theirs,
        node: NodeId(2),
        ..caller
    };
    let refusal = call_as(other_cluster, address, PATIENCE)
        .await
        .unwrap_err()
        .to_string();
    assert!(refusal.contains(&mine.to_string()), "{refusal}");
    assert!(refusal.contains(&theirs.to_string()), "{refusal}");

    let other_target = Caller {
        target: NodeId(3),
        ..caller
    };
    let refusal = call_as(other_target, address, PATIENCE)
        .await
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("wants peer 3"), "{refusal}");

    let refusal = call_as(caller, address, PATIENCE)
        .await
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("another data directory"), "{refusal}");

    assert_eq!(peer.consensus().leadership().borrow().term, term);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_nobody_listens_for_was_certainly_not_reached() {
    let address = Places::new(1).0[0].address.clone();
    let caller = Caller {
        cluster: ClusterId([9; 16]),
        target: NodeId(1),
        node: NodeId(2),
        nonce: 1,
        life: None,
    };
    let error = call_as(caller, &address, PATIENCE).await.unwrap_err();
    assert!(matches!(error, links::CallError::NotSent { .. }), "{error}");
}

/// That it has not answered for long would say no less, but later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_has_ended_is_missed_until_it_answers_again() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let (ends, stays) = (2, 0);
    let ended = peers[ends].take().unwrap();
    let node = ended.core.me();
    let looker = Arc::clone(&peers[stays].as_ref().unwrap().core);
    let up = |node| {
        let members = looker.members();
        members.into_iter().any(|it| it.id == node && it.up)
    };
    let until = async |holds: &dyn Fn() -> bool| {
        let met = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(met).await;
    };
    until(&|| up(node)).await;
    ended.stop().await;
    until(&|| looker.directory.is_missed(node)).await;
    // Not because it has not answered for long.
    let answers_late = || {
        looker.directory.heard(node);
        up(node)
    };
    until(&answers_late).await;
    looker.directory.missed(node, std::time::Instant::now());
    assert!(!up(node));
    // What was seen before an answer says nothing.
    let before = std::time::Instant::now();
    let outdated = || {
        looker.directory.heard(node);
        looker.directory.missed(node, before);
        up(node)
    };
    until(&outdated).await;
    peers[ends] = Some(places.start(ends).await);
    until(&|| up(node)).await;
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_is_given_up_in_time() {
    // Connections are taken by the system, and nobody ever reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let caller = Caller {
        cluster: ClusterId([9; 16]),
        target: NodeId(1),
        node: NodeId(2),
        nonce: 1,
        life: None,
    };
    let patience = Duration::from_millis(100);
    let error = call_as(caller, &address, patience).await.unwrap_err();
    assert!(
        matches!(error, links::CallError::Deadline { .. }),
        "{error}"
    );
}

/// As one from a process that was taken for another one's copy, or from before a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_from_another_life_of_a_peer_is_not_taken() {
    let places = Places::new(3);
    let peers = places.start_all().await;
    open_client(&peers[1]).await;
    let (to, from) = (&peers[0].core, &peers[1].core);
    while to.directory.incarnation(from.me()) != Some(from.incarnation()) {
        tokio::task::yield_now().await;
    }
    let sender = |life| {
        let caller = Caller {
            cluster: peers[0].cluster_id(),
            target: to.me(),
            node: from.me(),
            nonce: from.announcement.nonce,
            life,
        };
        links_as(caller, &places.0[0].address)
    };
    let begin = async |life| {
        let (frames, outgoing) = tokio::sync::mpsc::channel(1);
        let began = sender(life)
            .stream(to.me(), PATIENCE, ReceiverStream::new(outgoing))
            .await;
        drop(frames);
        began.map(drop)
    };
    let present = from.incarnation();
    // An earlier build does not say in which life it is.
    for life in [Some(present), None] {
        begin(life).await.unwrap();
    }
    let former = Some(Incarnation(present.0 ^ 1));
    let refusal = begin(former).await.unwrap_err().to_string();
    assert!(refusal.contains("in another life"), "{refusal}");
    stop_all(living(peers)).await;
}
