//! The command line where nobody has said whom to ask: it finds the release through `kubectl`, for which a script stands
//! in that answers as it does.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, ensure};
use jepsen_tests::cli::Ran;
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::peer::clean_command;
use jepsen_tests::wait;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::access::{ADMIN, PASSWORD, Protection};
use crate::stage::{self, Share};

/// What `kubectl` is asked, and answers from files beside it.
const SCRIPT: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
if [ -e refusal ]; then cat refusal >&2; exit 1; fi
case "$*" in
  *"config current-context") cat context ;;
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
        write("credentials.json", secret("admin-token", ADMIN.as_bytes()))?;
        write("releases.json", releases(&["prod"]))?;
        let kubectl = Self(folder);
        kubectl.set_cluster("kind-a", protection)?;
        Ok(kubectl)
    }

    /// Goes over to a Kubernetes cluster whose release has these authorities.
    fn set_cluster(&self, context: &str, protection: &Protection) -> anyhow::Result<()> {
        let authorities = fs::read(protection.path("ca.pem"))?;
        let certificates = secret("ca.crt", &authorities).to_string();
        fs::write(self.0.join("certificates.json"), certificates)?;
        Ok(fs::write(self.0.join("context"), format!("{context}\n"))?)
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

fn secret(key: &str, text: &[u8]) -> Value {
    json!({"data": {key: base64(text)}})
}

/// Where the command line looks for a peer on this host.
const HERE: &str = "127.0.0.1:7000";

/// Held by whichever test has that port.
static PORT: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What the command line sends to find out who is there: how HTTP/2 begins, and no more.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Somebody at [`HERE`] who is no peer, such as the AirPlay receiver of macOS, and what each connection sent. Others may have
/// the port once it is dropped.
struct Stranger {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    is_over: Arc<AtomicBool>,
    listens: Option<thread::JoinHandle<()>>,
}

impl Stranger {
    /// None if somebody else has the port.
    fn settle() -> Option<Self> {
        let listener = TcpListener::bind(HERE).ok()?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (all, over) = (Arc::clone(&heard), Arc::clone(&is_over));
        let listens = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let ours = Arc::clone(&all);
                thread::spawn(move || {
                    let mut sent = Vec::new();
                    // Who closes with the answer unread resets the connection.
                    let _ = Self::refuse(stream, &mut sent);
                    let mut all = ours.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(sent);
                });
            }
        });
        Some(Self {
            heard,
            is_over,
            listens: Some(listens),
        })
    }

    fn refuse(mut stream: TcpStream, sent: &mut Vec<u8>) -> io::Result<()> {
        let mut first = [0; 256];
        let length = stream.read(&mut first)?;
        sent.extend_from_slice(&first[..length]);
        stream.write_all(b"RTSP/1.0 400 Bad Request\r\n\r\n")?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(sent).map(drop)
    }

    /// Whether it was met, and heard nothing but the greeting.
    fn heard_no_more(&self) -> anyhow::Result<()> {
        let all = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let other = all.iter().find(|sent| *sent != GREETING);
        ensure!(other.is_none(), "{other:?} was sent to a stranger");
        ensure!(!all.is_empty(), "it was not looked at");
        Ok(())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It looks once somebody comes.
        if TcpStream::connect(HERE).is_ok()
            && let Some(listens) = self.listens.take()
        {
            let _ = listens.join();
        }
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
    let _port = PORT.lock().await;
    let stranger = Stranger::settle();
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let options = Options {
            peers: 1,
            ..protection.options(&[])
        };
        let cluster = Cluster::start_with(options).await?;
        let kubectl = Kubectl::new(cluster.path("bin"), &cluster, &protection)?;
        let (binary, home) = (cluster.cli(0).binary, cluster.path("home"));
        // With a credential a peer on this host, should one be there, is not asked first.
        let token = stranger.is_none().then_some(("RAFTSERVE_TOKEN", ADMIN));
        let command = |args: &[&str]| {
            let mut command = kubectl.command(&binary, &home, args);
            command.envs(token);
            command
        };
        let run = async |args: &[&str]| ran(command(args)).await;

        let status = run(&["status"]).await?;
        ensure!(status.code == Some(0), "{status:?}");
        ensure!(
            (status.stderr).contains("release prod in namespace serving of kube context kind-a"),
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
        let mut watching = command(&["events"]).spawn()?;
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
        stranger.as_ref().map_or(Ok(()), Stranger::heard_no_more)?;
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_to_a_release_is_sent_to_that_release_only() -> anyhow::Result<()> {
    let _port = PORT.lock().await;
    let stranger = Stranger::settle();
    stage::run(Share::Half, async {
        let (protection, another) = (Protection::new()?, Protection::new()?);
        let options = Options {
            peers: 1,
            ..protection.options(&[])
        };
        let cluster = Cluster::start_with(options).await?;
        let kubectl = Kubectl::new(cluster.path("bin"), &cluster, &protection)?;
        // Who may not read the Secret with the credentials.
        fs::remove_file(kubectl.0.join("credentials.json"))?;
        let (binary, home, input) = (
            cluster.cli(0).binary,
            cluster.path("home"),
            cluster.path("input"),
        );
        fs::write(&input, format!("{PASSWORD}\n"))?;
        let run = async |args: &[&str]| {
            let mut command = kubectl.command(&binary, &home, args);
            command.stdin(fs::File::open(&input)?);
            ran(command).await
        };
        let is_refused = async || {
            let status = run(&["status"]).await?;
            let told = "not logged in to release prod in namespace serving of kube context kind-b";
            ensure!(
                status.code == Some(6) && status.stderr.contains(told),
                "{status:?}"
            );
            anyhow::Ok(status)
        };

        let login = run(&["login", "--user", "ann", "--password-stdin"]).await?;
        ensure!(
            login.code == Some(0) && login.stdout.contains("context kubernetes is in use"),
            "{login:?}"
        );
        let status = run(&["status"]).await?;
        ensure!(status.code == Some(0), "{status:?}");
        let listed = run(&["context", "list"]).await?;
        ensure!(
            listed
                .stdout
                .contains("release prod in namespace serving of kube context kind-a"),
            "{listed:?}"
        );

        // As after `kubectl config use-context kind-b`.
        kubectl.set_cluster("kind-b", &another)?;
        let refused = is_refused().await?;
        ensure!(
            refused.stderr.contains("of kube context kind-a"),
            "{refused:?}"
        );
        let named = run(&["status", "--context", "kubernetes"]).await?;
        ensure!(
            named.code == Some(2) && named.stderr.contains("of kube context kind-b"),
            "{named:?}"
        );
        // Also where one authority vouches for both.
        kubectl.set_cluster("kind-b", &protection)?;
        is_refused().await?;
        let login = run(&["login", "--user", "ann", "--password-stdin"]).await?;
        ensure!(
            login
                .stdout
                .contains("context kind-b/serving/prod is in use"),
            "{login:?}"
        );
        for cluster in ["kind-a", "kind-b"] {
            kubectl.set_cluster(cluster, &protection)?;
            let status = run(&["status"]).await?;
            ensure!(status.code == Some(0), "{cluster}: {status:?}");
        }

        let unauthorized = "error: You must be logged in to the server (Unauthorized)";
        fs::write(kubectl.0.join("refusal"), format!("{unauthorized}\n"))?;
        let mut lost = vec![run(&["status", "--context", "kubernetes"]).await?];
        if stranger.is_some() {
            lost.push(run(&["login", "--user", "ann", "--password-stdin"]).await?);
            stranger.as_ref().map_or(Ok(()), Stranger::heard_no_more)?;
            lost.push(run(&["status"]).await?);
        }
        for ran in lost {
            ensure!(
                ran.code == Some(4) && ran.stderr.contains(unauthorized),
                "{ran:?}"
            );
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_on_this_host_is_asked_by_itself_and_without_a_token() -> anyhow::Result<()> {
    let _port = PORT.lock().await;
    let Ok(listener) = tokio::net::TcpListener::bind(HERE).await else {
        eprintln!("skipped: somebody is at {HERE}");
        return Ok(());
    };
    stage::run(Share::Half, async {
        let options = Options {
            peers: 1,
            ..Options::default()
        };
        let cluster = Cluster::start_with(options).await?;
        let admin = cluster.peer(0).setup.ports.admin;
        let forward = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(admin).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        let protection = Protection::new()?;
        let kubectl = Kubectl::new(cluster.path("bin"), &cluster, &protection)?;
        let (binary, home) = (cluster.cli(0).binary, cluster.path("home"));

        let status = ran(kubectl.command(&binary, &home, &["status"])).await?;
        ensure!(
            status.code == Some(0) && status.stderr.contains("Asking 127.0.0.1:7000.\n"),
            "{status:?}"
        );
        fs::write(kubectl.0.join("releases.json"), r#"{"items": []}"#)?;
        let mut with_token = kubectl.command(&binary, &home, &["status"]);
        with_token.env("RAFTSERVE_TOKEN", ADMIN);
        let status = ran(with_token).await?;
        ensure!(
            status.code == Some(0) && status.stderr.contains("7000, without the token"),
            "{status:?}"
        );
        forward.abort();
        cluster.pass();
        Ok(())
    })
    .await
}
