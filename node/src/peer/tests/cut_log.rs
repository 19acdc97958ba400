//! A peer whose log lost what it had acknowledged.

use raftserve_store::store::OpenError;

use super::*;
use crate::consensus::ManageError;
use crate::peer::Vote;
use crate::peer::calls::Method;
use crate::peer::wire::LogCut;

/// Cuts the end off the log of a peer that is stopped, as the loss of synced writes or an old copy of the disk would:
/// what is left is a log like any other.
fn cut(place: &Place, was: u64) {
    let segment = place.folder.path().join("wal/00000001.wal");
    let file = std::fs::File::options().write(true).open(segment).unwrap();
    assert!(file.metadata().unwrap().len() > was);
    file.set_len(was).unwrap();
}

fn log_bytes(place: &Place) -> u64 {
    let segment = place.folder.path().join("wal/00000001.wal");
    std::fs::metadata(segment).unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_lost_acknowledged_entries_ends_and_counts_no_more() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leading = leader_of(&peers).await;
    let [cut_place, other] = [1, 2].map(|step| (leading + step) % 3);
    open_client(peers[leading].as_ref().unwrap()).await;
    assert_eq!(clients_seen_by(peers[cut_place].as_ref().unwrap()).await, 1);
    let was = log_bytes(&places.0[cut_place]);
    open_client(peers[leading].as_ref().unwrap()).await;
    assert_eq!(clients_seen_by(peers[cut_place].as_ref().unwrap()).await, 2);

    let cut_peer = peers[cut_place].take().unwrap();
    let node = cut_peer.node_id();
    cut_peer.stop().await;
    cut(&places.0[cut_place], was);
    let wrong = places.start(cut_place).await;
    let mut fatal = wrong.fatal();
    let why = within(fatal.wait_for(Option::is_some))
        .await
        .unwrap()
        .clone()
        .unwrap();
    assert!(
        why.contains("lost entries") && why.contains("new id"),
        "{why}"
    );

    // It goes on answering until it is stopped, and counts for nothing all the same.
    let leader = peers[leading].as_ref().unwrap().consensus();
    let health = leader.member_health(PATIENCE).await.unwrap();
    let told = health.iter().find(|member| member.node == node).unwrap();
    assert_eq!((told.vote, told.answers), (Vote::LogCut, false));
    assert_eq!(told.healthy_for_ms, None);
    let moved = leader.transfer_leader(Some(node), PATIENCE).await;
    let refused = moved.unwrap_err().to_string();
    assert!(refused.contains("lost part"), "{refused}");
    let healthy = peers[other].as_ref().unwrap().node_id();
    let removed = leader.remove_member(healthy, PATIENCE).await;
    assert!(
        matches!(removed, Err(ManageError::Refused { .. })),
        "{removed:?}"
    );
    wrong.stop().await;

    // Nor does it come back under a leader that knows nothing of it.
    let again = start(places.config(cut_place)).await.map(drop);
    let Err(StartError::Store {
        source: OpenError::LogCut { .. },
    }) = again
    else {
        panic!("{again:?}");
    };
    open_client(peers[leading].as_ref().unwrap()).await;
    stop_all(peers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_holds_its_log_is_ended_by_nobodys_word() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leading = leader_of(&peers).await;
    let [told_place, other] = [1, 2].map(|step| (leading + step) % 3);
    open_client(peers[leading].as_ref().unwrap()).await;
    assert_eq!(
        clients_seen_by(peers[told_place].as_ref().unwrap()).await,
        1
    );

    let core = |place: usize| Arc::clone(&peers[place].as_ref().unwrap().core);
    let raft = core(told_place).raft.clone();
    let state = raft.with_raft_state(|state| (*state.vote_ref(), *state.log_ids.last().unwrap()));
    let (vote, last) = state.await.unwrap();
    let (mut earlier, mut beyond) = (vote, last);
    earlier.leader_id.term -= 1;
    beyond.index += 1000;
    let node = core(told_place).me();
    for (teller, vote, missing) in [
        // It looks itself.
        (leading, vote, last),
        // By a leader that is none any more, late.
        (leading, earlier, beyond),
        // By one that is none.
        (other, vote, beyond),
    ] {
        let cut = links::frame(&LogCut {
            vote: vote.into(),
            missing: missing.into(),
            acked: missing.index + 1,
        });
        let told = core(teller)
            .links
            .call(node, Purpose::Votes, PATIENCE, Method::LogCut, cut)
            .await;
        let refused = told.map(drop).unwrap_err().to_string();
        assert!(refused.contains("follows another leader"), "{refused}");
    }

    open_client(peers[leading].as_ref().unwrap()).await;
    let told = peers[told_place].take().unwrap();
    assert_eq!(clients_seen_by(&told).await, 2);
    assert_eq!(*told.fatal().borrow(), None);
    told.stop().await;
    let again = places.start(told_place).await;
    assert_eq!(clients_seen_by(&again).await, 2);
    again.stop().await;
    stop_all(peers).await;
}
