//! The data plane as clients see it that no one here wrote: curl, Google's gRPC, grpcurl, nghttp, h2spec and Python's
//! WebSockets, each of them against replicas that are not ours either.
//!
//! One peer, since what is shown is what happens to a request within one. Whatever HTTP/1.1 carries is asked on both
//! of its paths. A client that is not installed is skipped with a line that says so.

mod browser;
mod curl;
mod grpc;
mod http2;
mod probes;
mod spans;
mod stage;
mod websocket;
