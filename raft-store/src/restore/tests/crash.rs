//! Power cuts and kills while a new cluster is begun from a state.

use std::sync::Mutex;

use super::*;
use crate::disk::Disk;
use crate::disk::simulated::{Image, Random, SimulatedDisk};
use crate::identity::{DirectoryLock, Identity};

const DIR: &str = "/data";

fn begin_on(disk: &SimulatedDisk) -> Begun {
    let on = Arc::new(disk.clone());
    let target = EmptyDir::take_on(on, Path::new(DIR), |_| Ok(DirectoryLock::nothing()));
    begin(&parent(), &beginning(Claim::TakeOver), target.unwrap()).unwrap()
}

/// Whether what is on `disk` starts as the new cluster; if not, it must be nothing, or refused.
fn is_begun(disk: &SimulatedDisk, begun: &Begun, what: &str) -> bool {
    let on: Arc<dyn Disk> = Arc::new(disk.clone());
    on.create_dir(Path::new(DIR)).unwrap();
    let mut dir = match DataDir::open_on(on, Path::new(DIR), DirectoryLock::nothing()) {
        Err(IdentityError::Foreign { .. }) => return false,
        Err(error) => panic!("{what}: {error}"),
        Ok(dir) => dir,
    };
    match dir.identity() {
        // Nothing at all had been written.
        Identity::Pristine { .. } => return false,
        Identity::Member { cluster, node, .. } => {
            assert_eq!((cluster, node), (begun.cluster, begun.node), "{what}");
        }
    }
    let (opened, _) = Store::default()
        .open_idle(&mut dir)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let last = opened.reader.last().unwrap();
    assert_eq!(last.index, begun.lineage.began, "{what}");
    let vote = opened.wal.vote().unwrap();
    assert_eq!((vote.term, vote.node), (last.term, begun.node), "{what}");
    assert_eq!(opened.reader.state().client_count(), 1, "{what}");
    true
}

#[test]
fn a_crash_at_any_operation_leaves_a_whole_cluster_or_what_is_begun_anew() {
    let disk = SimulatedDisk::default();
    let images = Arc::new(Mutex::new(Vec::<Image>::new()));
    let seen = Arc::clone(&images);
    disk.on_operation(move |image| seen.lock().unwrap().push(image));
    let begun = begin_on(&disk);

    let mut random = Random(1);
    let images = std::mem::take(&mut *images.lock().unwrap());
    let mut whole = 0;
    for (at, image) in images.iter().enumerate() {
        for round in 0..8 {
            let what = format!("operation {at} of {}, round {round}", images.len());
            let left = match round {
                0 => image.after_kill(),
                _ => image.after_power_cut(&mut random),
            };
            // Looked at on a disk of its own: a start makes a data directory of nothing.
            let is_whole = is_begun(&left.image().after_kill(), &begun, &what);
            whole += u64::from(is_whole);
            if !is_whole {
                begin_on(&left);
                let left = left.after_power_cut(&mut random);
                assert!(is_begun(&left, &begun, &what), "{what}: begun anew");
            }
        }
    }
    assert!(
        images.len() > 10 && whole > 0,
        "{whole} of {}",
        images.len()
    );
    for round in 0..32 {
        let what = format!("afterwards, round {round}");
        let left = disk.after_power_cut(&mut random);
        assert!(is_begun(&left, &begun, &what), "{what}: nothing is left");
    }
}
