//! The only way to the API server for the peers of a test, which can be shut, or lose what is sent.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use jepsen_tests::kube::Namespace;
use serde_json::{Value, json};
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They lead to the API server.
    Open,
    /// They are ended, and new ones at once.
    Shut,
    /// No packet of theirs is received or acknowledged, nor any that would begin one. Those that there are stay.
    Lost,
}

/// See above.
pub(crate) struct Door {
    way: watch::Sender<Way>,
    keeper: JoinHandle<()>,
}

impl Door {
    /// A door to the namespace's API server, open, and a configuration that goes through it.
    pub(crate) async fn build(namespace: &Namespace, config: &Path) -> anyhow::Result<Self> {
        let view = [
            "config",
            "view",
            "--raw",
            "--flatten",
            "--minify",
            "-o",
            "json",
        ];
        let mut settings: Value = serde_json::from_str(&namespace.kube().kubectl(&view).await?)?;
        let cluster = &mut settings["clusters"][0]["cluster"];
        let server = cluster["server"].as_str().context("no server")?;
        let server = server.strip_prefix("https://").context("not over TLS")?;
        let behind = tokio::net::lookup_host(server).await?.next();
        let behind = behind.with_context(|| format!("{server} has no address"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = format!("https://{}", listener.local_addr()?);
        // The certificate is for another address, and not what is tested.
        *cluster = json!({ "server": server, "insecure-skip-tls-verify": true });
        tokio::fs::write(config, settings.to_string()).await?;
        let (way, seen) = watch::channel(Way::Open);
        Ok(Self {
            way,
            keeper: tokio::spawn(keep(listener, behind, seen)),
        })
    }

    /// From now on, this becomes of connections.
    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Passes no packet to a socket, or all.
fn lose<'a>(socket: impl Into<SockRef<'a>>, way: Way) {
    let bytes = if way == Way::Lost { 0 } else { u32::MAX };
    // A program of one instruction, which returns how much of a packet is passed (BPF_RET | BPF_K).
    let filter = [SockFilter::new(0x06, 0, 0, bytes)];
    let set = socket.into().attach_filter(&filter);
    set.expect("a filter on a socket of one's own");
}

async fn keep(listener: TcpListener, behind: SocketAddr, mut way: watch::Receiver<Way>) {
    loop {
        tokio::select! {
            changed = way.changed() => match changed {
                Ok(()) => lose(&listener, *way.borrow_and_update()),
                Err(_) => return,
            },
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(tokio::spawn(pass(client, behind, way.clone()))),
                Err(_) => return,
            },
        }
    }
}

/// Keeps a connection for as long as the way stays as it is; one that is lost, until it is not lost any more.
async fn pass(mut client: TcpStream, behind: SocketAddr, mut way: watch::Receiver<Way>) {
    if *way.borrow_and_update() == Way::Shut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(behind).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        _ = way.wait_for(|way| *way != Way::Open) => {}
    }
    let now = *way.borrow();
    if now == Way::Lost {
        lose(&client, now);
        let _ = way.wait_for(|way| *way != Way::Lost).await;
    }
}
