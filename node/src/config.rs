//! The settings of one peer: read once from the command line, checked, and never changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use raftserve_proxy::{Http1Path, TlsListen};
use raftserve_store::raft::Profile;
use raftserve_store::state::Promotion;

use crate::cli::address;
use crate::cli::node_args::{Http1Choice, NodeArgs, ProviderChoice, TimingProfile};
use crate::otlp::Collector;
use crate::peer::{LogGrowth, MembershipPolicy};
use crate::provider::kubernetes::KubernetesSettings;
use crate::share::LEASE_OVER;

/// The settings of one peer.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where its identity, log and state live.
    pub data_dir: PathBuf,
    /// `host:port` of every peer's peer port, in one order on all of them.
    pub peers: Vec<String>,
    /// `host:port` of peers of a running cluster to join; `peers` is then empty.
    pub join: Vec<String>,
    /// When members come and go by themselves.
    pub policy: MembershipPolicy,
    /// Where the peer port listens.
    pub peer_listen: SocketAddr,
    /// This peer's own entry of `peers`: how the others reach it.
    pub peer_address: String,
    /// The StatefulSet whose pod this peer is.
    pub stateful_set: Option<String>,
    /// Where the admin API listens.
    pub admin_listen: SocketAddr,
    /// Where people are told to find it.
    pub admin_address: String,
    /// Where health and metrics are told.
    pub ops_listen: SocketAddr,
    /// Where traffic comes in.
    pub proxy_listen: SocketAddr,
    /// Which code carries HTTP/1.1 requests.
    pub http1_path: Http1Path,
    /// How long a client's connection lasts.
    pub connection_age: Duration,
    /// How long the requests of an HTTP/2 connection of that age may still run, if not to their end.
    pub connection_age_grace: Option<Duration>,
    /// How long requests may finish when this peer is told to stop.
    pub drain_grace: Duration,
    /// How long a pod that is told to stop may be held until the others can do without it.
    pub hold_grace: Duration,
    /// Where it comes in with TLS, and with which certificates.
    pub tls: Option<TlsListen>,
    /// The certificates by which peers know each other and clients know this one.
    pub cert_dir: Option<PathBuf>,
    /// Who may use the admin API.
    pub credentials_dir: Option<PathBuf>,
    /// How long a login is good.
    pub login_lifetime: Duration,
    /// The first of the ports that services have of their own.
    pub service_port_base: u16,
    /// How pods are made, if replicas are pods and not processes of this host.
    pub kubernetes: Option<KubernetesSettings>,
    /// Where Kubernetes Services are that are named without a namespace.
    pub kubernetes_namespace: Option<String>,
    /// Where replicas live; the same directory for all peers of a host.
    pub replica_root: PathBuf,
    /// A socket whose end of file stops this peer and what it launched.
    pub lifeline: Option<PathBuf>,
    /// The host that URLs of services name; the one at which the peer was asked if not given.
    pub advertise_host: Option<String>,
    /// Where requests are told, if anywhere; `-` is standard output.
    pub access_log: Option<PathBuf>,
    /// Which collector their spans are told, and the share of traces begun here, if any.
    pub spans: Option<(Collector, f64)>,
    /// How fast failures are noticed.
    pub profile: Profile,
    /// How far the log grows.
    pub growth: LogGrowth,
}

/// Settings that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The peer cannot find itself among the peers.
    #[error(
        "--peer-addr {address} is not among --peers {peers}: name every peer there, this one too, \
         or say which one it is with --node-index"
    )]
    NotAPeer {
        /// Its own address.
        address: String,
        /// All of them.
        peers: String,
    },
    /// There is no such peer.
    #[error("--node-index {index}: --peers names {count}, counted from 1")]
    NoSuchIndex {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A port without protection would be reached from elsewhere.
    #[error(
        "{flag} {address} is reached from other hosts: give {missing} too, or bind it to 127.0.0.1 or [::1]"
    )]
    Exposed {
        /// The port's flag.
        flag: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
        /// What would protect it.
        missing: &'static str,
    },
    /// A peer is named twice.
    #[error("--peers names {0} twice")]
    PeerTwice(String),
    /// The peer's own address is none.
    #[error("--advertise-peer {0}: write HOST:PORT, such as raftserve-0.raftserve-peers:7001")]
    Advertised(String),
    /// A number of peers that can lose no more of them than one fewer could.
    #[error("--peers names {0} peers: a cluster has 1, 3 or 5")]
    PeerCount(usize),
}

/// Has a pod with an address of IPv6 listen on that too.
fn reach_pod(args: &mut NodeArgs) {
    if !args.pod_ips.iter().any(IpAddr::is_ipv6) {
        return;
    }
    for address in [
        &mut args.proxy_addr,
        &mut args.tls_addr,
        &mut args.admin_addr,
        &mut args.peer_addr,
        &mut args.ops_addr,
    ] {
        if address.ip() == IpAddr::from(Ipv4Addr::UNSPECIFIED) {
            address.set_ip(Ipv6Addr::UNSPECIFIED.into());
        }
    }
}

/// Only with certificates and credentials may other hosts reach more than the proxy.
fn check_exposure(args: &NodeArgs) -> Result<(), ConfigError> {
    let missing = match (&args.cert_dir, &args.credentials_dir) {
        (Some(_), Some(_)) => return Ok(()),
        (None, Some(_)) => "--cert-dir",
        (Some(_), None) => "--credentials-dir",
        (None, None) => "--cert-dir and --credentials-dir",
    };
    for (flag, address) in [
        ("--admin-addr", args.admin_addr),
        ("--peer-addr", args.peer_addr),
        ("--ops-addr", args.ops_addr),
    ] {
        if !address.ip().is_loopback() {
            return Err(ConfigError::Exposed {
                flag,
                address,
                missing,
            });
        }
    }
    Ok(())
}

impl TryFrom<NodeArgs> for NodeConfig {
    type Error = ConfigError;

    /// Checks what no single flag shows.
    fn try_from(mut args: NodeArgs) -> Result<Self, ConfigError> {
        reach_pod(&mut args);
        check_exposure(&args)?;
        let own = match &args.advertise_peer {
            Some(address) => address.clone(),
            None => args.peer_addr.to_string(),
        };
        let (host, _) = address::parts(&own).ok_or_else(|| ConfigError::Advertised(own.clone()))?;
        let admin_address = match &args.advertise_peer {
            Some(_) => format!("{host}:{}", args.admin_addr.port()),
            None => args.admin_addr.to_string(),
        };
        let (mut peers, mut join) = (args.peers, args.join);
        if peers.is_empty() && join.is_empty() {
            peers = vec![own.clone()];
        }
        if join.is_empty() && !matches!(peers.len(), 1 | 3 | 5) {
            return Err(ConfigError::PeerCount(peers.len()));
        }
        for (at, peer) in peers.iter().enumerate() {
            if peers[..at].contains(peer) {
                return Err(ConfigError::PeerTwice(peer.clone()));
            }
        }
        let peer_address = match args.node_index {
            Some(index) => {
                peers
                    .get(index.wrapping_sub(1))
                    .cloned()
                    .ok_or(ConfigError::NoSuchIndex {
                        index,
                        count: peers.len(),
                    })?
            }
            None if peers.contains(&own) || !join.is_empty() => own,
            // It says who it is, so it is no mistake that it is none of those that start the cluster.
            None if args.advertise_peer.is_some() => {
                join = std::mem::take(&mut peers);
                own
            }
            None => {
                return Err(ConfigError::NotAPeer {
                    address: own,
                    peers: peers.join(","),
                });
            }
        };
        let usual = LogGrowth::default();
        let beside = || args.data_dir.join("..").join("replicas");
        Ok(Self {
            kubernetes: match args.provider {
                ProviderChoice::Process => None,
                ProviderChoice::Kubernetes => Some(KubernetesSettings {
                    namespace: args.kubernetes_namespace.clone(),
                    default_image: args.kubernetes_default_image,
                }),
            },
            kubernetes_namespace: args.kubernetes_namespace,
            replica_root: args.replica_root.unwrap_or_else(beside),
            data_dir: args.data_dir,
            peers,
            join,
            policy: MembershipPolicy {
                promote_after: Duration::from_secs(args.promote_after),
                promotion: match args.learner {
                    true => Promotion::Manual,
                    false => Promotion::Automatic,
                },
                dead_after: args.remove_dead_after.map(Duration::from_secs),
                lease: LEASE_OVER,
            },
            peer_listen: args.peer_addr,
            peer_address,
            stateful_set: args.stateful_set,
            admin_listen: args.admin_addr,
            admin_address,
            ops_listen: args.ops_addr,
            proxy_listen: args.proxy_addr,
            tls: args.tls_dir.map(|directory| TlsListen {
                listen: args.tls_addr,
                directory,
                client_authorities: args.tls_client_ca,
                require_client_certificate: args.tls_require_client_cert,
            }),
            http1_path: match args.http1_path {
                Http1Choice::Fast => Http1Path::Fast,
                Http1Choice::Hyper => Http1Path::Hyper,
            },
            connection_age: args.connection_age,
            connection_age_grace: args.connection_age_grace,
            drain_grace: args.drain_grace,
            hold_grace: args.hold_grace,
            cert_dir: args.cert_dir,
            credentials_dir: args.credentials_dir,
            login_lifetime: args.login_lifetime,
            service_port_base: args.service_port_base,
            advertise_host: args.advertise_host,
            lifeline: args.lifeline,
            access_log: args.access_log,
            spans: args
                .otlp_endpoint
                .map(|collector| (collector, args.otlp_sample)),
            profile: match args.profile {
                TimingProfile::Fast => Profile::Fast,
                TimingProfile::Lan => Profile::Lan,
                TimingProfile::Wan => Profile::Wan,
                TimingProfile::Etcd => Profile::Etcd,
            },
            growth: LogGrowth {
                snapshot_entries: args.snapshot_entries.unwrap_or(usual.snapshot_entries),
                look: args.snapshot_look.unwrap_or(usual.look),
                purge_look: args.snapshot_look.unwrap_or(usual.purge_look),
                kept: args.log_kept.unwrap_or(usual.kept),
                segment_size: args.segment_size.unwrap_or(usual.segment_size),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        args: NodeArgs,
    }

    fn config(flags: &[&str]) -> Result<NodeConfig, String> {
        let words = ["node", "--data-dir", "d"].iter().chain(flags);
        let args = Whole::try_parse_from(words).map_err(|error| error.to_string())?;
        NodeConfig::try_from(args.args).map_err(|error| error.to_string())
    }

    #[test]
    fn a_peer_that_says_its_name_is_found_among_the_peers_or_joins_them() {
        let named = "--peers=p-0.x:7001,p-1.x:7001,p-2.x:7001";
        let second = config(&[named, "--advertise-peer=p-1.x:7001"]).unwrap();
        assert_eq!(second.peer_address, "p-1.x:7001");
        assert_eq!((second.peers.len(), second.join.len()), (3, 0));
        assert_eq!(second.admin_address, "p-1.x:7000");
        let further = config(&[named, "--advertise-peer=p-3.x:7001"]).unwrap();
        assert_eq!(further.peer_address, "p-3.x:7001");
        assert_eq!((further.peers.len(), further.join.len()), (0, 3));
        // Without a word of its own, it is a mistake.
        let refused = config(&[named]).unwrap_err();
        assert!(refused.contains("is not among --peers"), "{refused}");
        for bad in ["p-1.x", "p-1.x:", ":7001", "p-1.x:70000"] {
            let refused = config(&[named, "--advertise-peer", bad]).unwrap_err();
            assert!(refused.contains("write HOST:PORT"), "{refused}");
        }
    }

    #[test]
    fn a_pod_of_ipv6_listens_where_it_is_reached() {
        let open = |ips: &str| {
            let more = ["--pod-ips", ips, "--admin-addr=[::1]:7000"];
            config(&more).map(|config| (config.proxy_listen, config.admin_listen))
        };
        let (proxy, admin) = open("fd00::7").unwrap();
        assert_eq!(proxy.to_string(), "[::]:8080");
        assert_eq!(admin.to_string(), "[::1]:7000", "as it was asked for");
        assert_eq!(open("10.0.0.7").unwrap().0.to_string(), "0.0.0.0:8080");
        let (both, _) = open("10.0.0.7,fd00::7").unwrap();
        assert_eq!(both.to_string(), "[::]:8080");
        assert!(open("pod").is_err());
    }

    #[test]
    fn requests_have_half_a_minute_to_finish_unless_somebody_says_otherwise() {
        let grace = |flags: &[&str]| config(flags).map(|config| config.drain_grace);
        assert_eq!(grace(&[]), Ok(Duration::from_secs(30)));
        let long = grace(&["--drain-grace=10m"]);
        assert_eq!(long, Ok(Duration::from_secs(600)));
        assert!(grace(&["--drain-grace=30"]).is_err(), "of what?");
        let hold = config(&["--hold-grace=295s"]).unwrap().hold_grace;
        assert_eq!(hold, Duration::from_secs(295));
    }

    #[test]
    fn only_the_proxy_is_reached_from_elsewhere_without_certificates_and_credentials() {
        assert!(config(&["--proxy-addr", "0.0.0.0:1"]).is_ok());
        for flag in ["--admin-addr", "--peer-addr", "--ops-addr"] {
            assert!(config(&[flag, "[::1]:1"]).is_ok(), "{flag}");
            let refused = |more: &[&str]| config(&[&[flag, "10.0.0.1:1"], more].concat());
            let missing = [
                (vec![], "give --cert-dir and --credentials-dir too"),
                (vec!["--cert-dir", "c"], "give --credentials-dir too"),
                (vec!["--credentials-dir", "c"], "give --cert-dir too"),
            ];
            for (given, says) in missing {
                let refused = refused(&given).unwrap_err();
                assert!(
                    refused.contains(says) && refused.contains(flag),
                    "{refused}"
                );
            }
            let both = ["--cert-dir", "c", "--credentials-dir", "c"];
            assert!(refused(&both).is_ok());
        }
    }
}
