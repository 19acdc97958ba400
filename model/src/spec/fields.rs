//! Every field of a service YAML, level by level, and whether it is built.
//!
//! The names are those of SkyServe's schema (`sky/utils/schemas.py`), so that a field which is valid
//! there and not built here is told apart from one that does not exist.

/// Whether a field that SkyServe knows is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is read and obeyed.
    Built,
    /// It is refused by name, whatever its value.
    NotBuilt,
}

/// A mapping of a service YAML and the fields it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its dotted path; empty for the document itself.
    pub path: &'static str,
    /// Each field that is valid here.
    pub fields: &'static [(&'static str, Support)],
}

impl Section {
    /// Whether `name` is built, or nothing if there is no such field.
    #[must_use]
    pub fn support(&self, name: &str) -> Option<Support> {
        self.fields
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, support)| *support)
    }
}

use Support::{Built, NotBuilt};

/// The document itself.
pub const TASK: Section = Section {
    path: "",
    fields: &[
        ("name", Built),
        ("envs", Built),
        ("secrets", Built),
        ("setup", Built),
        ("run", Built),
        ("resources", Built),
        ("service", Built),
        ("num_nodes", Built),
        ("_metadata", Built),
        ("pool", NotBuilt),
        ("workdir", NotBuilt),
        ("file_mounts", Built),
        ("file_mounts_mapping", NotBuilt),
        ("volumes", Built),
        ("volume_mounts", NotBuilt),
        ("managed_secrets", NotBuilt),
        ("config", Built),
        ("event_callback", NotBuilt),
        ("inputs", NotBuilt),
        ("outputs", NotBuilt),
        ("api_server_access", NotBuilt),
    ],
};

/// What each replica asks for.
pub const RESOURCES: Section = Section {
    path: "resources",
    fields: &[
        ("ports", Built),
        ("cpus", Built),
        ("memory", Built),
        ("disk_size", Built),
        ("use_spot", Built),
        ("job_recovery", Built),
        ("any_of", NotBuilt),
        ("ordered", NotBuilt),
        ("cloud", NotBuilt),
        ("region", NotBuilt),
        ("zone", NotBuilt),
        ("infra", NotBuilt),
        ("accelerators", Built),
        ("accelerator_args", NotBuilt),
        ("instance_type", NotBuilt),
        ("volumes", NotBuilt),
        ("ephemeral_storage", NotBuilt),
        ("disk_tier", NotBuilt),
        ("network_tier", NotBuilt),
        ("local_disk", NotBuilt),
        ("max_hourly_cost", NotBuilt),
        ("labels", Built),
        ("image_id", Built),
        ("autostop", NotBuilt),
        ("priority", NotBuilt),
        ("priority_class", NotBuilt),
        ("_no_missing_accel_warnings", NotBuilt),
        ("_docker_login_config", NotBuilt),
        ("_is_image_managed", NotBuilt),
        ("_requires_fuse", NotBuilt),
        ("_cluster_config_overrides", NotBuilt),
    ],
};

/// SkyPilot's configuration, as far as a file may say it.
pub const CONFIG: Section = Section {
    path: "config",
    fields: &[
        ("kubernetes", Built),
        ("docker", NotBuilt),
        ("nvidia_gpus", NotBuilt),
        ("gcp", NotBuilt),
        ("ssh", NotBuilt),
    ],
};

/// How pods are made.
pub const KUBERNETES: Section = Section {
    path: "config.kubernetes",
    fields: &[
        ("pod_config", Built),
        ("custom_metadata", NotBuilt),
        ("provision_timeout", NotBuilt),
        ("remote_identity", NotBuilt),
    ],
};

/// The service.
pub const SERVICE: Section = Section {
    path: "service",
    fields: &[
        ("readiness_probe", Built),
        ("replicas", Built),
        ("replica_policy", Built),
        ("ports", Built),
        ("load_balancer", Built),
        ("load_balancing_policy", Built),
        ("tls", NotBuilt),
        ("pool", NotBuilt),
        ("workers", NotBuilt),
    ],
};

/// When a replica counts as ready.
pub const READINESS_PROBE: Section = Section {
    path: "service.readiness_probe",
    fields: &[
        ("path", Built),
        ("initial_delay_seconds", Built),
        ("timeout_seconds", Built),
        ("endpoint_probe_interval_seconds", Built),
        ("consecutive_failure_threshold_timeout", Built),
        ("post_data", Built),
        ("headers", Built),
    ],
};

/// How many replicas there are.
pub const REPLICA_POLICY: Section = Section {
    path: "service.replica_policy",
    fields: &[
        ("min_replicas", Built),
        ("max_replicas", Built),
        ("num_overprovision", NotBuilt),
        ("target_qps_per_replica", NotBuilt),
        ("dynamic_ondemand_fallback", NotBuilt),
        ("base_ondemand_fallback_replicas", NotBuilt),
        ("spot_placer", NotBuilt),
        ("upscale_delay_seconds", NotBuilt),
        ("downscale_delay_seconds", NotBuilt),
    ],
};

/// The load balancer.
pub const LOAD_BALANCER: Section = Section {
    path: "service.load_balancer",
    fields: &[("stream_timeout_seconds", Built)],
};

/// What SkyServe lacks; it takes everything under `_metadata` as free-form.
pub const RAFTSERVE: Section = Section {
    path: "_metadata.raftserve",
    fields: &[
        ("provider", Built),
        ("session_affinity", Built),
        ("readiness_probe", Built),
        ("drain_timeout_seconds", Built),
        ("stop_grace_seconds", Built),
        ("traffic", Built),
    ],
};

/// A readiness probe that is not HTTP.
pub const OTHER_PROBE: Section = Section {
    path: "_metadata.raftserve.readiness_probe",
    fields: &[("grpc", Built), ("tcp", Built)],
};

/// A probe by gRPC's own health checking.
pub const GRPC_PROBE: Section = Section {
    path: "_metadata.raftserve.readiness_probe.grpc",
    fields: &[("service", Built)],
};

/// Who creates the replicas, where it is not the peers.
pub const PROVIDER: Section = Section {
    path: "_metadata.raftserve.provider",
    fields: &[("static", Built)],
};

/// Replicas that are there already.
pub const STATIC: Section = Section {
    path: "_metadata.raftserve.provider.static",
    fields: &[
        ("addresses", Built),
        ("kubernetes_service", Built),
        ("port", Built),
    ],
};

/// Strict session affinity.
pub const SESSION_AFFINITY: Section = Section {
    path: "_metadata.raftserve.session_affinity",
    fields: &[
        ("header", Built),
        ("cookie", Built),
        ("ttl_seconds", Built),
        ("max_sessions", Built),
        ("without_quorum", Built),
    ],
};

/// How requests are carried.
pub const TRAFFIC: Section = Section {
    path: "_metadata.raftserve.traffic",
    fields: &[
        ("policy", Built),
        ("hash_on", Built),
        ("upstream", Built),
        ("timeouts", Built),
        ("retries", Built),
        ("ejection", Built),
        ("slow_start_seconds", Built),
        ("queue", Built),
        ("request_body_bytes_max", Built),
        ("request_head_bytes_max", Built),
        ("routes", Built),
    ],
};

/// What a hash policy hashes.
pub const HASH_ON: Section = Section {
    path: "_metadata.raftserve.traffic.hash_on",
    fields: &[
        ("header", Built),
        ("cookie", Built),
        ("query", Built),
        ("json_field", Built),
        ("source_address", Built),
    ],
};

/// How replicas are spoken to.
pub const UPSTREAM: Section = Section {
    path: "_metadata.raftserve.traffic.upstream",
    fields: &[
        ("protocol", Built),
        ("connect_timeout_seconds", Built),
        ("tls", Built),
    ],
};

/// TLS to replicas.
pub const UPSTREAM_TLS: Section = Section {
    path: "_metadata.raftserve.traffic.upstream.tls",
    fields: &[
        ("server_name", Built),
        ("authorities", Built),
        ("verify", Built),
    ],
};

/// How long each part of a request may take.
pub const TIMEOUTS: Section = Section {
    path: "_metadata.raftserve.traffic.timeouts",
    fields: &[
        ("first_byte_seconds", Built),
        ("idle_seconds", Built),
        ("total_seconds", Built),
        ("tunnel_idle_seconds", Built),
    ],
};

/// When a request is tried again.
pub const RETRIES: Section = Section {
    path: "_metadata.raftserve.traffic.retries",
    fields: &[
        ("max", Built),
        ("budget_percent", Built),
        ("statuses", Built),
        ("after_sent", Built),
        ("per_try_timeout_seconds", Built),
        ("hedge_after_seconds", Built),
    ],
};

/// When a replica is left out.
pub const EJECTION: Section = Section {
    path: "_metadata.raftserve.traffic.ejection",
    fields: &[
        ("consecutive_errors", Built),
        ("base_seconds", Built),
        ("max_seconds", Built),
        ("panic_percent", Built),
    ],
};

/// What waits for a first replica.
pub const QUEUE: Section = Section {
    path: "_metadata.raftserve.traffic.queue",
    fields: &[("requests", Built), ("wait_seconds", Built)],
};

/// One rule for some requests. Its `timeouts` and `retries` are as those of the service.
pub const ROUTE: Section = Section {
    path: "_metadata.raftserve.traffic.routes",
    fields: &[
        ("hosts", Built),
        ("path_prefix", Built),
        ("methods", Built),
        ("headers", Built),
        ("rewrite_prefix", Built),
        ("weights", Built),
        ("timeouts", Built),
        ("retries", Built),
        ("connect_timeout_seconds", Built),
        ("request_body_bytes_max", Built),
    ],
};

/// Every section.
pub const SECTIONS: &[Section] = &[
    TASK,
    RESOURCES,
    CONFIG,
    KUBERNETES,
    SERVICE,
    READINESS_PROBE,
    REPLICA_POLICY,
    LOAD_BALANCER,
    RAFTSERVE,
    PROVIDER,
    STATIC,
    SESSION_AFFINITY,
    OTHER_PROBE,
    GRPC_PROBE,
    TRAFFIC,
    HASH_ON,
    UPSTREAM,
    UPSTREAM_TLS,
    TIMEOUTS,
    RETRIES,
    EJECTION,
    QUEUE,
    ROUTE,
];

/// What to do in place of a field that is not built, where there is something.
pub(super) fn instead(path: &str) -> Option<&'static str> {
    match path {
        "workdir" => Some(
            "name what is needed of it in file_mounts, put it into the image (resources.image_id), or fetch it in setup",
        ),
        "file_mounts" | "file_mounts_mapping" | "volume_mounts" => Some(
            "name small local files in file_mounts, put the others into the image (resources.image_id), fetch them in setup, from \
             a bucket too, or on Kubernetes mount a claim by volumes, or a ConfigMap by config.kubernetes.pod_config",
        ),
        "service.replica_policy.target_qps_per_replica" => {
            Some("write replicas: N in the place of replica_policy, for a fixed number of replicas")
        }
        _ => None,
    }
}

/// What a misspelt or misplaced `name` in `section` was probably meant to be.
pub(super) fn suggestion(section: &Section, name: &str) -> Option<String> {
    let folded = name.to_ascii_lowercase().replace('-', "_");
    let allowed = (folded.len() / 3).min(3);
    let near = section
        .fields
        .iter()
        .map(|(field, _)| (distance(field, &folded), *field))
        .filter(|(distance, _)| *distance <= allowed)
        .min();
    if let Some((_, field)) = near {
        return Some(format!("did you mean {field}?"));
    }
    let elsewhere: Vec<&str> = SECTIONS
        .iter()
        .filter(|other| other.path != section.path && other.support(&folded).is_some())
        .map(|other| match other.path {
            "" => "the top level",
            path => path,
        })
        .collect();
    (!elsewhere.is_empty()).then(|| format!("it belongs to {}", elsewhere.join(" or ")))
}

/// Edits from one name to the other, a swap of neighbours counted as one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_near_a_field_are_recognised() {
        for (section, name, answer) in [
            (&SERVICE, "replica", Some("did you mean replicas?")),
            (
                &SERVICE,
                "readiness-probe",
                Some("did you mean readiness_probe?"),
            ),
            (&SERVICE, "ropts", None),
            (&SERVICE, "prots", Some("did you mean ports?")),
            (&TASK, "ports", Some("it belongs to resources or service")),
            (&SERVICE, "run", Some("it belongs to the top level")),
            (&TASK, "wholly_unheard_of", None),
        ] {
            assert_eq!(suggestion(section, name).as_deref(), answer, "{name}");
        }
    }
}
