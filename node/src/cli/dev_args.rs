//! The flags of `raftserve dev`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::durations;

/// Run a whole cluster on this machine.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  raftserve dev examples/http_server.yaml
  raftserve dev examples/http_server.yaml --chaos 10s
  raftserve dev --data-dir ./state          resumes what an earlier run left there

Starts three peers as processes of their own on loopback, brings the service up, prints the three
endpoints, and shows what goes on until Ctrl-C, which stops everything that it started. Peer n listens
at the default ports + 100 (n - 1); where one is taken, that peer's ports are moved, and printed.")]
pub struct DevArgs {
    /// A service YAML to bring up; none leaves the cluster empty.
    #[arg(value_name = "SERVICE.yaml")]
    pub service: Option<PathBuf>,
    /// The service's name. By default the YAML's `name:`, or else the file's name without ending.
    #[arg(short, long, requires = "service")]
    pub name: Option<String>,
    /// Keep the peers' data here, and resume what is there: the YAML is then applied as an update.
    /// By default the data is fresh, and removed at exit.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Kill a random peer with SIGKILL every DURATION (such as 10s) and start it again, under steady
    /// traffic, and count requests failed and sessions moved.
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    pub chaos: Option<Duration>,
}
