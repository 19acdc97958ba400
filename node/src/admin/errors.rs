//! How the admin API tells what went wrong: a gRPC status with `google.rpc` details, so that a
//! program can act on the reason and a person can read the message.

use std::collections::HashMap;
use std::time::Duration;

use raftserve_store::command::Refusal;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "raftserve";

/// How long a client should wait before it repeats what a cluster without a quorum refused: about
/// the time of an election.
const RETRY_AFTER: Duration = Duration::from_millis(500);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident;)+) => {
        /// The `reason` of an `ErrorInfo`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The gRPC status code that it comes with.
            #[must_use]
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),+ }
            }
        }
    };
}

reasons! {
    /// The service YAML has errors.
    InvalidSpec = "INVALID_SPEC", InvalidArgument;
    /// A field of the request itself is wrong.
    InvalidRequest = "INVALID_REQUEST", InvalidArgument;
    /// There is no service of that name.
    NoSuchService = "NO_SUCH_SERVICE", NotFound;
    /// The service has no replica of that number.
    NoSuchReplica = "NO_SUCH_REPLICA", NotFound;
    /// The service has no such session.
    NoSuchSession = "NO_SUCH_SESSION", NotFound;
    /// There is no such key.
    NoSuchKey = "NO_SUCH_KEY", NotFound;
    /// The cluster has no such peer.
    NoSuchMember = "NO_SUCH_MEMBER", NotFound;
    /// The service exists.
    ServiceExists = "SERVICE_EXISTS", AlreadyExists;
    /// The service is being taken down.
    ServiceGoingDown = "SERVICE_GOING_DOWN", FailedPrecondition;
    /// The replica is being stopped already.
    AlreadyStopping = "ALREADY_STOPPING", FailedPrecondition;
    /// A failed replica's record is only removed with purge.
    NeedsPurge = "NEEDS_PURGE", FailedPrecondition;
    /// The client session was never opened, or has expired.
    UnknownClient = "UNKNOWN_CLIENT", FailedPrecondition;
    /// The outcome of this sequence number was acknowledged and forgotten.
    AlreadyAcknowledged = "ALREADY_ACKNOWLEDGED", FailedPrecondition;
    /// A key is not what the request's condition asks for.
    KeyConflict = "KEY_CONFLICT", FailedPrecondition;
    /// The replica left no output to read.
    NoOutput = "NO_OUTPUT", NotFound;
    /// The service has no session affinity.
    NoAffinity = "NO_AFFINITY", FailedPrecondition;
    /// A peer stands in the way of raising the cluster's version, or it must be raised first.
    NotFinalized = "NOT_FINALIZED", FailedPrecondition;
    /// Leadership was not handed over.
    NotTransferred = "NOT_TRANSFERRED", FailedPrecondition;
    /// The cluster cannot do without this peer now.
    MemberNeeded = "MEMBER_NEEDED", FailedPrecondition;
    /// The call carries no credential of a kind that is taken.
    NoCredential = "NO_CREDENTIAL", Unauthenticated;
    /// The credential is nobody's.
    BadCredential = "BAD_CREDENTIAL", Unauthenticated;
    /// The credential was good until some time ago.
    CredentialExpired = "CREDENTIAL_EXPIRED", Unauthenticated;
    /// The caller's role is not enough.
    RoleTooLow = "ROLE_TOO_LOW", PermissionDenied;
    /// There is nothing to log in to.
    NoLogin = "NO_LOGIN", FailedPrecondition;
    /// The asked-for events are no longer kept.
    Compacted = "COMPACTED", OutOfRange;
    /// A bound on the state would be exceeded.
    Limit = "LIMIT", ResourceExhausted;
    /// The peer works on as many requests as it may.
    TooManyRequests = "TOO_MANY_REQUESTS", ResourceExhausted;
    /// The peer serves as many streams as it may.
    TooManyStreams = "TOO_MANY_STREAMS", ResourceExhausted;
    /// The client does not read its stream.
    SlowConsumer = "SLOW_CONSUMER", ResourceExhausted;
    /// Nothing was done.
    NotProposed = "NOT_PROPOSED", Unavailable;
    /// It may yet be done.
    OutcomeUnknown = "OUTCOME_UNKNOWN", Unavailable;
    /// A read could not be confirmed.
    NoQuorum = "NO_QUORUM", Unavailable;
    /// The peer is going away.
    Stopping = "STOPPING", Unavailable;
    /// The peer waits to found or to join a cluster.
    NoCluster = "NO_CLUSTER", Unavailable;
    /// A defect.
    Internal = "INTERNAL", Internal;
}

impl Reason {
    /// The reason that a status names, if it is one of ours.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let named = |reason: &&Self| reason.as_str() == info.reason;
        Self::ALL.iter().find(named).copied()
    }

    /// A status for this reason.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        self.status_with(message, [])
    }

    /// A status for this reason, with what a program may want to know besides.
    #[must_use]
    pub fn status_with<const N: usize>(
        self,
        message: impl Into<String>,
        metadata: [(&str, String); N],
    ) -> Status {
        let details = self.details(metadata);
        Status::with_error_details(self.code(), message, details)
    }

    fn details<const N: usize>(self, metadata: [(&str, String); N]) -> ErrorDetails {
        let metadata: HashMap<String, String> = metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(self.as_str(), DOMAIN, metadata);
        if self.code() == Code::Unavailable {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        details
    }
}

/// One thing wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field.
    pub field: String,
    /// Its 1-based line in the YAML, where there is one.
    pub line: Option<usize>,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

/// The metadata key that lists the line of each violation.
const LINES: &str = "lines";

/// What the violations of one status may take, in bytes: they travel in a header, of which clients
/// take 8 KiB (gRPC's C core) to 16 KiB (hyper), in base64, which adds a third.
const VIOLATIONS_BYTES_MAX: usize = 5 << 10;

/// Refuses a service YAML. Of very many violations, the first ones are told.
#[must_use]
pub fn invalid_spec(violations: &[Violation]) -> Status {
    let told = violations
        .iter()
        .scan(0, |bytes, violation| {
            // The reason, the line in two forms, and the frames of each.
            const AROUND: usize = 48;
            *bytes += violation.field.len() + violation.problem.len() + AROUND;
            (*bytes <= VIOLATIONS_BYTES_MAX).then_some(())
        })
        .count()
        .max(1)
        .min(violations.len());
    let message = match violations {
        [only] => format!("the service YAML is refused: {}", sentence(only)),
        all if told == all.len() => {
            format!("the service YAML is refused for {told} reasons")
        }
        all => format!(
            "the service YAML is refused for {} reasons, the first {told} of which are told",
            all.len()
        ),
    };
    bad_request(Reason::InvalidSpec, message, &violations[..told])
}

/// Refuses a request because of one of its own fields.
#[must_use]
pub fn invalid_request(field: &str, problem: impl Into<String>) -> Status {
    let violation = Violation {
        field: field.to_owned(),
        line: None,
        problem: problem.into(),
    };
    let message = format!("the request is refused: {}", sentence(&violation));
    bad_request(Reason::InvalidRequest, message, &[violation])
}

fn sentence(violation: &Violation) -> String {
    let Violation {
        field,
        line,
        problem,
    } = violation;
    match (line, field.as_str()) {
        (Some(line), "") => format!("line {line}: {problem}"),
        (Some(line), field) => format!("line {line}: {field}: {problem}"),
        (None, "") => problem.clone(),
        (None, field) => format!("{field}: {problem}"),
    }
}

fn bad_request(reason: Reason, message: String, violations: &[Violation]) -> Status {
    let lines: Vec<String> = violations
        .iter()
        .map(|violation| violation.line.unwrap_or(0).to_string())
        .collect();
    let fields: Vec<FieldViolation> = violations
        .iter()
        .map(|violation| {
            let description = match violation.line {
                Some(line) => format!("line {line}: {}", violation.problem),
                None => violation.problem.clone(),
            };
            FieldViolation {
                reason: reason.as_str().to_owned(),
                ..FieldViolation::new(violation.field.clone(), description)
            }
        })
        .collect();
    let mut details = reason.details([(LINES, lines.join(","))]);
    details.set_bad_request(fields);
    Status::with_error_details(reason.code(), message, details)
}

/// Reads back the violations that a status carries.
#[must_use]
pub fn violations(status: &Status) -> Vec<Violation> {
    let details = status.get_error_details();
    let lines: Vec<usize> = details
        .error_info()
        .and_then(|info| info.metadata.get(LINES))
        .map(|lines| lines.split(',').flat_map(str::parse).collect())
        .unwrap_or_default();
    let Some(request) = details.bad_request() else {
        return Vec::new();
    };
    let read = |(at, field): (usize, &FieldViolation)| {
        let line = lines.get(at).copied().filter(|line| *line > 0);
        let prefix = line
            .map(|line| format!("line {line}: "))
            .unwrap_or_default();
        Violation {
            field: field.field.clone(),
            line,
            problem: field
                .description
                .strip_prefix(&prefix)
                .unwrap_or(&field.description)
                .to_owned(),
        }
    };
    request
        .field_violations
        .iter()
        .enumerate()
        .map(read)
        .collect()
}

/// Tells why the cluster, having understood a request, refused it.
#[must_use]
pub fn refused(refusal: &Refusal) -> Status {
    let service = |name: &dyn ToString| ("service", name.to_string());
    let replica = |number: &u32| ("replica", number.to_string());
    match refusal {
        Refusal::UnknownClient => Reason::UnknownClient.status(
            "the client session is not open: it was never opened, or closed because it was not used; \
             the request was not executed now: see what became of it, then open a new session",
        ),
        Refusal::AlreadyAcknowledged => Reason::AlreadyAcknowledged.status(
            "this sequence number was executed and acknowledged before; use a new one for a new request",
        ),
        Refusal::ServiceExists(name) => Reason::ServiceExists.status_with(
            format!("service {name} exists already; update it, or choose another name"),
            [service(name)],
        ),
        Refusal::NoSuchService(name) => no_such_service(name),
        Refusal::ServiceGoingDown(name) => Reason::ServiceGoingDown.status_with(
            format!("service {name} is being taken down; wait until it is gone, or purge it"),
            [service(name)],
        ),
        Refusal::NoSuchReplica(name, number) => no_such_replica(name, *number),
        Refusal::AlreadyStopping(name, number) => Reason::AlreadyStopping.status_with(
            format!("replica {number} of service {name} is being stopped already"),
            [service(name), replica(number)],
        ),
        Refusal::NeedsPurge(name, number) => Reason::NeedsPurge.status_with(
            format!("replica {number} of service {name} has failed; its record is removed with purge only"),
            [service(name), replica(number)],
        ),
        Refusal::Limit(what) => Reason::Limit.status(what.clone()),
        Refusal::PeerRemoved(node) => Reason::NoSuchMember.status(format!(
            "peer {node} was removed from the cluster, or is about to be: empty its data directory, so that it \
             joins again under a new id"
        )),
        Refusal::NoSuchPeer(node) => {
            Reason::NoSuchMember.status(format!("peer {node} has not joined this cluster since its bootstrap"))
        }
        Refusal::PeerIdTaken(node) => Reason::Limit.status(format!(
            "another peer has or had the id {node}: ask again, for the next one"
        )),
        Refusal::KeyConflict { key, modified } => {
            let now = match modified {
                Some(index) => format!("key {key} was changed at index {index}"),
                None => format!("there is no key {key}"),
            };
            let modified = modified.map_or(0, |index| index.0);
            Reason::KeyConflict.status_with(
                format!("{now}, which is not what was asked for; read it again and decide anew"),
                [
                    ("key", key.to_string()),
                    ("modified_index", modified.to_string()),
                ],
            )
        }
    }
}

/// There is no service of that name.
#[must_use]
pub fn no_such_service(name: &dyn std::fmt::Display) -> Status {
    Reason::NoSuchService.status_with(
        format!("there is no service {name}"),
        [("service", name.to_string())],
    )
}

/// The service has no replica of that number.
#[must_use]
pub fn no_such_replica(name: &dyn std::fmt::Display, number: u32) -> Status {
    Reason::NoSuchReplica.status_with(
        format!("service {name} has no replica {number}"),
        [
            ("service", name.to_string()),
            ("replica", number.to_string()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back_from_its_status() {
        for reason in Reason::ALL {
            let status = reason.status("x");
            assert_eq!(status.code(), reason.code());
            assert_eq!(Reason::of(&status), Some(*reason));
        }
        assert_eq!(Reason::of(&Status::internal("x")), None);
    }

    #[test]
    fn violations_keep_field_line_and_problem() {
        let told = [
            Violation {
                field: "service.replicas".into(),
                line: Some(7),
                problem: "must be an integer, not \"two\"".into(),
            },
            Violation {
                field: "run".into(),
                line: None,
                problem: "is required".into(),
            },
        ];
        let status = invalid_spec(&told);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(violations(&status), told);
        let details = status.get_error_details();
        let first = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(first.description, "line 7: must be an integer, not \"two\"");
    }

    #[test]
    fn very_many_violations_fit_into_a_header() {
        let told: Vec<_> = (1..=100)
            .map(|line| Violation {
                field: format!("k{line}"),
                line: Some(line),
                problem: "unknown field; allowed here: name, envs, secrets, setup, run".into(),
            })
            .collect();
        let status = invalid_spec(&told);
        let shown = violations(&status);
        assert!(
            shown.len() > 20 && told.starts_with(&shown),
            "{}",
            shown.len()
        );
        assert!(
            status
                .message()
                .starts_with("the service YAML is refused for 100 reasons, the first"),
            "{}",
            status.message()
        );
        let header = (status.details().len() + status.message().len()) * 4 / 3;
        assert!(header < 8 << 10, "{header} bytes");
    }

    #[test]
    fn unavailable_says_when_to_retry() {
        let status = Reason::NotProposed.status("no leader");
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    }

    #[test]
    fn refusals_keep_their_codes_apart() {
        let name: raftserve_model::ServiceName = "web".parse().unwrap();
        let code = |refusal| refused(&refusal).code();
        assert_eq!(
            code(Refusal::ServiceExists(name.clone())),
            Code::AlreadyExists
        );
        assert_eq!(code(Refusal::NoSuchService(name.clone())), Code::NotFound);
        assert_eq!(
            code(Refusal::NoSuchReplica(name.clone(), 1)),
            Code::NotFound
        );
        assert_eq!(
            code(Refusal::ServiceGoingDown(name.clone())),
            Code::FailedPrecondition
        );
        assert_eq!(code(Refusal::NeedsPurge(name, 1)), Code::FailedPrecondition);
        assert_eq!(code(Refusal::Limit("x".into())), Code::ResourceExhausted);
    }
}
