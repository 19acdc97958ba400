//! Checks what a user hands in, on the peer asked, before anything is proposed.

use std::collections::HashMap;
use std::sync::Arc;

use raftserve_model::ServiceName;
use raftserve_model::spec::{ParseOptions, ServiceSpec, SpecError};
use tonic::Status;

use super::errors::{self, Violation};
use super::shared::service_name;

/// A YAML in which nothing is wrong.
pub(super) struct Checked {
    /// Its own `name`, if it has one.
    pub(super) name: Option<ServiceName>,
    pub(super) spec: Arc<ServiceSpec>,
    pub(super) warnings: Vec<String>,
}

/// Checks a service YAML, with the variables that are given beside it.
///
/// # Errors
/// `INVALID_ARGUMENT` with everything that is wrong.
pub(super) fn check(
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
pub(super) fn choose_name(
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
        let Err(refused) = check(yaml, HashMap::new(), HashMap::new()) else {
            panic!("it is taken");
        };
        assert_eq!(refused.code(), Code::InvalidArgument);
        let field = "traffic.request_body_bytes_max";
        assert!(refused.message().contains(field), "{}", refused.message());
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
