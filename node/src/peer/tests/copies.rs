//! Data directories that were copied while their peers ran, as by snapshots of volumes.

use std::path::Path;

use super::*;
use crate::consensus::Consensus;

/// Copies all of a directory but its lock.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A place of its own for a copy of that of a peer that runs.
fn copied(place: &Place) -> Place {
    let other = Place::new();
    copy(place.folder.path(), other.folder.path());
    other
}

/// What a copy is started with at a place of its own, told of `others`.
fn config_of(copy: &Place, others: Vec<String>) -> PeerConfig {
    PeerConfig {
        peers: [vec![copy.address.clone()], others].concat(),
        ..copy.config_at(copy.listener())
    }
}

/// A cluster in which every peer is known to every other in its present life.
async fn acquainted(places: &Places) -> Vec<Peer> {
    let peers = places.start_all().await;
    open_client(&peers[1]).await;
    for peer in &peers {
        let mut applied = peer.consensus().applied();
        let state = peer.consensus();
        within(applied.wait_for(|_| state.state().client_count() == 1))
            .await
            .unwrap();
        within(known_to(&peer.core, &peers)).await;
    }
    peers
}

async fn known_to(core: &Core, peers: &[Peer]) {
    for peer in peers.iter().filter(|peer| peer.node_id() != core.me()) {
        let life = peer.core.incarnation();
        while core.directory.incarnation(peer.node_id()) != Some(life) {
            tokio::task::yield_now().await;
        }
    }
}

async fn ends_as_a_copy(peer: &Peer) {
    let mut fatal = peer.fatal();
    let why = within(fatal.wait_for(Option::is_some)).await.unwrap();
    let why = why.clone().unwrap();
    assert!(why.contains("copy of its data directory"), "{why}");
}

async fn goes_on(consensus: &Consensus) {
    consensus
        .propose(Action::OpenClient, PATIENCE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_running_peer_does_not_start() {
    let places = Places::new(3);
    let peers = acquainted(&places).await;
    for (place, peer) in places.0.iter().zip(&peers) {
        // Told of the original itself, and of the others only.
        let names = places.names();
        let others = names.iter().filter(|name| **name != place.address);
        for company in [vec![place.address.clone()], others.cloned().collect()] {
            let copy = copied(place);
            let config = config_of(&copy, company);
            let Err(StartError::Bootstrap(refused @ BootstrapError::Copy { .. })) =
                within(start(config)).await
            else {
                panic!("it was not refused");
            };
            let refused = refused.to_string();
            for word in [
                &format!("peer {} of cluster", peer.node_id()),
                &place.address,
                copy.folder.path().to_str().unwrap(),
                "Remove the copy",
            ] {
                assert!(refused.contains(word), "nothing of {word}: {refused}");
            }
        }
        goes_on(&peer.consensus()).await;
        assert_eq!(*peer.fatal().borrow(), None);
    }
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_could_ask_nobody_ends_with_its_first_word() {
    let places = Places::new(3);
    let peers = acquainted(&places).await;
    for (place, peer) in places.0.iter().zip(&peers) {
        let copy = copied(place);
        let alone = config_of(&copy, Vec::new());
        let wrong = within(start(alone)).await.unwrap();
        ends_as_a_copy(&wrong).await;
        wrong.stop().await;
        goes_on(&peer.consensus()).await;
        assert_eq!(*peer.fatal().borrow(), None);
    }
    stop_all(living(peers)).await;
}

/// The original cannot be looked for where it says it is, and the copy can: the copy is taken. Then the original is
/// heard no more, and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_speak_for_a_peer_one_ends_though_the_first_cannot_be_found() {
    let places = Places::new(3);
    let mut peers = living(acquainted(&places).await);
    let leading = leader_of(&peers).await;
    let place = (leading + 1) % 3;
    let copy = copied(&places.0[place]);
    peers[place].take().unwrap().stop().await;

    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let lost = within(start(places.config_at(place, elsewhere)))
        .await
        .unwrap();
    let life = lost.core.incarnation();
    let leader = peers[leading].as_ref().unwrap();
    within(async {
        while leader.core.directory.incarnation(lost.node_id()) != Some(life) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // At the original's own address: a move would be put on record, and the original might acknowledge that entry, which
    // the copy lacks.
    let alone = PeerConfig {
        data_dir: copy.folder.path().to_owned(),
        ..places.0[place].config_at(places.0[place].listener())
    };
    let taken = within(start(alone)).await.unwrap();
    ends_as_a_copy(&lost).await;
    lost.stop().await;
    assert_eq!(*taken.fatal().borrow(), None);
    goes_on(&leader.consensus()).await;
    peers[place] = Some(taken);
    stop_all(peers).await;
}

/// However a peer comes back, it is not taken for a copy of itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_started_again_is_never_taken_for_a_copy() {
    let mut places = Places::new(3);
    let mut peers = living(acquainted(&places).await);
    for is_moved in [false, true, false, true] {
        peers[1].take().unwrap().stop().await;
        if is_moved {
            // With a copy that was made after its end, at another address.
            places.0[1] = copied(&places.0[1]);
        }
        let config = PeerConfig {
            peers: places.names(),
            ..places.0[1].config_at(places.0[1].listener())
        };
        let again = within(start(config)).await.unwrap();
        goes_on(&again.consensus()).await;
        assert_eq!(*again.fatal().borrow(), None);
        peers[1] = Some(again);
    }
    stop_all(peers).await;
}
