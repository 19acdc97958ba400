//! A specification as it is shown: in SkyServe's layout, with defaults filled in and secrets masked.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::yaml::{self, Value as Yaml};
use super::{
    Placement, ProbeKind, Provider, ServiceSpec, SessionKeySource, StaticUpstreams, WithoutQuorum,
};

/// What stands in place of a secret.
pub const MASK: &str = "***";

impl ServiceSpec {
    /// The effective specification as a service YAML would say it, every default written out. Without
    /// secrets and files, it parses to the same specification. Of a file it has path, size and mode.
    ///
    /// Each secret is [`MASK`], also where it was put in place inside `service`.
    #[must_use]
    pub fn render(&self) -> Value {
        let mut resources: Map<String, Value> = self
            .resources
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        if self.port != 0 {
            resources.insert("ports".to_owned(), self.port.into());
        }
        render_resources(&self.placement, &mut resources);
        let mut document = json!({
            "resources": resources,
            "service": {
                "readiness_probe": self.render_probe(),
                "replicas": self.replicas,
                "load_balancer": { "stream_timeout_seconds": seconds(self.stream_timeout) },
            },
            "_metadata": { "raftserve": self.render_settings() },
        });
        if self.port != 0 {
            document["service"]["ports"] = self.port.into();
        }
        if !self.run.is_empty() {
            document["run"] = self.run.clone().into();
        }
        if !self.placement.volumes.is_empty() {
            document["volumes"] = json!(self.placement.volumes);
        }
        if !self.file_mounts.is_empty() {
            document["file_mounts"] = self.render_files();
        }
        if let Some(pod_config) = &self.placement.pod_config {
            document["config"] = json!({ "kubernetes": { "pod_config": pod_config } });
        }
        if self.policy.is_skyserves() {
            document["service"]["load_balancing_policy"] = self.policy.name().into();
        }
        if let Some(setup) = &self.setup {
            document["setup"] = setup.clone().into();
        }
        if !self.envs.is_empty() {
            document["envs"] = json!(self.envs);
        }
        if !self.secrets.is_empty() {
            let masked: Map<_, _> = self
                .secrets
                .keys()
                .map(|name| (name.clone(), MASK.into()))
                .collect();
            document["secrets"] = masked.into();
        }
        document
    }

    /// [`ServiceSpec::source`] with the values in its `secrets` masked.
    #[must_use]
    pub fn source_masked(&self) -> String {
        if self.secrets.is_empty() {
            return self.source.clone();
        }
        let Ok(Some(root)) = yaml::read(&self.source) else {
            return MASK.to_owned();
        };
        let Yaml::Map(sections) = root.value else {
            return MASK.to_owned();
        };
        let secrets = sections.into_iter().find(|entry| entry.key == "secrets");
        let Some(Yaml::Map(secrets)) = secrets.map(|entry| entry.value.value) else {
            return self.source.clone();
        };
        let characters: Vec<char> = self.source.chars().collect();
        let mut spans: Vec<_> = secrets
            .iter()
            .map(|entry| trim(&characters, entry.value.span))
            .filter(|(start, end)| start < end)
            .collect();
        spans.sort_unstable();
        let mut spans = spans.into_iter().peekable();
        let mut masked = String::with_capacity(self.source.len());
        for (at, character) in characters.into_iter().enumerate() {
            while spans.next_if(|(_, end)| *end <= at).is_some() {}
            match spans.peek() {
                Some((start, _)) if at == *start => masked.push_str("'***'"),
                Some((start, _)) if at > *start => {}
                _ => masked.push(character),
            }
        }
        masked
    }

    fn render_files(&self) -> Value {
        let mut files = Map::new();
        for mount in &self.file_mounts {
            for (path, file) in mount.files() {
                files.insert(self.mask(&mount.path_of(path)), format!("{file:?}").into());
            }
        }
        files.into()
    }

    fn render_probe(&self) -> Value {
        let probe = &self.readiness;
        let mut rendered = json!({
            "path": self.mask(&probe.path),
            "initial_delay_seconds": seconds(probe.initial_delay),
            "timeout_seconds": seconds(probe.timeout),
            "endpoint_probe_interval_seconds": seconds(probe.interval),
            "consecutive_failure_threshold_timeout": seconds(probe.failure_threshold),
        });
        if let Some(data) = &probe.post_data {
            rendered["post_data"] = self.mask(data).into();
        }
        if !probe.headers.is_empty() {
            let headers: Map<_, _> = probe
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), self.mask(value).into()))
                .collect();
            rendered["headers"] = headers.into();
        }
        rendered
    }

    fn render_settings(&self) -> Value {
        let mut settings = json!({
            "provider": render_provider(&self.provider),
            "drain_timeout_seconds": seconds(self.drain_timeout),
            "stop_grace_seconds": seconds(self.stop_grace),
            "traffic": self.traffic.render(self.policy),
        });
        match &self.readiness.kind {
            ProbeKind::Http => {}
            ProbeKind::Grpc { service } => {
                settings["readiness_probe"] = json!({ "grpc": { "service": service } });
            }
            ProbeKind::Tcp => settings["readiness_probe"] = json!({ "tcp": {} }),
        }
        if let Some(affinity) = &self.affinity {
            let (source, name) = match &affinity.key {
                SessionKeySource::Header(name) => ("header", name),
                SessionKeySource::Cookie(name) => ("cookie", name),
            };
            settings["session_affinity"] = json!({
                source: name,
                "ttl_seconds": seconds(affinity.ttl),
                "max_sessions": affinity.max_sessions,
                "without_quorum": match affinity.without_quorum {
                    WithoutQuorum::Refuse => "refuse",
                    WithoutQuorum::ServeStale => "serve_stale",
                },
            });
        }
        settings
    }

    /// `text` without the values of secrets.
    fn mask(&self, text: &str) -> String {
        // The longest first: one secret may be part of another.
        let mut secrets: Vec<&str> = self.secrets.values().map(String::as_str).collect();
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
            .into_iter()
            .filter(|secret| !secret.is_empty())
            .fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
    }
}

impl fmt::Debug for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceSpec({})", self.render())
    }
}

fn render_provider(provider: &Provider) -> Value {
    match provider {
        Provider::Peers => "default".into(),
        Provider::Static(StaticUpstreams::Addresses(addresses)) => {
            json!({ "static": { "addresses": addresses } })
        }
        Provider::Static(StaticUpstreams::KubernetesService(service)) => {
            let mut rendered = json!({ "kubernetes_service": match &service.namespace {
                Some(namespace) => format!("{}.{namespace}", service.name),
                None => service.name.clone(),
            } });
            if let Some(port) = &service.port {
                rendered["port"] = port.clone().into();
            }
            json!({ "static": rendered })
        }
    }
}

fn render_resources(placement: &Placement, resources: &mut Map<String, Value>) {
    if let Some(image) = &placement.image {
        resources.insert("image_id".to_owned(), format!("docker:{image}").into());
    }
    if let Some(accelerators) = &placement.accelerators {
        let asked = format!("{}:{}", accelerators.kind, accelerators.count);
        resources.insert("accelerators".to_owned(), asked.into());
    }
    if placement.use_spot {
        resources.insert("use_spot".to_owned(), true.into());
    }
    if !placement.labels.is_empty() {
        resources.insert("labels".to_owned(), json!(placement.labels));
    }
}

/// The span without the white space at its end: a text in several lines reaches to what follows it.
fn trim(characters: &[char], (start, end): (usize, usize)) -> (usize, usize) {
    let end = end.min(characters.len());
    let text = characters.get(start..end).unwrap_or_default();
    let trailing = text.iter().rev().take_while(|c| c.is_whitespace()).count();
    (start, end - trailing)
}

/// Whole seconds as a whole number.
pub(super) fn seconds(duration: Duration) -> Value {
    if duration.subsec_millis() == 0 {
        duration.as_secs().into()
    } else {
        (duration.as_secs_f64()).into()
    }
}
