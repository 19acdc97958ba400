//! Verbs and flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use super::add_args::AddArgs;
use super::check_args::CheckArgs;
use super::contexts::ConfigHome;
use super::dev_args::DevArgs;
use super::durations;
use super::kv_args::KvArgs;
use super::login_args::{ContextArgs, LoginArgs, LogoutArgs};
use super::node_args::NodeArgs;
use super::probe::ProbeArgs;
use super::snapshot_args::{RecoverArgs, SnapshotArgs};

const AFTER_HELP: &str = "\
Try it without a cluster:
  raftserve dev examples/http_server.yaml

Against a cluster:
  export RAFTSERVE_SERVER=10.0.0.1:7000,10.0.0.2:7000,10.0.0.3:7000
  raftserve login --server https://10.0.0.1:7000 --ca-file ca.crt     where peers ask for credentials
  raftserve up service.yaml
  raftserve status
  curl \"$(raftserve status --endpoint my-service)\"

Exit codes:
  0  done
  1  failed: a service did not come up, or a defect
  2  wrong usage, or a service YAML with errors
  3  no such service, replica or file
  4  no peer answers, or the cluster has no quorum
  5  not done within --timeout
  6  refused: it exists already, is going down, a limit is reached, or a credential is not enough; of a peer:
     the cluster has removed it
  7  `cluster health`: what was asked was answered, and the cluster is not healthy
  130  interrupted

With --output json, the last line of stderr is then a JSON object: `error` with message, kind, reason, exit_code,
remedy, and violations, each with field, line and problem.";

/// Serves models and other HTTP services as SkyPilot's SkyServe does, from three equal peers.
#[derive(Debug, Parser)]
#[command(name = "raftserve", version, after_help = AFTER_HELP)]
pub(super) struct Cli {
    #[command(flatten)]
    _before: Before,
    #[command(subcommand)]
    pub(super) program: Program,
}

/// Flags of verbs that may stand before the verb, too. What is given there reaches the verb's own.
#[derive(Debug, Args)]
#[allow(
    dead_code,
    reason = "clap hands the values on to the verb's flags of these names"
)]
struct Before {
    #[arg(long, global = true, hide = true, value_delimiter = ',')]
    server: Vec<String>,
    #[arg(long, global = true, hide = true)]
    context: Option<String>,
    #[arg(long, global = true, hide = true)]
    ca_file: Option<PathBuf>,
    #[arg(long, global = true, hide = true)]
    tls_server_name: Option<String>,
    #[arg(long, global = true, hide = true, value_parser = durations::parse)]
    request_timeout: Option<Duration>,
}

/// The command, for whatever documents it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Program {
    /// A verb of the client.
    #[command(flatten)]
    Client(Box<Verb>),
    /// Run one peer of a cluster.
    Node(Box<NodeArgs>),
    /// Run a whole cluster on this machine, until Ctrl-C.
    Dev(DevArgs),
}

/// What a client asks of a cluster.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Bring up a service.
    Up(UpArgs),
    /// Give a service a new version.
    Update(UpdateArgs),
    /// Show services and their replicas.
    Status(StatusArgs),
    /// Take services down.
    Down(DownArgs),
    /// Print the output of a replica.
    Logs(LogsArgs),
    /// Stop one replica; it is replaced if it is still wanted.
    TerminateReplica(TerminateArgs),
    /// Show the peers, add and remove them, back them up, or hand leadership over.
    Cluster(ClusterArgs),
    /// Print what happens to services and replicas.
    Events(EventsArgs),
    /// Set and read keys that the whole cluster agrees on.
    Kv(KvArgs),
    /// Look for what is wrong with a cluster, or with where it is to be.
    Check(CheckArgs),
    /// Get a credential for a cluster, and keep it.
    Login(LoginArgs),
    /// Forget the credential that a login has kept.
    Logout(LogoutArgs),
    /// Show, choose, add and remove named clusters.
    Context(ContextArgs),
    /// Ask URLs until each answers with 200; for health checks in containers.
    Probe(ProbeArgs),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  raftserve completions bash > ~/.local/share/bash-completion/completions/raftserve"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Whom to ask, and as whom.
#[derive(Debug, Clone, Default, Args)]
pub struct Target {
    /// Admin address of a peer, as [https://]HOST[:PORT]. Repeat it, or separate several by commas: the next one is tried
    /// when one does not answer. Beyond this host TLS is spoken. By default those of the context in use, else
    /// 127.0.0.1:7000 if a peer without TLS is there, else a peer of the release in the Kubernetes cluster that kubectl
    /// works with; with a token, that release comes first, and where there is none, 127.0.0.1:7000 is asked without the token.
    #[arg(
        long,
        value_name = "ADDR",
        env = "RAFTSERVE_SERVER",
        value_delimiter = ','
    )]
    pub server: Vec<String>,
    /// The cluster to ask, by the name that `raftserve login` or `raftserve context add` gave it. With servers, only with its own.
    #[arg(long, value_name = "NAME", env = "RAFTSERVE_CONTEXT")]
    pub context: Option<String>,
    /// PEM file of the authorities of the peers' certificates; by default those of the context, else the system's.
    #[arg(long, value_name = "FILE", env = "RAFTSERVE_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// The name that the peers' certificates are for, if not the host's.
    #[arg(long, value_name = "NAME", env = "RAFTSERVE_TLS_SERVER_NAME")]
    pub tls_server_name: Option<String>,
    /// How long a peer may take to answer one call, such as 5s: then the next one is asked, or the verb fails. 15s by default.
    /// Where several peers are named, one that does not show that it lives is left after three seconds anyway.
    #[arg(long, value_name = "DURATION", env = "RAFTSERVE_REQUEST_TIMEOUT", value_parser = durations::parse)]
    pub request_timeout: Option<Duration>,
    /// A bearer token. From the environment only: others see a process's arguments.
    #[arg(long, env = "RAFTSERVE_TOKEN", hide = true, hide_env_values = true)]
    pub access_token: Option<String>,
    #[command(flatten)]
    pub home: ConfigHome,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns, for people.
    Table,
    /// One JSON document (a document per line where the output goes on).
    Json,
    /// YAML.
    Yaml,
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// How to print the result.
    #[arg(long, value_enum, default_value = "table")]
    pub output: Format,
}

/// Variables given beside the YAML.
#[derive(Debug, Clone, Args)]
pub struct Variables {
    /// Set an environment variable of the service, over the YAML's. KEY alone takes its value from
    /// this shell's environment.
    #[arg(long = "env", value_name = "KEY[=VALUE]")]
    pub envs: Vec<String>,
    /// As --env, for a value that is shown nowhere.
    #[arg(long = "secret", value_name = "KEY[=VALUE]")]
    pub secrets: Vec<String>,
}

/// How long to wait, and whether.
#[derive(Debug, Clone, Copy, Args)]
pub struct Waiting {
    /// Return as soon as the cluster has agreed, and do not wait for replicas.
    #[arg(long = "async")]
    pub no_wait: bool,
    /// Stop waiting after this long, such as 90s, 10m or 1h. What was asked for goes on.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = durations::parse)]
    pub timeout: Duration,
}

/// Bring up a service.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve up service.yaml                 named after `name:` in it, or after the file
  raftserve up service.yaml -n web -y       named web, without asking
  raftserve up - -n web < service.yaml      from standard input
  raftserve up service.yaml --dry-run       check the YAML, without any peer
  raftserve up service.yaml --async -y && raftserve events web")]
pub struct UpArgs {
    /// The service YAML, as SkyServe has it; `-` for standard input.
    pub yaml: PathBuf,
    /// The service's name. By default the YAML's `name:`, or else the file's name without ending.
    #[arg(short = 'n', long = "name", alias = "service-name")]
    pub name: Option<String>,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Check the YAML and show what it asks for; no peer is needed, and none is asked.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub variables: Variables,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

/// Give a service a new version.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve update web service.yaml
  raftserve update web service.yaml --async -y

Replicas are replaced one by one: each new one is ready before an old one drains. Where the new YAML
changes nothing that a running replica would notice, replicas are kept.")]
pub struct UpdateArgs {
    /// The service's name.
    pub name: String,
    /// The whole new service YAML; `-` for standard input.
    pub yaml: PathBuf,
    /// How replicas are replaced: rolling. SkyServe's blue_green is not built yet.
    #[arg(long, default_value = "rolling", value_parser = mode)]
    pub mode: String,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Check the YAML and show what it asks for; no peer is needed, and none is asked.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub variables: Variables,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

fn mode(text: &str) -> Result<String, String> {
    match text {
        "rolling" => Ok(text.to_owned()),
        "blue_green" | "blue-green" => Err(format!("{text} is not built yet; use rolling")),
        _ => Err("must be rolling".to_owned()),
    }
}

/// Show services and their replicas.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve status
  raftserve status web -v
  curl \"$(raftserve status web --endpoint)\"
  raftserve status --output json | jq '.services[].name'

VERSION is each version with a ready replica, and whether the newest is coming or failed if it has none; REPLICAS is ready replicas of all that have not failed.")]
pub struct StatusArgs {
    /// Names of services, or patterns such as 'web-*'; all if none.
    pub names: Vec<String>,
    /// Show more columns, and every replica.
    #[arg(short, long)]
    pub verbose: bool,
    /// Print only the URL of one service: its own port on the peer asked.
    #[arg(long, conflicts_with = "verbose")]
    pub endpoint: bool,
    /// Answer from what the peer asked knows, perhaps behind; works without a quorum.
    #[arg(long)]
    pub stale: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

/// Take services down.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve down web
  raftserve down 'test-*' -y
  raftserve down -a
  raftserve down web --replica-id 3        stop one replica; it is replaced if it is still wanted
  raftserve down web --purge               forget a service whose replicas cannot be stopped")]
pub struct DownArgs {
    /// Names of services, or patterns such as 'test-*'.
    #[arg(required_unless_present = "all")]
    pub names: Vec<String>,
    /// Take all services down.
    #[arg(short, long, conflicts_with_all = ["names", "replica_id"])]
    pub all: bool,
    /// Forget at once, with replicas that could not be stopped; they may go on running.
    #[arg(short, long)]
    pub purge: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Stop only this replica of the one service named.
    #[arg(long, value_name = "N")]
    pub replica_id: Option<u32>,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

/// Print the output of a replica.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve logs web 1                 from the beginning, and on as it is written
  raftserve logs web 1 --no-follow
  raftserve logs web 1 --tail 100")]
pub struct LogsArgs {
    /// The service's name.
    pub name: String,
    /// The replica's number. May be left out if the service has only one.
    pub replica_id: Option<u32>,
    /// Go on as the replica writes, until it has ended (the default without --tail).
    #[arg(long, overrides_with = "no_follow")]
    pub follow: bool,
    /// Print what there is.
    #[arg(long, overrides_with = "follow")]
    pub no_follow: bool,
    /// Print only the last N lines, and do not follow.
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    pub tail: Option<u32>,
    /// Not built yet: the controller's decisions are in `raftserve events`.
    #[arg(long, hide = true)]
    pub controller: bool,
    /// Not built yet.
    #[arg(long, hide = true)]
    pub load_balancer: bool,
    #[command(flatten)]
    pub target: Target,
}

/// Stop one replica.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve terminate-replica web 3
  raftserve terminate-replica web 3 -p     also forget the record of one that failed")]
pub struct TerminateArgs {
    /// The service's name.
    pub name: String,
    /// The replica's number.
    pub replica_id: u32,
    /// Also forget the record of a replica that failed.
    #[arg(short, long)]
    pub purge: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

/// Show the peers, add and remove them, back them up, or hand leadership over.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ClusterVerb,
}

/// What to do with the peers.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// How the peer asked sees itself and the cluster. Answers without a quorum too.
    Status {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// The peers, as the peer asked knows them. Answers without a quorum too.
    Members {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Save the cluster's state to a file, look into such a file, or begin a new cluster with it.
    Snapshot(SnapshotArgs),
    /// Begin a new cluster with what one peer has, when most peers are lost for good.
    Recover(RecoverArgs),
    /// Raise the cluster's version to the newest that every peer supports, for good.
    #[command(after_help = "\
After every peer runs a new release, this lets the cluster use what came with it. Until then each peer can go back to \
the release before; afterwards none can. Refused while a peer does not support the new version or has not been heard; \
`raftserve cluster status --output json` shows what each supports.")]
    Finalize {
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Compare the states of all peers as of one log entry.
    #[command(after_help = "\
Peers compare by themselves every 4096 entries, and one that a majority finds to differ stops. This asks now. Exits \
with 1 if a peer differs or was not heard.")]
    Compare {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// How the leader sees the peers, and how many more may be lost.
    #[command(after_help = "\
Exits with 7 if the cluster is not healthy: if a peer does not answer or is behind, if the disk of one does not answer, or \
if one has met a peer of another cluster. A disk that is nearly full is told, and the cluster is healthy for as long as \
there is room.")]
    Health {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Add a peer: show the command that starts it, and wait until it has joined, caught up and got its vote.
    Add(AddArgs),
    /// Remove a peer for good, and wait until it is a member no more. Leadership is moved away first; refused if
    /// the voters left that answer are no quorum. Its id and data directory never come back.
    Remove {
        /// Its id, as `cluster members` shows it.
        node: u64,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Give a learner a vote as soon as it is caught up, though the voters are then even in number.
    Promote {
        /// Its id, as `cluster members` shows it.
        node: u64,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Hand leadership to another peer, and wait until it leads.
    TransferLeader {
        /// Its id, as `cluster members` shows it; the one that is furthest along if not given.
        node: Option<u64>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
}

/// Print what happens to services and replicas.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve events                     what is kept, then what happens
  raftserve events web --no-follow
  raftserve events --from 1200         from log index 1200 on, on any peer
  raftserve events --output json")]
pub struct EventsArgs {
    /// Only events of this service.
    pub name: Option<String>,
    /// Begin at this log index; by default at the oldest event that is kept.
    #[arg(long, value_name = "INDEX")]
    pub from: Option<u64>,
    /// Stop once everything that has happened is printed.
    #[arg(long)]
    pub no_follow: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(words: &[&str]) -> String {
        let words = ["raftserve"].iter().chain(words);
        let error = Cli::try_parse_from(words).expect_err("is refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for mode in ["blue_green", "blue-green"] {
            let text = refused(&["update", "web", "web.yaml", "--mode", mode]);
            assert!(text.contains(&format!("{mode} is not built yet")), "{text}");
        }
    }

    #[test]
    fn down_takes_names_or_all_and_never_both() {
        refused(&["down"]);
        refused(&["down", "web", "--all"]);
        refused(&["down", "--all", "--replica-id", "1"]);
        for good in [
            &["down", "web"][..],
            &["down", "-a"],
            &["down", "web", "--replica-id", "1"],
        ] {
            let words = ["raftserve"].iter().chain(good);
            assert!(Cli::try_parse_from(words).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn whom_to_ask_may_be_said_before_the_verb() {
        let words = ["raftserve", "--server", "a,b", "--context", "c", "status"];
        let Program::Client(verb) = Cli::parse_from(words).program else {
            panic!("another program");
        };
        let Verb::Status(args) = *verb else {
            panic!("another verb");
        };
        assert_eq!(args.target.server, ["a", "b"]);
        assert_eq!(args.target.context.as_deref(), Some("c"));
    }

    #[test]
    fn how_long_a_peer_may_take_may_be_said_of_every_verb() {
        for words in [
            &["raftserve", "--request-timeout", "3s", "status"][..],
            &["raftserve", "status", "--request-timeout", "3s"],
        ] {
            let Program::Client(verb) = Cli::parse_from(words).program else {
                panic!("another program");
            };
            let Verb::Status(args) = *verb else {
                panic!("another verb");
            };
            let patience = args.target.request_timeout;
            assert_eq!(patience, Some(Duration::from_secs(3)));
        }
        refused(&["cluster", "health", "--request-timeout", "0s"]);
    }

    #[test]
    fn servers_may_be_repeated_or_listed() {
        let words = ["raftserve", "status", "--server", "a,b:1", "--server", "c"];
        let Program::Client(verb) = Cli::parse_from(words).program else {
            panic!("another program");
        };
        let Verb::Status(args) = *verb else {
            panic!("another verb");
        };
        assert_eq!(args.target.server, ["a", "b:1", "c"]);
    }
}
