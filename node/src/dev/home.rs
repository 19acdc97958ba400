//! The directory of one `raftserve dev`: the peers' data, the replicas, the logs, and the lock that
//! keeps a second `raftserve dev` out.
//!
//! ```text
//! DIR/
//!   dev.lock        locked as long as `raftserve dev` runs; says which process that is
//!   dev.json        the peers' ports, so that they are the same next time
//!   lifeline.sock   what peers and replicas hold on to
//!   peer-1/ ...     the peers' data directories
//!   peer-1.log ...  what the peers print
//!   replicas/       the replicas' directories
//! ```

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::ports::Block;

/// How fresh directories are called, before 16 hexadecimal digits.
const FRESH: &str = "raftserve-dev-";

/// What follows the process id in the lock of a directory that its owner removes.
const TO_BE_REMOVED: &str = " fresh";

const LOCK: &str = "dev.lock";
const SETTINGS: &str = "dev.json";

/// Files of ours that may be in a directory before it was ever used: a start that failed.
const HARMLESS: [&str; 1] = [LOCK];

/// Whether a directory outlives `raftserve dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is removed at exit.
    Remove,
    /// It is the user's, and stays.
    Stay,
}

/// What is remembered from one run to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// The format of this document.
    pub(super) version: u32,
    /// The peers' ports, in the order of their numbers.
    pub(super) blocks: Vec<Block>,
}

/// The format of [`Settings`] that is written.
pub(super) const SETTINGS_VERSION: u32 = 1;

/// The directory, locked.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    keep: Keep,
    /// What an earlier run left; none in a directory that was never used.
    settings: Option<Settings>,
    _lock: File,
}

impl Home {
    /// Makes a fresh directory that nobody else can read.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn fresh() -> Result<Self> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent);
        let path = parent.join(format!("{FRESH}{:016x}", rand::random::<u64>()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the directory {}", path.display()))?;
        let path = path.canonicalize().unwrap_or(path);
        Self::lock(path, Keep::Remove)
    }

    /// Takes the user's directory, which is made if it does not exist.
    ///
    /// # Errors
    /// If another `raftserve dev` has it, or it holds something else.
    pub(super) fn at(path: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .and_then(|()| path.canonicalize())
            .with_context(|| format!("cannot make the data directory {}", path.display()))
            .and_then(|path| Self::lock(path, Keep::Stay))
    }

    fn lock(path: PathBuf, keep: Keep) -> Result<Self> {
        refuse_strangers(&path)?;
        let file = path.join(LOCK);
        let lock = take_lock(&file, keep)?;
        let settings = read_settings(&path.join(SETTINGS))?;
        Ok(Self {
            path,
            keep,
            settings,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier run left; none in a directory that was never used.
    pub(super) fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// Remembers the peers' ports.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn remember(&self, blocks: Vec<Block>) -> Result<()> {
        let settings = Settings {
            version: SETTINGS_VERSION,
            blocks,
        };
        let path = self.path.join(SETTINGS);
        let temporary = path.with_extension("tmp");
        let write = || {
            fs::write(&temporary, serde_json::to_vec(&settings)?)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The data directory of a peer.
    pub(super) fn peer_data(&self, peer: u16) -> PathBuf {
        self.path.join(format!("peer-{peer}"))
    }

    /// What a peer prints.
    pub(super) fn peer_log(&self, peer: u16) -> PathBuf {
        self.path.join(format!("peer-{peer}.log"))
    }

    /// Where the replicas' directories are.
    pub(super) fn replicas(&self) -> PathBuf {
        self.path.join("replicas")
    }

    /// What peers and replicas hold on to.
    pub(super) fn lifeline(&self) -> PathBuf {
        self.path.join("lifeline.sock")
    }

    /// Whether it outlives `raftserve dev`.
    pub(super) fn keep(&self) -> Keep {
        self.keep
    }

    /// Removes the directory unless it is the user's. To be called once nothing uses it.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub(super) fn close(self) -> Result<()> {
        match self.keep {
            Keep::Stay => Ok(()),
            Keep::Remove => fs::remove_dir_all(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display())),
        }
    }
}

/// Removes fresh directories whose owners were killed before they could. What cannot be removed is
/// somebody else's, and no concern of this run.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_fresh = entry.file_name().to_str().is_some_and(|name| {
            let digits = name.strip_prefix(FRESH).unwrap_or_default();
            digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        });
        if is_fresh && is_abandoned(&entry.path().join(LOCK)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a lock was held once by a run that would have removed the directory, and is no more: who
/// will is only written once the lock is held. A directory that somebody named later is theirs.
fn is_abandoned(lock: &Path) -> bool {
    let Ok(mut file) = File::open(lock) else {
        return false;
    };
    let mut holder = String::new();
    file.read_to_string(&mut holder).is_ok()
        && holder.trim_end().ends_with(TO_BE_REMOVED)
        && rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
}

/// Refuses a directory that holds something, and nothing of ours.
fn refuse_strangers(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let names: Vec<OsString> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()
        .with_context(|| format!("cannot read {}", path.display()))?;
    let ours = names.iter().any(|name| name == SETTINGS);
    let stranger = names
        .iter()
        .find(|name| !HARMLESS.iter().any(|harmless| name == harmless));
    match stranger {
        Some(name) if !ours => bail!(
            "{} is not a data directory of `raftserve dev`: it holds {}; name an empty or new directory",
            path.display(),
            name.display()
        ),
        _ => Ok(()),
    }
}

fn take_lock(path: &Path, keep: Keep) -> Result<File> {
    let open = || {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
    };
    let mut file = open().with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Who it is only helps; that it is locked is what counts.
            let _ = file.read_to_string(&mut holder);
            bail!(
                "the data directory {} is in use by another `raftserve dev` (process {}); stop that one or name another directory",
                path.parent().unwrap_or(path).display(),
                holder.split_whitespace().next().unwrap_or("unknown")
            );
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let write = || {
        file.set_len(0)?;
        let fate = match keep {
            Keep::Remove => TO_BE_REMOVED,
            Keep::Stay => "",
        };
        writeln!(&file, "{}{fate}", std::process::id())
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

fn read_settings(path: &Path) -> Result<Option<Settings>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let settings: Settings =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    if settings.version != SETTINGS_VERSION {
        bail!(
            "{} has format {}, and this raftserve reads {SETTINGS_VERSION}: use the release that wrote it",
            path.display(),
            settings.version
        );
    }
    Ok(Some(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_user_is_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        let held = Home::at(&path).unwrap();
        let refused = Home::at(&path).unwrap_err().to_string();
        assert!(refused.contains(path.to_str().unwrap()), "{refused}");
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(held);
        Home::at(&path).unwrap();
    }

    #[test]
    fn ports_are_remembered() {
        let root = tempfile::tempdir().unwrap();
        let blocks = vec![Block::default_of(1), Block::default_of(3)];
        let home = Home::at(root.path()).unwrap();
        assert_eq!(home.settings(), None);
        home.remember(blocks.clone()).unwrap();
        drop(home);
        let home = Home::at(root.path()).unwrap();
        assert_eq!(home.settings().unwrap().blocks, blocks);
        home.close().unwrap();
        assert!(root.path().exists());
    }

    #[test]
    fn directory_of_something_else_is_refused_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "x").unwrap();
        let refused = Home::at(root.path()).unwrap_err().to_string();
        assert!(refused.contains("thesis.tex"), "{refused}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_fresh_directories_whose_owner_is_gone_are_abandoned() {
        let root = tempfile::tempdir().unwrap();
        let dir = |name: &str| root.path().join(name);
        let (held, gone, begun) = (
            dir("raftserve-dev-0000000000000001"),
            dir("raftserve-dev-0000000000000002"),
            dir("raftserve-dev-0000000000000003"),
        );
        let rescued = dir("raftserve-dev-0000000000000004");
        for path in [&held, &gone, &begun, &rescued] {
            fs::create_dir(path).unwrap();
        }
        let _held = Home::lock(held.clone(), Keep::Remove).unwrap();
        drop(Home::lock(gone.clone(), Keep::Remove).unwrap());
        drop(Home::lock(rescued.clone(), Keep::Remove).unwrap());
        drop(Home::at(&rescued).unwrap());
        File::create(begun.join(LOCK)).unwrap();
        remove_abandoned(root.path());
        assert!(held.exists() && begun.exists() && rescued.exists());
        assert!(!gone.exists());
    }

    #[test]
    fn fresh_directory_is_removed() {
        let home = Home::fresh().unwrap();
        let path = home.path().to_owned();
        fs::create_dir_all(home.replicas().join("deep")).unwrap();
        home.close().unwrap();
        assert!(!path.exists());
    }
}
