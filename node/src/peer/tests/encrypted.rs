//! Peers that speak mutual TLS.

use super::*;
use crate::access::Certificates;
use crate::access::certificates::tests::Authority;

/// Certificates of an authority, and where they are.
fn certificates(of: &Authority) -> (TempDir, Arc<Certificates>) {
    let directory = tempfile::tempdir().unwrap();
    of.issue(directory.path(), &[of]);
    let read = Certificates::read(directory.path().to_owned()).unwrap();
    (directory, Arc::new(read))
}

async fn start_with(places: &Places, place: usize, certificates: &Arc<Certificates>) -> Peer {
    let config = PeerConfig {
        certificates: Some(Arc::clone(certificates)),
        ..places.config(place)
    };
    within(start(config)).await.unwrap()
}

/// How many handshakes a peer has refused.
fn refused(certificates: &Certificates) -> u64 {
    let text = certificates.render();
    let last = text.lines().last().unwrap();
    last.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_with_certificates_are_a_cluster_and_let_no_other_in() {
    let ours = Authority::new();
    let (_directory, certificates_of_all) = certificates(&ours);
    let places = Places::new(5);
    let names: Vec<String> = places.names().into_iter().take(3).collect();
    let config = |place: usize| PeerConfig {
        peers: names.clone(),
        certificates: Some(Arc::clone(&certificates_of_all)),
        ..places.config(place)
    };
    let starting = (0..3).map(|place| start(config(place)));
    let peers = within(futures_util::future::join_all(starting)).await;
    let peers: Vec<Peer> = peers.into_iter().map(Result::unwrap).collect();
    for peer in &peers {
        open_client(peer).await;
    }

    // One without certificates, and one with those of somebody else: neither is ever let in.
    let (_elsewhere, strange) = certificates(&Authority::new());
    for (place, own) in [(3, None), (4, Some(strange))] {
        let before = refused(&certificates_of_all);
        let joining = start(PeerConfig {
            peers: Vec::new(),
            join: names.clone(),
            certificates: own,
            ..places.config(place)
        });
        let turned_away = async {
            while refused(&certificates_of_all) < before + 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            started = joining => panic!("it started: {:?}", started.err()),
            () = within(turned_away) => {}
        }
    }
    assert_eq!(peers[0].consensus().members().len(), 3);
    assert_eq!(clients_seen_by(&peers[2]).await, 3);
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_comes_back_with_a_new_certificate_of_a_new_authority() {
    let (old, new) = (Authority::new(), Authority::new());
    let sides = [certificates(&old), certificates(&old), certificates(&old)];
    let places = Places::new(3);
    let starting = (0..3).map(|place| start_with(&places, place, &sides[place].1));
    let mut peers = living(futures_util::future::join_all(starting).await);
    for (own, believed) in [
        (&old, vec![&old, &new]),
        (&new, vec![&old, &new]),
        (&new, vec![&new]),
    ] {
        for (directory, certificates) in &sides {
            own.issue(directory.path(), &believed);
            certificates.refresh();
        }
        // All its connections are made anew, by either side.
        peers[1].take().unwrap().stop().await;
        open_client(peers[0].as_ref().unwrap()).await;
        peers[1] = Some(start_with(&places, 1, &sides[1].1).await);
        open_client(peers[1].as_ref().unwrap()).await;
    }
    assert_eq!(clients_seen_by(peers[1].as_ref().unwrap()).await, 6);
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_connections_and_cannot_be_talked_to_may_be_a_peer_that_runs() {
    let ours = Authority::new();
    let (_directory, own) = certificates(&ours);
    let (_elsewhere, strange) = certificates(&Authority::new());
    let places = Places::new(1);
    let peer = start_with(&places, 0, &own).await;
    let address = places.names()[0].clone();
    let met = meet(&address, Some(Arc::clone(&own))).await;
    assert!(matches!(met, Met::Member { .. }), "{met:?}");
    assert_eq!(meet(&address, Some(strange)).await, Met::Unreadable);
    assert_eq!(meet(&address, None).await, Met::Unreadable);
    stop_all(vec![Some(peer)]).await;
    assert_eq!(meet(&address, Some(Arc::clone(&own))).await, Met::Nobody);

    // As a process that was stopped: its kernel takes connections, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for certificates in [Some(own), None] {
        assert_eq!(within(meet(&address, certificates)).await, Met::Unreadable);
    }
}
