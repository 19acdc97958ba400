//! A replica program that counts what it sees, and the services that run it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::check::Sightings;

/// The header that carries a session key.
pub const SESSION_HEADER: &str = "x-session-id";

/// The header in which a replica says its number.
pub const REPLICA_HEADER: &str = "x-replica";

/// The header in which a replica says the tag that it was started with.
pub const TAG_HEADER: &str = "x-tag";

/// Appends each start and each session key to a file of the replica's own, with one write each and before
/// it answers, so that no kill can lose what a client has seen.
const SOURCE: &str = r#"
import http.server, os, sys
folder, tag = sys.argv[1], sys.argv[2]
own = os.environ["SKYPILOT_SERVE_REPLICA_ID"]
def appender(kind):
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(os.path.join(folder, kind + "-" + own), flags, 0o644)
os.write(appender("starts"), b"%d\n" % os.getpid())
seen = appender("seen")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    def do_GET(self):
        key = self.headers.get("x-session-id")
        if key is not None:
            os.write(seen, (key + "\n").encode())
        body = ("replica " + own + "\n").encode()
        self.send_response(200)
        self.send_header("x-replica", own)
        self.send_header("x-tag", tag)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// The folder in which the replicas of one service count. A service made again counts in a new one.
#[derive(Clone, Debug)]
pub struct Counters {
    folder: PathBuf,
}

impl Counters {
    /// Makes the folder, with the program in it.
    ///
    /// # Errors
    /// If it exists or cannot be written.
    pub fn create(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(folder.join("replica.py"), SOURCE).context("cannot write the replica program")?;
        Ok(Self { folder })
    }

    /// Which replicas saw each session key, by their own count.
    ///
    /// # Errors
    /// If a count cannot be read.
    pub fn sightings(&self) -> anyhow::Result<Sightings> {
        let mut seen = Sightings::new();
        for (replica, lines) in self.files("seen-")? {
            for key in lines {
                seen.entry(key).or_default().insert(replica.clone());
            }
        }
        Ok(seen)
    }

    /// How often each replica's program was started, by number.
    ///
    /// # Errors
    /// If a count cannot be read.
    pub fn starts(&self) -> anyhow::Result<BTreeMap<u32, usize>> {
        self.files("starts-")?
            .into_iter()
            .map(|(replica, lines)| {
                let number = replica.parse().context("a replica's number")?;
                Ok((number, lines.len()))
            })
            .collect()
    }

    /// No replica's program was ever started twice.
    ///
    /// # Errors
    /// If one was, or a count cannot be read.
    pub fn check_single_starts(&self) -> anyhow::Result<()> {
        let starts = self.starts()?;
        let twice: BTreeSet<u32> = starts
            .iter()
            .filter(|(_, count)| **count > 1)
            .map(|(replica, _)| *replica)
            .collect();
        if !twice.is_empty() {
            bail!("the programs of replicas {twice:?} were started more than once: {starts:?}");
        }
        Ok(())
    }

    fn files(&self, prefix: &str) -> anyhow::Result<Vec<(String, Vec<String>)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).context("cannot list the replicas' counts")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(replica) = name.strip_prefix(prefix) {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                files.push((
                    replica.to_owned(),
                    text.lines().map(str::to_owned).collect(),
                ));
            }
        }
        Ok(files)
    }

    fn path(&self) -> &Path {
        &self.folder
    }
}

/// A service that runs the counting program.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// How many replicas are wanted.
    pub replicas: u32,
    /// What each replica answers in [`TAG_HEADER`]: another tag is another program to run.
    pub tag: String,
    /// Where the replicas count.
    pub counters: Counters,
    /// Whether [`SESSION_HEADER`] binds sessions.
    pub sessions: bool,
    /// Shell text run before the program.
    pub setup: Option<String>,
    /// How its requests are carried, as YAML on one line.
    pub traffic: Option<String>,
    /// A comment in the YAML: another comment is another version that runs the same replicas.
    pub note: u64,
}

impl Service {
    /// A service without sessions or `setup`.
    #[must_use]
    pub fn new(name: &str, replicas: u32, counters: &Counters) -> Self {
        Self {
            name: name.to_owned(),
            replicas,
            tag: "v1".to_owned(),
            counters: counters.clone(),
            sessions: false,
            setup: None,
            traffic: None,
            note: 0,
        }
    }

    /// The same, with sessions.
    #[must_use]
    pub fn with_sessions(self) -> Self {
        Self {
            sessions: true,
            ..self
        }
    }

    /// The same, with another tag.
    #[must_use]
    pub fn with_tag(self, tag: &str) -> Self {
        Self {
            tag: tag.to_owned(),
            ..self
        }
    }

    /// The same, with another number of replicas.
    #[must_use]
    pub fn with_replicas(self, replicas: u32) -> Self {
        Self { replicas, ..self }
    }

    /// The same, with a `setup`.
    #[must_use]
    pub fn with_setup(self, setup: &str) -> Self {
        Self {
            setup: Some(setup.to_owned()),
            ..self
        }
    }

    /// The same, with its requests carried so: `traffic` is YAML on one line.
    #[must_use]
    pub fn with_traffic(self, traffic: &str) -> Self {
        Self {
            traffic: Some(traffic.to_owned()),
            ..self
        }
    }

    /// The same, with another comment: a write that changes no replica.
    #[must_use]
    pub fn with_note(self, note: u64) -> Self {
        Self { note, ..self }
    }

    /// Its YAML. It is probed often, so that tests are short, and patiently, so that a loaded machine
    /// does not look like a sick replica.
    #[must_use]
    pub fn yaml(&self) -> String {
        let folder = self.counters.path().display();
        let mut text = format!(
            "name: {}\n\
             service:\n  \
               readiness_probe:\n    \
                 path: /\n    \
                 timeout_seconds: 10\n    \
                 endpoint_probe_interval_seconds: 0.2\n  \
               replicas: {}\n\
             resources:\n  ports: 8080\n",
            self.name, self.replicas
        );
        if let Some(setup) = &self.setup {
            let _ = writeln!(text, "setup: {setup}");
        }
        let _ = writeln!(
            text,
            "run: exec python3 {folder}/replica.py {folder} {}",
            self.tag
        );
        text.push_str(
            "_metadata:\n  raftserve:\n    drain_timeout_seconds: 5\n    stop_grace_seconds: 5\n",
        );
        if self.sessions {
            let _ = writeln!(
                text,
                "    session_affinity:\n      header: {SESSION_HEADER}"
            );
        }
        if let Some(traffic) = &self.traffic {
            let _ = writeln!(text, "    traffic: {traffic}");
        }
        let _ = writeln!(text, "# note {}", self.note);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::binary;

    fn connect(port: u16) -> TcpStream {
        let start = Instant::now();
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return stream,
                Err(error) if start.elapsed() > Duration::from_secs(20) => panic!("{error}"),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn program_counts_before_it_answers() {
        if !binary::have("python3") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let counters = Counters::create(folder.path().join("count")).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut replica = Command::new("python3")
            .arg(counters.path().join("replica.py"))
            .arg(counters.path())
            .arg("v7")
            .env("SKYPILOT_SERVE_REPLICA_ID", "3")
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut stream = BufReader::new(connect(port));
        for key in ["alice", "bob"] {
            let request = format!("GET / HTTP/1.1\r\nhost: x\r\n{SESSION_HEADER}: {key}\r\n\r\n");
            stream.get_mut().write_all(request.as_bytes()).unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
            }
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert!(
                head.contains("x-replica: 3\r\n") && head.contains("x-tag: v7\r\n"),
                "{head}"
            );
            let mut body = [0; 10];
            stream.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"replica 3\n");
            assert_eq!(counters.sightings().unwrap()[key], ["3".to_owned()].into());
        }
        replica.kill().unwrap();
        replica.wait().unwrap();
        assert_eq!(counters.starts().unwrap(), [(3, 1)].into());
        counters.check_single_starts().unwrap();
        fs::write(counters.path().join("starts-3"), "1\n2\n").unwrap();
        assert!(counters.check_single_starts().is_err());
    }

    #[test]
    fn yaml_says_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let counters = Counters::create(folder.path().join("count")).unwrap();
        let service = Service::new("web", 3, &counters)
            .with_sessions()
            .with_setup("true");
        let text = service.yaml();
        for line in [
            "name: web\n",
            "\n  replicas: 3\n",
            "\nsetup: true\n",
            "\n    session_affinity:\n      header: x-session-id\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }
}
