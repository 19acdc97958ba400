//! An heir that is asked to lead and does not.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;
use crate::consensus::Consensus;

/// A peer whose only Raft thread stands still: its sockets take what is sent, and nothing comes of it. It goes on
/// when this is dropped.
struct Frozen(#[expect(dead_code, reason = "its end is what is waited for")] SyncSender<()>);

impl Frozen {
    fn new(peer: &Peer) -> Self {
        assert_eq!(THREADS, 1);
        let (thaw, thawed): (_, Receiver<()>) = sync_channel(0);
        let (begins, begun) = sync_channel(1);
        peer.threads.handle().spawn(async move {
            begins.send(()).unwrap();
            let _ = thawed.recv();
        });
        begun.recv().unwrap();
        Self(thaw)
    }
}

/// What keeps an heir from leading.
enum Fate {
    Hangs,
    Dies,
}

/// Waits until `leader` knows that `heir` holds all of its log, and so may be handed the lead.
async fn caught_up(leader: &Peer, heir: NodeId) {
    let raft = leader.core.raft.wait(Some(PATIENCE));
    let caught_up = raft.metrics(
        |metrics| {
            let matched = metrics.replication.as_ref();
            let matched = matched.and_then(|it| it.get(&heir).copied().flatten());
            matched.map(|id| id.index) == metrics.last_log_index
        },
        "an heir that is caught up",
    );
    caught_up.await.unwrap();
}

/// Opens a client by way of a peer that neither leads nor was asked to, and says how long that took.
async fn write_meanwhile(consensus: &Consensus) -> Duration {
    let began = Instant::now();
    consensus
        .propose(Action::OpenClient, PATIENCE)
        .await
        .unwrap();
    began.elapsed()
}

async fn an_heir_meets(fate: Fate) {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leading = leader_of(&peers).await;
    let [heir_place, other] = [1, 2].map(|step| (leading + step) % 3);
    open_client(peers[other].as_ref().unwrap()).await;
    let heir = peers[heir_place].as_ref().unwrap().node_id();
    caught_up(peers[leading].as_ref().unwrap(), heir).await;
    let leader = peers[leading].as_ref().unwrap().consensus();

    let frozen = match fate {
        Fate::Hangs => Some(Frozen::new(peers[heir_place].as_ref().unwrap())),
        Fate::Dies => {
            drop(peers[heir_place].take());
            None
        }
    };
    let began = Instant::now();
    let handing_over = leader.transfer_leader(Some(heir), PATIENCE);
    let meanwhile = peers[other].as_ref().unwrap().consensus();
    let (moved, written) = tokio::join!(handing_over, async { write_meanwhile(&meanwhile).await });
    let took = began.elapsed();
    let reason = moved.unwrap_err().reason;
    assert!(
        reason.contains(&format!("peer {heir} was asked to lead")),
        "{reason}"
    );
    // The caller has all the time; the leader has not.
    let bound = Duration::from_secs(10);
    assert!(
        took < bound && written < bound,
        "{took:?}, {written:?}: {reason}"
    );

    // One of the two leads, and both serve.
    for place in [leading, other] {
        open_client(peers[place].as_ref().unwrap()).await;
    }
    drop(frozen);
    if peers[heir_place].is_none() {
        peers[heir_place] = Some(places.start(heir_place).await);
    }
    // What it finds in its sockets is an order of a term that is over.
    for peer in peers.iter().flatten() {
        assert_eq!(clients_seen_by(peer).await, 4);
    }
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_heir_that_hangs_is_told_of_and_holds_nothing_up() {
    an_heir_meets(Fate::Hangs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_heir_that_dies_is_told_of_and_holds_nothing_up() {
    an_heir_meets(Fate::Dies).await;
}
