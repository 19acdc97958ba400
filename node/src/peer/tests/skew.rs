//! Peers whose wall clocks disagree.

use raftserve_model::{LogTime, WallTime};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn a_day_ahead() -> WallTime {
    clock::wall_now().plus(DAY)
}

fn a_day_behind() -> WallTime {
    clock::wall_now().minus(DAY)
}

async fn write(peer: &Peer) -> (LogTime, WallTime) {
    let consensus = peer.consensus();
    let wrote = consensus.propose(Action::CompareStates, PATIENCE).await;
    let (index, _) = wrote.unwrap();
    let mut applied = consensus.applied();
    within(applied.wait_for(|applied| *applied >= index))
        .await
        .unwrap();
    let stamp = consensus.state().stamp();
    (stamp.log, stamp.wall)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_whose_wall_clocks_are_days_apart_agree_on_time_all_the_same() {
    let places = Places::new(3);
    let clocks = [clock::wall_now, a_day_ahead, a_day_behind];
    let starting = (0..3).map(|place| {
        let config = PeerConfig {
            wall_clock: clocks[place],
            ..places.config(place)
        };
        async move { within(start(config)).await.unwrap() }
    });
    let peers = futures_util::future::join_all(starting).await;
    let client = open_client(&peers[0]).await;
    let begun = std::time::Instant::now();
    let (first, _) = write(&peers[0]).await;
    let mut walls = Vec::new();
    for target in [1, 2, 0, 1] {
        let node = peers[target].node_id();
        let moved = peers[0].consensus();
        moved.transfer_leader(Some(node), PATIENCE).await.unwrap();
        walls.push(write(&peers[target]).await.1);
        let (last, _) = write(&peers[0]).await;
        let passed = last.since(first);
        assert!(
            passed <= begun.elapsed() + Duration::from_millis(2),
            "agreed time passed by {passed:?} in {:?}",
            begun.elapsed()
        );
    }
    assert_eq!(clients_seen_by(&peers[2]).await, 1, "{client:?} expired");
    let apart = walls[0].0 - walls[1].0;
    assert!(
        apart > 2 * DAY.as_millis() as u64 - 60_000,
        "people see each leader's clock: {walls:?}"
    );
    stop_all(living(peers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agreed_time_goes_on_where_it_was_when_all_peers_were_away() {
    let places = Places::new(1);
    let peer = places.start(0).await;
    let (before, _) = write(&peer).await;
    peer.stop().await;
    let begun = std::time::Instant::now();
    let config = PeerConfig {
        wall_clock: a_day_ahead,
        ..places.config(0)
    };
    let peer = within(start(config)).await.unwrap();
    let (after, _) = write(&peer).await;
    assert!(after >= before);
    assert!(after.since(before) <= begun.elapsed() + Duration::from_millis(2));
    peer.stop().await;
}
