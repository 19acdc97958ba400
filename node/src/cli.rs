//! The command line: a client of the admin API whose verbs, flags and tables follow `sky serve`.
//!
//! What is asked for goes to standard output; progress, questions and errors go to standard error.
//! A verb may be repeated after any failure: writes carry a request id, so that trying another peer
//! never does a thing twice.

mod add_args;
pub(crate) mod address;
mod args;
mod check;
mod check_args;
mod cluster;
mod confirm;
mod connect;
mod context;
mod contexts;
mod counted;
mod discovery;
mod down;
mod durations;
mod entrance;
mod events;
mod failure;
mod fetch;
mod glob;
mod kubectl;
mod kv;
mod kv_args;
mod login;
mod login_args;
mod logout;
mod logs;
mod output;
pub(crate) mod paint;
mod presence;
mod probe;
mod progress;
mod prompt;
mod recover;
mod resume;
mod shape;
mod snapshot;
mod snapshot_args;
mod source;
mod status;
mod table;
mod tls;
mod up;
mod yaml;

pub mod dev_args;
pub mod node_args;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use args::{Cli, Verb};
pub use args::{Program, command};
pub use failure::ErrorForm;
use failure::Failure;

/// Parses the command line. Prints help, or what is wrong with it, and exits where that is all there
/// is to do.
#[must_use]
pub fn parse(errors: ErrorForm) -> Program {
    match (Cli::try_parse().map_err(with_tip), errors) {
        (Ok(cli), _) => cli.program,
        (Err(error), ErrorForm::Json) if error.use_stderr() => {
            let _ = Failure::unparsed(&error).report(errors);
            std::process::exit(error.exit_code())
        }
        (Err(error), _) => error.exit(),
    }
}

/// The same error; where `cluster recover` lacks the cluster's id, with where that is to be had.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let lacks = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(names)) => names.iter().any(|it| it.starts_with("--cluster-id")),
        _ => false,
    };
    if lacks && error.kind() == ErrorKind::MissingRequiredArgument {
        let tip = "--dry-run shows the id, and changes nothing".into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// Runs a verb to its end. Ctrl-C ends it as it ends any program; what was agreed before goes on, and
/// a verb that waits for it says so.
#[must_use]
pub fn run(verb: Verb, errors: ErrorForm) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(verb)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(errors),
    }
}

async fn dispatch(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Up(args) => up::up(args).await,
        Verb::Update(args) => up::update(args).await,
        Verb::Status(args) => status::run(args).await,
        Verb::Down(args) => down::down(args).await,
        Verb::Logs(args) => logs::run(args).await,
        Verb::TerminateReplica(args) => down::terminate(args).await,
        Verb::Cluster(args) => cluster::run(args).await,
        Verb::Events(args) => events::run(args).await,
        Verb::Kv(args) => kv::run(args).await,
        Verb::Check(args) => check::run(args).await,
        Verb::Login(args) => login::run(args).await,
        Verb::Logout(args) => logout::run(args),
        Verb::Context(args) => context::run(args),
        Verb::Probe(args) => probe::run(args).await,
        Verb::Completions { shell } => {
            let mut command = Cli::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "raftserve", &mut script);
            output::write(&script)
        }
    }
}
