//! The data plane: listeners, routing, policies, upstreams.
//!
//! A request meets no lock and no consensus here: a worker reads an immutable [`RouteTable`], picks
//! an endpoint by a pure policy, and streams through a connection of its own pool. Only the first
//! request of a strictly bound session waits for agreement, through the [`Sessions`] trait, and that
//! wait is bounded and counted.
//!
//! What holds:
//! * A request that is not idempotent is sent at most once. Any request of which nothing was sent is tried on
//!   another replica, an idempotent one also after it was sent, within a budget; none twice on the same, except once where a
//!   kept connection ended and there is no other.
//! * A session's request goes to the replica that [`Sessions::lookup`] named after the last wait
//!   before it was sent, or nowhere.
//! * The in-flight count of a replica rises and falls exactly once per request, however it ends.
//! * Bodies are streamed with back-pressure both ways; none is ever held whole.
//!
//! What is left to others: who is ready (the routes say so), what is agreed (the sessions say so),
//! and how loads travel between peers ([`Proxy::loads`] and [`PeerLoads::set`]).

mod access_log;
mod answer;
mod body;
mod budget;
mod bulk;
mod choice;
mod client_bound;
mod config;
mod connection;
mod control;
mod deadline;
mod drain;
mod fast;
mod forward;
#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grpc;
mod guard;
mod hash_key;
mod headers;
mod health;
mod host;
mod http2;
mod json_key;
mod lack;
mod lifetime;
mod limit;
mod listener;
mod load;
mod memory;
mod metrics;
mod open_files;
pub mod policy;
mod pool;
mod prefixed;
mod protocol;
mod proxy;
mod queue;
pub mod reload;
mod routes;
mod rules;
mod running;
mod session;
mod tls;
mod trace;
mod tracer;
mod triage;
mod tunnel;
mod turns;
mod upstream;
mod view;
mod worker;
mod write_through;

pub use access_log::AccessLog;
pub use config::{Http1Path, ProxyConfig};
pub use control::{PortState, PortStatus};
pub use lack::Lack;
pub use load::PeerLoads;
pub use open_files::OpenFiles;
pub use proxy::{Announcer, MetricsHandle, Proxy, Queues, StartError};
pub use routes::{Endpoint, Listener, Resolved, RouteTable, Routes, ServiceRoute, USUAL_WEIGHT};
pub use session::{BindError, BindFuture, BoundReplica, Lookup, NoSessions, Sessions};
pub use tls::{TlsError, TlsListen, certificates};
pub use tracer::{Asked, FinishedTraces, RequestSpans, Tracer, TrySpan};
pub use upstream::{ReachError, ReplicaDialer};
