//! The data plane: listeners, routing, policies, upstreams.
//!
//! A request meets no lock and no consensus here: a worker reads an immutable [`RouteTable`], picks
//! an endpoint by a pure policy, and streams through a connection of its own pool. Only the first
//! request of a strictly bound session waits for agreement, through the [`Sessions`] trait, and that
//! wait is bounded and counted.
//!
//! What holds:
//! * A request is sent at most once. It is tried on another replica only if nothing of it was sent,
//!   and never twice on the replica that refused it.
//! * A session's request goes to the replica that [`Sessions::lookup`] named after the last wait
//!   before it was sent, or nowhere.
//! * The in-flight count of a replica rises and falls exactly once per request, however it ends.
//! * Bodies are streamed with back-pressure both ways; none is ever held whole.
//!
//! What is left to others: who is ready (the routes say so), what is agreed (the sessions say so),
//! and how loads travel between peers ([`Proxy::loads`] and [`PeerLoads::set`]).

mod answer;
mod body;
mod config;
mod connection;
mod control;
mod drain;
mod fast;
mod forward;
mod grpc;
mod headers;
mod listener;
mod load;
mod metrics;
pub mod policy;
mod proxy;
mod rewind;
mod routes;
mod session;
mod trace;
mod tunnel;
mod upstream;
mod view;
mod worker;

pub use config::{Http1Path, ProxyConfig};
pub use control::{PortState, PortStatus};
pub use load::PeerLoads;
pub use proxy::{MetricsHandle, Proxy, StartError};
pub use routes::{Endpoint, Listener, Resolved, RouteTable, Routes, ServiceRoute, USUAL_WEIGHT};
pub use session::{BindError, BindFuture, BoundReplica, Lookup, NoSessions, Sessions};
