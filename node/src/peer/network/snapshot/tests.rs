//! Transfers over real sockets, through a wire that can be cut or stopped.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use openraft::alias::SnapshotMetaOf;
use openraft::impls::leader_id_adv::LeaderId;
use raftserve_model::{ClusterId, LogIndex, LogTime};
use raftserve_store::command::{Action, Request as RequestOf};
use raftserve_store::disk::RealDisk;
use raftserve_store::entry::{AppliedMembership, LogId};
use raftserve_store::raft::{PeerRecord, log_id_to};
use raftserve_store::snapshot::{Snapshot, SnapshotHead as StoreHead, Snapshots};
use raftserve_store::state::{KV_VALUE_BYTES_MAX, KvCondition};
use raftserve_store::{Command, State};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::inbox::Install;
use super::*;
use crate::peer::dial::Dialer;
use crate::peer::directory::{Caller, Directory, Roster};
use crate::peer::rpc::snapshot_transfer_server::{SnapshotTransfer, SnapshotTransferServer};
use crate::peer::wire::raft::Vote;

/// No condition in these tests takes nearly as long on a healthy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const TARGET: NodeId = NodeId(2);

fn head(index: u64) -> StoreHead {
    StoreHead {
        last: Some(LogId {
            term: 1,
            node: NodeId(1),
            index: LogIndex(index),
        }),
        membership: AppliedMembership::default(),
    }
}

fn open(dir: &Path) -> Arc<Snapshots> {
    Arc::new(Snapshots::open(Arc::new(RealDisk), dir).unwrap())
}

/// A snapshot of five megabytes.
fn build(snapshots: &Snapshots, index: u64) -> Snapshot {
    let mut state = State::default();
    let mut apply = |at: u64, action| {
        state.apply(LogIndex(at), &Command::at(LogTime::default(), action));
    };
    apply(1, Action::OpenClient);
    for sequence in 1..=80 {
        let request = RequestOf::PutKey {
            key: format!("key-{sequence}").parse().unwrap(),
            value: vec![index as u8; KV_VALUE_BYTES_MAX].into(),
            condition: KvCondition::Any,
        };
        let action = Action::Client {
            client: LogIndex(1),
            sequence,
            acknowledged: sequence - 1,
            request,
        };
        apply(1 + sequence, action);
    }
    snapshots.build(&head(index), state.records()).unwrap()
}

/// Installs into the receiver's snapshots, as the state machine does.
struct Shelf {
    snapshots: Arc<Snapshots>,
    installed: Mutex<Vec<u64>>,
    /// While set, installing takes as long as it stays so.
    slow: AtomicBool,
    released: Notify,
}

struct Installer(Arc<Shelf>);

impl Install for Installer {
    fn install(
        &self,
        vote: Vote,
        meta: SnapshotMetaOf<TypeConfig>,
        file: SnapshotFile,
    ) -> BoxFuture<'static, Result<Vote, String>> {
        let shelf = Arc::clone(&self.0);
        Box::pin(async move {
            if shelf.slow.load(Ordering::Relaxed) {
                shelf.released.notified().await;
            }
            let last = meta
                .last_log_id
                .as_ref()
                .map(raftserve_store::raft::log_id_from);
            let snapshots = Arc::clone(&shelf.snapshots);
            let installing = tokio::task::spawn_blocking(move || snapshots.install(&file, last));
            let installed = installing.await.map_err(|error| error.to_string())?;
            installed.map_err(|error| error.to_string())?;
            let index = last.map_or(0, |last| last.index.0);
            shelf.installed.lock().unwrap().push(index);
            Ok(vote)
        })
    }
}

struct Service(Arc<Inbox>);

#[tonic::async_trait]
impl SnapshotTransfer for Service {
    type TransferStream = ReceiverStream<Result<Frame, Status>>;

    async fn transfer(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let answers = Arc::clone(&self.0).receive(request.into_inner());
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// One life of a receiver.
struct Receiver {
    inbox: Arc<Inbox>,
    shelf: Arc<Shelf>,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Receiver {
    async fn start(dir: &Path) -> Self {
        let shelf = Arc::new(Shelf {
            snapshots: open(dir),
            installed: Mutex::default(),
            slow: AtomicBool::new(false),
            released: Notify::new(),
        });
        let installer = Arc::new(Installer(Arc::clone(&shelf)));
        let inbox = Arc::new(Inbox::new(Arc::clone(&shelf.snapshots), installer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = SnapshotTransferServer::new(Service(Arc::clone(&inbox)));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        let serving = tokio::spawn(async move { drop(serving.await) });
        Self {
            inbox,
            shelf,
            address,
            serving,
        }
    }

    fn installed(&self) -> Vec<u64> {
        self.shelf.installed.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Carries bytes to a receiver until so many have passed; then it cuts the connection, or carries no more.
struct Line {
    to: Mutex<SocketAddr>,
    left: AtomicU64,
    stalls: AtomicBool,
    address: SocketAddr,
}

impl Line {
    async fn to(address: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Arc::new(Self {
            to: Mutex::new(address),
            left: AtomicU64::new(u64::MAX),
            stalls: AtomicBool::new(false),
            address: listener.local_addr().unwrap(),
        });
        let carrier = Arc::clone(&line);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&carrier).carry(near));
            }
        });
        line
    }

    async fn carry(self: Arc<Self>, near: TcpStream) {
        let to = *self.to.lock().unwrap();
        let Ok(far) = TcpStream::connect(to).await else {
            return;
        };
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let back = async { drop(tokio::io::copy(&mut far_in, &mut near_out).await) };
        let forth = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = near_in.read(&mut buffer).await {
                let left = self.left.load(Ordering::Relaxed);
                if left < count as u64 {
                    if self.stalls.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                    return;
                }
                self.left.store(left - count as u64, Ordering::Relaxed);
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

    fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    fn mend(&self) {
        self.cut_after(u64::MAX);
    }
}

/// A sender, and the line to a receiver.
struct Sender {
    _dir: TempDir,
    snapshots: Arc<Snapshots>,
    links: Links,
    outbox: Outbox,
}

impl Sender {
    fn new(line: &Line) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = open(dir.path());
        let caller = Caller {
            cluster: ClusterId([9; 16]),
            target: TARGET,
            node: NodeId(1),
            nonce: 1,
            life: None,
        };
        let directory = Arc::new(Directory::new(caller.cluster, caller.node));
        let record = PeerRecord {
            nonce: 0,
            address: line.address.to_string(),
        };
        directory.set_roster(Roster {
            decided_at: None,
            members: [(TARGET, record)].into(),
        });
        Self {
            _dir: dir,
            snapshots,
            links: Links::new(
                caller,
                None,
                Dialer::default(),
                directory,
                Handle::current(),
            ),
            outbox: Outbox::new(),
        }
    }

    async fn send(&self, snapshot: &Snapshot, step: Duration) -> Result<(), CallError> {
        let vote = openraft::Vote {
            leader_id: LeaderId {
                term: 5,
                node_id: NodeId(1),
            },
            committed: true,
        };
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: snapshot.head.last.map(log_id_to),
            last_membership: Default::default(),
        };
        let offered = SnapshotOf::<TypeConfig, Data> {
            meta,
            snapshot: snapshot.file.clone(),
        };
        let sending = self.outbox.send(&self.links, TARGET, vote, offered, step);
        timeout(PATIENCE, sending).await.expect("in time").map(drop)
    }
}

impl Sender {
    /// As `send`, over a line that was cut before: the first calls may still be made on the dead connection, as
    /// Raft's first retries are.
    async fn send_after_a_cut(&self, snapshot: &Snapshot) -> Result<(), CallError> {
        for _ in 0..20 {
            match self.send(snapshot, PATIENCE).await {
                Err(error) if error.to_string().contains("transport error") => {}
                other => return other,
            }
        }
        panic!("a mended line carries nothing");
    }
}

/// Sends a snapshot over a line that is cut after half of it. Returns how many bytes the receiver then has had.
async fn send_half(sender: &Sender, snapshot: &Snapshot, line: &Line, receiver: &Receiver) -> u64 {
    line.cut_after(size(snapshot) / 2);
    sender.send(snapshot, PATIENCE).await.unwrap_err();
    receiver.inbox.idle().await;
    receiver.inbox.received()
}

fn size(snapshot: &Snapshot) -> u64 {
    snapshot.file.size().unwrap()
}

fn partial_files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".snap")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_broken_connections_no_byte_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let snapshot = build(&sender.snapshots, 7);
    let size = size(&snapshot);
    assert!(size > 8 * SNAPSHOT_FRAME_BYTES as u64, "{size}");
    let mut had = 0;
    for _ in 0..3 {
        // A call on the connection that was cut last may fail before anything of it is sent.
        while receiver.inbox.received() == had {
            line.cut_after(size / 4);
            sender.send(&snapshot, PATIENCE).await.unwrap_err();
            receiver.inbox.idle().await;
        }
        had = receiver.inbox.received();
        assert!(had < size);
    }
    line.mend();
    sender.send_after_a_cut(&snapshot).await.unwrap();
    assert_eq!(receiver.inbox.received(), size);
    assert_eq!(receiver.installed(), [7]);
    assert_eq!(partial_files(dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_receiver_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let snapshot = build(&sender.snapshots, 7);
    let before = send_half(&sender, &snapshot, &line, &receiver).await;
    assert!(before > 0);
    drop(receiver);

    let receiver = Receiver::start(dir.path()).await;
    *line.to.lock().unwrap() = receiver.address;
    line.mend();
    sender.send_after_a_cut(&snapshot).await.unwrap();
    assert_eq!(before + receiver.inbox.received(), size(&snapshot));
    assert_eq!(receiver.installed(), [7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_was_wiped_is_sent_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let snapshot = build(&sender.snapshots, 7);
    let before = send_half(&sender, &snapshot, &line, &receiver).await;
    assert!(before > 0);
    drop(receiver);

    let wiped = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(wiped.path()).await;
    *line.to.lock().unwrap() = receiver.address;
    line.mend();
    sender.send_after_a_cut(&snapshot).await.unwrap();
    assert_eq!(receiver.inbox.received(), size(&snapshot));
    assert_eq!(receiver.installed(), [7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_snapshot_than_the_one_begun_begins_anew_and_leaves_no_remains() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let first = build(&sender.snapshots, 7);
    let before = send_half(&sender, &first, &line, &receiver).await;
    assert_eq!(partial_files(dir.path()).len(), 1);

    line.mend();
    let second = build(&sender.snapshots, 9);
    sender.send_after_a_cut(&second).await.unwrap();
    assert_eq!(receiver.inbox.received() - before, size(&second));
    assert_eq!(receiver.installed(), [9]);
    assert_eq!(partial_files(dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_stands_still_is_given_up_and_an_installing_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let snapshot = build(&sender.snapshots, 7);
    line.stalls.store(true, Ordering::Relaxed);
    line.cut_after(size(&snapshot) / 2);
    let step = Duration::from_secs(3);
    // Within a step, or by the connection's own probes, which nothing answers either.
    sender.send(&snapshot, step).await.unwrap_err();
    let has = receiver.inbox.received();
    assert!(has > 0);

    // Another leader's snapshot of the same bytes takes its place and goes on there; and installing may take longer
    // than any step.
    receiver.shelf.slow.store(true, Ordering::Relaxed);
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let again = build(&sender.snapshots, 7);
    let (sent, ()) = tokio::join!(sender.send(&again, step), async {
        tokio::time::sleep(step * 2).await;
        receiver.shelf.released.notify_one();
    });
    sent.unwrap();
    assert_eq!(receiver.inbox.received(), size(&again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_with_a_wrong_byte_is_never_installed() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let line = Line::to(receiver.address).await;
    let sender = Sender::new(&line);
    let snapshot = build(&sender.snapshots, 7);
    line.cut_after(size(&snapshot) / 2);
    sender.send(&snapshot, PATIENCE).await.unwrap_err();
    receiver.inbox.idle().await;
    let [partial] = partial_files(dir.path()).try_into().unwrap();
    let path = dir.path().join(partial);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    line.mend();
    let error = sender.send_after_a_cut(&snapshot).await.unwrap_err();
    assert!(error.to_string().contains("corrupt at byte"), "{error}");
    assert_eq!(receiver.installed(), [0; 0]);
    // What is damaged is gone, and the next try brings all of it.
    sender.send(&snapshot, PATIENCE).await.unwrap();
    assert_eq!(receiver.installed(), [7]);
}

/// Says from where on it wants a snapshot, and takes no piece of it. Its connection works, and answers pings.
struct Stuck {
    asked: AtomicU64,
}

/// What a stuck receiver holds on to: while it does, its side of the call stays open.
type Held = (Streaming<Frame>, mpsc::Sender<Result<Frame, Status>>);

#[tonic::async_trait]
impl SnapshotTransfer for Arc<Stuck> {
    type TransferStream = ReceiverStream<Result<Frame, Status>>;

    async fn transfer(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (answers, answered) = mpsc::channel(AHEAD);
        answers
            .send(Ok(frame(&SnapshotAnswer::From(0))))
            .await
            .unwrap();
        let held: Held = (request.into_inner(), answers);
        tokio::spawn(async move {
            // Ends with the call, which the sender has to give up.
            held.1.closed().await;
            drop(held);
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }
}

async fn serve_stuck() -> (Arc<Stuck>, SocketAddr) {
    let stuck = Arc::new(Stuck {
        asked: AtomicU64::new(0),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tonic::transport::Server::builder()
        .add_service(SnapshotTransferServer::new(Arc::clone(&stuck)))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(async move { drop(serving.await) });
    (stuck, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_answers_and_takes_no_piece_is_given_up_and_others_get_their_turn() {
    let (stuck, address) = serve_stuck().await;
    let line = Line::to(address).await;
    let sender = Sender::new(&line);
    let snapshot = build(&sender.snapshots, 7);
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path()).await;
    let mut healthy = Sender::new(&*Line::to(receiver.address).await);
    healthy.outbox = sender.outbox.clone();

    let step = Duration::from_secs(2);
    let began = std::time::Instant::now();
    let given_up = async {
        let sends = (0..SENDS_MAX).map(|_| sender.send(&snapshot, step));
        let ends = futures_util::future::join_all(sends).await;
        (ends, began.elapsed())
    };
    let others = async {
        // Once both places are taken.
        while stuck.asked.load(Ordering::Relaxed) < SENDS_MAX as u64 {
            tokio::task::yield_now().await;
        }
        healthy.send(&snapshot, PATIENCE).await.unwrap();
    };
    let ((ends, took), ()) = tokio::join!(given_up, others);
    for end in ends {
        assert!(
            matches!(end, Err(CallError::Deadline { waited, .. }) if waited == step),
            "{end:?}"
        );
    }
    assert!(step <= took && took < 3 * step, "{took:?}");
    assert_eq!(receiver.installed(), [7]);
    assert_eq!(sender.outbox.room.available_permits(), SENDS_MAX);
    // That the test ends says that nothing reads the file for a receiver that was given up: a runtime waits for its threads.
}
