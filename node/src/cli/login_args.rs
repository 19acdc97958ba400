//! The flags of `raftserve login`, `raftserve logout` and `raftserve context`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::{Output, Target};
use super::contexts::ConfigHome;

/// Get a credential.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve login --server https://raftserve.example.com:7000 --ca-file ca.crt --user ann
  raftserve login --context prod                     again, once the token has expired
  raftserve login --server https://10.0.0.1:7000 --ca-file ca.crt --token-stdin < token

The credential and what it takes to reach the peers are kept as a context, which is then in use, in
~/.config/raftserve/contexts.json. A password is not kept: it is exchanged for a token that ends.")]
pub struct LoginArgs {
    /// The user; asked for at the terminal if not given.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Read the password from standard input, and do not ask for it.
    #[arg(long, requires = "user", conflicts_with = "token_stdin")]
    pub password_stdin: bool,
    /// A token that somebody gave you, instead of a password. Others on this host see it among the arguments.
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["user", "password_stdin", "token_stdin"])]
    pub token: Option<String>,
    /// Read such a token from standard input.
    #[arg(long, conflicts_with = "user")]
    pub token_stdin: bool,
    /// The name for the context; by default the one in use, or the first server's host.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub target: Target,
}

/// Forget a credential.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve logout                      of the context in use
  raftserve logout --context prod

The context stays, so that `raftserve login` needs no more than a password. No peer is asked, and none is told: a token is
good until it ends, or until the user's line in the peers' file htpasswd changes.")]
pub struct LogoutArgs {
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

/// Named clusters.
#[derive(Debug, Args)]
pub struct ContextArgs {
    #[command(subcommand)]
    pub verb: ContextVerb,
    #[command(flatten)]
    pub home: ConfigHome,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// Show them. Credentials are not shown.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Use one from now on.
    Use {
        /// Its name.
        name: String,
    },
    /// Add one, or change one. `raftserve login` does so too.
    Add {
        /// Its name.
        name: String,
        /// Admin address of a peer, as [https://]HOST[:PORT]. Repeat it, or separate several by commas.
        #[arg(long, value_name = "ADDR", value_delimiter = ',', required = true)]
        server: Vec<String>,
        /// PEM file of the authorities of the peers' certificates. Its content is kept.
        #[arg(long, value_name = "FILE")]
        ca_file: Option<PathBuf>,
        /// The name that the peers' certificates are for, if not the host's.
        #[arg(long, value_name = "NAME")]
        tls_server_name: Option<String>,
    },
    /// Forget one, with its credential.
    Remove {
        /// Its name.
        name: String,
    },
}
