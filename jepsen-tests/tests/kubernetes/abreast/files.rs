//! `file_mounts` of pods: one that runs under Pod Security `restricted`, as a user without a home, finds its files, and takes
//! the Secret that they were in with it.

use std::net::SocketAddr;

use anyhow::{Context, anyhow, ensure};
use jepsen_tests::admin::{Admin, v1};
use jepsen_tests::{http, wait};
use tempfile::TempDir;

use crate::served::ADMIN;
use crate::stage::{PATIENCE, on_release_abreast};

/// Answers with the mode and the contents of each file.
const SERVICE: &str = r#"
name: files
service: {readiness_probe: {path: /, endpoint_probe_interval_seconds: 1}}
resources: {ports: 8080, image_id: "docker:python:3.11-slim"}
envs: {HOME: /tmp/home}
file_mounts:
  /etc/app.conf: app.conf
  /opt/app: app
  ~/.ssh/id: id
  here: here
_metadata: {raftserve: {drain_timeout_seconds: 1, stop_grace_seconds: 1}}
config:
  kubernetes:
    pod_config:
      spec:
        securityContext:
          {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
        containers:
          - workingDir: /tmp
            securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
setup: /opt/app/bin/greet > /tmp/greeted
run: |
  exec python3 -c '
  import http.server, os
  paths = ["/etc/app.conf", "/opt/app/a", os.path.expanduser("~/.ssh/id"), "here", "greeted"]
  said = " ".join("%03o:%s" % (os.stat(p).st_mode & 0o777, open(p).read().strip()) for p in paths)
  class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
          self.send_response(200)
          self.end_headers()
          self.wfile.write(said.encode())
      def log_message(self, *args):
          pass
  http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
  '
"#;

/// What is in the files. The kubelet's are everybody's to read; those that are copied have the modes that they were sent with.
const SAID: &str = "444:c 444:a 600:hush 640:h 644:hello";

fn file(mount: &str, path: &str, mode: u32, contents: &str) -> v1::MountedFile {
    v1::MountedFile {
        mount: mount.to_owned(),
        path: path.to_owned(),
        mode,
        contents: contents.as_bytes().to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_may_do_nothing_finds_its_files_and_leaves_none_behind() -> anyhow::Result<()> {
    on_release_abreast("files", &[], async |release| {
        let folder = TempDir::new()?;
        let credential = release.credential(&folder).await?;
        let pods = release.pods().await?;
        let address = pods.first().and_then(|pod| pod.address);
        let address = SocketAddr::new(address.context("no peer")?, ADMIN);
        let admin = Admin::with(address, &credential);
        let files = vec![
            file("/etc/app.conf", "", 0o600, "c"),
            file("/opt/app", "a", 0o644, "a"),
            file("/opt/app", "bin/greet", 0o700, "#!/bin/sh\necho hello\n"),
            file("~/.ssh/id", "", 0o600, "hush"),
            file("here", "", 0o640, "h"),
        ];
        wait::until("the service's start", PATIENCE, async || {
            Ok(admin.apply_with(SERVICE, files.clone()).await?)
        })
        .await?;
        let entrance = *release.entrances().await?.first().context("no entrance")?;
        wait::until("an answer with all files", PATIENCE, async || {
            let reply = http::get(entrance, "/files/")
                .await
                .map_err(|failure| anyhow!("{failure:?}"))?;
            ensure!(reply.status == 200 && reply.body == SAID, "{reply:?}");
            Ok(())
        })
        .await?;
        let secrets = async || {
            release
                .namespace
                .objects("secrets", "raftserve.io/cluster")
                .await
        };
        wait::until("one Secret", PATIENCE, async || {
            let there = secrets().await?.len();
            ensure!(there == 1, "{there} for one pod");
            Ok(())
        })
        .await?;
        wait::until("the service's end", PATIENCE, async || {
            if admin.service("files").await?.is_some() {
                admin.delete("files").await?;
            }
            Ok(())
        })
        .await?;
        wait::until("no Secret", PATIENCE, async || {
            let left = secrets().await?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
    })
    .await
}
