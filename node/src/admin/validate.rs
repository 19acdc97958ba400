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
    let ahead = ahead_of_the_proxy(&parsed.spec);
    if !ahead.is_empty() {
        return Err(errors::invalid_spec(&ahead));
    }
    Ok(Checked {
        name: parsed.name,
        spec: Arc::new(parsed.spec),
        warnings: parsed.warnings,
    })
}

/// What can be written down already, and what the proxy does not do yet: refused by name, since a setting that has no
/// effect would mislead.
fn ahead_of_the_proxy(spec: &ServiceSpec) -> Vec<Violation> {
    let traffic = &spec.traffic;
    let settings = [(
        traffic.request_body_bytes_max.is_some(),
        "request_body_bytes_max",
        "leave it out",
    )];
    let refused = settings.into_iter().filter(|(is_set, ..)| *is_set);
    refused
        .map(|(_, field, remedy)| Violation {
            field: format!("_metadata.raftserve.traffic.{field}"),
            line: None,
            problem: format!("is not supported yet; {remedy}"),
        })
        .collect()
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
    fn what_the_proxy_does_not_do_yet_is_refused_by_name() {
        let check_traffic = |traffic: &str| {
            let yaml = format!(
                "service: {{}}\nresources: {{ports: 8080}}\nrun: serve 8080\n\
                 _metadata: {{raftserve: {{traffic: {traffic}}}}}\n"
            );
            check(&yaml, HashMap::new(), HashMap::new())
        };
        for (traffic, field) in [(
            "{request_body_bytes_max: 10}",
            "traffic.request_body_bytes_max",
        )] {
            let Err(refused) = check_traffic(traffic) else {
                panic!("{traffic} is taken");
            };
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(field), "{}", refused.message());
        }
        for traffic in [
            "{policy: round_robin, retries: {max: 1}}",
            "{policy: maglev, hash_on: {cookie: user}}",
            "{routes: [{methods: [GET], rewrite_prefix: /x, path_prefix: /y}]}",
            "{upstream: {tls: {verify: no}, connect_timeout_seconds: 3}}",
        ] {
            assert!(check_traffic(traffic).is_ok(), "{traffic}");
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
