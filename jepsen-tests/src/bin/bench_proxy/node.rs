//! The whole product as the proxy that is measured.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jepsen_tests::peer::clean_command;

use crate::peers::{PROXY_PORT, Running};
use crate::scenario::Scenario;

/// Where its other servers listen.
const ADMIN_PORT: u16 = 19_201;
const PEER_PORT: u16 = 19_202;
const OPS_PORT: u16 = 19_203;
const SERVICE_PORT: u16 = 19_210;

/// How long it may take until it leads itself and takes the service.
const UP_MAX: Duration = Duration::from_secs(20);

/// A cluster of one peer with one service, whose replicas are at `ports`. It starts on these cores.
pub(crate) fn start(
    binary: &Path,
    (code, cores): (&str, &str),
    ports: [u16; 4],
    scenario: Scenario,
    folder: &Path,
) -> anyhow::Result<Running> {
    let data = folder.join("node");
    let replicas = folder.join("node-replicas");
    // Of its former turn, if it had one. No cluster is founded where another's replicas are.
    for former in [&data, &replicas] {
        let _ = fs::remove_dir_all(former);
    }
    let address = |port: u16| format!("127.0.0.1:{port}");
    let mut words = vec![binary.display().to_string(), "node".to_owned()];
    for (flag, value) in [
        ("--data-dir", data.display().to_string()),
        ("--replica-root", replicas.display().to_string()),
        ("--peer-addr", address(PEER_PORT)),
        ("--admin-addr", address(ADMIN_PORT)),
        ("--ops-addr", address(OPS_PORT)),
        ("--proxy-addr", address(PROXY_PORT)),
        ("--service-port-base", SERVICE_PORT.to_string()),
        ("--http1-path", code.to_owned()),
    ] {
        words.extend([flag.to_owned(), value]);
    }
    let log = folder.join("node.log");
    let running = Running::start(cores, &words, &log, &[ADMIN_PORT])?;
    let service = folder.join("svc.yaml");
    fs::write(&service, yaml(ports, scenario)).context("cannot write a service")?;
    let end = Instant::now() + UP_MAX;
    loop {
        let up = clean_command(binary)
            .args(["up", "--yes", "--timeout", "10s", "--server"])
            .arg(address(ADMIN_PORT))
            .arg(&service)
            .output()
            .context("cannot run `raftserve up`")?;
        if up.status.success() && TcpStream::connect(address(PROXY_PORT)).is_ok() {
            return Ok(running);
        }
        if Instant::now() > end {
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            bail!("the service does not come up: {said}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn yaml(ports: [u16; 4], scenario: Scenario) -> String {
    let addresses = ports.map(|port| format!("\"127.0.0.1:{port}\"")).join(", ");
    let protocol = if scenario == Scenario::H2c {
        "http2"
    } else {
        "http1"
    };
    format!(
        "name: svc\nservice:\n  load_balancing_policy: least_load\n_metadata:\n  raftserve:\n    \
         provider: {{static: {{addresses: [{addresses}]}}}}\n    readiness_probe: {{tcp: {{}}}}\n    \
         traffic: {{upstream: {{protocol: {protocol}}}}}\n"
    )
}
