//! Peers of two releases side by side: the older supports cluster version 1, the newer 1 and 2.

use raftserve_model::{ClusterVersion, VersionRange};

use super::*;

const OLD: VersionRange = VersionRange::new(1, 1);
const NEW: VersionRange = VersionRange::new(1, 2);
/// The release after, which has left version 1 behind.
const NEWER: VersionRange = VersionRange::new(2, 3);

impl Places {
    fn release(&self, place: usize, supports: VersionRange) -> PeerConfig {
        PeerConfig {
            supports,
            ..self.config(place)
        }
    }

    async fn start_as(&self, place: usize, supports: VersionRange) -> Peer {
        within(start(self.release(place, supports))).await.unwrap()
    }

    async fn start_all_as(&self, supports: VersionRange) -> Vec<Peer> {
        let starting = (0..self.0.len()).map(|place| self.start_as(place, supports));
        futures_util::future::join_all(starting).await
    }
}

/// Waits until `peer` knows every member's present release to support up to `newest`.
async fn heard(peer: &Peer, newest: [u16; 3]) {
    let consensus = peer.consensus();
    let wanted = newest.map(|it| Some(ClusterVersion(it)));
    within(async {
        loop {
            let releases = consensus.releases();
            let heard: Vec<_> = releases
                .iter()
                .map(|it| it.supports.map(|range| range.newest).filter(|_| it.heard))
                .collect();
            if heard == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Why the release does not start; waits until its port is free again.
async fn refused(places: &Places, place: usize, supports: VersionRange) -> String {
    let refused = within(start(places.release(place, supports))).await;
    let said = chain(refused.err().expect("it must not start"));
    within(async {
        while TcpListener::bind(&places.0[place].address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    said
}

fn chain(error: StartError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_can_be_taken_back_until_it_is_finalized_and_not_after() {
    let places = Places::new(3);
    let mut peers = living(places.start_all_as(OLD).await);
    let restart = async |peers: &mut Vec<Option<Peer>>, place: usize, supports| {
        peers[place].take().unwrap().stop().await;
        peers[place] = Some(places.start_as(place, supports).await);
    };
    open_client(peers[0].as_ref().unwrap()).await;

    // Half-way, the two releases work together, and nothing can be finalized.
    restart(&mut peers, 0, NEW).await;
    restart(&mut peers, 1, NEW).await;
    let first = peers[0].as_ref().unwrap().consensus();
    open_client(peers[2].as_ref().unwrap()).await;
    heard(peers[0].as_ref().unwrap(), [2, 2, 1]).await;
    let said = first.finalize(PATIENCE).await.unwrap_err().to_string();
    assert!(said.contains("peer 3 (release"), "{said}");
    assert_eq!(first.state().version(), ClusterVersion(1));

    // Back, and on again: nobody minds.
    restart(&mut peers, 1, OLD).await;
    restart(&mut peers, 1, NEW).await;
    restart(&mut peers, 2, NEW).await;
    let first = peers[0].as_ref().unwrap().consensus();
    heard(peers[0].as_ref().unwrap(), [2, 2, 2]).await;
    let raised = first.finalize(PATIENCE).await.unwrap();
    assert_eq!(raised, (ClusterVersion(2), true));
    assert_eq!(
        first.finalize(PATIENCE).await.unwrap(),
        (ClusterVersion(2), false)
    );

    // The release before cannot come back, and says why.
    open_client(peers[2].as_ref().unwrap()).await;
    peers[2]
        .as_ref()
        .unwrap()
        .consensus()
        .read_barrier(PATIENCE)
        .await
        .unwrap();
    peers[2].take().unwrap().stop().await;
    let said = refused(&places, 2, OLD).await;
    assert!(
        said.contains("cluster is at version 2") && said.contains("supports 1"),
        "{said}"
    );
    // The release after can.
    peers[2] = Some(places.start_as(2, NEWER).await);
    assert_eq!(clients_seen_by(peers[2].as_ref().unwrap()).await, 3);
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_meets_a_version_it_cannot_follow_ends_with_the_reason() {
    let places = Places::new(3);
    let mut peers = living(places.start_all_as(NEW).await);
    heard(peers[0].as_ref().unwrap(), [2, 2, 2]).await;
    let first = peers[0].as_ref().unwrap().consensus();
    first.finalize(PATIENCE).await.unwrap();
    peers[2].take().unwrap().stop().await;
    // Without what it saved at its stop it begins with an empty state, and meets the entry in its log.
    std::fs::remove_file(places.0[2].folder.path().join("CHECKPOINT")).unwrap();
    let why = match within(start(places.release(2, OLD))).await {
        // What is known to be committed is applied before anything else.
        Err(refused) => chain(refused),
        Ok(old) => {
            let mut fatal = old.fatal();
            let why = within(fatal.wait_for(Option::is_some)).await;
            let why = why.unwrap().clone().unwrap();
            old.stop().await;
            why
        }
    };
    assert!(why.contains("the cluster is at version 2"), "{why}");
    // Neither what openraft was doing, nor what is to be done about disks.
    let alone = why.starts_with("cannot run this release") && why.ends_with("never taken back");
    assert!(alone, "{why}");
    open_client(peers[0].as_ref().unwrap()).await;
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_has_left_the_cluster_s_version_behind_says_what_comes_first() {
    let places = Places::new(1);
    let peer = places.start_as(0, OLD).await;
    named(&peer).await;
    peer.stop().await;
    let said = refused(&places, 0, NEWER).await;
    assert!(said.contains("raftserve cluster finalize"), "{said}");
    // Nothing was changed.
    let peer = places.start_as(0, NEW).await;
    assert_eq!(peer.consensus().state().version(), ClusterVersion(1));
    peer.stop().await;
}
