//! The files that came with a YAML, held against what it names.

use std::collections::BTreeMap;

use super::{
    Destination, FILE_MODE, FILES_BYTES_MAX, FILES_MAX, FileMount, LocalSource, MountContent,
    MountedFile, field_of, normal,
};
use crate::spec::error::Mark;
use crate::spec::reader::Reader;

/// A file as whoever sends the YAML sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// The entry of `file_mounts` that it belongs to: its destination.
    pub mount: String,
    /// Its path within the directory that is the source; empty if the source is the file.
    pub path: String,
    /// The file.
    pub file: MountedFile,
}

/// The mounts that `sources` and the files sent for them make, by destination: their order in the YAML is none of replicas'
/// business.
pub(crate) fn attach(
    reader: &mut Reader,
    sources: &[LocalSource],
    sent: Vec<SentFile>,
) -> Vec<FileMount> {
    let mut faults = Faults { reader, sources };
    if !faults.within_bounds(&sent) {
        return Vec::new();
    }
    let mut by_mount: BTreeMap<Destination, BTreeMap<String, MountedFile>> = BTreeMap::new();
    for sent in sent {
        if let Some((destination, path, file)) = faults.checked(sent) {
            let files = by_mount.entry(destination.clone()).or_default();
            if files.insert(path.clone(), file).is_some() {
                faults.of(
                    &destination,
                    format!("{path:?} was sent twice"),
                    "send it once",
                );
            }
        }
    }
    let mut mounts: Vec<FileMount> = sources
        .iter()
        .filter_map(|source| {
            let files = by_mount.remove(&source.destination);
            Some(FileMount {
                destination: source.destination.clone(),
                content: faults.content(source, files)?,
            })
        })
        .collect();
    mounts.sort_by(|one, other| one.destination.cmp(&other.destination));
    mounts
}

struct Faults<'r> {
    reader: &'r mut Reader,
    sources: &'r [LocalSource],
}

impl Faults<'_> {
    /// Notes a fault of what was sent for the mount at `destination`.
    fn of(&mut self, destination: &Destination, problem: String, remedy: &str) {
        let source = self
            .sources
            .iter()
            .find(|it| it.destination == *destination);
        let mark = source.map(|it| it.mark).unwrap_or_default();
        self.reader
            .fault(&field_of(destination), mark, problem, remedy);
    }

    fn within_bounds(&mut self, sent: &[SentFile]) -> bool {
        let bytes: usize = sent.iter().map(|sent| sent.file.bytes.len()).sum();
        let problem = if sent.len() > FILES_MAX {
            format!("{} files, and {FILES_MAX} are allowed", sent.len())
        } else if bytes > FILES_BYTES_MAX {
            format!("{bytes} bytes in all, and {FILES_BYTES_MAX} are allowed")
        } else {
            return true;
        };
        let remedy = FILES_TOO_MUCH_REMEDY;
        self.reader
            .fault("file_mounts", Mark::default(), problem, remedy);
        false
    }

    /// A file that belongs to a mount, with its path made plain.
    fn checked(&mut self, sent: SentFile) -> Option<(Destination, String, MountedFile)> {
        let SentFile { mount, path, file } = sent;
        let known = Destination::parse(&mount)
            .ok()
            .filter(|mount| self.sources.iter().any(|it| it.destination == *mount));
        let Some(destination) = known else {
            let problem = format!("a file was sent for {mount:?}, which is no destination there");
            let remedy = "send those that the YAML names, and no others";
            self.reader
                .fault("file_mounts", Mark::default(), problem, remedy);
            return None;
        };
        let plain = match normal(&path) {
            Ok(plain) if plain.is_empty() == path.is_empty() && !path.starts_with('/') => Ok(plain),
            Ok(_) => Err((
                "is not relative to its source",
                "send it without the source",
            )),
            Err(why) => Err(why),
        };
        // With its destination it has to be a path that a replica can have, too.
        let plain = plain.and_then(|plain| {
            let whole = normal(&format!("{destination}/{plain}"));
            whole.map(|_| plain)
        });
        let plain = match plain {
            Ok(plain) => plain,
            Err((problem, remedy)) => {
                self.of(&destination, format!("the path {path:?} {problem}"), remedy);
                return None;
            }
        };
        if file.mode > 0o777 {
            let problem = format!("{path:?} has mode {:o}", file.mode);
            self.of(
                &destination,
                problem,
                "permission bits are allowed, up to 0777",
            );
            return None;
        }
        let mode = match file.mode {
            0 => FILE_MODE,
            mode => mode,
        };
        Some((destination, plain, MountedFile { mode, ..file }))
    }

    /// What the files of one mount make.
    fn content(
        &mut self,
        source: &LocalSource,
        files: Option<BTreeMap<String, MountedFile>>,
    ) -> Option<MountContent> {
        let Some(mut files) = files else {
            let problem = format!(
                "no file was sent for it: {} is on the machine of whoever asks, which no peer can read",
                source.written
            );
            let remedy = "bring it up with raftserve up or update, or send the contents in `files`";
            self.of(&source.destination, problem, remedy);
            return None;
        };
        if let Some(file) = files.remove("") {
            if files.is_empty() {
                return Some(MountContent::File(file));
            }
            let problem = "both a file and a directory were sent for it".to_owned();
            self.of(&source.destination, problem, "send one of them");
            return None;
        }
        let is_directory = |path: &str| {
            let within = format!("{path}/");
            let next = files.range(within.clone()..).next();
            next.is_some_and(|(next, _)| next.starts_with(&within))
        };
        if let Some(path) = files.keys().find(|path| is_directory(path)) {
            let problem = format!("{path:?} is both a file and a directory");
            self.of(&source.destination, problem, "send one of them");
            return None;
        }
        Some(MountContent::Directory(files))
    }
}

/// What to do with more than can be sent.
pub const FILES_TOO_MUCH_REMEDY: &str = "they go through the log of all peers: put large files into the image \
    (resources.image_id) or a volume, or download them in setup";
