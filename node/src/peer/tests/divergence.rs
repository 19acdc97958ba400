//! A peer whose state has come to differ.

use raftserve_model::{LogIndex, LogTime};
use raftserve_store::identity::DataDir;
use raftserve_store::store::Store;
use raftserve_store::{Command, State};

use super::*;

/// Gives the peer, which is stopped, a state that nobody agreed on, as a defect or bad memory would.
fn damage(place: &Place) {
    let mut dir = DataDir::open(place.folder.path()).unwrap();
    let opened = Store::default().open(&mut dir).unwrap();
    let (head, _) = opened.reader.export(&opened.snapshots).unwrap();
    let mut state = State::clone(&opened.reader.state());
    let last = head.last.unwrap().index;
    state.apply(last, &Command::at(LogTime(0), Action::OpenClient));
    opened.snapshots.build(&head, state.records()).unwrap();
    opened.wal.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_holds_what_nobody_agreed_on_ends_and_no_other_does() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    open_client(peers[0].as_ref().unwrap()).await;
    let first = peers[0].as_ref().unwrap().consensus();
    let (index, equal) = first.compare_states(PATIENCE).await.unwrap();
    assert_eq!(equal.len(), 3);
    assert!(equal.values().all(|same| *same == Some(true)), "{equal:?}");
    assert_eq!(first.compared().upto, index);
    assert_eq!(clients_seen_by(peers[2].as_ref().unwrap()).await, 1);

    peers[2].take().unwrap().stop().await;
    damage(&places.0[2]);
    let wrong = places.start(2).await;
    let mut fatal = wrong.fatal();
    let (index, compared) = first.compare_states(PATIENCE).await.unwrap();
    assert_eq!(compared[&NodeId(2)], Some(true));
    assert_eq!(compared[&NodeId(3)], Some(false));
    let why = within(fatal.wait_for(Option::is_some))
        .await
        .unwrap()
        .clone()
        .unwrap();
    assert!(
        why.contains(&format!("after entry {index}")) && why.contains("peers 1, 2"),
        "{why}"
    );

    // It goes on telling its digest until it is stopped, so each of the others hears it.
    for peer in peers.iter().flatten() {
        assert_eq!(*peer.fatal().borrow(), None);
        within(async {
            while peer.consensus().compared().differs != Some((index, NodeId(3))) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    wrong.stop().await;
    open_client(peers[0].as_ref().unwrap()).await;
    assert!(first.compared().upto >= index);
    assert_ne!(index, LogIndex(0));
    stop_all(peers).await;
}
