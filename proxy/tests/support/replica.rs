//! Replicas that speak HTTP/2 only.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::soon;

pub type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// A replica that speaks HTTP/2 only. Its calls come out of the receiver, all connections' together.
pub struct Replica {
    pub address: SocketAddr,
    pub calls: mpsc::Receiver<Call>,
    pub connections: Arc<AtomicUsize>,
}

impl Replica {
    pub async fn start(streams_max: u32) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (sender, calls) = mpsc::channel(1024);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.max_concurrent_streams(streams_max);
                    // What is taken back at once is no flood to it.
                    builder.max_pending_accept_reset_streams(1_000);
                    let mut connection = builder.handshake(stream).await.expect("HTTP/2");
                    while let Some(Ok(call)) = connection.accept().await {
                        if sender.send(call).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self {
            address,
            calls,
            connections,
        }
    }

    pub async fn call(&mut self) -> Call {
        soon("a call", self.calls.recv()).await.expect("it listens")
    }
}

/// Takes all of a body over HTTP/2, and says how many bytes that is.
pub async fn take_all(body: &mut RecvStream) -> usize {
    let mut taken = 0;
    while let Some(data) = soon("data", body.data()).await {
        let count = data.expect("a whole body").len();
        taken += count;
        let released = body.flow_control().release_capacity(count);
        released.expect("it was taken");
    }
    taken
}
