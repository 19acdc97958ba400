//! A replica's output on disk: written by its shim into a few files of bounded size, read by any
//! process on the host while that goes on.
//!
//! The newest file is `run.log`; when it is full, each file moves one place up (`run.log.1`,
//! `run.log.2`) and the oldest is dropped. A reader holds the file it reads open and knows it by
//! its inode, so a file that moves is neither read twice nor skipped.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// The size at which a file is full. Three of them hold hours of a chatty server's output, and a
/// thousand replicas stay below 30 GB.
pub const FILE_BYTES_MAX: u64 = 10 << 20;

/// How many files are kept, the one being written included.
pub const FILES_MAX: usize = 3;

/// How much is read at once: enough to make the system calls cheap, little enough to be held by
/// every reader.
const CHUNK_BYTES: usize = 64 << 10;

/// How much of the end of the output is kept in memory, to be quoted when the replica ends.
const LAST_WORDS_BYTES_MAX: usize = 4 << 10;

fn file_path(directory: &Path, age: usize) -> PathBuf {
    match age {
        0 => directory.join("run.log"),
        age => directory.join(format!("run.log.{age}")),
    }
}

/// Writes a replica's output.
#[derive(Debug)]
pub struct LogWriter {
    directory: PathBuf,
    file: Option<File>,
    written: u64,
    limit: u64,
    last_words: VecDeque<u8>,
    lost: u64,
}

impl LogWriter {
    /// Writes into `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(directory: PathBuf) -> io::Result<Self> {
        Self::with_limit(directory, FILE_BYTES_MAX)
    }

    fn with_limit(directory: PathBuf, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            file: None,
            written: 0,
            limit,
            last_words: VecDeque::with_capacity(LAST_WORDS_BYTES_MAX),
            lost: 0,
        })
    }

    /// Appends `bytes`. What cannot be written is dropped and counted, and the count is written
    /// once that works again: a full disk must not stop a replica that serves.
    pub fn append(&mut self, bytes: &[u8]) {
        let keep = bytes.len().min(LAST_WORDS_BYTES_MAX);
        let excess = (self.last_words.len() + keep).saturating_sub(LAST_WORDS_BYTES_MAX);
        self.last_words.drain(..excess);
        self.last_words.extend(&bytes[bytes.len() - keep..]);
        if self.lost > 0 {
            let note = format!("\n[raftserve: {} bytes of output were lost]\n", self.lost);
            if self.write(note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.write(bytes).is_err() {
            self.lost += bytes.len() as u64;
        }
    }

    /// The end of what was appended.
    #[must_use]
    pub fn last_words(&self) -> String {
        let bytes: Vec<u8> = self.last_words.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= self.limit {
            self.rotate()?;
        }
        if self.file.is_none() {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(file_path(&self.directory, 0))?;
            self.written = file.metadata()?.len();
            self.file = Some(file);
        }
        let file = self.file.as_mut().expect("it was opened above");
        self.written += bytes.len() as u64;
        file.write_all(bytes)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for age in (0..FILES_MAX - 1).rev() {
            match fs::rename(
                file_path(&self.directory, age),
                file_path(&self.directory, age + 1),
            ) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.written = 0;
        Ok(())
    }
}

/// Reads a replica's output from the oldest kept piece on, or from near its end. Blocks on the disk
/// only; at the end it returns nothing, and may be asked again later.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    current: Option<File>,
}

impl LogReader {
    /// A reader of the last `tail` lines, or of everything that is kept, and of what comes after.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn open(directory: PathBuf, tail: Option<u32>) -> io::Result<Self> {
        let mut reader = Self {
            directory,
            current: None,
        };
        if let Some(lines) = tail {
            reader.seek_to_tail(lines)?;
        }
        Ok(reader)
    }

    /// The next piece, or none if there is none yet.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(chunk) = self.read_current()? {
                return Ok(Some(chunk));
            }
            let Some(newer) = self.newer_file()? else {
                return Ok(None);
            };
            // The old file was complete when the newer one came to be, but perhaps not yet when
            // we found its end.
            if let Some(chunk) = self.read_current()? {
                return Ok(Some(chunk));
            }
            self.current = Some(newer);
        }
    }

    fn read_current(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = self.current.as_mut() else {
            return Ok(None);
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        let count = file.read(&mut buffer)?;
        buffer.truncate(count);
        Ok((count > 0).then(|| Bytes::from(buffer)))
    }

    /// The file after the current one, if there is one.
    fn newer_file(&self) -> io::Result<Option<File>> {
        let mut files = open_all(&self.directory)?;
        let Some(current) = &self.current else {
            return Ok(files.pop_back());
        };
        let inode = current.metadata()?.ino();
        let mut place = None;
        for (at, file) in files.iter().enumerate() {
            if file.metadata()?.ino() == inode {
                place = Some(at);
            }
        }
        Ok(match place {
            Some(0) => None,
            Some(at) => files.remove(at - 1),
            // It has been dropped already: everything that is left is newer.
            None => files.pop_back(),
        })
    }

    fn seek_to_tail(&mut self, lines: u32) -> io::Result<()> {
        // A last line without its end counts as a line; so one line end more is passed over than
        // lines are wanted if the output ends with one.
        let mut wanted = u64::from(lines);
        let files = open_all(&self.directory)?;
        let mut at_end = true;
        for mut file in files {
            let length = file.metadata()?.len();
            if at_end && length > 0 {
                let mut last = [0];
                file.read_exact_at(&mut last, length - 1)?;
                wanted += u64::from(last == *b"\n");
                at_end = false;
            }
            let start = match find_back(&file, length, &mut wanted)? {
                Some(start) => start,
                None if lines == 0 => length,
                None => 0,
            };
            file.seek(SeekFrom::Start(start))?;
            self.current = Some(file);
            if wanted == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Goes back from the end of `file` over `wanted` line ends, counting down, and returns where the
/// text after the last of them begins.
fn find_back(file: &File, length: u64, wanted: &mut u64) -> io::Result<Option<u64>> {
    let mut end = length;
    let mut buffer = vec![0; CHUNK_BYTES];
    while end > 0 && *wanted > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = &mut buffer[..usize::try_from(end - start).unwrap_or(CHUNK_BYTES)];
        file.read_exact_at(chunk, start)?;
        for (at, byte) in chunk.iter().enumerate().rev() {
            if *byte == b'\n' {
                *wanted -= 1;
                if *wanted == 0 {
                    return Ok(Some(start + at as u64 + 1));
                }
            }
        }
        end = start;
    }
    Ok(None)
}

/// The files that are there, newest first, each once. Files move in the direction of the search,
/// so one may be met twice while they move, but none is missed.
fn open_all(directory: &Path) -> io::Result<VecDeque<File>> {
    let mut files: VecDeque<File> = VecDeque::new();
    for age in 0..FILES_MAX {
        let file = match File::open(file_path(directory, age)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let inode = file.metadata()?.ino();
        let mut known = false;
        for other in &files {
            known |= other.metadata()?.ino() == inode;
        }
        if !known {
            files.push_back(file);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(reader: &mut LogReader) -> String {
        let mut text = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn follower_reads_each_line_once_across_rotation() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::with_limit(root.path().to_owned(), 100).unwrap();
        let mut reader = LogReader::open(root.path().to_owned(), None).unwrap();
        let mut read = String::new();
        let mut all = String::new();
        for number in 0..500 {
            let line = format!("line {number}\n");
            writer.append(line.as_bytes());
            all.push_str(&line);
            // Now and then the reader falls behind by more than one file.
            if number % 23 == 0 || number % 7 == 0 {
                read.push_str(&drain(&mut reader));
            }
        }
        read.push_str(&drain(&mut reader));
        assert_eq!(read, all);
        assert!(fs::read_dir(root.path()).unwrap().count() <= FILES_MAX);
    }

    #[test]
    fn reader_that_fell_far_behind_goes_on_with_the_oldest_kept() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::with_limit(root.path().to_owned(), 10).unwrap();
        writer.append(b"first 0000\n");
        let mut reader = LogReader::open(root.path().to_owned(), None).unwrap();
        assert_eq!(drain(&mut reader), "first 0000\n");
        for number in 1..6 {
            writer.append(format!("later {number:04}\n").as_bytes());
        }
        assert_eq!(drain(&mut reader), "later 0003\nlater 0004\nlater 0005\n");
    }

    #[test]
    fn tail_counts_lines_over_files() {
        let root = tempfile::tempdir().unwrap();
        let tail = |lines| {
            let mut reader = LogReader::open(root.path().to_owned(), Some(lines)).unwrap();
            drain(&mut reader)
        };
        assert_eq!(tail(3), "");
        let mut writer = LogWriter::with_limit(root.path().to_owned(), 4).unwrap();
        for piece in ["a\nb\n", "c\nd\n", "e\nf"] {
            writer.append(piece.as_bytes());
        }
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "f");
        assert_eq!(tail(2), "e\nf");
        assert_eq!(tail(3), "d\ne\nf");
        assert_eq!(tail(5), "b\nc\nd\ne\nf");
        assert_eq!(tail(100), "a\nb\nc\nd\ne\nf");
        writer.append(b"\n");
        assert_eq!(tail(1), "f\n");
        assert_eq!(tail(0), "");
    }

    #[test]
    fn last_words_are_the_end_of_the_output() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::create(root.path().to_owned()).unwrap();
        writer.append(&vec![b'x'; 2 * LAST_WORDS_BYTES_MAX]);
        writer.append(b"the end");
        let words = writer.last_words();
        assert_eq!(words.len(), LAST_WORDS_BYTES_MAX);
        assert!(words.ends_with("xthe end"));
    }
}
