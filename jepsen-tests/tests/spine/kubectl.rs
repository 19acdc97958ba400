//! The command line where nobody has said whom to ask: it finds the release through `kubectl`, for which a script stands
//! in that answers as it does.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use jepsen_tests::cli::Ran;
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::peer::clean_command;
use jepsen_tests::wait;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::access::{ADMIN, Protection};
use crate::stage::{self, Share};

/// What `kubectl` is asked, and answers from files beside it.
const SCRIPT: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$*" in
  *"get --output json statefulsets"*) cat releases.json ;;
  *"get --output json secret prod-certificates"*) cat certificates.json ;;
  *"get --output json secret prod-credentials"*) cat credentials.json ;;
  *"port-forward --address 127.0.0.1 --namespace serving statefulset/prod :7000"*)
    echo $$ > pid
    echo "Forwarding from 127.0.0.1:$(cat port) -> 7000"
    exec sleep 600 ;;
  *"version --output json"*) echo '{"serverVersion": {"gitVersion": "v1.33.1", "minor": "33"}}' ;;
  *"auth can-i create secrets"*) exit 1 ;;
  *"auth can-i"*) echo yes ;;
  *"get --output json storageclasses"*) echo '{"items": []}' ;;
  *) echo "Error from server (Forbidden): $*" >&2; exit 1 ;;
esac
"#;

/// A directory with that script in it.
struct Kubectl(PathBuf);

impl Kubectl {
    fn new(folder: PathBuf, cluster: &Cluster, protection: &Protection) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder)?;
        let write = |name: &str, value: Value| fs::write(folder.join(name), value.to_string());
        let program = folder.join("kubectl");
        fs::write(&program, SCRIPT)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let port = cluster.peer(0).setup.ports.admin.port();
        fs::write(folder.join("port"), port.to_string())?;
        let secret = |key: &str, text: &[u8]| json!({"data": {key: base64(text)}});
        let authorities = fs::read(protection.path("ca.pem"))?;
        write("certificates.json", secret("ca.crt", &authorities))?;
        write("credentials.json", secret("admin-token", ADMIN.as_bytes()))?;
        write("releases.json", releases(&["prod"]))?;
        Ok(Self(folder))
    }

    fn command(&self, binary: &Path, home: &Path, args: &[&str]) -> Command {
        let mut command = Command::from(clean_command(binary));
        command
            .args(args)
            .env("PATH", format!("{}:/usr/bin:/bin", self.0.display()))
            .env("XDG_CONFIG_HOME", home)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Waits until what forwards the port has ended.
    async fn ended(&self) -> anyhow::Result<()> {
        wait::until("the end of the forwarded port", PATIENCE, async || {
            let pid = fs::read_to_string(self.0.join("pid")).context("it never began")?;
            let runs = Path::new("/proc").join(pid.trim()).exists();
            ensure!(!runs, "it runs");
            Ok(())
        })
        .await?;
        fs::remove_file(self.0.join("pid")).context("the file of its number")
    }
}

fn releases(names: &[&str]) -> Value {
    let volumes = json!([
        {"name": "certificates", "secret": {"secretName": "prod-certificates"}},
        {"name": "credentials", "projected": {"sources": [{"secret": {"name": "prod-credentials"}}]}},
    ]);
    let item = |name: &&str| {
        json!({
            "metadata": {"name": name, "namespace": "serving"},
            "spec": {"template": {"spec": {"volumes": volumes}}},
        })
    };
    json!({"items": names.iter().map(item).collect::<Vec<_>>()})
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let value = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(value >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

async fn ran(mut command: Command) -> anyhow::Result<Ran> {
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    Ok(Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_release_in_the_kubernetes_cluster_is_found_and_no_port_stays_forwarded()
-> anyhow::Result<()> {
    if TcpStream::connect("127.0.0.1:7000").is_ok() {
        eprintln!("skipped: somebody is at 127.0.0.1:7000, who would be asked");
        return Ok(());
    }
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let options = Options {
            peers: 1,
            ..protection.options(&[])
        };
        let cluster = Cluster::start_with(options).await?;
        let kubectl = Kubectl::new(cluster.path("bin"), &cluster, &protection)?;
        let (binary, home) = (cluster.cli(0).binary, cluster.path("home"));
        let run = async |args: &[&str]| ran(kubectl.command(&binary, &home, args)).await;

        let status = run(&["status"]).await?;
        ensure!(status.code == Some(0), "{status:?}");
        ensure!(
            status.stderr.contains("release prod in namespace serving"),
            "{status:?}"
        );
        kubectl.ended().await?;

        let checked = run(&["check", "--output", "json"]).await?;
        let lines: Value =
            serde_json::from_str(&checked.stdout).with_context(|| format!("{checked:?}"))?;
        ensure!(checked.code == Some(0), "{checked:?}");
        ensure!(
            lines[1]["check"] == "quorum" && lines[1]["verdict"] == "ok",
            "{lines}"
        );
        let verdict = |check: &str| {
            let lines = lines.as_array()?;
            Some(&lines.iter().find(|line| line["check"] == check)?["verdict"])
        };
        ensure!(
            verdict("kubernetes") == Some(&json!("ok")),
            "the cluster that peers live in is looked at: {lines}"
        );
        ensure!(verdict("clock") == Some(&json!("warning")), "{lines}");
        ensure!(verdict("storage").is_none(), "{lines}");
        kubectl.ended().await?;

        // However the program ends, so does what it started.
        let mut watching = kubectl.command(&binary, &home, &["events"]).spawn()?;
        wait::until("a forwarded port", PATIENCE, async || {
            fs::read(kubectl.0.join("pid"))
                .context("none yet")
                .map(drop)
        })
        .await?;
        watching.kill().await?;
        kubectl.ended().await?;

        fs::write(
            kubectl.0.join("releases.json"),
            releases(&["prod", "test"]).to_string(),
        )?;
        let several = run(&["status"]).await?;
        ensure!(
            several.code == Some(2) && several.stderr.contains("test in namespace serving"),
            "{several:?}"
        );

        let before = run(&["check", "--before", "--namespace", "serving"]).await?;
        ensure!(before.code == Some(1), "{before:?}");
        for seen in [
            "ok       kubernetes   v1.33.1",
            "failed   permissions  you may not create secrets in serving",
            "failed   storage      there is no default class",
            "warning  dns          cannot tell: Error from server (Forbidden)",
        ] {
            ensure!(
                before.stdout.contains(seen),
                "{seen} is missing: {before:?}"
            );
        }
        cluster.pass();
        Ok(())
    })
    .await
}
