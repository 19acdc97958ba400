//! A large state, made the way that users make one: services with thousands of replicas, and clients whose sessions are
//! bound to them.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jepsen_tests::cluster::Cluster;
use jepsen_tests::http::Connection;
use jepsen_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Static services, each with as many addresses as one may name.
const SERVICES: u64 = 10;
const ADDRESSES: u16 = 1_000;

/// How many replicas there are.
pub(crate) const REPLICAS: u64 = SERVICES * ADDRESSES as u64;

/// Clients that bind sessions at once.
const BINDERS: usize = 64;

/// How long the replicas of one service may take to be ready.
const READY: Duration = Duration::from_secs(300);

const SESSION_HEADER: &str = "x-session";

/// What a replica answers. It closes: thousands of replicas times the workers of three peers would be more connections kept
/// than a process may have files.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

/// Stands in for all replicas: one port, which every loopback address leads to.
struct Upstream {
    port: u16,
}

impl Upstream {
    /// On a thread of its own, which ends with the process.
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        std::thread::Builder::new()
            .name("replicas".to_owned())
            .spawn(move || runtime.block_on(serve(listener)))?;
        Ok(Self { port })
    }

    /// The address of one replica, which no other one has.
    fn address(&self, service: u64, replica: u16) -> SocketAddr {
        let [high, low] = replica.to_be_bytes();
        let second = u8::try_from(service + 1).expect("there are few services");
        let address = Ipv4Addr::new(127, second, high, low);
        SocketAddr::from((address, self.port))
    }
}

async fn serve(listener: std::net::TcpListener) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move { drop(answer(stream).await) });
        }
    }
}

/// Answers one request, which has no body.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(ANSWER).await?;
    stream.shutdown().await
}

fn name(service: u64) -> String {
    format!("crowd-{service}")
}

fn yaml(upstream: &Upstream, service: u64) -> String {
    let mut text = format!(
        "name: {}\n\
         service:\n  readiness_probe: {{path: /, endpoint_probe_interval_seconds: 60}}\n\
         _metadata:\n  raftserve:\n    session_affinity: {{header: {SESSION_HEADER}}}\n    \
         provider:\n      static:\n        addresses:\n",
        name(service)
    );
    for replica in 0..ADDRESSES {
        let _ = writeln!(text, "        - {}", upstream.address(service, replica));
    }
    text
}

/// Gives the cluster [`REPLICAS`] replicas, all ready, and so many bound sessions.
pub(crate) async fn fill(cluster: &Cluster, sessions: u64) -> anyhow::Result<()> {
    let upstream = Upstream::start()?;
    let admin = cluster.admin(cluster.leader().await?);
    for service in 0..SERVICES {
        admin.apply(&yaml(&upstream, service)).await?;
    }
    for service in 0..SERVICES {
        let name = name(service);
        wait::until(&format!("replicas of {name}"), READY, async || {
            let found = admin.service(&name).await?;
            let found = found.context("there is no such service")?;
            if found.ready_replicas != u32::from(ADDRESSES) {
                bail!("{} are ready", found.ready_replicas);
            }
            Ok(())
        })
        .await?;
    }
    cluster.note(&format!("{REPLICAS} replicas are ready"));
    bind(cluster, sessions).await?;
    cluster.note(&format!("{sessions} sessions are bound"));
    Ok(())
}

/// Makes a first request for each session, through all peers. That it is answered says that the session is bound.
async fn bind(cluster: &Cluster, sessions: u64) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut binders = JoinSet::new();
    for target in cluster.targets().into_iter().cycle().take(BINDERS) {
        let next = Arc::clone(&next);
        binders.spawn(async move {
            let mut connection = Connection::new(target.address);
            loop {
                let session = next.fetch_add(1, Ordering::Relaxed);
                if session >= sessions {
                    return anyhow::Ok(());
                }
                let path = format!("/{}/", name(session % SERVICES));
                let key = format!("session-{session}");
                let reply = connection.get(&path, &[(SESSION_HEADER, &key)]).await;
                let reply = reply.map_err(|error| anyhow::anyhow!("{key}: {error:?}"))?;
                ensure!(reply.status == 200, "{key}: {reply:?}");
            }
        });
    }
    while let Some(bound) = binders.join_next().await {
        bound.context("a client panicked")??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_replicas_have_one_address() {
        let upstream = Upstream { port: 7 };
        let addresses: BTreeSet<SocketAddr> = (0..SERVICES)
            .flat_map(|service| (0..ADDRESSES).map(move |replica| (service, replica)))
            .map(|(service, replica)| upstream.address(service, replica))
            .collect();
        assert_eq!(addresses.len() as u64, REPLICAS);
        assert!(addresses.iter().all(|it| it.ip().is_loopback()));
    }
}
