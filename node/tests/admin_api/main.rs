//! The admin API over real connections, on a real peer: errors, writes, watches, and what any gRPC
//! tool relies on.

#![expect(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod bare;
mod cluster;
mod command_line;
mod keys;
mod lab;
mod replicas;
mod services;
