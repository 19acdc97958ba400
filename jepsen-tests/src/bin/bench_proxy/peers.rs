//! The proxies that are compared, and the replicas behind them.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jepsen_tests::processes;
use rustix::process::Signal;

use crate::node;
use crate::scenario::Scenario;

/// Where the replicas listen: HTTP/1.1, and HTTP/2 in cleartext.
pub(crate) const HTTP1_PORTS: [u16; 4] = [19_101, 19_102, 19_103, 19_104];
pub(crate) const HTTP2_PORTS: [u16; 4] = [19_111, 19_112, 19_113, 19_114];

/// Where the proxy that is measured listens: only one runs at a time.
pub(crate) const PROXY_PORT: u16 = 19_200;

/// How long a program may take until it accepts.
const START_MAX: Duration = Duration::from_secs(10);

/// How long it may take to end by itself.
const END_MAX: Duration = Duration::from_secs(2);

/// A proxy to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The data plane by itself.
    Raftserve,
    /// The whole product: a cluster of one peer.
    Node,
    /// The same with the HTTP library carrying every request.
    NodeHyper,
    /// The data plane with the HTTP library carrying every request.
    Hyper,
    /// [`Self::Raftserve`] with two workers on the one core.
    TwoWorkers,
    /// [`Self::Hyper`] likewise.
    HyperTwoWorkers,
    /// [`Self::Node`] likewise.
    NodeTwoWorkers,
    /// [`Self::NodeHyper`] likewise.
    NodeHyperTwoWorkers,
    Haproxy,
    Nginx,
    Envoy,
}

impl Peer {
    pub(crate) const ALL: [Self; 11] = [
        Self::Haproxy,
        Self::Raftserve,
        Self::Hyper,
        Self::Node,
        Self::NodeHyper,
        Self::TwoWorkers,
        Self::HyperTwoWorkers,
        Self::NodeTwoWorkers,
        Self::NodeHyperTwoWorkers,
        Self::Nginx,
        Self::Envoy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raftserve => "raftserve",
            Self::Hyper => "hyper",
            Self::Node => "node",
            Self::NodeHyper => "node-hyper",
            Self::TwoWorkers => "two-workers",
            Self::HyperTwoWorkers => "hyper-two-workers",
            Self::NodeTwoWorkers => "node-two-workers",
            Self::NodeHyperTwoWorkers => "node-hyper-two-workers",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// The same with one worker, for one that has two.
    pub(crate) fn with_one_worker(self) -> Option<Self> {
        match self {
            Self::TwoWorkers => Some(Self::Raftserve),
            Self::HyperTwoWorkers => Some(Self::Hyper),
            Self::NodeTwoWorkers => Some(Self::Node),
            Self::NodeHyperTwoWorkers => Some(Self::NodeHyper),
            Self::Raftserve
            | Self::Node
            | Self::NodeHyper
            | Self::Hyper
            | Self::Haproxy
            | Self::Nginx
            | Self::Envoy => None,
        }
    }

    /// Starts it for a scenario. `None` if its program is not installed.
    pub(crate) fn start(
        self,
        programs: &Programs,
        folder: &Path,
        scenario: Scenario,
    ) -> anyhow::Result<Option<Running>> {
        let ports = match scenario {
            Scenario::H2c => HTTP2_PORTS,
            _ => HTTP1_PORTS,
        };
        let config = folder.join(self.name());
        let path = config.display().to_string();
        let write = |text: String| fs::write(&config, text).context("cannot write a configuration");
        let words: Vec<String> = match self {
            Self::Raftserve | Self::Hyper | Self::TwoWorkers | Self::HyperTwoWorkers => {
                let workers = self.with_one_worker().map_or("1", |_| "2");
                let code = match self {
                    Self::Hyper | Self::HyperTwoWorkers => "hyper",
                    _ => "fast",
                };
                let replicas = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
                let listen = format!("127.0.0.1:{PROXY_PORT}");
                let forward = programs.forward.display().to_string();
                vec![forward, listen, workers.into(), replicas, code.into()]
            }
            Self::Node | Self::NodeHyper | Self::NodeTwoWorkers | Self::NodeHyperTwoWorkers => {
                let Some(node) = &programs.node else {
                    return Ok(None);
                };
                let code = match self {
                    Self::NodeHyper | Self::NodeHyperTwoWorkers => "hyper",
                    _ => "fast",
                };
                // A peer has a worker for each core that it finds at its start.
                let cores = self.with_one_worker().map_or("0", |_| "0,1");
                let started = node::start(node, (code, cores), ports, scenario, folder)?;
                started.pin("0")?;
                return Ok(Some(started));
            }
            Self::Haproxy => {
                write(haproxy(ports, scenario == Scenario::H2c))?;
                ["haproxy", "-db", "-f", &path].map(str::to_owned).to_vec()
            }
            Self::Nginx => {
                write(nginx(ports, scenario, folder))?;
                ["nginx", "-c", &path].map(str::to_owned).to_vec()
            }
            Self::Envoy => {
                write(envoy_config(ports, scenario == Scenario::H2c))?;
                let envoy = programs.envoy.display().to_string();
                [
                    "--concurrency",
                    "1",
                    "-l",
                    "error",
                    "--base-id",
                    "7",
                    "--config-path",
                    &path,
                ]
                .iter()
                .fold(vec![envoy], |mut words, word| {
                    words.push((*word).to_owned());
                    words
                })
            }
        };
        if !is_installed(&words[0]) {
            return Ok(None);
        }
        let log = folder.join(format!("{}.log", self.name()));
        Running::start("0", &words, &log, &[PROXY_PORT]).map(Some)
    }
}

/// Where programs are that are not installed.
pub(crate) struct Programs {
    /// The example `forward`.
    pub(crate) forward: PathBuf,
    /// The binary `raftserve`.
    pub(crate) node: Option<PathBuf>,
    pub(crate) envoy: PathBuf,
}

fn is_installed(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", program])
        .stdout(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}

/// A process on a core of its own. Dropped, it is told to end, and killed if it does not.
pub(crate) struct Running(Child);

impl Running {
    /// Starts a program and waits until it accepts on its ports.
    pub(crate) fn start(
        core: &str,
        words: &[String],
        log: &Path,
        ports: &[u16],
    ) -> anyhow::Result<Self> {
        let output = File::create(log).context("cannot write a log")?;
        let child = Command::new("taskset")
            .args(["-c", core])
            .args(words)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share a log")?)
            .stderr(output)
            .spawn()
            .context("cannot start taskset (Debian's util-linux)")?;
        let running = Self(child);
        let end = Instant::now() + START_MAX;
        for port in ports {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if Instant::now() > end {
                    let said = fs::read_to_string(log).unwrap_or_default();
                    bail!("{} does not accept on port {port}: {said}", words[0]);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(running)
    }

    /// Leaves all its threads one core only.
    fn pin(&self, core: &str) -> anyhow::Result<()> {
        let pid = self.pid()?.to_string();
        let pinned = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", core, &pid])
            .stdout(Stdio::null())
            .status()
            .context("cannot start taskset (Debian's util-linux)")?;
        if !pinned.success() {
            bail!("taskset cannot move process {pid} to core {core}");
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> anyhow::Result<i32> {
        i32::try_from(self.0.id()).context("a strange process id")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that is profiled writes what it saw at its end.
        if let Ok(pid) = self.pid() {
            let _ = processes::signal(pid, Signal::TERM);
        }
        let end = Instant::now() + END_MAX;
        while Instant::now() < end && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The replicas of all scenarios.
pub(crate) struct Replicas {
    _http1: Running,
    _http2: Vec<Running>,
}

impl Replicas {
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("this program has a path")?;
        let mut words = vec![own.display().to_string(), "upstream".to_owned()];
        words.extend(HTTP1_PORTS.map(|port| port.to_string()));
        let http1 = Running::start("1", &words, &folder.join("http1.log"), &HTTP1_PORTS)?;
        let root = folder.join("root/svc.Echo");
        fs::create_dir_all(&root).context("cannot make a folder")?;
        fs::write(root.join("Unary"), message()).context("cannot write an answer")?;
        let mut more = Vec::new();
        if is_installed("nghttpd") {
            for port in HTTP2_PORTS {
                let root = folder.join("root").display().to_string();
                let port_text = port.to_string();
                let words = [
                    "nghttpd",
                    "--no-tls",
                    "-n1",
                    "-d",
                    &root,
                    "--trailer",
                    "grpc-status: 0",
                    "-m",
                    "1000",
                    &port_text,
                ];
                let words = words.map(str::to_owned);
                let log = folder.join(format!("http2-{port}.log"));
                more.push(Running::start("1", &words, &log, &[port])?);
            }
        }
        Ok(Self {
            _http1: http1,
            _http2: more,
        })
    }
}

/// A message of gRPC with 95 bytes in it.
pub(crate) fn message() -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, 95];
    message.resize(100, b'z');
    message
}

fn haproxy(ports: [u16; 4], http2: bool) -> String {
    let proto = if http2 { " proto h2" } else { "" };
    let servers: String = ports
        .iter()
        .map(|port| format!("  server s{port} 127.0.0.1:{port}{proto}\n"))
        .collect();
    // Without http-no-delay it holds the parts of a stream back.
    format!(
        "global\n  nbthread 1\n  no strict-limits\n  maxconn 11000\n  tune.maxaccept 256\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n  \
         timeout http-keep-alive 300s\n  option forwardfor\n  option http-no-delay\n  http-reuse always\n\
         frontend f\n  bind 127.0.0.1:{PROXY_PORT}{proto}\n  default_backend b\n\
         backend b\n  balance roundrobin\n{servers}"
    )
}

fn nginx(ports: [u16; 4], scenario: Scenario, folder: &Path) -> String {
    let run = folder.display();
    let servers: String = ports
        .iter()
        .map(|port| format!("server 127.0.0.1:{port};"))
        .collect();
    let (listen, pass) = if scenario == Scenario::H2c {
        (
            "http2",
            "grpc_pass grpc://u; grpc_set_header X-Forwarded-For $remote_addr;",
        )
    } else {
        (
            "",
            "proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
             proxy_set_header X-Forwarded-For $remote_addr; proxy_max_temp_file_size 0;",
        )
    };
    let unbuffered = if scenario == Scenario::Sse {
        "proxy_buffering off;"
    } else {
        ""
    };
    format!(
        "daemon off; master_process off; pid {run}/nginx.pid; error_log {run}/nginx.err error;\n\
         events {{ worker_connections 19000; multi_accept on; }}\n\
         http {{ access_log off; keepalive_timeout 300s; keepalive_requests 1000000000; tcp_nodelay on;\n\
         client_body_temp_path {run}/b; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;\n\
         upstream u {{ {servers} keepalive 512; keepalive_requests 1000000000; keepalive_timeout 300s; }}\n\
         server {{ listen 127.0.0.1:{PROXY_PORT} {listen} backlog=4096; http2_max_concurrent_streams 256;\n\
         location / {{ {pass} {unbuffered} }} }} }}\n"
    )
}

fn envoy_config(ports: [u16; 4], http2: bool) -> String {
    let codec = if http2 { "HTTP2" } else { "HTTP1" };
    let options = if http2 {
        "http2_protocol_options"
    } else {
        "http_protocol_options"
    };
    let endpoints = ports.map(|port| {
        serde_json::json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}})
    });
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "f", "codec_type": codec, "use_remote_address": true, "generate_request_id": false,
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "u", "timeout": "0s"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "dynamic_stats": false}}]});
    let cluster = serde_json::json!({
        "name": "u", "type": "STATIC", "lb_policy": "ROUND_ROBIN", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 200000}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {options: {}}}},
        "load_assignment": {"cluster_name": "u", "endpoints": [{"lb_endpoints": endpoints}]}});
    serde_json::json!({"static_resources": {
        "listeners": [{"name": "l",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": PROXY_PORT}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [cluster]}})
    .to_string()
}
