//! The flags of `raftserve check`.

use clap::Args;

use super::args::{Output, Target};

/// Look for what is wrong.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  raftserve check --before --namespace serving        before `helm install`: is the Kubernetes cluster fit for it?
  raftserve check                                     after it, or without Kubernetes: are the peers well?
  raftserve check --output json

The checks of Kubernetes are made through `kubectl`. After an installation those of the version, DNS, nodes and clocks are made
again, and that of the endpoints, where the peers are found through `kubectl`, and not where --server or the addresses of a context name them. A context
that a login through `kubectl` keeps has none. Storage and permissions are not looked at then: volumes are bound, and what the peers may not do they tell themselves, under `replicas` and in `status -v`. The exit code is 1 if a check failed; warnings do not count.")]
pub struct CheckArgs {
    /// Check the Kubernetes cluster that kubectl works with, and no peers.
    #[arg(long)]
    pub before: bool,
    /// The namespace that the chart is to be installed in.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// The storage class that is meant for the peers' volumes; the default one if not given.
    #[arg(long, value_name = "NAME")]
    pub storage_class: Option<String>,
    /// The namespace that is meant for replicas, `provider.namespace` of the chart; that of the peers if not given.
    #[arg(long, value_name = "NAME")]
    pub replica_namespace: Option<String>,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub target: Target,
}
