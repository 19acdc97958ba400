//! Checks what a user hands in, on the peer asked, before anything is proposed.

use std::collections::HashMap;
use std::sync::Arc;

use raftserve_model::ServiceName;
use raftserve_model::spec::{
    Destination, FILES_MAX, FILES_TOO_MUCH_REMEDY, MountedFile, ParseOptions, SentFile,
    ServiceSpec, SpecError,
};
use tonic::Status;

use super::errors::{self, Violation};
use super::shared::service_name;
use super::v1;

/// A YAML in which nothing is wrong.
pub(crate) struct Checked {
    /// Its own `name`, if it has one.
    pub(crate) name: Option<ServiceName>,
    /// What it asks for.
    pub(crate) spec: Arc<ServiceSpec>,
    /// What its writer may not have meant.
    pub(crate) warnings: Vec<String>,
}

/// What is given beside a YAML.
#[derive(Default)]
pub(crate) struct Beside {
    /// Variables that are added to its `envs`, or replace those in it.
    pub(crate) envs: HashMap<String, String>,
    /// Values that are added to its `secrets`, or replace those in it.
    pub(crate) secrets: HashMap<String, String>,
    /// The files that it names.
    pub(crate) files: Vec<v1::MountedFile>,
}

/// Checks a service YAML, with what is given beside it, for peers that make replicas as `provider` does.
///
/// # Errors
/// `INVALID_ARGUMENT` with everything that is wrong.
pub(super) fn check(yaml: &str, beside: Beside, provider: &str) -> Result<Checked, Status> {
    let checked = check_for_any(yaml, beside)?;
    let misplaced = match provider {
        "kubernetes" => Vec::new(),
        _ => not_for_processes(&checked.spec),
    };
    match misplaced.is_empty() {
        true => Ok(checked),
        false => Err(errors::invalid_spec(&misplaced)),
    }
}

/// The same without the peers: what only some of them could do is not refused.
///
/// # Errors
/// `INVALID_ARGUMENT` with everything that is wrong.
pub(crate) fn check_for_any(yaml: &str, beside: Beside) -> Result<Checked, Status> {
    let files = beside.files.len();
    if files > FILES_MAX {
        let problem =
            format!("{files} files, and {FILES_MAX} are allowed; {FILES_TOO_MUCH_REMEDY}");
        return Err(errors::invalid_spec(&[Violation {
            field: "file_mounts".to_owned(),
            line: None,
            problem,
        }]));
    }
    let options = ParseOptions {
        envs: beside.envs.into_iter().collect(),
        secrets: beside.secrets.into_iter().collect(),
        files: Some(beside.files.into_iter().map(sent).collect()),
    };
    let parsed = ServiceSpec::parse(yaml, options).map_err(|errors| {
        let violations: Vec<Violation> = errors.into_vec().into_iter().map(violation).collect();
        errors::invalid_spec(&violations)
    })?;
    Ok(Checked {
        name: parsed.name,
        spec: Arc::new(parsed.spec),
        warnings: parsed.warnings,
    })
}

fn sent(file: v1::MountedFile) -> SentFile {
    SentFile {
        mount: file.mount,
        path: file.path,
        file: MountedFile {
            mode: file.mode,
            bytes: Arc::from(&file.contents[..]),
        },
    }
}

/// What replicas that are processes cannot have: refused by name.
fn not_for_processes(spec: &ServiceSpec) -> Vec<Violation> {
    let violation = |field: String, problem: &str| Violation {
        field,
        line: None,
        problem: problem.to_owned(),
    };
    let of_pods = pod_fields(spec).map(|field| {
        let problem = match field.starts_with("file_mounts.") {
            true => {
                "is a place on the host that all replicas and others share, as these peers make processes (--provider \
                 process); put it below ~/, or give a path without a slash in front for the working directory"
            }
            false => {
                "is for replicas that are pods, and these peers make processes (--provider process); leave it out"
            }
        };
        violation(field, problem)
    });
    of_pods.chain(other_homes(spec).map(|field| {
        violation(
            field,
            "would be another home than the one below which file_mounts puts files (~/), which is the working directory of a \
             replica that is a process; leave it out, or leave ~/ out of file_mounts",
        )
    }))
    .collect()
}

/// The fields that are set and that only pods can have.
pub(crate) fn pod_fields(spec: &ServiceSpec) -> impl Iterator<Item = String> {
    let placement = &spec.placement;
    let settings = [
        (placement.image.is_some(), "resources.image_id"),
        (placement.accelerators.is_some(), "resources.accelerators"),
        (placement.use_spot, "resources.use_spot"),
        (!placement.labels.is_empty(), "resources.labels"),
        (!placement.volumes.is_empty(), "volumes"),
        (
            placement.pod_config.is_some(),
            "config.kubernetes.pod_config",
        ),
    ];
    let asked = settings.into_iter().filter(|(is_set, _)| *is_set);
    let anywhere = spec
        .file_mounts
        .iter()
        .map(|mount| &mount.destination)
        .filter(|destination| matches!(destination, Destination::Absolute(_)))
        .map(|destination| format!("file_mounts.{destination}"));
    asked.map(|(_, field)| field.to_owned()).chain(anywhere)
}

/// Where a home is set although files are put below that of a replica.
fn other_homes(spec: &ServiceSpec) -> impl Iterator<Item = String> {
    let at_home = spec
        .file_mounts
        .iter()
        .any(|mount| matches!(mount.destination, Destination::Home(_)));
    [("envs.HOME", &spec.envs), ("secrets.HOME", &spec.secrets)]
        .into_iter()
        .filter(move |(_, variables)| at_home && variables.contains_key("HOME"))
        .map(|(field, _)| field.to_owned())
}

fn violation(error: SpecError) -> Violation {
    let problem = match error.remedy.is_empty() {
        true => error.problem,
        false => format!("{}; {}", error.problem, error.remedy),
    };
    Violation {
        field: error.field,
        line: Some(error.line)
            .filter(|line| *line > 0)
            .map(|line| line as usize),
        problem,
    }
}

/// The name that a service gets: as asked for, else as its YAML says, else the default.
///
/// # Errors
/// `INVALID_ARGUMENT` if none is given, or the one chosen is not allowed.
pub(crate) fn choose_name(
    asked: &str,
    own: Option<&ServiceName>,
    default: &str,
) -> Result<ServiceName, Status> {
    match (asked, own, default) {
        ("", Some(own), _) => Ok(own.clone()),
        ("", None, "") => Err(errors::invalid_request(
            "name",
            "is required, since the YAML has no `name` and there is no default",
        )),
        ("", None, default) => service_name("default_name", default),
        (asked, _, _) => service_name("name", asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn what_is_wrong_is_refused_by_name_and_line() {
        let yaml = "service: {}\nresources: {ports: 8080}\nrun: serve 8080\n\
                    _metadata: {raftserve: {traffic: {request_body_bytes_max: many}}}\n";
        let Err(refused) = check(yaml, Beside::default(), "process") else {
            panic!("it is taken");
        };
        assert_eq!(refused.code(), Code::InvalidArgument);
        let field = "traffic.request_body_bytes_max";
        assert!(refused.message().contains(field), "{}", refused.message());
    }

    #[test]
    fn what_only_pods_have_is_refused_where_replicas_are_processes() {
        for (field, value) in [("image_id", "docker:x"), ("use_spot", "yes")] {
            let yaml = format!(
                "service: {{}}\nresources: {{ports: 8080, {field}: {value}}}\nrun: serve 8080\n"
            );
            let check_by = |provider| check(&yaml, Beside::default(), provider);
            assert!(check_by("kubernetes").is_ok());
            let Err(refused) = check_by("process") else {
                panic!("{field} is taken");
            };
            assert!(refused.message().contains(field), "{}", refused.message());
        }
    }

    #[test]
    fn more_files_than_there_may_be_are_refused_before_the_yaml_is_looked_at() {
        let refused = |count: usize| {
            let beside = Beside {
                files: vec![v1::MountedFile::default(); count],
                ..Beside::default()
            };
            let Err(refused) = check_for_any("{", beside) else {
                panic!("it is taken");
            };
            refused.message().to_owned()
        };
        let told = refused(FILES_MAX + 1);
        assert!(
            told.contains("file_mounts: 257 files, and 256 are allowed"),
            "{told}"
        );
        assert!(!refused(FILES_MAX).contains("files"));
    }

    #[test]
    fn processes_get_files_in_their_own_directory_only() {
        let check_by = |destination: &str, more: &str, provider: &str| {
            let yaml = format!(
                "service: {{}}\nresources: {{ports: 8080}}\nrun: serve 8080\nfile_mounts: {{{destination}: x}}\n{more}"
            );
            let file = v1::MountedFile {
                mount: destination.to_owned(),
                contents: "hush".into(),
                ..v1::MountedFile::default()
            };
            let files = vec![file];
            check(
                &yaml,
                Beside {
                    files,
                    ..Beside::default()
                },
                provider,
            )
        };
        for (destination, more, said) in [
            (
                "/etc/app",
                "",
                "file_mounts./etc/app: is a place on the host",
            ),
            (
                "~/app",
                "envs: {HOME: /x}",
                "envs.HOME: would be another home",
            ),
            (
                "~/app",
                "secrets: {HOME: /x}",
                "secrets.HOME: would be another home",
            ),
        ] {
            assert!(check_by(destination, more, "kubernetes").is_ok());
            let Err(refused) = check_by(destination, more, "process") else {
                panic!("{destination} is taken");
            };
            assert!(refused.message().contains(said), "{}", refused.message());
            assert!(!refused.message().contains("hush"));
        }
        for (destination, more) in [("~/app", ""), ("app", "envs: {HOME: /x}")] {
            let spec = check_by(destination, more, "process").ok().unwrap().spec;
            assert_eq!(spec.file_mounts.len(), 1);
        }
    }

    #[test]
    fn the_name_asked_for_comes_first_then_the_yamls_then_the_default() {
        let own: ServiceName = "own".parse().unwrap();
        let chosen = |asked, own, default| choose_name(asked, own, default).map(String::from);
        assert_eq!(chosen("asked", Some(&own), "file").unwrap(), "asked");
        assert_eq!(chosen("", Some(&own), "file").unwrap(), "own");
        assert_eq!(chosen("", None, "file").unwrap(), "file");
        for refused in [
            chosen("", None, ""),
            chosen("-", None, ""),
            chosen("", None, "9"),
        ] {
            assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
