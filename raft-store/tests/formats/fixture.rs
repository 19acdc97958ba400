//! Files of version 1, which are never changed once released.

use std::path::{Path, PathBuf};

/// Where a fixture is.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/v1")
        .join(name)
}

/// What a fixture holds.
pub(crate) fn read(name: &str) -> Vec<u8> {
    let bytes = std::fs::read(path(name));
    bytes.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares `bytes` with a fixture. One that is not there is written, for whoever adds a version, and fails.
pub(crate) fn same_as(name: &str, bytes: &[u8]) {
    let path = path(name);
    let Ok(kept) = std::fs::read(&path) else {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        panic!(
            "{} was not there, and is written now: look at it",
            path.display()
        );
    };
    assert!(kept == bytes, "{name}: what is written is not what it was");
}
