//! What the operating system's files do, and what is built on any disk.

use std::path::PathBuf;
use std::sync::Mutex;

use super::simulated::seeds::crash_points;
use super::simulated::{Fault, Random, SimulatedDisk};
use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn nobody_else_reads_what_is_made() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data/wal");
    RealDisk.create_dir(&dir).unwrap();
    RealDisk.create(&dir.join("1.wal")).unwrap();
    write_atomically(&RealDisk, &dir.join("NODE"), b"x").unwrap();
    assert_eq!(
        (mode(&dir), mode(&root.path().join("data"))),
        (0o700, 0o700)
    );
    assert_eq!(
        (mode(&dir.join("1.wal")), mode(&dir.join("NODE"))),
        (0o600, 0o600)
    );
}

#[test]
fn a_directory_is_made_by_its_bare_name() {
    let taken = tempfile::tempdir_in(".").unwrap();
    let name = Path::new(taken.path().file_name().unwrap());
    for path in [name.to_owned(), name.join("below"), name.join("a/b")] {
        std::fs::remove_dir_all(name).unwrap();
        RealDisk.create_dir(&path).unwrap();
        assert!(path.is_dir(), "{}", path.display());
        RealDisk.create_dir(&path).unwrap();
    }
}

#[test]
fn what_others_could_read_they_can_no_more_and_what_links_lead_to_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (dir, foreign) = (root.path().join("data/wal"), root.path().join("foreign"));
    std::fs::create_dir_all(&dir).unwrap();
    let log = dir.join("1.wal");
    for path in [&log, &foreign] {
        std::fs::write(path, "secret").unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap();
    }
    std::fs::set_permissions(&dir, Permissions::from_mode(0o2775)).unwrap();
    std::os::unix::fs::symlink(&foreign, dir.join("link")).unwrap();
    make_private(&root.path().join("data"));
    assert_eq!(
        (mode(&dir), mode(&log), mode(&foreign)),
        (0o700, 0o600, 0o664)
    );
    make_private(&root.path().join("missing"));
}

const FILE: &str = "/data/FILE";

/// What a file holds, now and after the change that is under way.
type Holds = [Option<Vec<u8>>; 2];

fn change(disk: &SimulatedDisk, to: Option<&[u8]>) -> io::Result<()> {
    match to {
        Some(bytes) => write_atomically(disk, Path::new(FILE), bytes),
        None => remove_durably(disk, Path::new(FILE)),
    }
}

/// Writes, replaces and removes a file, with a crash in the midst of each operation. Returns how many there are.
fn crash_everywhere(seed: u64) -> u64 {
    let mut random = Random(seed);
    let disk = SimulatedDisk::default();
    disk.mount(Path::new("/data"));
    let (moments, holds) = (Arc::default(), Arc::new(Mutex::new(Holds::default())));
    let (seen, at_present): (Arc<Mutex<Vec<_>>>, _) = (Arc::clone(&moments), Arc::clone(&holds));
    disk.on_operation(move |image| {
        let holds = at_present.lock().unwrap().clone();
        seen.lock().unwrap().push((image, holds));
    });
    for number in 0..6_u8 {
        let size = random.below(2_000) as usize;
        let next = (random.below(3) > 0).then(|| vec![number; size]);
        holds.lock().unwrap()[1].clone_from(&next);
        change(&disk, next.as_deref()).unwrap();
        *holds.lock().unwrap() = [next.clone(), next];
    }
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    for (at, (image, [before, after])) in moments.iter().enumerate() {
        let mut random = Random(seed ^ (at as u64) << 32);
        let what = format!("seed {seed}, operation {at}");
        let disk = match random.coin() {
            true => image.after_power_cut(&mut random),
            false => image.after_kill(),
        };
        let found = read_file(&disk, Path::new(FILE)).unwrap();
        assert!(found == *before || found == *after, "{what}: {found:?}");
        change(&disk, after.as_deref()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let disk = disk.after_power_cut(&mut random);
        let found = read_file(&disk, Path::new(FILE)).unwrap();
        assert!(found == *after, "{what}: done again: {found:?}");
    }
    moments.len() as u64
}

/// As identities, the plan of a bootstrap and what vouches for a checkpoint are kept.
#[test]
fn a_file_that_is_written_atomically_survives_a_crash_at_every_operation() {
    crash_points(500, crash_everywhere);
}

#[test]
fn a_file_that_cannot_be_written_atomically_is_as_it_was_or_new() {
    for fault in [Fault::Error, Fault::Full, Fault::LostSync] {
        for at in 1.. {
            let disk = SimulatedDisk::default();
            disk.mount(Path::new("/data"));
            change(&disk, Some(b"old")).unwrap();
            let begun = disk.operations();
            disk.fail_at(begun + at, fault);
            let written = change(&disk, Some(b"new"));
            let faulted = disk.has_faulted();
            assert_eq!(written.is_err(), faulted, "{fault:?} at {at}");
            if !faulted {
                break;
            }
            let disk = disk.image().after_power_cut(&mut Random(at));
            let found = read_file(&disk, Path::new(FILE)).unwrap().unwrap();
            assert!(found == b"old" || found == b"new", "{fault:?} at {at}");
        }
    }
}

fn tree(disk: &dyn Disk, root: &Path) {
    for dir in ["a", "a/b", "c"] {
        disk.create_dir(&root.join(dir)).unwrap();
    }
    for name in ["a/1", "a/b/2", "c/3", "4"] {
        let file = disk.create(&root.join(name)).unwrap();
        file.write_at(0, name.as_bytes()).unwrap();
    }
}

#[test]
fn a_directory_is_synced_and_removed_with_all_that_is_in_it() {
    let root = Path::new("/data");
    let disk = SimulatedDisk::default();
    disk.mount(root);
    tree(&disk, root);
    sync_all(&disk, root).unwrap();
    for seed in 0..10 {
        let left = disk.after_power_cut(&mut Random(seed));
        assert_eq!(left.paths(), disk.paths());
        assert_eq!(left.bytes(&root.join("a/b/2")), b"a/b/2");
    }
    remove_all(&disk, &root.join("a")).unwrap();
    remove_all(&disk, &root.join("a")).unwrap();
    assert_eq!(disk.paths(), ["/data/4", "/data/c/3"].map(PathBuf::from));
}

#[test]
fn a_directory_is_removed_and_what_links_in_it_lead_to_is_not() {
    let root = tempfile::tempdir().unwrap();
    let (kept, dir) = (root.path().join("kept"), root.path().join("dir"));
    for dir in [&kept, &dir] {
        RealDisk.create_dir(dir).unwrap();
        tree(&RealDisk, dir);
    }
    std::os::unix::fs::symlink(&kept, dir.join("link")).unwrap();
    remove_all(&RealDisk, &dir).unwrap();
    assert!(!dir.exists() && kept.join("a/b/2").exists());
}

#[test]
fn two_directories_change_places_with_all_that_is_in_them() {
    let root = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| root.path().join(name));
    for dir in [&one, &other] {
        RealDisk.create_dir(dir).unwrap();
    }
    tree(&RealDisk, &one);
    RealDisk.exchange(&one, &other).unwrap();
    assert!(other.join("a/b/2").exists() && !one.join("a").exists());
    let missing = RealDisk.exchange(&one, &root.path().join("missing"));
    assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(one.exists());
}

#[test]
fn a_file_that_is_far_too_large_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("NODE");
    let file = RealDisk.create(&path).unwrap();
    file.set_size(FILE_MAX + 1).unwrap();
    let error = read_file(&RealDisk, &path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("33554433 bytes"), "{error}");
}
