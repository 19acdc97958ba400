//! A file that appears under its name only once it is whole, and sums of files.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cli::failure::Failure;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A file that is being written under another name. It is removed if it is not finished.
pub(super) struct Draft {
    path: PathBuf,
    name: PathBuf,
    file: Option<File>,
    hash: Sha256,
    written: u64,
}

impl Draft {
    /// Begins a file that will be `name`.
    pub(super) fn begin(name: &Path) -> io::Result<Self> {
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(path);
        // It holds the secrets of services.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self {
            path,
            name: name.to_owned(),
            file: Some(file),
            hash: Sha256::new(),
            written: 0,
        })
    }

    /// Where it is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes it has.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Appends.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().expect("taken only when it is finished");
        file.write_all(bytes)?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// SHA-256 of what was written.
    pub(super) fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Makes it durable, and gives it its name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.sync_all()?;
        }
        std::fs::rename(&self.path, &self.name)?;
        self.file = None;
        let parent = self.name.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.file.is_some() {
            // What failed before says more than a leftover that cannot be removed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Bytes as text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The size and SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> Result<(u64, String), Failure> {
    let failed =
        |error: io::Error| Failure::failed(format!("cannot read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; PIECE_BYTES];
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok((size, hex(&hash.finalize()))),
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_unfinished_file_never_has_its_name_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("backup");
        let mut draft = Draft::begin(&name).unwrap();
        draft.append(b"abc").unwrap();
        assert!(!name.exists());
        drop(draft);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let mut draft = Draft::begin(&name).unwrap();
        draft.append(b"a").unwrap();
        draft.append(b"bc").unwrap();
        let sum = draft.sha256();
        draft.finish().unwrap();
        let mode = std::fs::metadata(&name).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
        assert_eq!(sha256(&name).unwrap(), (3, sum.clone()));
        // FIPS 180-2, B.1.
        assert!(sum.starts_with("ba7816bf8f01cfea"), "{sum}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
