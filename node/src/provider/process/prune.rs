//! How long anything of a stopped replica is kept: output for people to read, then only what refuses
//! a late creation, then nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use raftserve_model::ServiceId;

use super::inspect::list;
use super::{Site, blocking, io_error};
use crate::provider::ProviderError;

/// How many stopped replicas of each service keep their output: enough to see a pattern in what
/// fails, and at most 300 MB a service.
const OUTPUTS_KEPT: usize = 10;

/// How long a tombstone is kept. Only a peer that was paused in the middle of an `ensure` for as
/// long as this could still bring a stopped replica back, as an orphan that is then found and reaped.
const TOMBSTONE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Drops everything but the tombstones of a service's stopped replicas.
pub(super) async fn forget(site: Arc<Site>, service: ServiceId) -> Result<(), ProviderError> {
    blocking(move || {
        for replica in list(&site).map_err(io_error("list", &site.directory))? {
            if replica.id.service != service {
                continue;
            }
            let dir = site.run_dir(&replica);
            let shrink = || -> io::Result<()> {
                match (dir.is_stopped()?, dir.try_lock()?) {
                    (true, Some(lock)) => dir.shrink(&lock),
                    _ => Ok(()),
                }
            };
            shrink().map_err(io_error("tidy", dir.path()))?;
        }
        Ok(())
    })
    .await
}

/// Drops the output of all but the last stopped replicas of each service, and old tombstones.
/// Blocks. Several peers may do so at once.
pub(super) fn prune(site: &Site, now: SystemTime) -> io::Result<()> {
    let mut outputs: BTreeMap<ServiceId, usize> = BTreeMap::new();
    // From the newest replica of each service to its oldest.
    for replica in list(site)?.into_iter().rev() {
        let dir = site.run_dir(&replica);
        let Some(stopped_at) = dir.stopped_at() else {
            continue;
        };
        let Some(lock) = dir.try_lock()? else {
            continue;
        };
        let age = now.duration_since(stopped_at).unwrap_or_default();
        let seen = outputs.entry(replica.id.service).or_default();
        *seen += 1;
        if age > TOMBSTONE_KEPT {
            dir.remove(lock)?;
        } else if *seen > OUTPUTS_KEPT {
            dir.shrink(&lock)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use raftserve_model::{ClusterId, ReplicaId};

    use super::*;
    use crate::provider::ReplicaKey;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "compared with the times of files, which the same clock wrote"
    )]
    fn outputs_go_first_and_tombstones_last() {
        let root = tempfile::tempdir().unwrap();
        let site = Site {
            cluster: ClusterId([1; 16]),
            directory: root.path().to_owned(),
            executable: "none".into(),
            open_files: None,
            look_now: tokio::sync::Notify::new(),
        };
        let key = |number| ReplicaKey {
            name: "svc".parse().unwrap(),
            id: ReplicaId {
                service: ServiceId(7),
                number,
            },
        };
        for number in 1..=12 {
            let dir = site.run_dir(&key(number));
            std::fs::create_dir_all(dir.log()).unwrap();
            if number < 12 {
                dir.write_tombstone().unwrap();
            }
        }
        let left = |what: &dyn Fn(u32) -> bool| (1..=12).filter(|n| what(*n)).collect::<Vec<_>>();
        let has_log = |number| site.run_dir(&key(number)).log().exists();
        let has_dir = |number| site.run_dir(&key(number)).path().exists();

        prune(&site, SystemTime::now()).unwrap();
        assert_eq!(left(&has_log), (2..=12).collect::<Vec<_>>());
        assert_eq!(left(&has_dir), (1..=12).collect::<Vec<_>>());

        prune(&site, SystemTime::now() + 2 * TOMBSTONE_KEPT).unwrap();
        assert_eq!(left(&has_dir), [12], "one that was not stopped stays");
    }
}
