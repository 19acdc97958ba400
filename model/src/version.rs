//! Versions that the members of a cluster agree on.

use std::fmt;

use bincode::{Decode, Encode};

/// What the members of a cluster may write: commands, and encodings, that came with a later version wait until
/// the cluster's version is raised. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ClusterVersion(pub u16);

impl ClusterVersion {
    /// The first there was.
    pub const FIRST: Self = Self(1);
}

impl Default for ClusterVersion {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The cluster versions that a release can work in, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct VersionRange {
    /// The oldest: clusters below it must first be raised by an earlier release.
    pub oldest: ClusterVersion,
    /// The newest: what it can be raised to.
    pub newest: ClusterVersion,
}

impl VersionRange {
    /// From `oldest` to `newest`.
    #[must_use]
    pub const fn new(oldest: u16, newest: u16) -> Self {
        Self {
            oldest: ClusterVersion(oldest),
            newest: ClusterVersion(newest),
        }
    }

    /// Whether a release that supports this range can work in a cluster of `version`.
    ///
    /// # Errors
    /// [`Unsupported`], which says what to do.
    pub fn check(self, version: ClusterVersion) -> Result<(), Unsupported> {
        if self.newest < version {
            Err(Unsupported::TooOld {
                cluster: version,
                supported: self,
            })
        } else if version < self.oldest {
            Err(Unsupported::TooNew {
                cluster: version,
                supported: self,
            })
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            self.newest.fmt(f)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

/// A release that cannot work in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The release is older than what the cluster was raised to.
    #[error(
        "the cluster is at version {cluster}, and this release supports {supported}: run a release that supports \
         version {cluster}; a version that was finalized is never taken back"
    )]
    TooOld {
        /// The cluster's version.
        cluster: ClusterVersion,
        /// What the release supports.
        supported: VersionRange,
    },
    /// The release has left behind what the cluster is at.
    #[error(
        "the cluster is at version {cluster}, and this release supports {supported}: bring every peer to a release \
         between the two first, and run `raftserve cluster finalize`"
    )]
    TooNew {
        /// The cluster's version.
        cluster: ClusterVersion,
        /// What the release supports.
        supported: VersionRange,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_works_within_its_range_and_says_what_to_do_outside() {
        let release = VersionRange::new(2, 3);
        assert_eq!(release.check(ClusterVersion(2)), Ok(()));
        assert_eq!(release.check(ClusterVersion(3)), Ok(()));
        let old = release.check(ClusterVersion(4)).unwrap_err().to_string();
        assert!(old.contains("version 4") && old.contains("2 to 3"), "{old}");
        let new = release.check(ClusterVersion(1)).unwrap_err().to_string();
        assert!(
            new.contains("version 1") && new.contains("finalize"),
            "{new}"
        );
    }
}
