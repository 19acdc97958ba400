use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::peer::plan_file::PlanFile;
use crate::peer::wire::{AdoptReply, AdoptRequest, HelloRequest, Plan, Standing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_follow_the_order_of_the_names() {
    let places = Places::new(3);
    let peers = places.start_all().await;
    for (peer, id) in peers.iter().zip(1..) {
        assert_eq!(peer.node_id(), NodeId(id));
        assert_eq!(peer.cluster_id(), peers[0].cluster_id());
    }
    for place in &places.0 {
        assert!(!place.folder.path().join("BOOTSTRAP").exists());
    }
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_comes_to_be_while_a_named_peer_is_missing() {
    let places = Places::new(3);
    let first = tokio::spawn(start(places.config(0)));
    let second = tokio::spawn(start(places.config(1)));
    // Both answer, so both have had every chance to begin.
    for place in &places.0[..2] {
        within(async {
            while bootstrap::greet(
                &Dialer::default(),
                &place.address,
                &HelloRequest { from: None },
            )
            .await
            .is_err()
            {}
        })
        .await;
        let hello = HelloRequest { from: None };
        let reply = bootstrap::greet(&Dialer::default(), &place.address, &hello)
            .await
            .unwrap();
        assert!(matches!(reply.standing, Standing::Pristine { .. }));
    }
    let third = places.start(2).await;
    let peers = [
        within(first).await.unwrap().unwrap(),
        within(second).await.unwrap().unwrap(),
        third,
    ];
    open_client(&peers[2]).await;
    stop_all(living(peers.into())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_named_refuses_to_start() {
    let places = Places::new(2);
    let mut config = places.config(0);
    config.address = "elsewhere:7001".to_owned();
    let Err(error) = within(start(config)).await else {
        panic!("it has started");
    };
    assert!(error.to_string().contains("elsewhere:7001"));
}

fn plan(places: &Places, nonces: [u64; 3]) -> Plan {
    let members = places.names().into_iter().zip(nonces);
    Plan {
        cluster: ClusterId([5; 16]),
        members: members
            .map(|(address, nonce)| raftserve_store::raft::PeerRecord { nonce, address })
            .collect(),
    }
}

/// The nonces of the directories, which are made if they are not yet there.
fn nonces(places: &Places) -> [u64; 3] {
    [0, 1, 2].map(|place| {
        let folder = places.0[place].folder.path();
        DataDir::open(folder).unwrap().identity().nonce()
    })
}

/// Crashes of the first peer and of others, at every step that leaves something on a disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_bootstrap_is_completed_by_a_restart() {
    // Which peers had kept their identities when all of them went down.
    for kept in [&[][..], &[1], &[1, 2], &[1, 3], &[1, 2, 3]] {
        let places = Places::new(3);
        let plan = plan(&places, nonces(&places));
        PlanFile::within(places.0[0].folder.path())
            .save(&plan)
            .unwrap();
        for &node in kept {
            let folder = places.0[usize::try_from(node).unwrap() - 1].folder.path();
            let mut dir = DataDir::open(folder).unwrap();
            dir.join(plan.cluster, NodeId(node)).unwrap();
        }
        let peers = places.start_all().await;
        for peer in &peers {
            assert_eq!(peer.cluster_id(), plan.cluster, "kept: {kept:?}");
        }
        open_client(&peers[1]).await;
        assert_eq!(clients_seen_by(&peers[0]).await, 1);
        stop_all(living(peers)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_emptied_before_anybody_voted_is_planned_anew() {
    let places = Places::new(3);
    let mut plan = plan(&places, nonces(&places));
    plan.members[2].nonce ^= 1;
    PlanFile::within(places.0[0].folder.path())
        .save(&plan)
        .unwrap();
    let peers = places.start_all().await;
    open_client(&peers[2]).await;
    assert_eq!(clients_seen_by(&peers[1]).await, 1);
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_peer_that_lost_its_plan_does_not_make_another() {
    let places = Places::new(3);
    let plan = plan(&places, nonces(&places));
    let mut dir = DataDir::open(places.0[1].folder.path()).unwrap();
    dir.join(plan.cluster, NodeId(2)).unwrap();
    drop(dir);
    let second = places.start(1).await;
    let third = tokio::spawn(start(places.config(2)));
    let Err(error) = within(start(places.config(0))).await else {
        panic!("it has started");
    };
    assert!(error.to_string().contains(&plan.cluster.to_string()));
    third.abort();
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_initialising_and_naming_leaves_nothing_undone() {
    let places = Places::new(1);
    let peer = places.start(0).await;
    named(&peer).await;
    // As if the plan had not been removed: it is never carried out twice.
    let done = Plan {
        cluster: peer.cluster_id(),
        members: vec![raftserve_store::raft::PeerRecord {
            nonce: 1,
            address: places.0[0].address.clone(),
        }],
    };
    peer.stop().await;
    PlanFile::within(places.0[0].folder.path())
        .save(&done)
        .unwrap();
    let peer = places.start(0).await;
    open_client(&peer).await;
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_is_taken_once_and_from_the_right_plan_only() {
    let places = Places::new(3);
    let dir = DataDir::open(places.0[1].folder.path()).unwrap();
    let wish = Wish {
        promotion: POLICY.promotion,
        supports: SUPPORTED,
        incarnation: Incarnation(1),
    };
    let mine = places.0[1].address.clone();
    let cradle = Cradle::new(
        dir,
        places.names(),
        mine,
        Vec::new(),
        wish,
        Dialer::default(),
        None,
    );
    let request = |nonce, node| AdoptRequest {
        plan: plan(&places, [11, nonce, 33]),
        node: NodeId(node),
    };
    let refused = |reply| matches!(reply, AdoptReply::Refused(_));
    assert!(refused(cradle.adopt(request(cradle.nonce() ^ 1, 2)).await));
    assert!(refused(cradle.adopt(request(cradle.nonce(), 9)).await));
    let mut reordered = request(cradle.nonce(), 2);
    reordered.plan.members.swap(0, 2);
    assert!(refused(cradle.adopt(reordered).await));
    assert_eq!(cradle.identity().await, None);

    let right = request(cradle.nonce(), 2);
    for _ in 0..2 {
        assert_eq!(cradle.adopt(right.clone()).await, AdoptReply::Adopted);
    }
    let mut other = right;
    other.plan.cluster = ClusterId([6; 16]);
    assert!(refused(cradle.adopt(other).await));
}

/// A memory that knows of a cluster, or grants the id that it is asked for after some tries.
#[derive(Debug)]
struct Memory {
    earlier: Option<&'static str>,
    tries: std::sync::atomic::AtomicUsize,
}

impl Founding for Memory {
    fn claim(&self, _nonce: u64, cluster: ClusterId) -> futures_util::future::BoxFuture<'_, Claim> {
        let tries = &self.tries;
        let left = tries.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        let claim = match (left, self.earlier) {
            (Ok(_), _) => Claim::NotYet("asleep".to_owned()),
            (Err(_), Some(earlier)) => Claim::Refused(earlier.to_owned()),
            (Err(_), None) => Claim::Granted(cluster),
        };
        Box::pin(std::future::ready(claim))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_founded_only_where_the_memory_knows_of_none() {
    for earlier in [Some("there was one"), None] {
        let places = Places::new(3);
        let founding = Arc::new(Memory {
            earlier,
            tries: 2.into(),
        });
        let start = |place| {
            let mut config = places.config(place);
            config.founding = Some(Arc::clone(&founding) as Arc<dyn Founding>);
            start(config)
        };
        let others = [tokio::spawn(start(1)), tokio::spawn(start(2))];
        let first = within(start(0)).await;
        match earlier {
            Some(_) => {
                let error = first.err().expect("refused").to_string();
                assert!(error.contains("there was one"), "{error}");
                others.iter().for_each(|other| other.abort());
                for place in &places.0 {
                    assert!(!place.folder.path().join("BOOTSTRAP").exists());
                }
            }
            None => {
                let mut peers = vec![first.unwrap()];
                for other in others {
                    peers.push(within(other).await.unwrap().unwrap());
                }
                open_client(&peers[0]).await;
                stop_all(living(peers)).await;
            }
        }
    }
}

/// A memory that knows where peers are, and lets nobody found a cluster where there `was_one`.
#[derive(Debug)]
struct Company {
    places: Vec<String>,
    was_one: bool,
}

impl Founding for Company {
    fn company(&self) -> futures_util::future::BoxFuture<'_, Result<Vec<String>, String>> {
        Box::pin(std::future::ready(Ok(self.places.clone())))
    }

    fn claim(&self, _nonce: u64, cluster: ClusterId) -> futures_util::future::BoxFuture<'_, Claim> {
        let claim = match self.was_one {
            true => Claim::Refused("there was one".to_owned()),
            false => Claim::Granted(cluster),
        };
        Box::pin(std::future::ready(claim))
    }
}

/// As where a set of one peer was scaled up: the first is told of itself alone, and the others of it.
fn grown(places: &Places, place: usize, was_one: bool) -> PeerConfig {
    let mut config = places.config(place);
    config.peers.truncate(1);
    if place > 0 {
        config.join = std::mem::take(&mut config.peers);
    }
    config.founding = Some(Arc::new(Company {
        places: places.names(),
        was_one,
    }));
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_peer_that_lost_its_volume_finds_a_cluster_of_which_it_is_told_no_other_peer() {
    let mut places = Places::new(3);
    let mut first = places.config(0);
    first.peers.truncate(1);
    let mut peers = vec![within(start(first)).await.unwrap()];
    for place in [1, 2] {
        peers.push(within(start(grown(&places, place, true))).await.unwrap());
    }
    let cluster = peers[0].cluster_id();
    // As long as the change to three votes is under way, nothing goes without the first one.
    let all_vote = |peer: &Peer| {
        let view = peer.core.membership_view();
        !view.joint && view.voters.len() == 3
    };
    within(async {
        while !peers.iter().all(all_vote) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    peers.remove(0).stop().await;
    places.0[0].folder = tempfile::tempdir().unwrap();
    let again = within(start(grown(&places, 0, true))).await.unwrap();
    assert_eq!(again.cluster_id(), cluster);
    peers.push(again);
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_is_founded_before_all_that_are_to_be_there_have_answered() {
    let places = Places::new(2);
    let config = grown(&places, 0, false);
    let mut waits_for = config.waits_for.subscribe();
    let first = tokio::spawn(start(config));
    let second = &places.0[1].address;
    let waits = waits_for.wait_for(|told| told.contains(second));
    within(waits).await.unwrap();
    let joins = within(start(grown(&places, 1, false))).await.unwrap();
    let first = within(first).await.unwrap().unwrap();
    assert_eq!(first.cluster_id(), joins.cluster_id());
    stop_all(living(vec![first, joins])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_that_starts_again_without_one_directory_is_the_same_one() {
    // The first-named peer founded it, and must not found another.
    for lost in [0, 2] {
        let mut places = Places::new(3);
        let peers = places.start_all().await;
        let cluster = peers[0].cluster_id();
        open_client(&peers[0]).await;
        stop_all(living(peers)).await;

        places.0[lost].folder = tempfile::tempdir().unwrap();
        let peers = places.start_all().await;
        for peer in &peers {
            assert_eq!(peer.cluster_id(), cluster);
        }
        assert_eq!(clients_seen_by(&peers[lost]).await, 1);
        stop_all(living(peers)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_waits_for_its_former_self_and_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = || folder.path().to_owned();
    let former = DataDir::open(folder.path()).unwrap();
    let opening = tokio::spawn(open_dir(path()));
    sleep(FORMER_SELF_MAX / 2).await;
    assert!(!opening.is_finished());
    drop(former);
    let successor = opening.await.unwrap().unwrap();
    let Err(error) = open_dir(path()).await.map(drop) else {
        panic!("two on one directory");
    };
    let locked = matches!(
        error,
        StartError::Bootstrap(BootstrapError::Directory(IdentityError::Locked { .. }))
    );
    assert!(locked, "{error:?}");
    drop(successor);
}

/// A cluster that nobody named here belongs to looks for peers at one of the founders' addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_is_founded_while_members_of_another_look_for_peers_at_a_founders_address() {
    let places = Places::new(3);
    let first = tokio::spawn(start(places.config(0)));
    let second = tokio::spawn(start(places.config(1)));
    let said = Announcement {
        cluster: ClusterId([9; 16]),
        node: NodeId(4),
        nonce: 4,
        incarnation: Incarnation(4),
        peer_address: "present:7001".to_owned(),
        admin_address: String::new(),
        proxy_address: String::new(),
        host: String::new(),
        version: String::new(),
        supports: SUPPORTED,
    };
    let hello = HelloRequest { from: Some(said) };
    let dialer = Dialer::default();
    let reply = within(async {
        loop {
            if let Ok(reply) = bootstrap::greet(&dialer, &places.0[1].address, &hello).await {
                return reply;
            }
        }
    });
    // It goes on to say so to whoever asks, the first peer among them, which founds nothing for as long.
    assert_eq!(reply.await.places, ["present:7001"]);
    let looked = Instant::now();
    let third = places.start(2).await;
    assert!(looked.elapsed() > locate::STRAY_PERIOD * 2);
    let peers = [
        within(first).await.unwrap().unwrap(),
        within(second).await.unwrap().unwrap(),
        third,
    ];
    open_client(&peers[2]).await;
    stop_all(living(peers.into())).await;
}
