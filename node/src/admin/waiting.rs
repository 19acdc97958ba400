//! The admin port of a peer that belongs to no cluster yet: every call is told so, and for whom the peer waits. Without this
//! a client would hang, and whoever looks for the reason would find none.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::body::Body;

use super::errors::Reason;
use super::listener::{Counted, accept_all};
use crate::access::Certificates;

/// What is told besides to those who may know: whoever may ask, where no credentials are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Who and where the others are.
    Trusted,
    /// Not even that.
    Unknown,
}

/// Answers on `listener` until it is dropped, from when the peer first says what it waits for in `waits_for`. Connections that
/// come before wait in the kernel's queue, for the peer that may have begun a moment later.
pub async fn serve(
    listener: &TcpListener,
    certificates: Option<Arc<Certificates>>,
    mut waits_for: watch::Receiver<String>,
    audience: Audience,
) {
    if waits_for.wait_for(|text| !text.is_empty()).await.is_err() {
        return std::future::pending().await;
    }
    let (to_server, mut connections) = mpsc::channel(1);
    let answering = async {
        let mut served = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = served.join_next() => {}
                Some(stream) = connections.recv() => {
                    served.spawn(answer(stream, waits_for.clone(), audience));
                }
            }
        }
    };
    tokio::select! {
        () = accept_all(listener, certificates, &to_server) => {}
        () = answering => {}
    }
}

async fn answer(stream: Counted, waits_for: watch::Receiver<String>, audience: Audience) {
    let service = service_fn(|_: Request<Incoming>| {
        let told = told(&waits_for.borrow(), audience);
        let answer: Response<Body> = Reason::NoCluster.status(told).into_http();
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "an admin connection ended");
    }
}

fn told(waits_for: &str, audience: Audience) -> String {
    match audience {
        Audience::Trusted => format!("this peer belongs to no cluster yet: {waits_for}"),
        Audience::Unknown => {
            "this peer belongs to no cluster yet: its log says for whom it waits".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::admin::v1;
    use crate::admin::v1::cluster_client::ClusterClient;

    #[tokio::test]
    async fn a_peer_that_waits_says_for_whom() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let waits_for = watch::Sender::new(String::new());
        let asking = async {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            let channel = endpoint.connect().await.unwrap();
            let mut client = ClusterClient::new(channel);
            let first = client.status(v1::StatusRequest {});
            tokio::select! {
                biased;
                answer = first => panic!("it waits for nobody: {answer:?}"),
                () = tokio::task::yield_now() => {}
            }
            waits_for.send_replace("waiting to join p:1".to_owned());
            client.status(v1::StatusRequest {}).await.unwrap_err()
        };
        let serving = serve(&listener, None, waits_for.subscribe(), Audience::Trusted);
        let status = tokio::select! {
            status = asking => status,
            () = serving => panic!("it ended"),
        };
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(Reason::of(&status), Some(Reason::NoCluster));
        assert!(
            status.message().ends_with("yet: waiting to join p:1"),
            "{status:?}"
        );
        assert!(!told("p:1", Audience::Unknown).contains("p:1"));
    }
}
