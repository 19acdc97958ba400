//! From YAML text to a checked specification.

use std::collections::BTreeMap;

use crate::ServiceName;

use super::error::{Mark, SpecErrors};
use super::reader::Reader;
use super::{
    LocalSource, SPEC_DOCUMENT_BYTES_MAX, SentFile, ServiceSpec, port, stored, task, yaml,
};

/// What is given beside the YAML.
#[derive(Clone, Default)]
pub struct ParseOptions {
    /// Values that are added to `envs`, or replace those in it.
    pub envs: BTreeMap<String, String>,
    /// Values that are added to `secrets`, or replace those in it.
    pub secrets: BTreeMap<String, String>,
    /// The files that came along, which have to be those that `file_mounts` names. None where only the YAML is
    /// looked at: the specification is then without files.
    pub files: Option<Vec<SentFile>>,
}

/// A specification, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The service's name, if the file gives one.
    pub name: Option<ServiceName>,
    /// What the service is asked to be.
    pub spec: ServiceSpec,
    /// What `file_mounts` names on the machine of whoever sends the YAML.
    pub local_sources: Vec<LocalSource>,
    /// What is legal and probably not meant; one sentence each.
    pub warnings: Vec<String>,
}

impl ServiceSpec {
    /// Reads a SkyServe service YAML.
    ///
    /// What SkyServe's schema and rules refuse is refused, and so is every field that is valid there
    /// and not built here. Beyond SkyServe's rules, a key may not be written twice, and numbers have
    /// to make sense. Reading is pure: the same text and options give the same answer.
    ///
    /// # Errors
    /// Every fault that was found, each with its field, line and remedy. Show them to the user; no
    /// retry with the same text can succeed.
    pub fn parse(yaml: &str, options: ParseOptions) -> Result<Parsed, SpecErrors> {
        let source = yaml.strip_prefix('\u{feff}').unwrap_or(yaml);
        let mut reader = Reader::default();
        let read = match yaml::read(source) {
            Ok(Some(root)) => task::read(&mut reader, source, root, options),
            Ok(None) => {
                reader.fault("", Mark::default(), "the file is empty", EMPTY_REMEDY);
                None
            }
            Err(errors) => {
                reader.errors = errors;
                None
            }
        };
        if let Some(parsed) = &read {
            check_document_size(&mut reader, &parsed.spec);
        }
        match (SpecErrors::collect(reader.errors), read) {
            (None, Some(parsed)) => Ok(Parsed {
                warnings: reader.warnings,
                ..parsed
            }),
            (Some(errors), _) => Err(errors),
            (None, None) => unreachable!("a specification that is not read has a fault"),
        }
    }

    /// `text`, which is `setup` or `run`, with the declared port replaced by a replica's own `port`.
    ///
    /// The declared port is found as a whole word: no ASCII letter, digit or `_` stands next to it,
    /// and it is not part of a decimal number or a dotted version. So `8080` is replaced in
    /// `--port=8080`, `0.0.0.0:8080` and `"8080"`, and not in `18080`, `-p8080` or `8080.5`.
    #[must_use]
    pub fn command_for_port(&self, text: &str, port: u16) -> String {
        port::replace(text, self.port, port)
    }
}

/// What an empty file lacks.
const EMPTY_REMEDY: &str = "a service needs at least service, resources.ports and run";

/// The stored form of a text is longer than its source where it has to be escaped.
fn check_document_size(reader: &mut Reader, spec: &ServiceSpec) {
    let bytes = match stored::document(spec) {
        Ok(document) => document.len(),
        Err(error) => {
            let problem = format!("cannot be stored: {error}");
            reader.fault("", Mark::default(), problem, "");
            return;
        }
    };
    if bytes > SPEC_DOCUMENT_BYTES_MAX {
        let problem = format!(
            "the specification takes {bytes} bytes to store; at most {SPEC_DOCUMENT_BYTES_MAX} are allowed"
        );
        reader.fault(
            "",
            Mark::default(),
            problem,
            "move scripts and data out of the file",
        );
    }
}
