//! The command line, as a person or a script would use it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::timeout;

use crate::access::Credential;
use crate::peer::clean_command;

/// How long a command may take. `up` waits for a service, everything else answers at once.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

/// The flag that names the peer to ask.
const ADDRESS_FLAG: &str = "--server";

/// The command line, bound to one peer.
#[derive(Clone, Debug)]
pub struct Cli {
    /// The binary.
    pub binary: PathBuf,
    /// The admin port of the peer to ask.
    pub admin: SocketAddr,
    /// With what it comes there, if that is protected.
    pub credential: Option<Credential>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Cli {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it cannot be run or takes more than a minute. An exit code is no error here.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let address = self.admin.to_string();
        let mut more = vec![ADDRESS_FLAG, &address];
        if let Some(credential) = &self.credential {
            let file = credential.authorities.to_str();
            more.extend(["--ca-file", file.context("a path in UTF-8")?]);
        }
        self.end(args, &more, None).await
    }

    /// Runs a command that names its peers itself to its end, with settings kept in `home`, and gives it `input` to
    /// read.
    ///
    /// # Errors
    /// As [`Cli::run`].
    pub async fn run_at_home(
        &self,
        args: &[&str],
        home: &Path,
        input: &Path,
    ) -> anyhow::Result<Ran> {
        self.end(args, &[], Some((home, input))).await
    }

    async fn end(
        &self,
        args: &[&str],
        more: &[&str],
        at_home: Option<(&Path, &Path)>,
    ) -> anyhow::Result<Ran> {
        let mut command = Command::from(clean_command(&self.binary));
        command
            .args(args)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        match (at_home, &self.credential) {
            (Some((home, input)), _) => {
                let input = File::open(input).context("cannot open the input")?;
                command.env("XDG_CONFIG_HOME", home).stdin(input);
            }
            (None, Some(Credential { token, .. })) => {
                command.envs(token.iter().map(|token| ("RAFTSERVE_TOKEN", token)));
            }
            (None, None) => {}
        }
        let output = timeout(COMMAND_TIME_MAX, command.output())
            .await
            .with_context(|| format!("raftserve {args:?} takes more than {COMMAND_TIME_MAX:?}"))?
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        Ok(Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that asks no peer to its end.
    ///
    /// # Errors
    /// As [`Cli::run`].
    pub async fn offline(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.end(args, &[], None).await
    }

    /// Runs a command that asks no peer and is to succeed, and reads what it prints as JSON.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub async fn offline_json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let args: Vec<&str> = args.iter().chain(&["--output", "json"]).copied().collect();
        read(&args, &self.offline(&args).await?)
    }

    /// Runs a command that is to succeed, and reads what it prints as JSON.
    ///
    /// # Errors
    /// If it fails, or prints something else.
    pub async fn json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let args: Vec<&str> = args.iter().chain(&["--output", "json"]).copied().collect();
        read(&args, &self.run(&args).await?)
    }
}

/// Reads what a command that is to have succeeded has printed as JSON.
///
/// # Errors
/// If it failed, or has printed something else.
pub fn read(args: &[&str], ran: &Ran) -> anyhow::Result<serde_json::Value> {
    if ran.code != Some(0) {
        anyhow::bail!("raftserve {args:?}: {ran:?}");
    }
    serde_json::from_str(&ran.stdout).with_context(|| format!("raftserve {args:?}: {ran:?}"))
}
