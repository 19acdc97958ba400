//! One peer of raftserve: everything behind the binary `raftserve`, which is only [`main`]. It is a
//! library so that tests can drive real parts; it is not meant for use by other crates.

use std::process::ExitCode;

pub mod access;
pub mod admin;
pub mod bindings;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod controller;
pub mod dev;
mod grpc_frame;
mod grpc_health;
pub mod kubernetes;
mod local_files;
mod logging;
pub mod node;
pub mod ops;
pub mod otlp;
pub mod peer;
pub mod projection;
pub mod provider;
mod raft_metrics;
pub mod share;
pub mod shim;

/// The whole program: reads the command line, runs what it asks for, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(exit) = shim::dispatch(std::env::args_os().skip(1)) {
        return exit;
    }
    let errors = cli::ErrorForm::asked(std::env::args_os());
    match cli::parse(errors) {
        cli::Program::Client(verb) => cli::run(*verb, errors),
        cli::Program::Node(args) => node::main(*args),
        cli::Program::Dev(args) => dev::run(args),
    }
}
