//! The versions of everything that outlives a process or leaves it, in one place. What each covers, and how one is
//! raised, is in `docs/formats.md`.
//!
//! A reader knows a format's newest version and the one before it, where there is one. A writer writes the one before
//! until the cluster's version says that every member reads the newest, so that a release can be taken back
//! until `raftserve cluster finalize`. [`Upgrade`] is that rule for frames.

use bincode::{Decode, Encode};
use raftserve_model::{ClusterVersion, VersionRange};

use crate::codec::{self, CodecError};

/// The cluster versions that this release can work in: its own, and the one before it once there is one.
pub const SUPPORTED: VersionRange = VersionRange::new(1, 1);

/// The layout of a data directory, in its file `FORMAT`.
pub const DATA_DIRECTORY: u32 = 1;

/// A segment of the log, in its header.
pub const SEGMENT: u16 = 1;

/// A record of the log, in each record.
pub const LOG_RECORD: u8 = 1;

/// A value of ours as bytes: the payload of a log entry, a vote, a record of the state wherever it is stored, the
/// head of a snapshot, the marker of a checkpoint. In its first byte.
pub const FRAME: u8 = 1;

/// A snapshot file, in its header.
pub const SNAPSHOT: u16 = 1;

/// How the values in a snapshot are encoded: bincode 2, as [`crate::codec`] has it. In its header.
pub const SNAPSHOT_CODEC: u8 = 1;

/// A message between peers, in the first byte of its head; it covers the body too.
pub const PEER_MESSAGE: u8 = 1;

/// What peers tell each other in the body of an exchange, in its first byte.
pub const EXCHANGE: u8 = FRAME;

/// A frame whose layout has changed: how it is written and read while a cluster goes from one version to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The frame's newest version.
    pub newest: u8,
    /// The cluster version from which every member reads it.
    pub since: ClusterVersion,
}

impl Upgrade {
    /// The version that is written while the cluster is at `cluster`.
    #[must_use]
    pub fn written(self, cluster: ClusterVersion) -> u8 {
        if cluster >= self.since {
            self.newest
        } else {
            self.newest - 1
        }
    }

    /// Encodes `value` for a cluster at `cluster`: in the newest layout, or in that before it, `P`.
    ///
    /// # Errors
    /// [`CodecError::Encode`] or [`CodecError::TooLarge`].
    pub fn encode<T, P>(self, value: &T, cluster: ClusterVersion) -> Result<Vec<u8>, CodecError>
    where
        T: Encode,
        P: Encode + for<'a> From<&'a T>,
    {
        let version = self.written(cluster);
        if version == self.newest {
            codec::encode_as(version, value)
        } else {
            codec::encode_as(version, &P::from(value))
        }
    }

    /// Decodes a frame in the newest layout, or in that before it, `P`.
    ///
    /// # Errors
    /// See [`CodecError`]. A version that is newer still is refused and named.
    pub fn decode<T, P>(self, frame: &[u8]) -> Result<T, CodecError>
    where
        T: Decode<()>,
        P: Decode<()> + Into<T>,
    {
        if frame.first() == Some(&(self.newest - 1)) {
            return codec::decode_as::<P>(self.newest - 1, frame).map(Into::into);
        }
        codec::decode_as(self.newest, frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout, and the one that the next release gives it.
    #[derive(Debug, PartialEq, Eq, Encode, Decode)]
    struct Before {
        weight: u32,
    }

    #[derive(Debug, PartialEq, Eq, Encode, Decode)]
    struct After {
        weight: u32,
        unit: Option<String>,
    }

    impl From<&After> for Before {
        fn from(after: &After) -> Self {
            Self {
                weight: after.weight,
            }
        }
    }

    impl From<Before> for After {
        fn from(before: Before) -> Self {
            Self {
                weight: before.weight,
                unit: None,
            }
        }
    }

    const UPGRADE: Upgrade = Upgrade {
        newest: FRAME + 1,
        since: ClusterVersion(2),
    };

    #[test]
    fn what_is_written_before_the_version_is_raised_is_read_by_both_releases() {
        let value = After {
            weight: 7,
            unit: Some("g".to_owned()),
        };
        let early = UPGRADE
            .encode::<After, Before>(&value, ClusterVersion(1))
            .unwrap();
        // By the release before, which knows nothing of the upgrade.
        assert_eq!(
            codec::decode::<Before>(&early).unwrap(),
            Before { weight: 7 }
        );
        let read: After = UPGRADE.decode::<After, Before>(&early).unwrap();
        assert_eq!((read.weight, read.unit), (7, None));

        let late = UPGRADE
            .encode::<After, Before>(&value, ClusterVersion(2))
            .unwrap();
        assert_eq!(UPGRADE.decode::<After, Before>(&late).unwrap(), value);
        let refused = codec::decode::<Before>(&late).unwrap_err().to_string();
        assert!(
            refused.contains("version 2") && refused.contains("reads 1"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_newer_still_is_refused_with_both_versions() {
        let newer = codec::encode_as(UPGRADE.newest + 1, &7_u32).unwrap();
        let refused = UPGRADE
            .decode::<After, Before>(&newer)
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("version 3") && refused.contains("reads 2"),
            "{refused}"
        );
        assert!(refused.contains("run a release"), "{refused}");
    }
}
