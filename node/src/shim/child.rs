//! Starting a replica's shell so that it cannot outlive its shim.

use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeWriter};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use super::REPLICA_EXEC;
use crate::provider::Step;
use crate::provider::proc_table::{self, MARKER_NAME, ProcessStamp};
use crate::provider::record::LaunchDocument;
use crate::provider::run_dir::RunDir;

/// The shells that may run `setup` and `run`, best first: SkyServe runs them with bash.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// The longest text passed as an argument; Linux takes 128 KiB (`MAX_ARG_STRLEN`). A longer one is
/// put into a file.
const ARGUMENT_BYTES_MAX: usize = 96 << 10;

/// Variables that speak to raftserve's own processes, and are none of a replica's business.
const OWN_VARIABLES: &str = "RAFTSERVE_";

/// The exit code by which shells say that a program is not there.
pub(super) const NOT_FOUND: u8 = 127;

/// Starts the shell of one step in a process group of its own. Call it from the main thread.
///
/// # Errors
/// If it cannot be started, with what to tell people about it.
pub(super) fn spawn(
    dir: &RunDir,
    launch: &LaunchDocument,
    step: Step,
    text: &str,
    output: &PipeWriter,
) -> io::Result<ProcessStamp> {
    let shell = find_shell(&SHELLS)?;
    fs::create_dir_all(dir.work())?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("raftserve")
        .arg(REPLICA_EXEC)
        .arg(getpid().as_raw_nonzero().to_string())
        .arg(shell);
    if text.len() <= ARGUMENT_BYTES_MAX {
        command.arg("-c").arg(text);
    } else {
        let script = dir.path().join(format!("{step}.sh"));
        fs::write(&script, text)?;
        command.arg(script);
    }
    for name in own_variables() {
        command.env_remove(name);
    }
    if launch.has_own_home {
        command.env("HOME", dir.work());
    }
    command
        .envs(&launch.envs)
        .env("SKYPILOT_SERVE_REPLICA_ID", launch.number.to_string())
        .env("PORT", launch.port.to_string())
        .env(MARKER_NAME, &launch.marker)
        .current_dir(dir.work())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0);
    let child = command.spawn()?;
    // Not waited for through this handle: the shim reaps all its children alike.
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    proc_table::stat(pid)
        .map(|stat| stat.stamp)
        .ok_or_else(|| io::Error::other("the new process is not in /proc"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "no configuration: what is read here is only kept from the replica"
)]
fn own_variables() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| {
        name.as_encoded_bytes()
            .starts_with(OWN_VARIABLES.as_bytes())
    })
}

fn find_shell(candidates: &[&'static str]) -> io::Result<&'static str> {
    candidates
        .iter()
        .find(|shell| Path::new(shell).exists())
        .copied()
        .ok_or_else(|| {
            let text = format!("no shell to run it with: {}", candidates.join(", "));
            io::Error::new(io::ErrorKind::NotFound, text)
        })
}

/// The hidden subcommand between the shim and the shell: `PARENT PROGRAM ARGUMENT...`. Asks the
/// kernel for death together with the parent, makes sure that the parent did not die before that,
/// and becomes the program.
pub(super) fn exec(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let parent = args
        .next()
        .and_then(|text| text.to_str()?.parse::<i32>().ok());
    let (Some(parent), Some(program)) = (parent, args.next().map(PathBuf::from)) else {
        return ExitCode::FAILURE;
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("raftserve: cannot tie the replica to its keeper: {error}");
        return ExitCode::FAILURE;
    }
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("raftserve: {}: {error}", program.display());
    ExitCode::from(NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_shell_that_exists_is_taken_and_none_is_named() {
        assert_eq!(
            find_shell(&["/no/such/bash", "/bin/sh"]).unwrap(),
            "/bin/sh"
        );
        let error = find_shell(&["/no/such/bash", "/no/such/sh"]).unwrap_err();
        assert!(error.to_string().contains("/no/such/bash, /no/such/sh"));
    }
}
