//! The versions of everything that outlives a process or leaves it, in one place. What they mean, and how one
//! is raised, is in `docs/formats.md`.

use raftserve_model::VersionRange;

/// The cluster versions that this release can work in: its own, and the one before it once there is one.
pub const SUPPORTED: VersionRange = VersionRange::new(1, 1);
