use super::*;
use crate::disk::simulated::{Fault, Random, SimulatedDisk};
use crate::fixture;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const OTHER: ClusterId = ClusterId([8; 16]);

fn refused(path: &Path) -> IdentityError {
    match DataDir::open(path) {
        Ok(dir) => panic!("not refused: {:?}", dir.identity()),
        Err(error) => error,
    }
}

#[test]
fn a_new_directory_is_pristine_and_keeps_its_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let first = DataDir::open(&path).unwrap().identity();
    assert!(matches!(first, Identity::Pristine { .. }));
    assert_eq!(DataDir::open(&path).unwrap().identity(), first);
    let other = DataDir::open(&dir.path().join("c")).unwrap().identity();
    assert_ne!(other.nonce(), first.nonce());
}

#[test]
fn a_directory_that_others_could_read_is_theirs_no_more() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let node = path.join(NODE_FILE);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let open_to_all = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    drop(DataDir::open(&path).unwrap());
    assert_eq!((mode(&path), mode(&node)), (0o700, 0o600));
    open_to_all(&path, 0o755);
    open_to_all(&node, 0o644);
    drop(DataDir::open(&path).unwrap());
    assert_eq!((mode(&path), mode(&node)), (0o700, 0o600));
}

#[test]
fn a_member_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = DataDir::open(dir.path()).unwrap();
    data.require_cluster(CLUSTER).unwrap();
    data.join(CLUSTER, NodeId(3)).unwrap();
    let nonce = data.identity().nonce();
    drop(data);

    let mut data = DataDir::open(dir.path()).unwrap();
    let expected = Identity::Member {
        nonce,
        cluster: CLUSTER,
        node: NodeId(3),
    };
    assert_eq!(data.identity(), expected);
    data.join(CLUSTER, NodeId(3)).unwrap();
    for refused in [
        data.join(CLUSTER, NodeId(4)),
        data.join(OTHER, NodeId(3)),
        data.require_cluster(OTHER),
    ] {
        let said = refused.unwrap_err().to_string();
        assert!(
            said.contains(&format!("peer 3 of cluster {CLUSTER}")),
            "{said}"
        );
    }
    assert_eq!(data.identity(), expected);
}

#[test]
fn a_second_process_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let held = DataDir::open(dir.path()).unwrap();
    let IdentityError::Locked { holder, .. } = refused(dir.path()) else {
        panic!("not refused for the lock");
    };
    assert_eq!(holder, std::process::id().to_string());
    drop(held);
    assert!(DataDir::open(dir.path()).is_ok());
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    assert!(
        matches!(refused(dir.path()), IdentityError::Foreign { found, .. } if found == "letter.txt")
    );
    assert!(!dir.path().join(FORMAT_FILE).exists());
    assert!(!dir.path().join(NODE_FILE).exists());

    // A fresh volume is not foreign.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    assert!(DataDir::open(dir.path()).is_ok());
}

#[test]
fn an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(DataDir::open(dir.path()).unwrap());
    for format in ["2\n", "", "one\n"] {
        std::fs::write(dir.path().join(FORMAT_FILE), format).unwrap();
        assert!(matches!(refused(dir.path()), IdentityError::Format { .. }));
    }
}

#[test]
fn a_damaged_or_missing_node_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = DataDir::open(dir.path()).unwrap();
    data.join(CLUSTER, NodeId(3)).unwrap();
    drop(data);
    let path = dir.path().join(NODE_FILE);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        assert!(
            matches!(refused(dir.path()), IdentityError::Corrupt { .. }),
            "byte {at}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(dir.path().join("wal")).unwrap();
    assert!(matches!(refused(dir.path()), IdentityError::Corrupt { .. }));
}

/// An identity that was once told is told again, whenever the power goes.
#[test]
fn an_identity_is_never_taken_back() {
    let path = Path::new("/data");
    let open = |disk: &SimulatedDisk| {
        let lock = DirectoryLock::take(tempfile::tempdir().unwrap().path()).unwrap();
        disk.mount(path);
        DataDir::open_on(Arc::new(disk.clone()), path, lock)
    };
    for seed in 0..10 {
        let mut cut = 0;
        loop {
            cut += 1;
            let disk = SimulatedDisk::failing_at(cut, Fault::PowerCut);
            let mut told = None;
            let mut joined = false;
            if let Ok(mut data) = open(&disk) {
                told = Some(data.identity().nonce());
                joined = data.join(CLUSTER, NodeId(1)).is_ok();
            }
            let was_cut = disk.is_off();
            let disk = disk.after_power_cut(&mut Random(seed << 32 | cut));
            let found = open(&disk).unwrap().identity();
            assert!(
                told.is_none_or(|nonce| nonce == found.nonce()),
                "seed {seed}, cut {cut}"
            );
            let member = matches!(found, Identity::Member { .. });
            assert!(member || !joined, "seed {seed}, cut {cut}");
            if !was_cut {
                break;
            }
        }
    }
}

#[test]
fn who_a_peer_is_has_the_bytes_it_always_had() {
    let pristine = NodeFile {
        nonce: 300,
        cluster: None,
        node: None,
        log_made: false,
        log_cut: false,
        removed: false,
    };
    let member = NodeFile {
        nonce: 22,
        cluster: Some(CLUSTER),
        node: Some(NodeId(2)),
        log_made: true,
        log_cut: false,
        removed: false,
    };
    let cut = NodeFile {
        log_cut: true,
        ..member
    };
    let removed = NodeFile {
        removed: true,
        ..member
    };
    for (name, file) in [
        ("node/pristine", pristine),
        ("node/log-cut", cut),
        ("node/removed", removed),
        ("data-directory/NODE", member),
    ] {
        fixture::same_as(name, file.encode().as_bytes());
        assert_eq!(NodeFile::decode(&fixture::read(name)), Ok(file), "{name}");
    }
}
