//! The data plane by itself, before fixed replicas of one service: for measurements.
//!
//! `cargo run --release -p raftserve-proxy --example forward -- 127.0.0.1:8080 1 127.0.0.1:9001,127.0.0.1:9002`
//!
//! A fourth word, `hyper` or `fast`, says which code carries HTTP/1.1. A fifth, `traced`, has the spans of every request
//! gathered, and dropped where they would be exported.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::{LoadBalancingPolicy, Traffic};
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};
use raftserve_proxy::{
    Endpoint, FinishedTraces, Http1Path, NoSessions, Proxy, ProxyConfig, RouteTable, Routes,
    ServiceRoute, Tracer, USUAL_WEIGHT,
};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// As in the binary that carries the proxy.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("give {what}"));
    let mut config = ProxyConfig {
        listen: next("an address to listen on")?.parse()?,
        workers: Some(next("a number of workers")?.parse()?),
        ..ProxyConfig::default()
    };
    let service = ServiceId(1);
    let mut endpoints = Vec::new();
    for (address, number) in next("the replicas' addresses")?.split(',').zip(1..) {
        endpoints.push(Endpoint {
            replica: ReplicaId { service, number },
            address: address.parse()?,
            version: ServiceVersion(1),
            weight: USUAL_WEIGHT,
            ready: true,
        });
    }
    config.http1_path = match next("nothing, or `hyper` or `fast`").as_deref() {
        Ok("hyper") => Http1Path::Hyper,
        _ => Http1Path::Fast,
    };
    if next("nothing, or `traced`").is_ok_and(|word| word == "traced") {
        let (tracer, traces) = Tracer::new(1.0);
        config.tracer = Some(tracer);
        std::thread::spawn(move || drop_all(traces));
    }
    let route = ServiceRoute {
        id: service,
        name: "svc".parse()?,
        port: None,
        policy: LoadBalancingPolicy::LeastLoad,
        stream_timeout: Duration::from_secs(120),
        affinity: None,
        traffic: Traffic::default(),
        endpoints,
    };
    let routes = Arc::new(Routes::new(RouteTable::new([Arc::new(route)])));
    let _proxy = Proxy::start(config, routes, Arc::new(NoSessions), None)?;
    wait_for_sigterm()
}

/// Whoever profiles this program needs it to end by itself.
fn wait_for_sigterm() -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut told = signal(SignalKind::terminate())?;
        told.recv().await;
        Ok(())
    })
}

/// Takes what is told, as often as an exporter does that sends it in batches.
fn drop_all(mut traces: FinishedTraces) {
    let mut taken = Vec::new();
    loop {
        while traces.take_now(&mut taken) {}
        taken.clear();
        std::thread::sleep(Duration::from_millis(50));
    }
}
