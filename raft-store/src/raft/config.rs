//! How openraft is set up.

use openraft::{Config, SnapshotPolicy};

use super::LOG_KEPT;

/// How long a leader may be silent, for the network and the disks at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Peers in one room on steady disks: a lost leader is replaced in about half a second.
    #[default]
    Fast,
    /// Disks that stall now and then: about one second.
    Lan,
    /// Peers in different regions.
    Wan,
    /// What etcd does by default, to be compared with it.
    Etcd,
}

/// Entries in one message; the transport bounds its bytes too.
const PAYLOAD_ENTRIES_MAX: u64 = 512;

/// Entries in one write of the log.
const APPEND_ENTRIES_MAX: u64 = 4096;

/// Proposals that wait for openraft. Beyond it callers see that the peer is busy, rather than a queue that
/// hides the overload.
const API_CHANNEL: u64 = 4096;

/// Without progress for so long, sending a snapshot is tried anew.
const SNAPSHOT_STEP_TIMEOUT_MS: u64 = 10_000;

/// The configuration for a profile.
///
/// Snapshots are never triggered by openraft, but by [`super::SnapshotTrigger`], and it purges nothing by itself: see
/// [`super::Retention`]. A restarted leader must be
/// elected again: to go on in the same term would leave it without a fence against its former self. A
/// follower whose log went back is never accepted: a peer that lost its disk takes a new id.
///
/// # Panics
/// Never: every profile is valid, which a test shows.
#[must_use]
pub fn raft_config(profile: Profile) -> Config {
    raft_config_keeping(profile, LOG_KEPT)
}

/// The same with another number of entries kept than [`LOG_KEPT`], of at least one: for tests, which are to see the log
/// purged.
///
/// # Panics
/// Never: as for [`raft_config`].
#[must_use]
pub fn raft_config_keeping(profile: Profile, kept: u64) -> Config {
    // Nobody votes within the greatest timeout of a leader's last word; each peer that has not heard of another by
    // then waits a random time more, between both numbers. The least is not what keeps elections apart from a
    // leader that is merely slow, so it may be short: the wider the range, the fewer the votes that split.
    let (heartbeat_ms, election_min_ms, election_max_ms) = match profile {
        Profile::Fast => (50, 75, 300),
        Profile::Lan => (100, 150, 600),
        Profile::Wan => (300, 450, 2000),
        Profile::Etcd => (100, 150, 1000),
    };
    let config = Config {
        cluster_name: "raftserve".to_owned(),
        heartbeat_interval: heartbeat_ms,
        election_timeout_min: election_min_ms,
        election_timeout_max: election_max_ms,
        enable_pre_vote: Some(true),
        max_payload_entries: PAYLOAD_ENTRIES_MAX,
        max_append_entries: Some(APPEND_ENTRIES_MAX),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // Above what is kept: a follower that the log can still serve is not sent a snapshot.
        replication_lag_threshold: kept.saturating_mul(2),
        install_snapshot_timeout: SNAPSHOT_STEP_TIMEOUT_MS,
        api_channel_size: Some(API_CHANNEL),
        allow_log_reversion: Some(false),
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(2 * election_max_ms),
        ..Config::default()
    };
    config.validate().expect("each profile is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_valid() {
        for profile in [Profile::Fast, Profile::Lan, Profile::Wan, Profile::Etcd] {
            assert_eq!(raft_config(profile).enable_leader_restore, Some(false));
        }
    }
}
