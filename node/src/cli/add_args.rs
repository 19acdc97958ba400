//! The flags of `raftserve cluster add`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::{Output, Target};
use super::{address, durations};

/// Add a peer.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve cluster add                                  shows the command to run, then waits for the new peer
  raftserve cluster add --peer-addr 127.0.0.1:7401       at an address of your choice
  raftserve cluster add --peer-addr 127.0.0.1:7401 --admin-addr 127.0.0.1:9000 --ops-addr 127.0.0.1:9001
  raftserve cluster add --no-wait                        only the command
  raftserve cluster add --no-wait --output json | jq .argv

A peer joins by itself once the command runs: it gets an id, catches up, and then a vote, if that makes the voters
odd in number. This waits for all of that at the address that the command names, and says what it waits for: whoever
changes that address in the command says it with --peer-addr here. It may be repeated: a peer that is at --peer-addr
already is waited for.")]
pub struct AddArgs {
    /// Where the new peer shall be reached by the others. By default its port is 100 above the highest peer port that is
    /// known, which is a guess: nobody is asked whether it is free.
    #[arg(long, value_name = "IP:PORT", value_parser = address::ip_port)]
    pub peer_addr: Option<SocketAddr>,
    /// Where its admin API shall be. Guessed by default, as the next three are: as far from --peer-addr as the first of
    /// several peers of a host has it.
    #[arg(long, value_name = "IP:PORT", value_parser = address::ip_port)]
    pub admin_addr: Option<SocketAddr>,
    /// Where its health and metrics shall be.
    #[arg(long, value_name = "IP:PORT", value_parser = address::ip_port)]
    pub ops_addr: Option<SocketAddr>,
    /// Where it shall take requests to services. Guessed to be on all addresses, or on loopback if --peer-addr is.
    #[arg(long, value_name = "IP:PORT", value_parser = address::ip_port)]
    pub proxy_addr: Option<SocketAddr>,
    /// The first of the ports that services have of their own there. Never guessed where Linux takes clients' ports from.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_516))]
    pub service_port_base: Option<u16>,
    /// The new peer's data directory, for the command.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where its certificates will be, for the command. With --credentials-dir, for an address that other hosts reach.
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Where the credentials of the admin API will be, for the command.
    #[arg(long, value_name = "DIR")]
    pub credentials_dir: Option<PathBuf>,
    /// It shall have the log and no vote, until `raftserve cluster promote`.
    #[arg(long)]
    pub learner: bool,
    /// Print the command, and do not wait.
    #[arg(long, alias = "async")]
    pub no_wait: bool,
    /// Stop waiting after this long, such as 90s, 10m or 1h. A new peer that runs by then goes on joining.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = durations::parse)]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}
