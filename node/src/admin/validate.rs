//! Checks what a user hands in, on the peer asked, before anything is proposed.

use std::collections::HashMap;
use std::sync::Arc;

use raftserve_model::ServiceName;
use raftserve_model::spec::{ParseOptions, ServiceSpec, SpecError};
use tonic::Status;

use super::errors::{self, Violation};
use super::shared::service_name;

/// A YAML in which nothing is wrong.
pub(crate) struct Checked {
    /// Its own `name`, if it has one.
    pub(crate) name: Option<ServiceName>,
    /// What it asks for.
    pub(crate) spec: Arc<ServiceSpec>,
    /// What its writer may not have meant.
    pub(crate) warnings: Vec<String>,
}

/// Checks a service YAML, with the variables that are given beside it, for peers that make replicas as `provider` does.
///
/// # Errors
/// `INVALID_ARGUMENT` with everything that is wrong.
pub(super) fn check(
    yaml: &str,
    envs: HashMap<String, String>,
    secrets: HashMap<String, String>,
    provider: &str,
) -> Result<Checked, Status> {
    let checked = check_for_any(yaml, envs, secrets)?;
    let misplaced = match provider {
        "kubernetes" => Vec::new(),
        _ => for_pods_only(&checked.spec),
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
pub(crate) fn check_for_any(
    yaml: &str,
    envs: HashMap<String, String>,
    secrets: HashMap<String, String>,
) -> Result<Checked, Status> {
    let options = ParseOptions {
        envs: envs.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
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

/// What only pods can have: refused by name where replicas are processes.
fn for_pods_only(spec: &ServiceSpec) -> Vec<Violation> {
    let violation = |field: &'static str| {
        Violation {
        field: field.to_owned(),
        line: None,
        problem: "is for replicas that are pods, and these peers make processes (--provider process); leave it out"
            .to_owned(),
    }
    };
    pod_fields(spec).map(violation).collect()
}

/// The fields that are set and that only pods can have.
pub(crate) fn pod_fields(spec: &ServiceSpec) -> impl Iterator<Item = &'static str> {
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
    asked.map(|(_, field)| field)
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
        let Err(refused) = check(yaml, HashMap::new(), HashMap::new(), "process") else {
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
            let check_by = |provider| check(&yaml, HashMap::new(), HashMap::new(), provider);
            assert!(check_by("kubernetes").is_ok());
            let Err(refused) = check_by("process") else {
                panic!("{field} is taken");
            };
            assert!(refused.message().contains(field), "{}", refused.message());
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
