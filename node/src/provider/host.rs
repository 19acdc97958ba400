//! Whether peers share this host: the process provider starts replicas where the leader is, which
//! is right only if every peer finds them there.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::proc_table;

/// Equal on two peers exactly if they share the kernel's boot, the process numbers and the root
/// directory of the process provider, and so can adopt each other's replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostFingerprint(String);

impl HostFingerprint {
    /// The fingerprint of this process and the provider's root, which is made if it is not there.
    ///
    /// # Errors
    /// If the root cannot be made or `/proc` is not mounted.
    pub fn of(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = fs::metadata(root)?;
        let pids = fs::metadata("/proc/self/ns/pid")?;
        Ok(Self(format!(
            "{}:{:x}:{:x}:{:x}",
            proc_table::boot_id()?,
            root.dev(),
            root.ino(),
            pids.ino()
        )))
    }

    /// As announced by another peer.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As announced to other peers.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_tells_roots_apart_and_not_paths() {
        let base = tempfile::tempdir().unwrap();
        let (one, two) = (base.path().join("a"), base.path().join("b"));
        let of = |path: &Path| HostFingerprint::of(path).unwrap();
        assert_ne!(of(&one), of(&two));
        assert_eq!(of(&one), of(&base.path().join("b/../a")));
        assert_eq!(of(&one), HostFingerprint::from_text(of(&one).as_str()));
    }
}
