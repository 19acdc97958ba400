//! The Kubernetes cluster that this user works with, through the `kubectl` that is installed: it knows every way to get
//! in (contexts, plug-ins, proxies), and forwards ports.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::contexts::{Context, Home, Token};
use super::entrance::Entrance;
use super::failure::{Exit, Failure};

/// How long one answer of the API server may take.
const REQUEST_TIMEOUT: &str = "--request-timeout=10s";

/// How long a forwarded port may take to be there.
const FORWARD_WITHIN: Duration = Duration::from_secs(15);

/// The label that the chart gives to all that is of a release.
const RELEASES: &str = "app.kubernetes.io/part-of=raftserve";

/// The port that peers have their admin API on.
const ADMIN_PORT: u16 = 7_000;

/// A name that the certificates that the chart makes are for, whatever the release is called.
const SERVER_NAME: &str = "localhost";

/// What `kubectl` said against something.
#[derive(Debug)]
pub(super) enum Refused {
    /// There is no such program, so nobody here works with Kubernetes.
    NoProgram,
    /// In its words.
    Said(String),
}

/// Runs `kubectl` to its end, and returns what it printed.
pub(super) fn run(args: &[&str]) -> Result<String, Refused> {
    let ran = Command::new("kubectl")
        .arg(REQUEST_TIMEOUT)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|_| Refused::NoProgram)?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    Err(Refused::Said(last.unwrap_or("it failed").trim().to_owned()))
}

/// The same, for what it prints as JSON.
pub(super) fn get(args: &[&str]) -> Result<Value, Refused> {
    let text = run(&[&["get", "--output", "json"][..], args].concat())?;
    serde_json::from_str(&text)
        .map_err(|error| Refused::Said(format!("it printed no JSON: {error}")))
}

/// A release of the chart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// Where it is; without its authorities, which are looked up when it is reached.
    pub(super) home: Home,
    /// The Secret with the peers' certificates.
    certificates: Option<String>,
    /// The Secret with their credentials.
    credentials: Option<String>,
    /// Which pods are its peers, as a selector.
    peers: String,
    /// How many there are to be.
    pub(super) wanted: usize,
    /// Whether its peers were told which host the URLs of services name.
    advertises: bool,
}

impl Release {
    /// From a StatefulSet, if it is one of the chart's.
    fn read(item: &Value) -> Option<Self> {
        let volumes = &item["spec"]["template"]["spec"]["volumes"];
        let volume = |name: &str| {
            let mut all = volumes.as_array()?.iter();
            all.find(|volume| volume["name"] == name)
        };
        let certificates =
            volume("certificates").and_then(|it| it["secret"]["secretName"].as_str());
        let credentials = volume("credentials").and_then(|it| {
            let projected = it["projected"]["sources"][0]["secret"]["name"].as_str();
            projected.or_else(|| it["secret"]["secretName"].as_str())
        });
        let labels = item["spec"]["selector"]["matchLabels"].as_object();
        let labels = labels.into_iter().flatten();
        let peers: Vec<String> = labels
            .map(|(label, value)| format!("{label}={}", value.as_str().unwrap_or_default()))
            .collect();
        let arguments = &item["spec"]["template"]["spec"]["containers"][0]["args"];
        let advertises = |argument: &Value| {
            let argument = argument.as_str();
            argument.is_some_and(|argument| argument.starts_with("--advertise-host"))
        };
        Some(Self {
            peers: peers.join(","),
            wanted: usize::try_from(item["spec"]["replicas"].as_u64().unwrap_or(1)).ok()?,
            advertises: arguments
                .as_array()
                .is_some_and(|all| all.iter().any(advertises)),
            home: Home {
                namespace: item["metadata"]["namespace"].as_str()?.to_owned(),
                name: item["metadata"]["name"].as_str()?.to_owned(),
                ..Home::default()
            },
            certificates: certificates.map(str::to_owned),
            credentials: credentials.map(str::to_owned),
        })
    }

    /// Whether its peers ask for credentials, as those of the chart do.
    pub(super) fn asks_for_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The text of a Secret's key; none if there is none, or it may not be read.
    fn secret(&self, name: Option<&String>, key: &str) -> Option<String> {
        let secret = get(&["secret", name?, "--namespace", &self.home.namespace]).ok()?;
        let bytes = base64(secret["data"][key].as_str()?)?;
        String::from_utf8(bytes)
            .ok()
            .filter(|text| !text.is_empty())
    }

    /// How `kubectl get` is asked for the pods of its peers.
    pub(super) fn pods(&self) -> [&str; 5] {
        let namespace = &self.home.namespace;
        ["pods", "--selector", &self.peers, "--namespace", namespace]
    }

    /// What Kubernetes warned of last where a pod of it is concerned.
    pub(super) fn warning_of(&self, pod: &str) -> Option<String> {
        self.warning_about("Pod", pod)
    }

    /// What it warned of last where all of its pods are concerned, as that none can be made.
    pub(super) fn warning(&self) -> Option<String> {
        self.warning_about("StatefulSet", &self.home.name)
    }

    fn warning_about(&self, kind: &str, name: &str) -> Option<String> {
        let namespace = &self.home.namespace;
        let concerned =
            format!("type=Warning,involvedObject.kind={kind},involvedObject.name={name}");
        let warnings = [
            "events",
            "--field-selector",
            &concerned,
            "--sort-by=.metadata.creationTimestamp",
            "--namespace",
            namespace,
        ];
        let found = get(&warnings).ok()?;
        let last = found["items"].as_array()?.last()?;
        last["message"].as_str().map(str::to_owned)
    }

    /// Where requests to its services come in; none if its peers know better, or it cannot be seen.
    pub(super) fn entrance(&self) -> Option<Entrance> {
        if self.advertises {
            return None;
        }
        let here = ["--namespace", &self.home.namespace];
        let service = get(&[&["service", &self.home.name][..], &here].concat()).ok()?;
        let pods = get(&self.pods());
        let pods = pods.unwrap_or_default();
        Entrance::read(
            &service,
            pods["items"].as_array().map_or(&[], Vec::as_slice),
        )
    }

    /// How a port of it is had where no pod runs.
    pub(super) fn forwarding(&self) -> String {
        format!(
            "kubectl --namespace {} port-forward service/{}",
            self.home.namespace, self.home.name
        )
    }

    /// Forwards a port of this host to one of the release's peers, and says how to come in there.
    ///
    /// # Errors
    /// If `kubectl` cannot.
    pub(super) fn reach(&self) -> Result<(Context, Forward), Failure> {
        let (forward, port) = Forward::begin(self)?;
        let token = self.secret(self.credentials.as_ref(), "admin-token");
        let authorities = self.secret(self.certificates.as_ref(), "ca.crt");
        let context = Context {
            servers: vec![format!("https://127.0.0.1:{port}")],
            release: Some(Home {
                authorities: authorities.clone(),
                ..self.home.clone()
            }),
            authorities,
            tls_server_name: Some(SERVER_NAME.to_owned()),
            token: token.map(|token| Token {
                token: token.trim().to_owned(),
                name: String::new(),
                expires_unix_ms: None,
            }),
        };
        Ok((context, forward))
    }
}

/// What came of looking for a release.
#[derive(Debug)]
pub(super) enum Sought {
    Release(Release),
    /// There are several, which one is to be chosen from.
    Several(Failure),
    /// There is none, or `kubectl` could not look, and said why.
    Nothing(Option<String>),
}

/// The release in the Kubernetes context that is in use: the one of the context's namespace if there is one, else the
/// only one that there is.
pub(super) fn find() -> Sought {
    let everywhere = ["statefulsets", "--selector", RELEASES, "--all-namespaces"];
    let at_home = &everywhere[..3];
    let mut found = match releases(at_home) {
        Ok(found) => found,
        Err(Refused::NoProgram) => return Sought::Nothing(None),
        // Not everybody may look at home, or everywhere. Another refusal would be the same there.
        Err(Refused::Said(said)) if said.contains("Forbidden") => Vec::new(),
        Err(Refused::Said(said)) => return Sought::Nothing(Some(said)),
    };
    if found.is_empty() {
        found = match releases(&everywhere) {
            Ok(found) => found,
            Err(Refused::NoProgram) => return Sought::Nothing(None),
            Err(Refused::Said(said)) => return Sought::Nothing(Some(said)),
        };
    }
    let kube_context = run(&["config", "current-context"]).ok();
    for release in &mut found {
        let name = kube_context.as_deref().map(str::trim);
        release.home.kube_context = name.filter(|name| !name.is_empty()).map(str::to_owned);
    }
    match found.len() {
        0 => Sought::Nothing(None),
        1 => found.pop().map_or(Sought::Nothing(None), Sought::Release),
        _ => {
            let shown: Vec<String> = found
                .iter()
                .map(|release| release.home.to_string())
                .collect();
            Sought::Several(Failure::new(
                Exit::Usage,
                format!("this Kubernetes cluster has several releases: {}", shown.join(", ")),
            )
            .remedy("say which one with `kubectl config set-context --current --namespace NAMESPACE`, or forward a port to it with `kubectl port-forward` and name that with --server"))
        }
    }
}

fn releases(of: &[&str]) -> Result<Vec<Release>, Refused> {
    let found = get(of)?;
    let items = found["items"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(items.iter().filter_map(Release::read).collect())
}

/// Keeps a port of this host forwarded, until dropped, or until this process ends in any way.
#[derive(Debug)]
pub(super) struct Forward {
    child: Child,
    /// To which release.
    pub(super) release: Release,
}

/// Ends `kubectl` when standard input ends, as it does with the process that holds its other end.
const KEEPER: &str = "kubectl \"$@\" & child=$!; exec 1>&-; read -r _; kill $child";

impl Forward {
    fn begin(release: &Release) -> Result<(Self, u16), Failure> {
        let failed = |why: &str| {
            Failure::new(
                Exit::Unavailable,
                format!("cannot forward a port to {}: {why}", release.home),
            )
            .remedy(
                "try `kubectl port-forward` by hand, and log in there: raftserve login --server https://127.0.0.1:PORT --ca-file FILE",
            )
        };
        let target = format!("statefulset/{}", release.home.name);
        let port = format!(":{ADMIN_PORT}");
        let mut child = Command::new("sh")
            .args(["-c", KEEPER, "sh", "port-forward", "--address", "127.0.0.1"])
            .args(["--namespace", &release.home.namespace, &target, &port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(&error.to_string()))?;
        let stdout = child.stdout.take();
        let forward = Self {
            child,
            release: release.clone(),
        };
        let stdout = stdout.ok_or_else(|| failed("its output is not there"))?;
        let (said, told) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            // Reads on to the end, so that what it prints later does not stop it.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = said.try_send(line);
            }
        });
        let line = told
            .recv_timeout(FORWARD_WITHIN)
            .map_err(|_| failed("no peer took it up"))?;
        let port = forwarded_port(&line).ok_or_else(|| failed(&line))?;
        Ok((forward, port))
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 7000`.
fn forwarded_port(line: &str) -> Option<u16> {
    let from = line.strip_prefix("Forwarding from ")?;
    let (from, _) = from.split_once(" -> ")?;
    from.rsplit_once(':')?.1.parse().ok()
}

/// The bytes of a text in base64, as Secrets have them.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |letter: u8| {
        Some(u32::from(match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    let text = text.trim().trim_end_matches('=').as_bytes();
    let mut bytes = Vec::new();
    for group in text.chunks(4) {
        let mut value = 0;
        for at in 0..4 {
            value = value << 6 | group.get(at).map_or(Some(0), |letter| digit(*letter))?;
        }
        bytes.extend_from_slice(&value.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_release_says_where_its_secrets_are() {
        let item = json!({
            "metadata": {"name": "prod", "namespace": "serving"},
            "spec": {
                "selector": {"matchLabels": {"app": "raftserve", "of": "prod"}},
                "template": {"spec": {
                    "containers": [{"args": ["node", "--advertise-host=a.example.com"]}],
                    "volumes": [
                        {"name": "certificates", "secret": {"secretName": "prod-certificates"}},
                        {"name": "credentials", "projected": {"sources": [
                            {"secret": {"name": "prod-credentials"}}, {"secret": {"name": "x"}},
                        ]}},
                    ],
                }},
            },
        });
        let release = Release::read(&item).unwrap();
        assert_eq!(release.home.to_string(), "prod in namespace serving");
        assert_eq!(release.certificates.as_deref(), Some("prod-certificates"));
        assert_eq!(release.credentials.as_deref(), Some("prod-credentials"));
        assert_eq!(release.peers, "app=raftserve,of=prod");
        assert!(release.advertises);
        assert_eq!(Release::read(&json!({})), None);
    }

    #[test]
    fn the_forwarded_port_is_read() {
        let line = "Forwarding from 127.0.0.1:40123 -> 7000";
        assert_eq!(forwarded_port(line), Some(40_123));
        assert_eq!(forwarded_port("error: no pods"), None);
    }

    #[test]
    fn secrets_are_decoded() {
        for (text, bytes) in [
            ("", ""),
            ("YQ==", "a"),
            ("YWI=", "ab"),
            ("YWJj", "abc"),
            ("YWJjZA==", "abcd"),
        ] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64("//8="), Some(vec![255, 255]));
        assert_eq!(base64("Y!=="), None);
    }
}
