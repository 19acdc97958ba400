//! The file of an access log, which may be moved away at any time.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Appends to the file of this name. One that was moved or removed is let go, and a new one made, before the next lines
/// are written: no line is lost, and none is split between two.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Which file that is: its device and number.
    identity: (u64, u64),
    /// Whether what was written last is whole lines.
    between_lines: bool,
    /// Whether the last new file could not be made: that is logged once.
    failing: bool,
}

impl LogFile {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let (file, identity) = opened(&path)?;
        Ok(Self {
            path,
            file,
            identity,
            between_lines: true,
            failing: false,
        })
    }

    /// Goes on with another file if the name stands for another one now, or for none.
    fn follow(&mut self) {
        let found = fs::metadata(&self.path);
        if found.is_ok_and(|found| identity(&found) == self.identity) {
            return;
        }
        match opened(&self.path) {
            Ok((file, identity)) => {
                (self.file, self.identity) = (file, identity);
                self.failing = false;
            }
            Err(error) if !self.failing => {
                let path = self.path.display();
                tracing::error!(%error, %path, "the access log goes on in the file that was moved");
                self.failing = true;
            }
            Err(_) => {}
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.between_lines {
            self.follow();
            self.between_lines = false;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.between_lines = true;
        self.file.flush()
    }
}

fn opened(path: &PathBuf) -> io::Result<(File, (u64, u64))> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let identity = identity(&file.metadata()?);
    Ok((file, identity))
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_away_gets_whole_lines_and_no_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        fs::write(&path, "0\n").expect("it is written");
        let mut log = LogFile::open(path.clone()).expect("it opens");
        log.write_all(b"1").expect("it is written");
        fs::rename(&path, &moved).expect("it is moved");
        log.write_all(b"\n").expect("it is written");
        log.flush().expect("it is written");
        for line in [&b"2\n"[..], b"3\n"] {
            log.write_all(line).expect("it is written");
            log.flush().expect("it is written");
        }
        let text = |path| fs::read_to_string(path).expect("it is read");
        assert_eq!(text(&moved), "0\n1\n");
        assert_eq!(text(&path), "2\n3\n");
        fs::remove_file(&path).expect("it is removed");
        log.write_all(b"4\n").expect("it is written");
        assert_eq!(text(&path), "4\n");
    }

    #[test]
    fn what_can_not_be_made_anew_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let (inner, moved) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir(&inner).expect("a folder");
        let mut log = LogFile::open(inner.join("log")).expect("it opens");
        fs::rename(&inner, &moved).expect("it is moved");
        log.write_all(b"1\n")
            .expect("it goes to the file that it has");
        log.flush().expect("it is written");
        fs::create_dir(&inner).expect("a folder");
        log.write_all(b"2\n").expect("it is written");
        let text = |path| fs::read_to_string(path).expect("it is read");
        assert_eq!(text(moved.join("log")), "1\n");
        assert_eq!(text(inner.join("log")), "2\n");
    }
}
