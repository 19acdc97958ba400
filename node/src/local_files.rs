//! Reads the files that a YAML's `file_mounts` names, on the machine of whoever sends it.
//!
//! As in SkyPilot, a source is relative to the current directory, and `~/` is the home. Links are followed as long as they
//! stay within their source: what else is linked to was probably not meant to be sent.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use raftserve_model::spec::{FILES_BYTES_MAX, FILES_MAX, FILES_TOO_MUCH_REMEDY, LocalSource};
use rustix::fs::OFlags;

use crate::admin::v1;

/// The deepest that directories of a source are looked into.
const DEPTH_MAX: usize = 32;

/// The most entries of directories that are looked at: enough to name what is too much.
const ENTRIES_MAX: usize = 10 * FILES_MAX;

/// How many of the largest entries a message about too much names.
const NAMED: usize = 5;

/// Why files cannot be sent: the field, what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub(crate) struct LocalFilesError {
    /// The path of the field in the YAML.
    pub(crate) field: String,
    /// What is wrong.
    pub(crate) problem: String,
    /// What to do about it.
    pub(crate) remedy: String,
    /// The line in the YAML, from 1, if it is about one entry.
    pub(crate) line: Option<usize>,
    /// There is no such file.
    pub(crate) is_absent: bool,
}

/// A file that was found and not read yet.
struct Found<'a> {
    source: &'a LocalSource,
    /// Within its source; empty if the source is the file.
    path: String,
    /// As its owner knows it.
    at: PathBuf,
    /// The same without links.
    real: PathBuf,
    metadata: Metadata,
}

/// The files that `sources` name, to be sent along.
///
/// # Errors
/// [`LocalFilesError`] for the first that cannot be sent, or if all are too much. None is read before all are known to
/// fit.
pub(crate) fn read(sources: &[LocalSource]) -> Result<Vec<v1::MountedFile>, LocalFilesError> {
    read_at_home(sources, std::env::home_dir().as_deref())
}

fn read_at_home(
    sources: &[LocalSource],
    home: Option<&Path>,
) -> Result<Vec<v1::MountedFile>, LocalFilesError> {
    let found = find(sources, home)?;
    check_size(&found)?;
    found.into_iter().map(contents).collect()
}

fn find<'a>(
    sources: &'a [LocalSource],
    home: Option<&Path>,
) -> Result<Vec<Found<'a>>, LocalFilesError> {
    let mut found = Vec::new();
    for source in sources {
        let mut walk = Walk {
            source,
            root: PathBuf::new(),
            within: Vec::new(),
            entries: 0,
            found: &mut found,
        };
        walk.begin(home)?;
    }
    Ok(found)
}

fn check_size(found: &[Found<'_>]) -> Result<(), LocalFilesError> {
    let all = found
        .iter()
        .fold(0, |all: u64, file| all.saturating_add(file.metadata.len()));
    if all <= FILES_BYTES_MAX as u64 {
        return Ok(());
    }
    let mut largest: Vec<&Found<'_>> = found.iter().collect();
    largest.sort_by_key(|file| std::cmp::Reverse(file.metadata.len()));
    let mut named: Vec<String> = largest
        .iter()
        .take(NAMED)
        .map(|file| format!("{} {}", file.at.display(), file.metadata.len()))
        .collect();
    if largest.len() > NAMED {
        named.push(format!("{} smaller ones", largest.len() - NAMED));
    }
    Err(LocalFilesError {
        field: "file_mounts".to_owned(),
        problem: format!(
            "{all} bytes in all, and {FILES_BYTES_MAX} are allowed ({})",
            named.join(", ")
        ),
        remedy: FILES_TOO_MUCH_REMEDY.to_owned(),
        line: None,
        is_absent: false,
    })
}

/// Reads what was found, if it still is what was found.
fn contents(found: Found<'_>) -> Result<v1::MountedFile, LocalFilesError> {
    let shown = found.at.display();
    let cannot_read = |error: io::Error| {
        let problem = format!("cannot read {shown}: {error}");
        refused(found.source, problem, "see to it that you may read it")
    };
    let changed = || {
        let problem = format!("{shown} changed while it was read");
        refused(found.source, problem, "try again once nobody writes to it")
    };
    // A link or a pipe that came to its place is neither followed nor waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(&found.real)
        .map_err(cannot_read)?;
    let metadata = file.metadata().map_err(cannot_read)?;
    let identity = |metadata: &Metadata| (metadata.dev(), metadata.ino(), metadata.len());
    if !metadata.is_file() || identity(&metadata) != identity(&found.metadata) {
        return Err(changed());
    }
    let mut contents = Vec::new();
    file.take(metadata.len() + 1)
        .read_to_end(&mut contents)
        .map_err(cannot_read)?;
    if contents.len() as u64 != metadata.len() {
        return Err(changed());
    }
    Ok(v1::MountedFile {
        mount: found.source.destination.to_string(),
        mode: mode_of(metadata.mode()),
        contents: contents.into(),
        path: found.path,
    })
}

/// The permission bits to send of `mode`. None at all would stand for the usual ones, which are more.
fn mode_of(mode: u32) -> u32 {
    match mode & 0o777 {
        0 => 0o400,
        bits => bits,
    }
}

fn refused(source: &LocalSource, problem: String, remedy: &str) -> LocalFilesError {
    LocalFilesError {
        field: source.field(),
        problem,
        remedy: remedy.to_owned(),
        line: source.line(),
        is_absent: false,
    }
}

/// A way through one source.
struct Walk<'a, 'f> {
    source: &'a LocalSource,
    /// The source without links.
    root: PathBuf,
    /// The directories on the way, without links.
    within: Vec<PathBuf>,
    entries: usize,
    found: &'f mut Vec<Found<'a>>,
}

impl Walk<'_, '_> {
    fn begin(&mut self, home: Option<&Path>) -> Result<(), LocalFilesError> {
        let source = &self.source.source;
        let at = match source.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                let Some(home) = home else {
                    let problem = format!("there is no home for {source}: HOME is not set");
                    return Err(self.refused(problem, "set HOME, or write the path in full"));
                };
                home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(source),
        };
        self.root = self.real(&at)?;
        let before = self.found.len();
        self.visit(&at, &self.root.clone(), String::new())?;
        if self.found.len() == before {
            let problem = format!("there is no file in the directory {source}");
            return Err(self.refused(problem, "put one there, or remove the entry"));
        }
        Ok(())
    }

    /// Notes what is at `at`, in truth `real`, as `path` of the source.
    fn visit(&mut self, at: &Path, real: &Path, path: String) -> Result<(), LocalFilesError> {
        let metadata = fs::metadata(real).map_err(|error| self.cannot_read(at, &error))?;
        if metadata.is_file() {
            return self.note(at, real, metadata, path);
        }
        if !metadata.is_dir() {
            let problem = format!("{} is neither a file nor a directory", at.display());
            return Err(self.refused(problem, "sockets, pipes and devices cannot be sent"));
        }
        if self.within.iter().any(|directory| directory == real) {
            let problem = format!("{} links to a directory that it is in", at.display());
            return Err(self.refused(problem, "remove the link"));
        }
        if self.within.len() >= DEPTH_MAX {
            let problem = format!("{} is deeper than {DEPTH_MAX} directories", at.display());
            return Err(self.refused(problem, FILES_TOO_MUCH_REMEDY));
        }
        self.within.push(real.to_owned());
        let entries = fs::read_dir(real).map_err(|error| self.cannot_read(at, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.cannot_read(at, &error))?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                let problem = format!(
                    "there are more than {ENTRIES_MAX} files and directories in {}, and {FILES_MAX} files are allowed",
                    self.source.source
                );
                return Err(self.refused(problem, FILES_TOO_MUCH_REMEDY));
            }
            let (at, name) = (at.join(entry.file_name()), entry.file_name());
            let Some(name) = name.to_str() else {
                let problem = format!("the name of {} is not UTF-8", at.display());
                return Err(self.refused(problem, "rename it"));
            };
            let real = self.real(&at)?;
            if !real.starts_with(&self.root) {
                let problem = format!(
                    "{} links to {}, which is not within {}",
                    at.display(),
                    real.display(),
                    self.source.source
                );
                return Err(
                    self.refused(problem, "copy it there, or name it by an entry of its own")
                );
            }
            let path = match path.as_str() {
                "" => name.to_owned(),
                path => format!("{path}/{name}"),
            };
            self.visit(&at, &real, path)?;
        }
        self.within.pop();
        Ok(())
    }

    fn note(
        &mut self,
        at: &Path,
        real: &Path,
        metadata: Metadata,
        path: String,
    ) -> Result<(), LocalFilesError> {
        if self.found.len() >= FILES_MAX {
            let problem = format!(
                "there are more than {FILES_MAX} files, and more are not allowed: the last one looked at is in {}",
                self.source.source
            );
            return Err(self.refused(problem, FILES_TOO_MUCH_REMEDY));
        }
        self.found.push(Found {
            source: self.source,
            path,
            at: at.to_owned(),
            real: real.to_owned(),
            metadata,
        });
        Ok(())
    }

    /// Where `at` is without links.
    fn real(&self, at: &Path) -> Result<PathBuf, LocalFilesError> {
        at.canonicalize()
            .map_err(|error| self.cannot_read(at, &error))
    }

    fn cannot_read(&self, at: &Path, error: &io::Error) -> LocalFilesError {
        let here = std::env::current_dir().unwrap_or_default();
        let remedy = format!(
            "sources are relative to the current directory, {}",
            here.display()
        );
        LocalFilesError {
            is_absent: error.kind() == io::ErrorKind::NotFound,
            ..self.refused(format!("cannot read {}: {error}", at.display()), &remedy)
        }
    }

    fn refused(&self, problem: String, remedy: &str) -> LocalFilesError {
        refused(self.source, problem, remedy)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use raftserve_model::spec::{ParseOptions, ServiceSpec};
    use tempfile::TempDir;

    use super::*;

    fn sources(mounts: &[(&str, &Path)]) -> Vec<LocalSource> {
        let mounts: String = mounts
            .iter()
            .map(|(to, from)| format!("  {to}: {}\n", from.display()))
            .collect();
        let yaml = format!(
            "service: {{}}\nresources: {{ports: 8080}}\nrun: serve 8080\nfile_mounts:\n{mounts}"
        );
        ServiceSpec::parse(&yaml, ParseOptions::default())
            .unwrap()
            .local_sources
    }

    /// A directory `conf` with what a replica may need.
    fn folder() -> (TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let conf = root.path().join("conf");
        fs::create_dir_all(conf.join("bin")).unwrap();
        fs::write(conf.join("a.txt"), "a").unwrap();
        fs::write(conf.join("bin/tool"), "#!").unwrap();
        fs::set_permissions(conf.join("bin/tool"), PermissionsExt::from_mode(0o4750)).unwrap();
        (root, conf)
    }

    fn refused(conf: &Path) -> LocalFilesError {
        read_at_home(&sources(&[("conf", conf)]), None).unwrap_err()
    }

    #[test]
    fn trees_are_read_with_modes_and_with_links_that_stay_within() {
        let (root, conf) = folder();
        symlink("a.txt", conf.join("b.txt")).unwrap();
        symlink("bin", conf.join("more")).unwrap();
        let named = root.path().join("named");
        symlink(&conf, &named).unwrap();
        let mounts = [
            ("conf", named.as_path()),
            ("~/x", Path::new("~/conf/a.txt")),
        ];
        let mut read = read_at_home(&sources(&mounts), Some(root.path())).unwrap();
        read.sort_by(|a, b| (&a.mount, &a.path).cmp(&(&b.mount, &b.path)));
        let told: Vec<_> = read
            .iter()
            .map(|it| {
                (
                    &*it.mount,
                    &*it.path,
                    it.mode & 0o100 != 0,
                    &it.contents[..],
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("conf", "a.txt", false, &b"a"[..]),
                ("conf", "b.txt", false, b"a"),
                ("conf", "bin/tool", true, b"#!"),
                ("conf", "more/tool", true, b"#!"),
                ("~/x", "", false, b"a"),
            ]
        );
        assert_eq!(read[2].mode, 0o750, "permission bits alone");
    }

    #[test]
    fn what_cannot_be_sent_is_refused_by_field_and_path() {
        let (root, conf) = folder();
        let cases: [(&str, &dyn Fn(), &str); 4] = [
            (
                "out",
                &|| symlink(root.path(), conf.join("out")).unwrap(),
                "which is not within",
            ),
            (
                "round",
                &|| symlink(".", conf.join("round")).unwrap(),
                "links to a directory that it is in",
            ),
            (
                "lost",
                &|| symlink("nowhere", conf.join("lost")).unwrap(),
                "cannot read",
            ),
            (
                "socket",
                &|| drop(UnixListener::bind(conf.join("socket")).unwrap()),
                "is neither a file nor a directory",
            ),
        ];
        for (name, make, said) in cases {
            make();
            let told = refused(&conf).to_string();
            assert!(
                told.starts_with("file_mounts.conf: ")
                    && told.contains(said)
                    && told.contains(name),
                "{told}"
            );
            fs::remove_file(conf.join(name)).unwrap();
        }
        let empty = root.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(refused(&empty).to_string().contains("there is no file in"));
        let absent = refused(&root.path().join("absent"));
        assert!(absent.is_absent);
        assert!(absent.to_string().contains("current directory"), "{absent}");
        let homeless = read_at_home(&sources(&[("a", Path::new("~/a"))]), None).unwrap_err();
        assert!(homeless.to_string().contains("HOME"), "{homeless}");
    }

    #[test]
    fn too_much_is_refused_with_sizes_before_anything_is_read() {
        let (_root, conf) = folder();
        // Nobody could read it: it has no bytes on any disk, only a length.
        let large = File::create(conf.join("large.bin")).unwrap();
        large.set_len(1 << 40).unwrap();
        let told = refused(&conf).to_string();
        assert!(
            told.starts_with("file_mounts: 1099511627779 bytes in all, and 786432 are allowed"),
            "{told}"
        );
        assert!(told.contains("large.bin 1099511627776"), "{told}");
        assert!(told.contains("download them in setup"), "{told}");
        large.set_len(FILES_BYTES_MAX as u64 - 3).unwrap();
        assert_eq!(
            read_at_home(&sources(&[("conf", &conf)]), None)
                .unwrap()
                .len(),
            3
        );

        for number in 0..FILES_MAX {
            fs::write(conf.join(number.to_string()), "").unwrap();
        }
        let told = refused(&conf).to_string();
        assert!(told.contains("more than 256 files"), "{told}");
    }

    #[test]
    fn directories_without_end_are_refused_as_what_they_are() {
        let (_root, conf) = folder();
        for number in 0..=ENTRIES_MAX {
            fs::create_dir(conf.join(number.to_string())).unwrap();
        }
        let told = refused(&conf).to_string();
        assert!(
            told.contains("more than 2560 files and directories in"),
            "{told}"
        );
    }

    #[test]
    fn what_changed_after_it_was_found_is_not_sent() {
        type Change<'a> = &'a dyn Fn(&Path);
        let changes: [(&str, Change<'_>); 6] = [
            ("changed while", &|it| fs::write(it, "longer").unwrap()),
            ("changed while", &|it| fs::write(it, "").unwrap()),
            ("changed while", &|it| {
                // The first keeps its inode, so that the second has another.
                fs::rename(it, it.with_extension("old")).unwrap();
                fs::write(it, "b").unwrap();
            }),
            ("cannot read", &|it| {
                fs::rename(it, it.with_extension("old")).unwrap();
                symlink(it.with_extension("old"), it).unwrap();
            }),
            ("changed while", &|it| {
                fs::remove_file(it).unwrap();
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                let pipe = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, it, pipe, mode, 0).unwrap();
            }),
            ("cannot read", &|it| fs::remove_file(it).unwrap()),
        ];
        for (said, change) in changes {
            let (_root, conf) = folder();
            let sources = sources(&[("a", &conf.join("a.txt"))]);
            let found = find(&sources, None).unwrap();
            change(&conf.join("a.txt"));
            let told = found.into_iter().map(contents).find_map(Result::err);
            let told = told.unwrap();
            assert!(told.problem.contains(said), "{told}");
            assert_eq!((told.field.as_str(), told.line), ("file_mounts.a", Some(5)));
        }
    }

    #[test]
    fn permissions_that_nobody_has_are_not_widened() {
        assert_eq!(mode_of(0o100_000), 0o400);
        assert_eq!(mode_of(0o104_644), 0o644);
    }
}
