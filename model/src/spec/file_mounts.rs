//! Files that replicas find: small ones of the machine on which the command line runs, sent along with the YAML.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};

use super::error::Mark;
use super::reader::{Field, Fields, Reader};
use super::yaml::{Entry, Value};
use super::{Placement, fields};

mod sent;

pub(super) use sent::attach;
pub use sent::{FILES_TOO_MUCH_REMEDY, SentFile};

/// The most bytes that all files of a service have together. A Kubernetes Secret takes 1 MiB, of which some is left for
/// the paths; and all of it is in every peer's memory and log.
pub const FILES_BYTES_MAX: usize = 768 << 10;

/// The most files of a service: each is an item of a volume where replicas are pods.
pub const FILES_MAX: usize = 256;

/// The longest path of a file in a replica, in bytes: what Linux takes for one name, so that a list of all is small.
pub const FILE_PATH_BYTES_MAX: usize = 255;

/// The permission bits of a file that was sent without any.
pub const FILE_MODE: u32 = 0o644;

/// The paths that belong to the kernel or to raftserve, at and below which nothing may be put.
const RESERVED: [&str; 5] = [
    "/proc",
    "/sys",
    "/dev",
    "/run/raftserve",
    "/run/raftserve-files",
];

/// One entry of `file_mounts`, with what is to be put there.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FileMount {
    /// Where it is put. None is the same as, or within, that of another one of the service.
    pub destination: Destination,
    /// What is put there.
    pub content: MountContent,
}

impl FileMount {
    /// The whole path, as `file_mounts` would have it, of the file at `path` below the destination.
    #[must_use]
    pub fn path_of(&self, path: &str) -> String {
        match path {
            "" => self.destination.to_string(),
            path => format!("{}/{path}", self.destination),
        }
    }

    /// Its files, each with the path below the destination; an empty one if the destination is the file.
    pub fn files(&self) -> Box<dyn Iterator<Item = (&str, &MountedFile)> + '_> {
        match &self.content {
            MountContent::File(file) => Box::new(std::iter::once(("", file))),
            MountContent::Directory(files) => {
                Box::new(files.iter().map(|(path, file)| (path.as_str(), file)))
            }
        }
    }
}

/// What one entry of `file_mounts` puts in place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MountContent {
    /// The destination is this file.
    File(MountedFile),
    /// The destination is a directory with these files, at least one, by their paths in it: relative, without `.` and
    /// `..`, and none of them a directory of another's.
    Directory(BTreeMap<String, MountedFile>),
}

/// A file. It may be a secret: neither its `Debug` form nor anything else shows more than its size.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct MountedFile {
    /// Permission bits, up to 0777.
    pub mode: u32,
    /// What is in it.
    pub bytes: Arc<[u8]>,
}

impl fmt::Debug for MountedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, mode {:03o}", self.bytes.len(), self.mode)
    }
}

/// Where in a replica something is put; as text, as `file_mounts` has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Destination {
    /// Below the home directory of the replica's user; the path without `~/`.
    Home(String),
    /// Below the directory in which `setup` and `run` start.
    Working(String),
    /// Anywhere; the path with its leading `/`.
    Absolute(String),
}

impl Destination {
    /// Reads a destination; `.` and doubled slashes are left out of it.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, (&'static str, &'static str)> {
        if text.ends_with('/') && text != "/" {
            let problem = "ends with a slash, which SkyServe refuses too";
            return Err((
                problem,
                "leave the slash out, for files and directories alike",
            ));
        }
        let (rest, made): (&str, fn(String) -> Self) = match text.strip_prefix('~') {
            Some("") => ("", Self::Home),
            Some(rest) => match rest.strip_prefix('/') {
                Some(rest) => (rest, Self::Home),
                None => {
                    return Err((
                        "is in somebody else's home",
                        "write ~/… for the replica's own",
                    ));
                }
            },
            None => match text.strip_prefix('/') {
                Some(rest) => (rest, |path| Self::Absolute(format!("/{path}"))),
                None => (text, Self::Working),
            },
        };
        let path = normal(rest)?;
        if path.is_empty() {
            let problem = "would take the place of the home, the working or the root directory";
            return Err((problem, "name a file or a directory in it"));
        }
        let destination = made(path);
        match &destination {
            // As text it would be another destination.
            Self::Working(path) if path.starts_with('~') => Err((
                "begins with ~ within the working directory",
                "rename it, or write ~/… for the replica's home",
            )),
            Self::Absolute(path) if RESERVED.iter().any(|taken| overlap(path, taken)) => Err((
                "is, or has in it, what belongs to the kernel or to raftserve",
                "choose another path",
            )),
            Self::Home(_) | Self::Working(_) | Self::Absolute(_) => Ok(destination),
        }
    }

    /// Whether one is the other, or is within it. The home and the working directory may be the same.
    fn overlaps(&self, other: &Self) -> bool {
        use Destination::{Absolute, Home, Working};
        match (self, other) {
            (Absolute(one), Absolute(other))
            | (Home(one) | Working(one), Home(other) | Working(other)) => overlap(one, other),
            (Absolute(_), Home(_) | Working(_)) | (Home(_) | Working(_), Absolute(_)) => false,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Home(path) => write!(f, "~/{path}"),
            Self::Working(path) | Self::Absolute(path) => f.write_str(path),
        }
    }
}

/// Whether one path is the other, or is within it.
fn overlap(one: &str, other: &str) -> bool {
    let within = |path: &str, directory: &str| {
        path.strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(one, other) || within(other, one)
}

/// A relative path without what means nothing in it.
fn normal(path: &str) -> Result<String, (&'static str, &'static str)> {
    if path.chars().any(char::is_control) {
        let problem = "holds a control character";
        return Err((problem, "rename it"));
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(("holds `..`", "write the path without it"));
    }
    let path = parts.join("/");
    match path.len() <= FILE_PATH_BYTES_MAX {
        true => Ok(path),
        false => Err(("is longer than 255 bytes", "choose a shorter path")),
    }
}

/// An entry of `file_mounts` as the YAML has it: a source that only whoever runs the command line can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalSource {
    /// Where in replicas it is to be put.
    pub destination: Destination,
    /// A file or a directory, as the shell of its owner would take it: `~/` is the home, and what is relative is so to
    /// the current directory.
    pub source: String,
    /// The source as messages quote it: as the YAML writes it, without the values of variables.
    pub(super) written: String,
    /// Where it stands in the YAML.
    pub(super) mark: Mark,
}

impl LocalSource {
    /// The path of its field in the YAML.
    #[must_use]
    pub fn field(&self) -> String {
        field_of(&self.destination)
    }

    /// The line in the YAML, from 1, if it is known.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        usize::try_from(self.mark.line)
            .ok()
            .filter(|line| *line > 0)
    }
}

/// The path in the YAML of what is put at `destination`.
pub(super) fn field_of(destination: &Destination) -> String {
    format!("file_mounts.{destination}")
}

/// Reads what the document says of files. `made` tells whether somebody makes the replicas.
pub(super) fn read(
    reader: &mut Reader,
    task: &Fields<'_>,
    made: bool,
    placement: &Placement,
) -> Vec<LocalSource> {
    let Some(field) = task.get("file_mounts") else {
        return Vec::new();
    };
    let Value::Map(entries) = &field.node.value else {
        reader.mismatch(&field, "a mapping", "write where/to/put/it: its/source");
        return Vec::new();
    };
    if !made {
        let problem = "nobody makes replicas that could get files: the provider is static";
        reader.fault(&field.path, field.node.mark, problem, "remove it");
        return Vec::new();
    }
    let mut sources: Vec<LocalSource> = Vec::new();
    for entry in entries {
        let Some(source) = read_entry(reader, entry) else {
            continue;
        };
        let path = source.field();
        let overlapping = sources
            .iter()
            .find(|other| other.destination.overlaps(&source.destination));
        let volume = placement.volumes.keys().find(|volume| {
            matches!(&source.destination, Destination::Absolute(path) if overlap(path, volume.trim_end_matches('/')))
        });
        if let Some(other) = overlapping {
            let problem = format!("is the same as, or within, {}", other.field());
            reader.fault(&path, entry.mark, problem, "put one beside the other");
        } else if let Some(volume) = volume {
            let problem = format!("is the same as, or within, volumes.{volume}");
            reader.fault(&path, entry.mark, problem, "put one beside the other");
        } else {
            sources.push(source);
        }
    }
    sources
}

fn read_entry(reader: &mut Reader, entry: &Entry) -> Option<LocalSource> {
    let field = Field {
        path: format!("file_mounts.{}", entry.key),
        node: &entry.value,
    };
    let instead = fields::instead("file_mounts").unwrap_or_default();
    if let Value::Map(_) = entry.value.value {
        let problem =
            "a storage object is valid in SkyServe, but raftserve does not support it yet";
        reader.fault(&field.path, entry.mark, problem, instead);
        return None;
    }
    let source = reader.text(&field)?;
    if source.contains("://") {
        let problem = format!(
            "{} is in a bucket or elsewhere, and only local files are sent",
            entry.value.describe()
        );
        reader.fault(&field.path, entry.mark, problem, instead);
        return None;
    }
    let faulty = match source {
        "" => Some("the source is empty"),
        source if source.ends_with('/') && source != "/" => {
            Some("the source ends with a slash, which SkyServe refuses too")
        }
        source if source.contains('\0') => Some("the source holds a NUL character"),
        _ => None,
    };
    if let Some(problem) = faulty {
        let remedy = "write the path of a file or a directory, without a slash at its end";
        reader.fault(&field.path, entry.mark, problem, remedy);
        return None;
    }
    match Destination::parse(&entry.key) {
        Ok(destination) => Some(LocalSource {
            destination,
            source: source.to_owned(),
            written: entry.value.describe(),
            mark: entry.mark,
        }),
        Err((problem, remedy)) => {
            let problem = format!("the destination {problem}");
            reader.fault(&field.path, entry.mark, problem, remedy);
            None
        }
    }
}
