//! Which program is tested, and which others a test needs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Names the binary to test, instead of the one that cargo built beside the test.
pub const BINARY_VARIABLE: &str = "RAFTSERVE_BIN";

/// Names the binary of the release before, where upgrades from it are to be tested.
pub const BINARY_BEFORE_VARIABLE: &str = "RAFTSERVE_BIN_BEFORE";

/// Set to `1` where a test that lacks a program must fail instead of being skipped.
pub const REQUIRE_TOOLS_VARIABLE: &str = "RAFTSERVE_REQUIRE_TOOLS";

/// The `raftserve` binary to test.
///
/// # Errors
/// If there is none, with how to get it.
#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment what to test, there being no command line of its own"
)]
pub fn raftserve() -> anyhow::Result<PathBuf> {
    let named = env::var_os(BINARY_VARIABLE).map(PathBuf::from);
    let own = env::current_exe().context("cannot tell where this test was built")?;
    find(named, &own)
}

/// The binary of the release before; none if none is named, which is told.
///
/// # Errors
/// If there is none of that name.
#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment what to test, there being no command line of its own"
)]
pub fn raftserve_before() -> anyhow::Result<Option<PathBuf>> {
    let named = env::var_os(BINARY_BEFORE_VARIABLE).filter(|named| !named.is_empty());
    let Some(named) = named.map(PathBuf::from) else {
        eprintln!("skipped: {BINARY_BEFORE_VARIABLE} names no binary of the release before");
        return Ok(None);
    };
    let path = std::path::absolute(&named)?;
    if !path.is_file() {
        bail!("{BINARY_BEFORE_VARIABLE}: there is no {}", path.display());
    }
    Ok(Some(path))
}

/// `named` if given, else the binary in the profile's folder: `target/PROFILE`, where `own` is either
/// directly or in `deps/`.
fn find(named: Option<PathBuf>, own: &Path) -> anyhow::Result<PathBuf> {
    let path = match named {
        Some(path) => path,
        None => {
            let folder = own.parent().unwrap_or(Path::new("."));
            let profile = match folder.file_name() {
                Some(name) if name == "deps" => folder.parent().unwrap_or(folder),
                _ => folder,
            };
            profile.join("raftserve")
        }
    };
    if !path.is_file() {
        bail!(
            "there is no {}: build it with `cargo build` (with the profile of this test), or name \
             another in {BINARY_VARIABLE}",
            path.display()
        );
    }
    std::path::absolute(&path).with_context(|| format!("cannot resolve {}", path.display()))
}

/// Whether `program` can be run. If not, the calling test is to end: skipped with a line that names the
/// program, or failed where tools are required.
///
/// # Panics
/// If the program is missing and [`REQUIRE_TOOLS_VARIABLE`] is `1`.
#[must_use]
pub fn have(program: &str) -> bool {
    have_with(program, "--version")
}

/// The same for a program that tells its version by another argument.
///
/// # Panics
/// As [`have`].
#[must_use]
pub fn have_with(program: &str, version: &str) -> bool {
    noted(program, runs(program, &[version]))
}

/// Whether a program can be run that need not be there even where tools are required. If not, a line says so.
#[must_use]
pub fn may_have(program: &str) -> bool {
    let runs = runs(program, &["--version"]);
    if !runs {
        eprintln!("skipped: {program} is not installed");
    }
    runs
}

/// As [`have`] for a module of Python.
///
/// # Panics
/// As [`have`].
#[must_use]
pub fn have_module(module: &str) -> bool {
    let imported = runs("python3", &["-c", &format!("import {module}")]);
    noted(&format!("python3's {module}"), imported)
}

fn noted(program: &str, runs: bool) -> bool {
    if !runs {
        skip(&format!("{program} is not installed"));
    }
    runs
}

/// Says that a test is skipped, and why.
///
/// # Panics
/// As [`have`].
#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment whether it may be skipped"
)]
pub fn skip(why: &str) {
    let required = env::var_os(REQUIRE_TOOLS_VARIABLE).is_some_and(|value| value == "1");
    assert!(!required, "{why}, and {REQUIRE_TOOLS_VARIABLE}=1");
    eprintln!("skipped: {why}");
}

fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_is_found_beside_tests_and_beside_binaries() {
        let folder = tempfile::tempdir().unwrap();
        let built = folder.path().join("raftserve");
        std::fs::write(&built, "").unwrap();
        for own in ["deps/spine-0123", "bench_failover"] {
            assert_eq!(find(None, &folder.path().join(own)).unwrap(), built);
        }
    }

    #[test]
    fn missing_binary_is_told_with_the_remedy() {
        let error = find(None, Path::new("/nowhere/debug/deps/x")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/debug/raftserve"), "{text}");
        assert!(text.contains("cargo build"), "{text}");
    }

    #[test]
    fn missing_program_is_noticed() {
        assert!(runs("cargo", &["--version"]));
        assert!(!runs("no-such-program-of-raftserve", &["--version"]));
    }
}
