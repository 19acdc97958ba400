use raftserve_model::{LogIndex, LogTime, NodeId};

use super::*;
use crate::command::{Action, Command};
use crate::entry::LogId;

/// A state after `count` entries.
fn applied(count: u64) -> Applied {
    let mut state = State::default();
    for index in 1..=count {
        let command = Command::at(LogTime::default(), Action::OpenClient);
        state.apply(LogIndex(index), &command);
    }
    Applied {
        last: Some(LogId {
            term: 1,
            node: NodeId(1),
            index: LogIndex(count),
        }),
        state: Arc::new(state),
        ..Applied::default()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join(STATE_DIR)).unwrap();
    let paths = entries.map(|it| it.unwrap().path());
    paths.filter(|it| it.is_file()).collect()
}

#[test]
fn a_saved_state_serves_one_start_and_only_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(take(dir.path()).unwrap().is_none());
    let saved = applied(3000);
    save(&SledStore, dir.path(), &saved).unwrap();
    let found = take(dir.path()).unwrap().unwrap();
    assert_eq!(found.head(), saved.head());
    assert_eq!(found.state.digest(), saved.state.digest());
    assert!(take(dir.path()).unwrap().is_none());
    assert!(!dir.path().join(STATE_DIR).exists());
}

#[test]
fn large_values_are_split_and_put_together_again() {
    let dir = tempfile::tempdir().unwrap();
    let values = [0, 1, PART, PART + 1, 10 * PART].map(|size| vec![size as u8; size]);
    const PART: usize = 8 << 10;
    SledStore
        .write(dir.path(), &mut values.iter().cloned().map(Ok))
        .unwrap();
    assert!(
        !dir.path().join("blobs").exists()
            || std::fs::read_dir(dir.path().join("blobs"))
                .unwrap()
                .next()
                .is_none()
    );
    let mut found = Vec::new();
    let mut take = |value| {
        found.push(value);
        true
    };
    SledStore.read(dir.path(), &mut take).unwrap();
    assert_eq!(found, values);
}

#[test]
fn a_state_without_a_marker_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    save(&SledStore, dir.path(), &applied(10)).unwrap();
    std::fs::remove_file(dir.path().join(MARKER)).unwrap();
    assert!(take(dir.path()).unwrap().is_none());
    assert!(!dir.path().join(STATE_DIR).exists());
}

#[test]
fn a_damaged_marker_or_state_is_never_used() {
    let dir = tempfile::tempdir().unwrap();
    let saved = applied(300);
    let damage_one = |path: &Path, share: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        let at = bytes.len() * share / 10;
        bytes[at] ^= 0x20;
        std::fs::write(path, bytes).unwrap();
    };
    save(&SledStore, dir.path(), &saved).unwrap();
    damage_one(&dir.path().join(MARKER), 5);
    assert!(take(dir.path()).unwrap().is_none());
    for share in 0..10 {
        save(&SledStore, dir.path(), &saved).unwrap();
        for path in files(dir.path()) {
            damage_one(&path, share);
        }
        // Some bytes mean nothing to sled; then the state must be the one that was saved.
        if let Some(found) = take(dir.path()).unwrap() {
            assert_eq!(found.state.digest(), saved.state.digest());
        }
        assert!(!dir.path().join(STATE_DIR).exists());
    }
}

/// A store that does as it is told.
enum Odd {
    Panics,
    Hangs(mpsc::Receiver<()>),
    Forgets,
}

impl StateStore for Odd {
    fn write(
        &self,
        _dir: &Path,
        _values: &mut dyn Iterator<Item = Result<Vec<u8>, CodecError>>,
    ) -> Result<(), StateStoreError> {
        unreachable!("only read from")
    }

    fn read(
        &self,
        dir: &Path,
        take: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<(), StateStoreError> {
        match self {
            Self::Panics => panic!("as sled does"),
            Self::Hangs(until) => {
                // Ends with the test.
                let _ = until.recv();
                Ok(())
            }
            Self::Forgets => {
                let mut left = 1;
                SledStore.read(dir, &mut |value| {
                    left -= 1;
                    take(value) && left > 0
                })
            }
        }
    }
}

#[test]
fn a_store_that_panics_hangs_or_forgets_only_makes_the_start_slower() {
    let dir = tempfile::tempdir().unwrap();
    let (_end, until) = mpsc::sync_channel(1);
    for odd in [Odd::Panics, Odd::Hangs(until), Odd::Forgets] {
        save(&SledStore, dir.path(), &applied(300)).unwrap();
        let deadline = Duration::from_millis(match odd {
            Odd::Hangs(_) => 20,
            Odd::Panics | Odd::Forgets => 10_000,
        });
        assert!(take_from(odd, dir.path(), deadline).unwrap().is_none());
        assert!(!dir.path().join(STATE_DIR).exists());
    }
}
