//! Watches of events across lost leaders and installed snapshots: each event once and in order, or an error that
//! says where to go on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use raftserve_model::{Generation, ServiceId, ServiceVersion};
use raftserve_store::command::{Change, Precondition, Request};
use raftserve_store::state::EVENTS_MAX;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::*;
use crate::admin::errors::Reason;
use crate::admin::v1::events_client::EventsClient;
use crate::admin::{self, AdminParts, v1};
use crate::provider::{
    Launched, LogQuery, LogStream, Observation, Provider, ProviderError, ReplicaKey, ReplicaLaunch,
};

/// A provider that has nothing and makes nothing.
struct Nothing;

impl Provider for Nothing {
    fn ensure(&self, _: ReplicaLaunch) -> BoxFuture<'_, Result<Launched, ProviderError>> {
        async { Ok(Launched::Started) }.boxed()
    }

    fn stop<'a>(
        &'a self,
        _: &'a ReplicaKey,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Ok(()) }.boxed()
    }

    fn observe(&self) -> BoxFuture<'_, Result<Vec<Observation>, ProviderError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn take_over(&self, _: ClusterId) -> BoxFuture<'_, Result<(), ProviderError>> {
        async { Ok(()) }.boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn logs<'a>(
        &'a self,
        key: &'a ReplicaKey,
        _: LogQuery,
    ) -> BoxFuture<'a, Result<LogStream, ProviderError>> {
        async { Err(ProviderError::Unknown(key.clone())) }.boxed()
    }

    fn forget(&self, _: ServiceId) -> BoxFuture<'_, Result<(), ProviderError>> {
        async { Ok(()) }.boxed()
    }
}

/// A peer's admin port.
struct Port {
    address: SocketAddr,
    closing: CancellationToken,
}

impl Port {
    async fn open(peer: &Peer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let closing = CancellationToken::new();
        let parts = AdminParts {
            consensus: peer.consensus(),
            ready: watch::channel(true).1,
            service_port_base: 30_001,
            service_ports: watch::channel(Vec::new()).1,
            advertise_host: None,
            api: Default::default(),
            home: None,
            provider: Arc::new(Nothing),
            certificates: None,
            credentials: None,
            denials: Arc::default(),
        };
        tokio::spawn(admin::serve(listener, parts, closing.clone()));
        Self { address, closing }
    }

    async fn watch(&self, from: u64) -> Result<tonic::Streaming<v1::WatchEventsResponse>, Status> {
        let channel = Dialer::default()
            .connect(&self.address.to_string())
            .unwrap();
        let mut client = EventsClient::new(channel);
        let asked = v1::WatchEventsRequest {
            from_index: Some(from),
            service_name: String::new(),
        };
        Ok(client.watch(asked).await?.into_inner())
    }
}

/// What one client has seen through however many streams.
#[derive(Default)]
struct Seen {
    /// The index of each event.
    events: Vec<u64>,
    /// Everything up to here was seen.
    upto: u64,
}

impl Seen {
    /// Takes a batch, which must continue what was seen.
    fn take(&mut self, batch: &v1::WatchEventsResponse) {
        if batch.events.is_empty() {
            assert!(batch.log_index >= self.upto, "a bookmark goes back");
        } else {
            assert!(batch.log_index > self.upto, "seen before, or out of order");
        }
        self.upto = batch.log_index;
        self.events
            .extend(batch.events.iter().map(|_| batch.log_index));
    }

    /// Watches until everything up to `last` was seen, or the stream ends.
    async fn follow(&mut self, port: &Port, last: u64) -> Result<(), Status> {
        let mut stream = port.watch(self.upto + 1).await?;
        while self.upto < last {
            match within(stream.message()).await? {
                Some(batch) => self.take(&batch),
                None => return Err(Status::unavailable("the stream ended")),
            }
        }
        Ok(())
    }
}

/// Writes an entry with one event; none if it is not known to have been written.
async fn event(peer: &Peer, at: u64) -> Option<u64> {
    event_through(peer.consensus(), at).await
}

async fn event_through(consensus: Consensus, at: u64) -> Option<u64> {
    let action = Action::StartControl {
        node: NodeId(1),
        incarnation: Incarnation(at),
    };
    let proposed = consensus.propose(action, Duration::from_secs(5)).await;
    proposed.ok().map(|(index, _)| index.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_lost_its_leader_goes_on_at_another_peer_without_gap_or_repetition() {
    let places = Places::new(3);
    let mut peers = living(places.start_all().await);
    let leader = leader_of(&peers).await;
    let (near, far) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut ports = Vec::new();
    for peer in peers.iter().flatten() {
        ports.push(Port::open(peer).await);
    }
    let mut seen = Seen::default();
    let mut written = BTreeSet::new();
    for at in 0..20 {
        written.extend(event(peers[near].as_ref().unwrap(), at).await);
    }
    let last = *written.last().unwrap();
    seen.follow(&ports[leader], last).await.unwrap();

    // The leader goes while events are written and read.
    let writer = peers[near].as_ref().unwrap().consensus();
    let writing = tokio::spawn(async move {
        let mut written = BTreeSet::new();
        for at in 20..120 {
            written.extend(event_through(writer.clone(), at).await);
        }
        written
    });
    let lost = peers[leader].take().unwrap();
    let closing = ports[leader].closing.clone();
    let ended = tokio::join!(seen.follow(&ports[leader], u64::MAX), async move {
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(lost);
        closing.cancel();
    });
    assert!(ended.0.is_err());
    written.extend(within(writing).await.unwrap());
    let last = *written.last().unwrap();
    seen.follow(&ports[far], last).await.unwrap();

    let mut whole = Seen::default();
    whole.follow(&ports[near], last).await.unwrap();
    let upto = |seen: Seen| -> Vec<u64> {
        let events = seen.events.into_iter();
        events.filter(|index| *index <= last).collect()
    };
    let (seen, whole) = (upto(seen), upto(whole));
    assert_eq!(seen, whole);
    let seen: BTreeSet<_> = seen.into_iter().collect();
    assert!(seen.is_superset(&written), "acknowledged and not seen");
    for port in ports {
        port.closing.cancel();
    }
    stop_all(peers).await;
}

/// Whatever a stream says it is complete up to was applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_an_index_to_come_is_told_nothing_before_it_has() {
    let places = Places::new(1);
    let peer = places.start(0).await;
    let port = Port::open(&peer).await;
    let first = event(&peer, 0).await.unwrap();
    let from = first + 50;
    let mut stream = port.watch(from).await.unwrap();
    let consensus = peer.consensus();
    let reading = tokio::spawn(async move {
        let batch = stream.message().await.unwrap().unwrap();
        (batch, consensus.applied().borrow().0)
    });
    for at in 1..=60 {
        event(&peer, at).await.unwrap();
    }
    let (batch, applied) = within(reading).await.unwrap();
    assert!(
        batch.log_index <= applied,
        "complete up to {} with {applied} applied",
        batch.log_index
    );
    assert!(
        batch.log_index + 1 >= from,
        "an event that was not asked for"
    );
    port.closing.cancel();
    peer.stop().await;
}

/// Stands before a peer's port, and can be cut.
struct Relay(watch::Sender<bool>);

impl Relay {
    fn start(listener: TcpListener, to: SocketAddr) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (open, _) = watch::channel(true);
        let whether = open.subscribe();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut whether = whether.clone();
                tokio::spawn(async move {
                    let relayed = async {
                        let mut to = TcpStream::connect(to).await?;
                        tokio::io::copy_bidirectional(&mut from, &mut to).await
                    };
                    tokio::select! {
                        // Cut, or the test is over.
                        _ = whether.wait_for(|open| !*open) => {}
                        _ = relayed => {}
                    }
                });
            }
        });
        Self(open)
    }
}

/// Three peers, the last of which is reached by others through a relay only.
async fn with_relay(places: &Places) -> (Vec<Peer>, Relay) {
    let direct = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = places.0[2].listener();
    let relay = Relay::start(front, direct.local_addr().unwrap());
    let behind = places.config_at(2, direct);
    let starting = [places.config(0), places.config(1), behind];
    let starting = starting.map(|config| async move { within(start(config)).await.unwrap() });
    (join_all(starting).await, relay)
}

/// Has `peers` take two snapshots and forget the log before them, all of them: whoever comes to lead meanwhile must not
/// know it either.
pub(super) async fn forget_the_log(leading: &Peer, peers: &[&Peer]) {
    for _ in 0..2 {
        let LogIndexed(index) = open_client(leading).await;
        for peer in peers {
            let raft = &peer.core.raft;
            let wait = || raft.wait(Some(PATIENCE));
            wait()
                .applied_index_at_least(Some(index.0), "an entry")
                .await
                .unwrap();
            raft.trigger().snapshot().await.unwrap();
            wait()
                .metrics(
                    |metrics| metrics.snapshot.is_some_and(|id| id.index >= index.0),
                    "a snapshot",
                )
                .await
                .unwrap();
        }
    }
    for peer in peers {
        let raft = &peer.core.raft;
        raft.trigger().purge_log(u64::MAX).await.unwrap();
        raft.wait(Some(PATIENCE))
            .metrics(|metrics| metrics.purged.is_some(), "a purge")
            .await
            .unwrap();
    }
}

/// A leader among the first two, which no relay stands before.
async fn lead_in_front(peers: &[Peer]) -> usize {
    let mut leadership = peers[0].consensus().leadership();
    let elected = leadership.wait_for(|now| now.leader.is_some());
    let leader = within(elected).await.unwrap().leader.unwrap();
    if leader == peers[2].node_id() {
        let target = Some(peers[0].node_id());
        let moved = peers[0].consensus().transfer_leader(target, PATIENCE).await;
        moved.unwrap();
        return 0;
    }
    peers
        .iter()
        .position(|peer| peer.node_id() == leader)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_on_a_peer_that_is_sent_a_snapshot_misses_nothing() {
    let places = Places::new(3);
    let (peers, relay) = with_relay(&places).await;
    let leader = lead_in_front(&peers).await;
    let (leading, behind) = (&peers[leader], &peers[2]);
    let port = Port::open(behind).await;
    let first = event(leading, 0).await.unwrap();
    let mut seen = Seen::default();
    seen.follow(&port, first).await.unwrap();
    let mut stream = port.watch(seen.upto + 1).await.unwrap();

    relay.0.send_replace(false);
    for at in 1..40 {
        event(leading, at).await.unwrap();
    }
    forget_the_log(leading, &[&peers[0], &peers[1]]).await;
    let last = event(leading, 40).await.unwrap();
    relay.0.send_replace(true);
    while seen.upto < last {
        let batch = within(stream.message()).await.unwrap();
        seen.take(&batch.expect("the stream goes on"));
    }
    behind
        .core
        .raft
        .wait(Some(PATIENCE))
        .metrics(|metrics| metrics.snapshot.is_some(), "the snapshot")
        .await
        .unwrap();
    let whole_port = Port::open(leading).await;
    let mut whole = Seen::default();
    whole.follow(&whole_port, last).await.unwrap();
    assert_eq!(seen.events, whole.events);
    for port in [port, whole_port] {
        port.closing.cancel();
    }
    stop_all(living(peers)).await;
}

const YAML: &str =
    "service:\n  readiness_probe: /\n  replicas: 1\nresources:\n  ports: 8080\nrun: x\n";

/// Writes more events than are kept, many to an entry.
async fn more_than_is_kept(leading: &Peer) {
    let consensus = leading.consensus();
    let spec = raftserve_model::spec::ServiceSpec::parse(YAML, Default::default()).unwrap();
    let put = Request::PutService {
        name: "web".parse().unwrap(),
        spec: Arc::new(spec.spec),
        precondition: Precondition::Any,
    };
    let (service, _) = consensus
        .propose(Action::Request(put), PATIENCE)
        .await
        .unwrap();
    let generation = Generation(event(leading, 0).await.unwrap());
    let create = Change::Create {
        service: ServiceId(service.0),
        version: ServiceVersion(1),
        port: 1,
    };
    for _ in 0..=EVENTS_MAX / 1_000 {
        let action = Action::Control {
            generation,
            changes: vec![create.clone(); 1_000],
        };
        consensus.propose(action, PATIENCE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_a_snapshot_overtook_is_told_where_the_trail_begins() {
    let places = Places::new(3);
    let (peers, relay) = with_relay(&places).await;
    let leader = lead_in_front(&peers).await;
    let (leading, behind) = (&peers[leader], &peers[2]);
    let port = Port::open(behind).await;
    let first = event(leading, 0).await.unwrap();
    let mut seen = Seen::default();
    seen.follow(&port, first).await.unwrap();
    let mut stream = port.watch(seen.upto + 1).await.unwrap();

    relay.0.send_replace(false);
    more_than_is_kept(leading).await;
    // Nothing is written later, since each event that is added moves the beginning of the trail.
    let last = event(leading, 1).await.unwrap();
    forget_the_log(leading, &[&peers[0], &peers[1]]).await;
    relay.0.send_replace(true);
    let ended = async {
        loop {
            match stream.message().await {
                Ok(batch) => seen.take(&batch.expect("it ends with a status")),
                Err(status) => break status,
            }
        }
    };
    let status = within(ended).await;
    assert_eq!(Reason::of(&status), Some(Reason::Compacted), "{status:?}");
    let details = tonic_types::StatusExt::get_error_details(&status);
    let info = details.error_info().unwrap();
    let begins: u64 = info.metadata["first_index"].parse().unwrap();
    assert!(begins > seen.upto + 1, "nothing was lost: {begins}");
    let mut rest = Seen {
        upto: begins - 1,
        ..Seen::default()
    };
    rest.follow(&port, last).await.unwrap();
    // All of the trail.
    let kept = rest.events.len();
    assert!(
        (EVENTS_MAX - 1_000..=EVENTS_MAX + 1).contains(&kept),
        "{kept}"
    );
    port.closing.cancel();
    stop_all(living(peers)).await;
}
