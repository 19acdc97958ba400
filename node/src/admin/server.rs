//! Puts the services together on one port.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::access::{self, AccessApi};
use super::calls::Calls;
use super::cluster::ClusterApi;
use super::door::{Door, Guarded};
use super::events::EventsApi;
use super::gate::{Gate, KEY_REQUESTS_MAX, REQUESTS_MAX};
use super::keys::KeyValueApi;
use super::listener::connections;
use super::logs::LogsApi;
use super::port;
use super::quick::Quick;
use super::replicas::ReplicasApi;
use super::services::ServicesApi;
use super::sessions::SessionsApi;
use super::shared::{AdminParts, Shared};
use super::snapshots::SnapshotsApi;
use super::v1;

/// The largest message that carries a YAML, which may itself have 1 MiB.
const YAML_MESSAGE_BYTES_MAX: usize = 2 << 20;

/// The largest message that carries no YAML: names and numbers.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The largest message that carries a key's value, which may itself have 64 KiB.
pub(super) const VALUE_MESSAGE_BYTES_MAX: usize = 72 << 10;

/// How long to wait before the cluster is asked again to agree on its secret for tokens.
const SECRET_RETRY: Duration = Duration::from_secs(1);

/// How long requests may finish once the port closes; then they are cut.
const CLOSE_GRACE: Duration = Duration::from_secs(3);

/// The admin port failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The descriptors that the build wrote are not usable.
    #[error("cannot offer reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Serves the admin API on `listener` until `shutdown`, then ends its streams and lets requests
/// finish within a grace.
///
/// # Errors
/// [`AdminError`] if it cannot begin.
pub async fn serve(
    listener: TcpListener,
    parts: AdminParts,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let ready = parts.ready.clone();
    let certificates = parts.certificates.clone();
    let shared = Arc::new(Shared::new(parts, shutdown.clone()));
    let door = shared.parts.credentials.clone().map(|credentials| {
        let consensus = shared.parts.consensus.clone();
        let denials = Arc::clone(&shared.parts.denials);
        Arc::new(Door::new(credentials, consensus, denials))
    });
    let access = {
        let door = door.clone();
        move |shared| AccessApi::new(shared, door)
    };
    let gate = Gate::new(REQUESTS_MAX);
    let keys_gate = Gate::new(KEY_REQUESTS_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(AdminError::Reflection)?;

    macro_rules! gated {
        ($server:path, $api:expr, $bytes_max:expr) => {
            gated!($server, $api, $bytes_max, gate)
        };
        ($server:path, $api:expr, $bytes_max:expr, $gate:expr) => {{
            let server = <$server>::new($api(Arc::clone(&shared)));
            let server = server.max_decoding_message_size($bytes_max);
            InterceptedService::new(Guarded::new(server, door.clone()), $gate.clone())
        }};
    }
    let routes = Routes::new(health)
        .add_service(reflection)
        .add_service(gated!(AccessServer, access, MESSAGE_BYTES_MAX))
        .add_service(gated!(ServicesServer, ServicesApi, YAML_MESSAGE_BYTES_MAX))
        .add_service(gated!(ReplicasServer, ReplicasApi, MESSAGE_BYTES_MAX))
        .add_service(gated!(LogsServer, LogsApi, MESSAGE_BYTES_MAX))
        .add_service(gated!(EventsServer, EventsApi, MESSAGE_BYTES_MAX))
        .add_service(gated!(SessionsServer, SessionsApi, MESSAGE_BYTES_MAX))
        .add_service(gated!(ClusterServer, ClusterApi, MESSAGE_BYTES_MAX))
        .add_service(gated!(
            KeyValueServer,
            KeyValueApi,
            VALUE_MESSAGE_BYTES_MAX,
            keys_gate
        ))
        .add_service(gated!(
            SnapshotsServer,
            SnapshotsApi::new,
            MESSAGE_BYTES_MAX
        ));
    let calls = Calls::new(
        routes,
        Quick {
            keys: KeyValueApi(Arc::clone(&shared)),
            gate: keys_gate,
            door: door.clone(),
        },
    );
    let serving = port::serve(connections(listener, certificates), calls, shutdown.clone());

    let cut = async {
        shutdown.cancelled().await;
        tokio::time::sleep(CLOSE_GRACE).await;
    };
    let opened = open_door(&shared, door.as_deref());
    tokio::select! {
        () = serving => Ok(()),
        () = report_health(reporter, ready) => unreachable!("health is reported for ever"),
        () = opened => unreachable!("the door stays open"),
        () = cut => Ok(()),
    }
}

type AccessServer = v1::access_server::AccessServer<AccessApi>;
type ServicesServer = v1::services_server::ServicesServer<ServicesApi>;
type ReplicasServer = v1::replicas_server::ReplicasServer<ReplicasApi>;
type LogsServer = v1::logs_server::LogsServer<LogsApi>;
type EventsServer = v1::events_server::EventsServer<EventsApi>;
type SessionsServer = v1::sessions_server::SessionsServer<SessionsApi>;
type KeyValueServer = v1::key_value_server::KeyValueServer<KeyValueApi>;
type ClusterServer = v1::cluster_server::ClusterServer<ClusterApi>;
type SnapshotsServer = v1::snapshots_server::SnapshotsServer<SnapshotsApi>;

/// Sees to it that the cluster has a secret for tokens before the first login, so that every peer knows it by then. Never
/// ends.
async fn open_door(shared: &Shared, door: Option<&Door>) {
    let mut ready = shared.parts.ready.clone();
    let is_ready = ready.wait_for(|ready| *ready).await.is_ok();
    if let (Some(door), true) = (door, is_ready) {
        while let Err(error) = access::realm(shared, door).await {
            tracing::debug!(%error, "the cluster has no secret for tokens yet");
            tokio::time::sleep(SECRET_RETRY).await;
        }
    }
    std::future::pending().await
}

/// Tells health whether the peer is ready: for the whole server (the empty name) and each service.
async fn report_health(reporter: HealthReporter, mut ready: watch::Receiver<bool>) {
    loop {
        let status = match *ready.borrow_and_update() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for name in [
            "",
            AccessServer::NAME,
            ServicesServer::NAME,
            ReplicasServer::NAME,
            LogsServer::NAME,
            EventsServer::NAME,
            SessionsServer::NAME,
            ClusterServer::NAME,
            KeyValueServer::NAME,
            SnapshotsServer::NAME,
        ] {
            reporter.set_service_status(name, status).await;
        }
        if ready.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
