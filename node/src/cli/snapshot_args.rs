//! The flags of `raftserve cluster snapshot` and `raftserve cluster recover`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use raftserve_model::ClusterId;

use super::address;
use super::args::{Output, Target};

/// What to do with snapshots.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: SnapshotVerb,
}

/// What to do with a snapshot.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Save the state as it is now to a file.
    Save(SaveArgs),
    /// Show what a snapshot file holds. Needs no cluster.
    Inspect(FileArgs),
    /// Check every byte of a snapshot file. Needs no cluster.
    Verify(VerifyArgs),
    /// Begin a new cluster with what a snapshot file holds.
    Restore(RestoreArgs),
}

/// Save the state.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve cluster snapshot save backup.snap
  raftserve cluster snapshot save \"/backup/$(date +%F).snap\" --output json | jq -r .sha256

Any peer will do: the snapshot holds everything that was acknowledged before it was asked for. The file
appears under its name only once it is whole, verified and on disk.")]
pub struct SaveArgs {
    /// The file to write. Not standard output: a snapshot is verified before it has its name.
    pub file: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}

/// A snapshot file.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  raftserve cluster snapshot inspect backup.snap --output json | jq .index")]
pub struct FileArgs {
    /// The file.
    pub file: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// Check a snapshot file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve cluster snapshot verify backup.snap
  raftserve cluster snapshot verify backup.snap --sha256 \"$SUM\"     also that it is that very file")]
pub struct VerifyArgs {
    /// The file.
    pub file: PathBuf,
    /// What `save` printed: the file must be that one.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

/// Begin a new cluster with a snapshot.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("claim").required(true).args(["take_over", "fork"])),
    after_help = "\
Examples:
  raftserve cluster snapshot restore backup.snap --data-dir /var/lib/raftserve/1 --take-over
  raftserve cluster snapshot restore backup.snap --data-dir /tmp/copy/1 --fork

The directory becomes the first peer of a new cluster, with an id of its own. Start it with `raftserve node`
and, for --take-over, with the --replica-root that the former peers had; then start the other peers with empty
data directories: they join it.

--take-over: the cluster that the snapshot is of is gone for good; it is refused while a peer of it answers. Its
replicas that still run are adopted as they are, by the same processes, with their sessions.
--fork: that cluster goes on. Its replicas are not touched; each service starts replicas of its own, and
sessions move to them."
)]
pub struct RestoreArgs {
    /// The snapshot file.
    pub file: PathBuf,
    /// The directory to fill: empty, or not there yet.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Adopt the replicas of the snapshot's cluster, which must never run again.
    #[arg(long)]
    pub take_over: bool,
    /// Leave the replicas of the snapshot's cluster to it, and make others.
    #[arg(long)]
    pub fork: bool,
    /// Where the other peers will reach the first one, as HOST:PORT. It announces its present address when it
    /// starts.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7001", value_parser = address::host_port)]
    pub peer_addr: String,
    /// The certificates that the former peers spoke TLS with, as `raftserve node` is given them: to ask, for --take-over,
    /// whether any of them is up.
    #[arg(long, value_name = "DIR", env = "RAFTSERVE_CERT_DIR")]
    pub cert_dir: Option<PathBuf>,
    /// A cluster that answers where a peer of the lost one was, and has nothing to do with it. May be given more than once.
    #[arg(long, value_name = "ID")]
    pub unrelated_cluster: Vec<ClusterId>,
    /// Where a peer of the lost cluster was and somebody else is now, who is no peer, as HOST:PORT. May be given more than
    /// once.
    #[arg(long, value_name = "ADDR", value_parser = address::host_port)]
    pub unrelated_address: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

/// Begin a new cluster with what one peer has.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve cluster recover --data-dir /var/lib/raftserve/2 --dry-run      what this peer has; changes nothing
  raftserve cluster recover --data-dir /var/lib/raftserve/2 --cluster-id 0123…cdef

Only for when most peers are lost for good: as long as a majority can be started again, start it. Everything that
this peer has is kept, and what only the lost peers had is lost. If several peers are left, recover the one whose
last entry is the newest (term first, then index), and empty the others.

The peer's directory is put aside under another name, and a directory of a new cluster, with an id of its own and
this peer as its only voter, takes its place; replicas that still run are adopted. Then start the peer with its
usual flags, and the others with empty data directories: they join it. A lost peer that comes back with its old
directory is refused.")]
pub struct RecoverArgs {
    /// The data directory of the peer, which must be down.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The id of the lost cluster, so that no other is met by accident.
    #[arg(long, value_name = "ID", required_unless_present = "dry_run")]
    pub cluster_id: Option<ClusterId>,
    /// Fill this directory, empty or not there yet, and leave the peer's own as it is: where the data directory is a
    /// volume's root, which cannot be put aside.
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// The certificates that the cluster's peers speak TLS with, as `raftserve node` is given them: to ask the other
    /// peers whether they are up.
    #[arg(long, value_name = "DIR", env = "RAFTSERVE_CERT_DIR")]
    pub cert_dir: Option<PathBuf>,
    /// A cluster that answers where a peer of the lost one was, and has nothing to do with it. May be given more than once.
    #[arg(long, value_name = "ID")]
    pub unrelated_cluster: Vec<ClusterId>,
    /// Where a peer of the lost cluster was and somebody else is now, who is no peer, as HOST:PORT. May be given more than
    /// once.
    #[arg(long, value_name = "ADDR", value_parser = address::host_port)]
    pub unrelated_address: Vec<String>,
    /// Only show what the peer has, and who answers.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub output: Output,
}

fn sha256(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a SHA-256 has 64 hexadecimal digits, as `save` prints them".to_owned()),
    }
}
