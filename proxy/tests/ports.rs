//! What a proxy does when its ports towards one replica are used up. In a network of its own, where two are all there are.

mod support;

use std::fmt::{Debug, Write};
use std::io::Read;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::{Arc, Mutex};

use raftserve_proxy::{Http1Path, NoSessions, ProxyConfig};
use socket2::{Domain, Protocol, Socket, Type};
use support::{Hand, Rig, config, is_required, log, recorder, service};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const GET: &str = "GET / HTTP/1.1\r\nhost: svc\r\n\r\n";

/// The ports that connections begin at.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Has the rest of its arguments run in a network of its own, which has only a loopback, and that is down.
const APART: [&str; 3] = ["--user", "--map-root-user", "--net"];

#[test]
fn a_lack_of_ports_towards_one_replica_leaves_the_others() {
    let apart = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(APART).args(arguments).status()
    };
    if !apart(&["test", "-w", RANGE]).is_ok_and(|status| status.success()) {
        let lacks = "it takes unshare(1), and namespaces of users and networks";
        assert!(!is_required(), "{lacks}");
        eprintln!("skipped: {lacks}");
        return;
    }
    let this = std::env::current_exe().expect("it runs");
    let this = this.to_str().expect("text");
    let ran = apart(&[this, "--exact", "two_ports", "--ignored", "--nocapture"]);
    assert!(ran.expect("it runs once more").success());
}

/// Has the kernel start the loopback (rtnetlink(7): RTM_NEWLINK).
fn start_loopback() {
    const ROUTE: i32 = 0;
    const NETLINK: i32 = 16;
    const NEWLINK: u16 = 16;
    /// The request flags of one that is to be acknowledged.
    const ACKNOWLEDGED: u16 = 0x5;
    /// The loopback is the first interface of each network.
    const LOOPBACK: u32 = 1;
    const UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(NEWLINK.to_ne_bytes());
    message.extend(ACKNOWLEDGED.to_ne_bytes());
    message.extend([0; 8]); // Sequence and port.
    message.extend([0; 4]); // Family and type.
    message.extend([LOOPBACK, UP, UP].map(u32::to_ne_bytes).as_flattened());
    let socket = Socket::new(
        Domain::from(NETLINK),
        Type::RAW,
        Some(Protocol::from(ROUTE)),
    );
    let mut socket = socket.expect("a socket of netlink");
    socket.send(&message).expect("the kernel takes it");
    let mut answer = [0; 64];
    let count = socket.read(&mut answer).expect("it is acknowledged");
    // The header of 16 bytes is followed by the error, 0 if there is none.
    assert_eq!(
        answer.get(16..20),
        Some(&[0; 4][..]),
        "{:?}",
        &answer[..count]
    );
}

/// What was logged as a warning, or worse.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().expect("no panic").push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").expect("room");
    }
}

/// Connections to `address` from all ports that there are.
fn all_ports(address: SocketAddr) -> Vec<std::net::TcpStream> {
    let mut open = Vec::new();
    loop {
        match std::net::TcpStream::connect(address) {
            Ok(stream) => open.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable);
                return open;
            }
        }
    }
}

#[tokio::test]
#[ignore = "what a_lack_of_ports_towards_one_replica_leaves_the_others runs in a network of its own"]
async fn two_ports() {
    const ASKS: usize = 20;
    start_loopback();
    let usual = std::fs::read_to_string(RANGE).expect("it is there");
    let few = |range: &str| std::fs::write(RANGE, range).expect("a network of its own");
    let warnings = Warnings::default();
    tracing::subscriber::set_global_default(warnings.clone()).expect("the only one");
    for path in [Http1Path::Fast, Http1Path::Hyper] {
        let log = log();
        let (a, b) = (recorder("a", &log).await, recorder("b", &log).await);
        let config = ProxyConfig {
            http1_path: path,
            workers: NonZeroUsize::new(1),
            ..config()
        };
        let svc = service(1, "svc", &[a, b]);
        let mut rig = Rig::with(config, [svc], Arc::new(NoSessions));
        let mut client = Hand::connect(rig.address).await;
        few("40000 40001");
        let held = all_ports(a);
        for _ in 0..ASKS {
            let (head, body) = client.ask(GET).await;
            assert_eq!((head[0].as_str(), body.as_str()), ("http/1.1 200 ok", "b"));
        }
        assert!(rig.metric("connects_lacking_resources_total") >= ASKS as u64 / 2);
        for blame in ["connect_failures_total", "ejections_total"] {
            assert_eq!(rig.metric(blame), 0, "{blame}");
        }
        assert!(rig.failures.try_recv().is_err(), "no replica is suspected");
        let told = warnings.take();
        let [told] = &told[..] else {
            panic!("one line, not one for each: {told:?}");
        };
        assert!(told.contains("os error 99"), "{told}");
        assert!(told.contains("ip_local_port_range"), "{told}");
        assert!(told.contains("replica=1-1 "), "{told}");

        few(&usual);
        let answers = [client.ask(GET).await.1, client.ask(GET).await.1];
        assert!(answers.contains(&"a".to_owned()), "at once: {answers:?}");
        drop(held);
        rig.idle().await;
    }
}
