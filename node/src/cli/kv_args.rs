//! The flags of `raftserve kv`.

use clap::{Args, Subcommand};

use super::args::{Output, Target};

/// Set and read keys that the whole cluster agrees on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve kv put config/limit 20
  raftserve kv get config/limit
  raftserve kv put lock/nightly host-7 --if-absent
  raftserve kv put config/limit 30 --if-modified-index 1207
  raftserve kv list config/ --output json
  raftserve kv delete config/limit
  raftserve kv watch config/                            what becomes of these keys, until Ctrl-C

A key has at most 256 bytes, a value 64 KiB; a cluster holds 100,000 keys and 64 MiB at most.")]
pub struct KvArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: KvVerb,
}

/// What must hold for a key before it is changed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Condition {
    /// Only if there is no such key.
    #[arg(long, conflicts_with = "if_modified_index")]
    pub if_absent: bool,
    /// Only if the key was last changed at this log index, as `kv get --output json` shows it.
    #[arg(long, value_name = "INDEX")]
    pub if_modified_index: Option<u64>,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KvVerb {
    /// Set a key.
    Put {
        /// The key.
        key: String,
        /// Its value; `-` for standard input.
        value: String,
        #[command(flatten)]
        condition: Condition,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Print the value of a key.
    Get {
        /// The key.
        key: String,
        /// Answer from what the peer asked knows, perhaps behind; works without a quorum.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: String,
        /// Only if the key was last changed at this log index, as `kv get --output json` shows it.
        #[arg(long, value_name = "INDEX")]
        if_modified_index: Option<u64>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// List keys.
    List {
        /// Only keys that begin with this.
        prefix: Option<String>,
        /// Leave the values out.
        #[arg(long)]
        keys_only: bool,
        /// Answer from what the peer asked knows, perhaps behind; works without a quorum.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
    /// Print each change of keys, in the order of the log, until Ctrl-C.
    #[command(after_help = "\
Each change is printed once, with the log index of it. All peers number changes alike: a stream that breaks is resumed on
the next peer, and --from resumes what was interrupted, at the last index printed plus one. The last 50,000 changes
are kept, or as many as 16 MiB hold; what is older cannot be watched any more: list the keys with --output json, and watch
from the log_index that it shows plus one.")]
    Watch {
        /// Only keys that begin with this.
        prefix: Option<String>,
        /// Begin at this log index, 0 for the oldest change that is kept; by default with the next change, and with
        /// --no-follow with the oldest.
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// Stop once everything that has happened is printed.
        #[arg(long)]
        no_follow: bool,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        target: Target,
    },
}
