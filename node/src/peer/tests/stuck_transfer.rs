//! A peer that answers, and to which no snapshot gets through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raftserve_store::command::Request;
use raftserve_store::state::{KV_VALUE_BYTES_MAX, KvCondition};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::watching::forget_the_log;
use super::*;

/// Values that make a snapshot many times as large as what a connection carries.
const VALUES: usize = 80;

/// What a connection carries: no other than a snapshot's needs nearly as much.
const CARRIED: u64 = 512 << 10;

/// The way to a peer. Each of its connections carries so many bytes towards the peer; what comes after them is lost.
struct Narrow {
    each: AtomicU64,
    stuck: watch::Sender<u64>,
    /// Of those that were stuck, how many their other end gave up.
    given_up: watch::Sender<u64>,
}

impl Narrow {
    /// From where a peer is looked for to where it listens.
    fn start(from: TcpListener, to: SocketAddr) -> Arc<Self> {
        let narrow = Arc::new(Self {
            each: AtomicU64::new(CARRIED),
            stuck: watch::Sender::default(),
            given_up: watch::Sender::default(),
        });
        from.set_nonblocking(true).unwrap();
        let from = tokio::net::TcpListener::from_std(from).unwrap();
        let carrier = Arc::clone(&narrow);
        tokio::spawn(async move {
            while let Ok((near, _)) = from.accept().await {
                tokio::spawn(Arc::clone(&carrier).carry(near, to));
            }
        });
        narrow
    }

    async fn carry(self: Arc<Self>, near: TcpStream, to: SocketAddr) {
        let Ok(far) = TcpStream::connect(to).await else {
            return;
        };
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let back = async { drop(tokio::io::copy(&mut far_in, &mut near_out).await) };
        let forth = async {
            let mut carried = 0;
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = near_in.read(&mut buffer).await {
                carried += count as u64;
                if carried > self.each.load(Ordering::Relaxed) {
                    self.stuck.send_modify(|count| *count += 1);
                    // What comes now gets nowhere.
                    drop(tokio::io::copy(&mut near_in, &mut tokio::io::sink()).await);
                    self.given_up.send_modify(|count| *count += 1);
                    return;
                }
                if far_out.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = back => {}
            () = forth => {}
        }
    }
}

async fn reaches(count: &watch::Sender<u64>, wanted: u64) {
    let mut counts = count.subscribe();
    within(counts.wait_for(|count| *count >= wanted))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_stuck_is_ended_and_holds_nothing_up() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leading_place = leader_of(&peers).await;
    let away = (leading_place + 1) % 3;
    let stopped = peers[away].take().unwrap();
    let node = stopped.node_id();
    stopped.stop().await;
    let leading = peers[leading_place].as_ref().unwrap();
    let consensus = leading.consensus();
    for number in 0..VALUES {
        let put = Action::Request(Request::PutKey {
            key: format!("key-{number}").parse().unwrap(),
            value: vec![number as u8; KV_VALUE_BYTES_MAX].into(),
            condition: KvCondition::Any,
        });
        consensus.propose(put, PATIENCE).await.unwrap();
    }
    let here: Vec<&Peer> = peers.iter().flatten().collect();
    forget_the_log(leading, &here).await;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let narrow = Narrow::start(places.0[away].listener(), listener.local_addr().unwrap());
    let starting = start(places.config_at(away, listener));
    let behind = within(starting).await.unwrap();
    reaches(&narrow.stuck, 1).await;

    // Others need not wait, and whoever asks is told.
    for _ in 0..20 {
        open_client(leading).await;
    }
    let health = consensus.member_health(PATIENCE).await.unwrap();
    let told = health.iter().find(|member| member.node == node).unwrap();
    assert!(told.voter && told.answers, "{told:?}");
    assert_eq!(told.lag, None, "a snapshot comes first: {told:?}");
    assert_eq!(told.healthy_for_ms, None, "{told:?}");
    assert_eq!(behind.consensus().state().client_count(), 0);
    let moved = consensus.transfer_leader(Some(node), PATIENCE).await;
    let refused = moved.unwrap_err().to_string();
    assert!(refused.contains("snapshot first"), "{refused}");

    // It is given up, and tried again.
    reaches(&narrow.given_up, 1).await;
    reaches(&narrow.stuck, 2).await;
    narrow.each.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(clients_seen_by(&behind).await, 22);
    peers[away] = Some(behind);
    stop_all(peers).await;
}
