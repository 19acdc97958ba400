//! A disk that fails on command, under a peer that is not to know.
//!
//! `faulty_disk/faulty_disk.c` is compiled by the test and loaded into the peer before the C library
//! (`LD_PRELOAD`), where it lets writes or syncs fail, or syncs take long, on files below the peer's data
//! directory, as a control file says at that moment. The program under test is the released one, unchanged.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::io::Errno;

/// The library's source.
const SOURCE: &str = include_str!("faulty_disk/faulty_disk.c");

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every write fails with this error.
    Write(Errno),
    /// Every sync fails with this error, and nothing was synced.
    Sync(Errno),
    /// Every sync takes this much longer.
    SlowSync(Duration),
}

/// The disk below one directory.
#[derive(Debug)]
pub struct FaultyDisk {
    library: PathBuf,
    control_path: PathBuf,
    control: File,
    below: PathBuf,
}

impl FaultyDisk {
    /// A disk without faults for what is below `below`; its own files go into `folder` under `name`.
    ///
    /// # Errors
    /// If the library cannot be compiled with `cc`.
    pub fn create(folder: &Path, name: &str, below: &Path) -> anyhow::Result<Self> {
        let library = folder.join("libfaulty_disk.so");
        if !library.exists() {
            compile(folder, &library)?;
        }
        let control_path = folder.join(format!("{name}.faults"));
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&control_path)
            .with_context(|| format!("cannot make {}", control_path.display()))?;
        let disk = Self {
            library,
            control_path,
            control,
            below: below.to_owned(),
        };
        disk.control.write_all_at(&[0; 20], 0)?;
        Ok(disk)
    }

    /// The environment by which a program gets this disk.
    #[must_use]
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        [
            ("LD_PRELOAD", &self.library),
            ("FAULTY_DISK_BELOW", &self.below),
            ("FAULTY_DISK_CONTROL", &self.control_path),
        ]
        .map(|(name, path)| (name.into(), path.into()))
        .into()
    }

    /// What it does wrong from now on, after `spared` more calls that do not fail.
    ///
    /// # Errors
    /// If the control file cannot be written.
    pub fn set(&self, fault: Fault, spared: u32) -> anyhow::Result<()> {
        let code = |error: Errno| u32::try_from(error.raw_os_error()).unwrap_or(0);
        let (write, sync, delay) = match fault {
            Fault::None => (0, 0, 0),
            Fault::Write(error) => (code(error), 0, 0),
            Fault::Sync(error) => (0, code(error), 0),
            Fault::SlowSync(delay) => (0, 0, u32::try_from(delay.as_millis())?),
        };
        // The count comes first, so that no call fails that is to be spared.
        self.put(3, spared)?;
        for (at, number) in [write, sync, delay].into_iter().enumerate() {
            self.put(at as u64, number)?;
        }
        Ok(())
    }

    /// How many calls failed or were delayed so far.
    ///
    /// # Errors
    /// If the control file cannot be read.
    pub fn hits(&self) -> anyhow::Result<u32> {
        let mut number = [0; 4];
        self.control.read_exact_at(&mut number, 16)?;
        Ok(u32::from_ne_bytes(number))
    }

    fn put(&self, at: u64, number: u32) -> anyhow::Result<()> {
        let written = self.control.write_all_at(&number.to_ne_bytes(), 4 * at);
        written.context("cannot write the control file")
    }
}

fn compile(folder: &Path, library: &Path) -> anyhow::Result<()> {
    let source = folder.join("faulty_disk.c");
    std::fs::write(&source, SOURCE).context("cannot write the library's source")?;
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", "-o"])
        .arg(library)
        .arg(&source)
        .arg("-ldl")
        .output()
        .context("cannot run cc, which tests of faults need")?;
    ensure!(
        output.status.success(),
        "cc failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes and syncs a file below `below` as any program would; its exit code says how that went.
    fn try_to_write(disk: &FaultyDisk, path: &Path) -> bool {
        Command::new("dd")
            .args(["if=/dev/zero", "bs=16", "count=1", "conv=fsync"])
            .arg(format!("of={}", path.display()))
            .envs(disk.environment())
            .output()
            .unwrap()
            .status
            .success()
    }

    #[test]
    fn only_what_is_below_the_directory_fails_and_only_as_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let below = root.join("data");
        std::fs::create_dir(&below).unwrap();
        let disk = FaultyDisk::create(&root, "disk", &below).unwrap();
        let (inside, outside) = (below.join("file"), root.join("data-of-another"));
        assert!(try_to_write(&disk, &inside));
        for fault in [Fault::Write(Errno::IO), Fault::Sync(Errno::IO)] {
            let before = disk.hits().unwrap();
            disk.set(fault, 0).unwrap();
            assert!(!try_to_write(&disk, &inside), "{fault:?}");
            assert!(try_to_write(&disk, &outside), "{fault:?}");
            assert_eq!(disk.hits().unwrap(), before + 1, "{fault:?}");
            disk.set(fault, 1).unwrap();
            assert!(try_to_write(&disk, &inside), "{fault:?}, spared");
        }
        disk.set(Fault::None, 0).unwrap();
        assert!(try_to_write(&disk, &inside));
    }
}
