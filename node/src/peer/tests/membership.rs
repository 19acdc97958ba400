use std::collections::BTreeSet;
use std::path::Path;

use raftserve_store::codec;
use raftserve_store::disk::RealDisk;
use raftserve_store::entry::Payload;
use raftserve_store::state::Promotion;
use raftserve_store::wal::{Wal, WalOptions};

use super::*;
use crate::consensus::ManageError;

/// Places for peers of one cluster, of which the first `first` bootstrap it.
struct Growing {
    places: Places,
    first: usize,
}

impl Growing {
    fn new(first: usize, more: usize) -> Self {
        Self {
            places: Places::new(first + more),
            first,
        }
    }

    fn config(&self, place: usize) -> PeerConfig {
        let mut config = self.places.config(place);
        config.peers.truncate(self.first);
        if place >= self.first {
            config.join = std::mem::take(&mut config.peers);
        }
        config
    }

    async fn start(&self, place: usize) -> Peer {
        within(start(self.config(place))).await.unwrap()
    }

    async fn start_first(&self) -> Vec<Option<Peer>> {
        let starting = (0..self.first).map(|place| self.start(place));
        living(futures_util::future::join_all(starting).await)
    }
}

fn voters(peer: &Peer) -> BTreeSet<NodeId> {
    let members = peer.consensus().members();
    let voters = members.iter().filter(|member| member.voter);
    voters.map(|member| member.id).collect()
}

fn members(peer: &Peer) -> BTreeSet<NodeId> {
    let members = peer.consensus().members();
    members.iter().map(|member| member.id).collect()
}

async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The log in this directory has one change of the voters, and never four or two on the way.
fn assert_one_change_of_three(data_dir: &Path) {
    let agreed = voters_by_log(data_dir);
    let count = |voters: &BTreeSet<NodeId>| voters.len();
    assert!(
        agreed.iter().flatten().map(count).all(|count| count == 3),
        "{agreed:?}"
    );
    let joint = agreed.iter().filter(|configs| configs.len() == 2);
    assert_eq!(joint.count(), 1, "{agreed:?}");
}

/// Who votes by each entry about members that is in the log of a peer, which does not run: once, or before and after.
fn voters_by_log(data_dir: &Path) -> Vec<Vec<BTreeSet<NodeId>>> {
    let options = WalOptions::default();
    let wal = Wal::open(Arc::new(RealDisk), &data_dir.join("wal"), options).unwrap();
    let entries = wal.read_blocking(wal.range()).unwrap();
    let payloads = entries
        .iter()
        .map(|it| codec::decode(it.payload()).unwrap());
    payloads
        .filter_map(|payload| match payload {
            Payload::Membership(membership) => Some(membership.configs),
            Payload::Blank | Payload::Command(_) => None,
        })
        .collect()
}

fn all(peers: &[Option<Peer>]) -> BTreeSet<NodeId> {
    peers.iter().flatten().map(Peer::node_id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_grows_to_three_and_shrinks_again() {
    let growing = Growing::new(1, 2);
    let mut peers = growing.start_first().await;
    open_client(peers[0].as_ref().unwrap()).await;
    peers.push(Some(growing.start(1).await));
    let first = peers[0].as_ref().unwrap();
    let second = peers[1].as_ref().unwrap().node_id();
    until(|| members(first).contains(&second)).await;
    assert_eq!(
        voters(first),
        [NodeId(1)].into(),
        "two voters are no better than one"
    );

    peers.push(Some(growing.start(2).await));
    let everybody = all(&peers);
    for peer in peers.iter().flatten() {
        until(|| voters(peer) == everybody).await;
        assert_eq!(clients_seen_by(peer).await, 1);
    }

    // The leader itself goes, asked of another peer.
    let leader = leader_of(&peers).await;
    let asked = (leader + 1) % 3;
    let gone = peers[leader].take().unwrap();
    let id = gone.node_id();
    let consensus = peers[asked].as_ref().unwrap().consensus();
    consensus.remove_member(id, PATIENCE).await.unwrap();
    for peer in peers.iter().flatten() {
        until(|| members(peer) == all(&peers)).await;
        open_client(peer).await;
    }
    within(gone.removed().wait_for(|removed| *removed))
        .await
        .unwrap();
    gone.stop().await;
    // It has been told, and nobody need be there to tell it again.
    stop_all(peers).await;
    let Err(error) = within(start(growing.config(leader))).await else {
        panic!("it has started");
    };
    let text = error.to_string();
    assert!(text.contains("was removed from cluster"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_voter_joins_again_and_takes_its_own_place_under_a_new_id() {
    for lost in [0, 1] {
        let mut places = Places::new(3);
        let mut peers = living(places.start_all().await);
        open_client(peers[2].as_ref().unwrap()).await;
        let old = peers[lost].take().unwrap();
        let old_id = old.node_id();
        old.stop().await;
        let old_folder = places.0[lost].folder.path().to_owned();
        let kept = std::mem::replace(&mut places.0[lost].folder, tempfile::tempdir().unwrap());

        // The very flags of bootstrap.
        let back = places.start(lost).await;
        assert!(back.node_id() > NodeId(3), "never an id that voted before");
        assert_eq!(back.cluster_id(), peers[2].as_ref().unwrap().cluster_id());
        peers[lost] = Some(back);
        let everybody = all(&peers);
        for peer in peers.iter().flatten() {
            until(|| voters(peer) == everybody && members(peer) == everybody).await;
            assert_eq!(clients_seen_by(peer).await, 1);
        }
        let retired = |peer: &Peer| {
            let state = peer.consensus().state();
            state.peer(old_id).is_some_and(|peer| peer.is_removed())
        };
        for peer in peers.iter().flatten() {
            until(|| retired(peer)).await;
        }
        // The volume that was lost turns up, at an address of its own.
        let elsewhere = Places::new(1);
        let mut config = elsewhere.config(0);
        config.data_dir = old_folder;
        config.peers = places.names();
        let Err(error) = within(start(config)).await else {
            panic!("it has started");
        };
        assert!(error.to_string().contains("was removed"), "{error}");
        drop(kept);
        stop_all(peers).await;
        assert_one_change_of_three(places.0[2].folder.path());
    }
}

/// All peers end, one directory is lost, and the others and an empty one come back at other addresses than before: each at
/// one that was another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_directory_takes_the_vote_that_was_lost_whoever_has_whose_address_now() {
    for binding in [[1, 2, 0], [1, 0, 2], [2, 1, 0], [0, 2, 1]] {
        let mut places = Places::new(3);
        let peers = living(places.start_all().await);
        open_client(peers[2].as_ref().unwrap()).await;
        let lost = peers[0].as_ref().unwrap().node_id();
        let kept: BTreeSet<NodeId> = all(&peers[1..]);
        stop_all(peers).await;
        let mut folders: Vec<_> = places
            .0
            .iter_mut()
            .map(|place| std::mem::replace(&mut place.folder, tempfile::tempdir().unwrap()))
            .collect();
        folders[0] = tempfile::tempdir().unwrap();
        for (place, folder) in binding.into_iter().zip(folders) {
            places.0[place].folder = folder;
        }

        let peers = living(places.start_all().await);
        let everybody = all(&peers);
        assert!(kept.is_subset(&everybody) && !everybody.contains(&lost));
        let newcomer = *everybody.difference(&kept).next().unwrap();
        let leader = peers[leader_of(&peers).await].as_ref().unwrap();
        let consensus = leader.consensus();
        let standing = |node| consensus.state().peer(node).map(|peer| peer.standing);
        for node in &kept {
            assert_eq!(standing(*node), None, "{node} is to go: {binding:?}");
        }
        if binding[0] != 0 {
            // Nobody knows yet who is lost; on Kubernetes this is found out.
            assert_eq!(standing(lost), None, "{binding:?}");
            within(async {
                loop {
                    let health = consensus.member_health(PATIENCE).await.unwrap();
                    let mut ready = health.iter().filter(|it| it.healthy_for_ms.is_some());
                    if ready.any(|member| member.node == newcomer) {
                        break;
                    }
                }
            })
            .await;
            let dismissed = consensus.dismiss_members([lost].into(), PATIENCE).await;
            dismissed.unwrap();
        }
        for peer in peers.iter().flatten() {
            until(|| voters(peer) == everybody && members(peer) == everybody).await;
            assert_eq!(clients_seen_by(peer).await, 1);
        }
        stop_all(peers).await;
        assert_one_change_of_three(places.0[binding[2]].folder.path());
    }
}

/// An idle cluster's log is shorter than its founders are many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomers_to_an_idle_cluster_of_five_get_ids_that_no_founder_has() {
    let mut growing = Growing::new(5, 2);
    let mut peers = growing.start_first().await;
    let first = peers[0].as_ref().unwrap();
    named(first).await;
    let founders: BTreeSet<NodeId> = (1..=5).map(NodeId).collect();
    until(|| voters(first) == founders).await;
    let lost = peers[1].take().unwrap();
    let lost_id = lost.node_id();
    lost.stop().await;
    growing.places.0[1].folder = tempfile::tempdir().unwrap();

    for place in [1, 5, 6] {
        let newcomer = growing.start(place).await;
        let id = newcomer.node_id();
        assert!(!founders.contains(&id), "{id} is a founder's");
        if place < peers.len() {
            peers[place] = Some(newcomer);
        } else {
            peers.push(Some(newcomer));
        }
    }
    let everybody = all(&peers);
    assert_eq!(everybody.len(), 7);
    for peer in peers.iter().flatten() {
        until(|| voters(peer) == everybody && members(peer) == everybody).await;
        let state = || peer.consensus().state();
        until(|| state().peer(lost_id).is_some_and(|it| it.is_removed())).await;
    }
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_stays_one_until_it_is_promoted_by_hand() {
    let growing = Growing::new(1, 2);
    let mut peers = growing.start_first().await;
    for place in [1, 2] {
        let mut config = growing.config(place);
        config.policy.promotion = Promotion::Manual;
        peers.push(Some(within(start(config)).await.unwrap()));
    }
    let (first, second) = (peers[0].as_ref().unwrap(), peers[1].as_ref().unwrap());
    until(|| members(first) == all(&peers)).await;
    open_client(second).await;
    assert_eq!(voters(first), [NodeId(1)].into());
    let consensus = second.consensus();
    consensus
        .promote_member(second.node_id(), PATIENCE)
        .await
        .unwrap();
    until(|| voters(first) == [NodeId(1), second.node_id()].into()).await;
    let stranger = consensus.promote_member(NodeId(999), PATIENCE).await;
    assert!(
        matches!(stranger, Err(ManageError::NoSuchPeer)),
        "{stranger:?}"
    );
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_would_cost_the_quorum_is_refused() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let (down, other) = ((leader + 1) % 3, (leader + 2) % 3);
    peers[down].take().unwrap().stop().await;
    let consensus = peers[leader].as_ref().unwrap().consensus();
    let other_id = peers[other].as_ref().unwrap().node_id();
    within(async {
        // Until the leader has noticed.
        loop {
            let health = consensus.member_health(PATIENCE).await.unwrap();
            if health.iter().filter(|member| member.answers).count() == 2 {
                break;
            }
        }
    })
    .await;
    let refused = consensus.remove_member(other_id, PATIENCE).await;
    assert!(
        matches!(refused, Err(ManageError::Refused { .. })),
        "{refused:?}"
    );
    let down_id = NodeId(u64::try_from(down).unwrap() + 1);
    consensus.remove_member(down_id, PATIENCE).await.unwrap();
    assert_eq!(members(peers[leader].as_ref().unwrap()), all(&peers));
    stop_all(peers).await;
}

/// However long the caller would wait for what comes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_removal_soon_ends_and_is_not_decided_later() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let left = (leader + 1) % 3;
    for place in [leader, (leader + 2) % 3] {
        peers[place].take().unwrap().stop().await;
    }
    let consensus = peers[left].as_ref().unwrap().consensus();
    let removed = within(consensus.remove_member(NodeId(1), PATIENCE * 100)).await;
    let error = removed.unwrap_err();
    assert!(
        matches!(error, ManageError::NotProposed { .. }),
        "{error:?}"
    );
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_removals_at_the_same_time_one_is_refused_that_would_leave_nobody() {
    let places = Places::new(3);
    let peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let consensus = peers[leader].as_ref().unwrap().consensus();
    let ids: Vec<NodeId> = all(&peers).into_iter().collect();
    let removing = ids.iter().map(|id| consensus.remove_member(*id, PATIENCE));
    let outcomes = futures_util::future::join_all(removing).await;
    let refused = |(outcome, _): &(&Result<(), ManageError>, &NodeId)| {
        matches!(outcome, Err(ManageError::Refused { .. }))
    };
    let kept: Vec<NodeId> = outcomes
        .iter()
        .zip(&ids)
        .filter(refused)
        .map(|it| *it.1)
        .collect();
    // More than one where a peer has not been heard of just then.
    assert!(!kept.is_empty(), "{outcomes:?}");
    let stays = peers
        .iter()
        .flatten()
        .find(|peer| peer.node_id() == kept[0])
        .unwrap();
    until(|| voters(stays) == kept.iter().copied().collect()).await;
    open_client(stays).await;
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_was_replaced_and_founds_again_is_noticed_by_both_clusters() {
    let growing = Growing::new(1, 3);
    let mut peers = growing.start_first().await;
    for place in 1..4 {
        peers.push(Some(growing.start(place).await));
    }
    let founder = peers[0].take().unwrap();
    let node = founder.node_id();
    let present = || peers[1..].iter().flatten();
    until(|| present().all(|peer| voters(peer).len() == 3)).await;
    let removed = present().next().unwrap().consensus();
    removed.remove_member(node, PATIENCE).await.unwrap();
    founder.stop().await;
    // The founder's flags, and an empty directory.
    let empty = tempfile::tempdir().unwrap();
    let mut config = growing.config(0);
    config.data_dir = empty.path().to_owned();
    let told = config.waits_for.clone();
    let founding = tokio::time::timeout(PATIENCE, start(config)).await;
    let Ok(second) = founding else {
        // It was looked for just as it came, which seldom happens.
        let told = told.borrow().clone();
        assert!(told.contains("look for peers"), "{told}");
        return stop_all(peers).await;
    };
    let second = second.unwrap();
    let foreign = |peer: &Peer| {
        let met = peer.consensus().storage().foreigners;
        met.first().map(|met| met.cluster)
    };
    let (old, new) = (removed.cluster_id(), second.cluster_id());
    assert_ne!(old, new);
    until(|| present().any(|peer| foreign(peer) == Some(new))).await;
    until(|| foreign(&second) == Some(old)).await;
    let health = second.consensus().member_health(PATIENCE).await.unwrap();
    assert_eq!(health[0].foreigner.map(|met| met.cluster), Some(old));
    peers.push(Some(second));
    stop_all(peers).await;
}
