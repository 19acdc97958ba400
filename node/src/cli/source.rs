//! The service YAML and the variables that a user hands in.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use raftserve_model::spec::{ParseOptions, ServiceSpec};

use super::args::Variables;
use super::failure::{Exit, Failure, Sent};
use crate::admin::validate::Beside;
use crate::local_files;

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

/// What is given beside `source`: variables, and the files of this machine that it names.
///
/// Where something is wrong with the YAML no file is read: it is refused for that by whoever checks all of it.
pub(super) fn given(variables_given: &Variables, source: &Source) -> Result<Beside, Failure> {
    let envs = variables("--env", &variables_given.envs)?;
    let secrets = variables("--secret", &variables_given.secrets)?;
    let options = ParseOptions {
        envs: envs.clone().into_iter().collect(),
        secrets: secrets.clone().into_iter().collect(),
        files: None,
    };
    let files = match ServiceSpec::parse(&source.text, options) {
        Ok(parsed) => local_files::read(&parsed.local_sources).map_err(|error| {
            let exit = match error.is_absent {
                true => Exit::NotFound,
                false => Exit::Usage,
            };
            let said = format!("{}: {}: {}", source.path, error.field, error.problem);
            Failure::new(exit, said).remedy(error.remedy)
        })?,
        Err(_) => Vec::new(),
    };
    Ok(Beside {
        envs,
        secrets,
        files,
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
}
