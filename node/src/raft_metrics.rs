//! What this peer's Raft log and its agreed state are like, in Prometheus's text format.

use std::fmt::{Display, Write as _};

use crate::consensus::Consensus;
use crate::peer::Storage;

/// Appends the metrics of the log, of the disk that it is on, and of the agreed state.
pub(crate) fn render(consensus: &Consensus, text: &mut String) {
    let leadership = *consensus.leadership().borrow();
    let applied = consensus.applied().borrow().0;
    let state = consensus.state();
    let members = consensus.members();
    let voters = members.iter().filter(|member| member.voter).count();
    for (name, kind, value) in [
        ("raft_voters", "gauge", voters as u64),
        ("raft_learners", "gauge", (members.len() - voters) as u64),
        ("raft_term", "gauge", leadership.term),
        ("raft_is_leader", "gauge", leadership.is_self.into()),
        (
            "raft_has_leader",
            "gauge",
            leadership.leader.is_some().into(),
        ),
        ("raft_applied_index", "counter", applied),
        ("services", "gauge", state.services().count() as u64),
        ("replicas", "gauge", state.replicas().count() as u64),
    ] {
        line(text, name, kind, value);
    }
    storage(&consensus.storage(), text);
}

fn storage(storage: &Storage, text: &mut String) {
    let (log, work) = (&storage.log, &storage.work);
    for (name, kind, value) in [
        ("raft_log_first_index", "gauge", log.start),
        ("raft_log_last_index", "gauge", log.end.saturating_sub(1)),
        (
            "raft_snapshot_index",
            "gauge",
            storage.snapshot.map_or(0, |last| last.0),
        ),
        ("raft_log_syncs_total", "counter", work.groups),
        ("raft_log_records_total", "counter", work.records),
        ("raft_log_written_bytes_total", "counter", work.bytes),
    ] {
        line(text, name, kind, value);
    }
    let busy = work.busy.as_secs_f64();
    line(text, "raft_log_sync_seconds_total", "counter", busy);
    let longest = work.longest.as_secs_f64();
    line(text, "raft_log_longest_sync_seconds", "gauge", longest);
    let stalled = storage.stalled_for.unwrap_or_default().as_secs_f64();
    line(text, "raft_log_stalled_seconds", "gauge", stalled);
    if let Some(room) = storage.room {
        line(text, "data_dir_free_bytes", "gauge", room.free);
        line(text, "data_dir_total_bytes", "gauge", room.total);
        let is_short = u64::from(room.is_short);
        line(text, "data_dir_short_of_room", "gauge", is_short);
    }
    let foreigners = storage.foreigners.len();
    line(text, "foreign_clusters", "gauge", foreigners);
}

/// Appends one metric, without labels.
pub(crate) fn line(text: &mut String, name: &str, kind: &str, value: impl Display) {
    let _ = writeln!(
        text,
        "# TYPE raftserve_{name} {kind}\nraftserve_{name} {value}"
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raftserve_model::{ClusterId, LogIndex, NodeId};
    use raftserve_store::wal::Work;

    use super::*;
    use crate::peer::{Foreigner, Room};

    #[test]
    fn the_log_and_its_disk_are_told() {
        let mut text = String::new();
        let told = Storage {
            log: 7..11,
            snapshot: Some(LogIndex(8)),
            work: Work {
                groups: 2,
                records: 3,
                bytes: 400,
                busy: Duration::from_millis(1_500),
                longest: Duration::from_millis(1_250),
            },
            stalled_for: Some(Duration::from_millis(2_500)),
            room: Some(Room {
                free: 12,
                total: 345,
                is_short: true,
            }),
            foreigners: vec![Foreigner {
                cluster: ClusterId([7; 16]),
                node: NodeId(3),
            }],
        };
        storage(&told, &mut text);
        let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            values,
            [
                "raftserve_raft_log_first_index 7",
                "raftserve_raft_log_last_index 10",
                "raftserve_raft_snapshot_index 8",
                "raftserve_raft_log_syncs_total 2",
                "raftserve_raft_log_records_total 3",
                "raftserve_raft_log_written_bytes_total 400",
                "raftserve_raft_log_sync_seconds_total 1.5",
                "raftserve_raft_log_longest_sync_seconds 1.25",
                "raftserve_raft_log_stalled_seconds 2.5",
                "raftserve_data_dir_free_bytes 12",
                "raftserve_data_dir_total_bytes 345",
                "raftserve_data_dir_short_of_room 1",
                "raftserve_foreign_clusters 1",
            ]
        );
    }
}
