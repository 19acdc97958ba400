//! The service YAML and the variables that a user hands in.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use raftserve_model::spec::{ParseOptions, ServiceSpec};

use super::args::Variables;
use super::failure::{Exit, Failure, Sent};
use crate::admin::errors::Violation;
use crate::admin::v1;
use crate::admin::validate::Beside;
use crate::local_files::{self, LocalFilesError};

/// The most bytes read: what a peer accepts, so that a wrong file is not read for minutes.
const YAML_BYTES_MAX: u64 = 1 << 20;

/// A file read.
pub(super) struct Source {
    /// As messages name it.
    pub(super) path: String,
    pub(super) text: String,
    /// What the service is called if nothing else says so.
    pub(super) default_name: String,
}

impl Source {
    /// Reads `path`, or standard input for `-`.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let is_stdin = path.as_os_str() == "-";
        let shown = match is_stdin {
            true => "standard input".to_owned(),
            false => path.display().to_string(),
        };
        let cannot = |error: std::io::Error| {
            let exit = match error.kind() {
                std::io::ErrorKind::NotFound => Exit::NotFound,
                std::io::ErrorKind::IsADirectory => Exit::Usage,
                _ => Exit::Failed,
            };
            Failure::new(exit, format!("cannot read {shown}: {error}"))
        };
        let mut bytes = Vec::new();
        if is_stdin {
            std::io::stdin()
                .take(YAML_BYTES_MAX + 1)
                .read_to_end(&mut bytes)
        } else {
            std::fs::File::open(path)
                .map_err(cannot)?
                .take(YAML_BYTES_MAX + 1)
                .read_to_end(&mut bytes)
        }
        .map_err(cannot)?;
        if bytes.len() as u64 > YAML_BYTES_MAX {
            return Err(Failure::usage(format!(
                "{shown} is larger than 1 MiB, the most that a service YAML may have"
            )));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::usage(format!("{shown} is not UTF-8 text")))?;
        Ok(Self {
            default_name: match is_stdin {
                true => String::new(),
                false => stem(path),
            },
            path: shown,
            text,
        })
    }

    /// For errors about it.
    pub(super) fn sent(&self) -> Sent<'_> {
        Sent {
            path: &self.path,
            text: &self.text,
        }
    }
}

/// The file's name without its ending, if that can be a service's name: a default that is refused
/// would only confuse.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.filter(|stem| stem.parse::<raftserve_model::ServiceName>().is_ok())
        .unwrap_or_default()
        .to_owned()
}

/// `KEY=VALUE`, or `KEY` with the value that this process's environment has.
#[expect(
    clippy::disallowed_methods,
    reason = "the variable is the user's, who asks for it by name"
)]
pub(super) fn variables(flag: &str, given: &[String]) -> Result<HashMap<String, String>, Failure> {
    given
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) => Err(Failure::usage(format!("{flag} {text}: the key is empty"))),
            None => match std::env::var(text) {
                Ok(value) => Ok((text.clone(), value)),
                Err(_) => Err(Failure::usage(format!(
                    "{flag} {text}: there is no such variable in the environment"
                ))
                .remedy(format!("give it as {flag} {text}=VALUE"))),
            },
        })
        .collect()
}

/// What goes along with a YAML.
pub(super) struct Given {
    pub(super) beside: Beside,
    /// Where its files come from, as `file_mounts` has it.
    pub(super) sources: Vec<String>,
}

impl Given {
    /// What a question says after what it asks about; empty if there are no files.
    pub(super) fn files_sent(&self) -> String {
        /// Enough to know them again.
        const NAMED: usize = 5;
        let files = &self.beside.files;
        let count = match files.len() {
            0 => return String::new(),
            1 => "1 file".to_owned(),
            many => format!("{many} files"),
        };
        let bytes: usize = files.iter().map(|file| file.contents.len()).sum();
        let mut from: Vec<String> = self.sources.iter().take(NAMED).cloned().collect();
        if self.sources.len() > NAMED {
            from.push(format!("{} more", self.sources.len() - NAMED));
        }
        format!(
            ", and send along {count}, {bytes} bytes in all, from {}",
            from.join(", ")
        )
    }

    /// The files as a peer can check them before they are to be sent: without what is in them.
    pub(super) fn files_to_check(&self) -> Vec<v1::MountedFile> {
        let without_contents = |file: &v1::MountedFile| v1::MountedFile {
            mount: file.mount.clone(),
            path: file.path.clone(),
            mode: file.mode,
            contents: Bytes::new(),
        };
        self.beside.files.iter().map(without_contents).collect()
    }
}

/// What is given beside `source`: variables, and the files of this machine that it names.
///
/// Where something is wrong with the YAML no file is read: it is refused for that by whoever checks all of it.
pub(super) fn given(variables_given: &Variables, source: &Source) -> Result<Given, Failure> {
    let envs = variables("--env", &variables_given.envs)?;
    let secrets = variables("--secret", &variables_given.secrets)?;
    let options = ParseOptions {
        envs: envs.clone().into_iter().collect(),
        secrets: secrets.clone().into_iter().collect(),
        files: None,
    };
    let named = ServiceSpec::parse(&source.text, options);
    let named = named.map_or_else(|_| Vec::new(), |parsed| parsed.local_sources);
    let files = local_files::read(&named).map_err(|error| refused(source, error))?;
    Ok(Given {
        beside: Beside {
            envs,
            secrets,
            files,
        },
        sources: named.into_iter().map(|it| it.source).collect(),
    })
}

fn refused(source: &Source, error: LocalFilesError) -> Failure {
    let exit = match error.is_absent {
        true => Exit::NotFound,
        false => Exit::Usage,
    };
    let place = match error.line {
        Some(line) => format!("{}:{line}", source.path),
        None => source.path.clone(),
    };
    let said = format!("{place}: {}: {}", error.field, error.problem);
    Failure::new(exit, said)
        .remedy(error.remedy)
        .violation(Violation {
            field: error.field,
            line: error.line,
            problem: error.problem,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_gives_the_default_name_where_it_can() {
        assert_eq!(stem(Path::new("a/b/http_service.yaml")), "http_service");
        assert_eq!(stem(Path::new("web")), "web");
        assert_eq!(stem(Path::new("1-service.yaml")), "");
        assert_eq!(stem(Path::new("my service.yaml")), "");
    }

    #[test]
    fn variables_have_a_key_and_a_value() {
        let read = |text: &str| variables("--env", &[text.to_owned()]);
        assert_eq!(read("A=b=c").unwrap()["A"], "b=c");
        assert!(read("=x").is_err());
        assert!(read("SURELY_NOT_SET_ANYWHERE").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_not_found() {
        let failure = Source::read(Path::new("/nowhere/web.yaml")).err().unwrap();
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(failure.message.contains("/nowhere/web.yaml"));
        let folder = Source::read(Path::new(".")).err().unwrap();
        assert_eq!(folder.exit, Exit::Usage);
    }

    #[test]
    fn what_is_sent_along_is_told_and_checked_without_what_is_in_it() {
        let file = |mount: &str, contents: &'static str| v1::MountedFile {
            mount: mount.to_owned(),
            path: "x".to_owned(),
            mode: 0o600,
            contents: contents.into(),
        };
        let given = |files, sources: &[&str]| Given {
            beside: Beside {
                files,
                ..Beside::default()
            },
            sources: sources.iter().map(|it| (*it).to_owned()).collect(),
        };
        assert_eq!(given(Vec::new(), &[]).files_sent(), "");
        let one = given(vec![file("a", "hush")], &["~/.netrc"]);
        assert_eq!(
            one.files_sent(),
            ", and send along 1 file, 4 bytes in all, from ~/.netrc"
        );
        assert_eq!(one.files_to_check(), [file("a", "")]);
        let many = vec![file("a", "hush"), file("b", "!")];
        let many = given(many, &["1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(
            many.files_sent(),
            ", and send along 2 files, 5 bytes in all, from 1, 2, 3, 4, 5, 2 more"
        );
    }

    #[test]
    fn a_file_that_cannot_be_sent_is_told_with_its_line() {
        let source = Source {
            path: "web.yaml".to_owned(),
            text: "service: {}\nresources: {ports: 8080}\nrun: serve 8080\nfile_mounts:\n  a: /no/such\n"
                .to_owned(),
            default_name: String::new(),
        };
        let none = Variables {
            envs: Vec::new(),
            secrets: Vec::new(),
        };
        let failure = given(&none, &source).err().unwrap();
        assert_eq!(failure.exit, Exit::NotFound);
        let message = "web.yaml:5: file_mounts.a: cannot read /no/such";
        assert!(failure.message.starts_with(message), "{}", failure.message);
        let told = &failure.value()["error"]["violations"];
        assert_eq!(
            (&told[0]["field"], &told[0]["line"]),
            (&"file_mounts.a".into(), &5.into())
        );
        let problem = told[0]["problem"].as_str().unwrap();
        assert!(problem.starts_with("cannot read /no/such"), "{problem}");
    }
}
