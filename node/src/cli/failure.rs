//! How a verb fails: one clear message, what to do about it, and an exit code for scripts.

use std::fmt::Write;
use std::process::ExitCode;

use tonic::{Code, Status};

use super::paint::{Paint, Tone};
use crate::admin::errors::{Reason, Violation, violations};

/// Exit codes, documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Unavailable = 4,
    Timeout = 5,
    Refused = 6,
}

/// Why a verb ended without success.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
}

/// A YAML that was sent, so that an error can show the line it is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    pub(super) path: &'a str,
    pub(super) text: &'a str,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            remedy: None,
        }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What a peer answered, without a YAML.
    pub(super) fn of(status: &Status) -> Self {
        Self::of_sent(status, None)
    }

    /// What a peer answered to a request that carried a YAML.
    pub(super) fn of_sent(status: &Status, sent: Option<Sent<'_>>) -> Self {
        if let Some(misfit) = misfit(status) {
            let message = format!("whoever answered is no peer's admin port: {misfit}");
            return Self::new(Exit::Unavailable, message);
        }
        let exit = match status.code() {
            Code::InvalidArgument => Exit::Usage,
            Code::NotFound => Exit::NotFound,
            Code::Unavailable => Exit::Unavailable,
            Code::DeadlineExceeded => Exit::Timeout,
            Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated => Exit::Refused,
            _ => Exit::Failed,
        };
        let found = violations(status);
        let message = match (Reason::of(status), sent) {
            (Some(Reason::InvalidSpec), Some(sent)) if !found.is_empty() => excerpts(&found, sent),
            (Some(_), _) => status.message().to_owned(),
            (None, _) => format!(
                "the peer answered {:?}: {}",
                status.code(),
                status.message()
            ),
        };
        let failure = Self::new(exit, message);
        match Reason::of(status).and_then(remedy) {
            Some(remedy) => failure.remedy(remedy),
            None => failure,
        }
    }

    /// Prints the failure and gives the program's exit code.
    pub(super) fn report(&self) -> ExitCode {
        eprint!("{}", self.text(Paint::of(&std::io::stderr())));
        ExitCode::from(self.exit as u8)
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = format!("{} {}\n", paint.tone(Tone::Bad, "error:"), self.message);
        if let Some(remedy) = &self.remedy {
            let _ = writeln!(text, "{} {remedy}", paint.tone(Tone::Strong, "remedy:"));
        }
        text
    }
}

/// What may be the matter where an answer is not one that a peer's admin port gives.
pub(super) fn misfit(status: &Status) -> Option<&'static str> {
    if Reason::of(status).is_some() {
        return None;
    }
    match status.code() {
        // Also what a 404 over HTTP/2 is to gRPC.
        Code::Unimplemented => Some(
            "it knows no such call: is that the port of --admin-addr (7000 by default), of a peer of this release?",
        ),
        // What broke a rule of HTTP/2; a connection that ends is another matter.
        Code::Internal if status.message().contains("h2 protocol error") => Some(
            "it speaks no HTTP/2: it may speak TLS, say https://; or is that not the port of --admin-addr (7000 by \
             default)?",
        ),
        _ => None,
    }
}

/// What to do, in words of the command line.
fn remedy(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::ServiceExists => {
            Some("`raftserve update NAME YAML` gives it a new version; `-n` names another service")
        }
        Reason::NoSuchService => Some("`raftserve status` lists the services"),
        Reason::NoSuchReplica => Some("`raftserve status NAME -v` lists its replicas"),
        Reason::NoSuchKey => Some("`raftserve kv list` lists the keys"),
        Reason::KeyConflict => {
            Some("`raftserve kv get KEY --output json` shows its modified_index")
        }
        Reason::NoSuchMember => Some("`raftserve cluster members` lists the peers"),
        Reason::ServiceGoingDown => Some(
            "`raftserve status NAME` shows how far it is; `raftserve down NAME --purge` forgets it",
        ),
        Reason::NeedsPurge => Some("add --purge"),
        Reason::Compacted => Some("leave --from out to begin at the oldest event that is kept"),
        Reason::OutcomeUnknown => Some("look with `raftserve status` before you try again"),
        Reason::NotProposed | Reason::NoQuorum => Some(
            "`raftserve cluster status` shows what the peer sees; `status --stale` works without a quorum",
        ),
        Reason::NoCredential | Reason::BadCredential | Reason::CredentialExpired => Some(
            "`raftserve login` gets a credential; RAFTSERVE_TOKEN gives one for a single command",
        ),
        Reason::RoleTooLow => {
            Some("ask for another role, or log in as another user with `raftserve login`")
        }
        Reason::InvalidSpec
        | Reason::NoLogin
        | Reason::InvalidRequest
        | Reason::NoSuchSession
        | Reason::NoOutput
        | Reason::AlreadyStopping
        | Reason::UnknownClient
        | Reason::AlreadyAcknowledged
        | Reason::NoAffinity
        | Reason::NotTransferred
        | Reason::NotFinalized
        | Reason::MemberNeeded
        | Reason::Limit
        | Reason::TooManyRequests
        | Reason::TooManyStreams
        | Reason::SlowConsumer
        | Reason::Stopping
        | Reason::Internal => None,
    }
}

/// Each violation with the line that it is about.
fn excerpts(violations: &[Violation], sent: Sent<'_>) -> String {
    let mut text = match violations.len() {
        1 => format!("{} is refused", sent.path),
        many => format!("{} is refused for {many} reasons", sent.path),
    };
    for violation in violations {
        let field = match violation.field.as_str() {
            "" => String::new(),
            field => format!("{field}: "),
        };
        let place = match violation.line {
            Some(line) => format!("{}:{line}", sent.path),
            None => sent.path.to_owned(),
        };
        let _ = write!(text, "\n\n  {place}: {field}{}", violation.problem);
        let shown = violation
            .line
            .and_then(|line| Some((line, sent.text.lines().nth(line.checked_sub(1)?)?)));
        if let Some((line, source)) = shown {
            let _ = write!(text, "\n  {line:>5} | {}", source.trim_end());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::errors::invalid_spec;

    #[test]
    fn a_refused_yaml_is_shown_with_its_lines() {
        let status = invalid_spec(&[
            Violation {
                field: "service.replicas".into(),
                line: Some(2),
                problem: "must be an integer".into(),
            },
            Violation {
                field: "run".into(),
                line: None,
                problem: "is required".into(),
            },
        ]);
        let sent = Sent {
            path: "web.yaml",
            text: "service:\n  replicas: two\n",
        };
        let failure = Failure::of_sent(&status, Some(sent));
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(
            failure.text(Paint::fixed(false)),
            "error: web.yaml is refused for 2 reasons\n\n  web.yaml:2: service.replicas: must be an \
             integer\n      2 |   replicas: two\n\n  web.yaml: run: is required\n"
        );
    }

    #[test]
    fn an_answer_of_something_else_than_a_peer_is_told_from_that_of_a_peer() {
        let tls = Status::internal("h2 protocol error: http2 error");
        let peers = Status::unimplemented("");
        for (status, named) in [(tls, "https://"), (peers, "--admin-addr")] {
            let failure = Failure::of(&status);
            assert_eq!(failure.exit, Exit::Unavailable);
            assert!(failure.message.contains(named), "{}", failure.message);
        }
        assert_eq!(misfit(&Reason::Internal.status("h2 protocol error")), None);
        assert_eq!(misfit(&Status::internal("x")), None);
    }

    #[test]
    fn exit_codes_tell_what_kind_of_failure_it_was() {
        let exit = |reason: Reason| Failure::of(&reason.status("x")).exit;
        assert_eq!(exit(Reason::NoSuchService), Exit::NotFound);
        assert_eq!(exit(Reason::ServiceExists), Exit::Refused);
        assert_eq!(exit(Reason::OutcomeUnknown), Exit::Unavailable);
        assert_eq!(exit(Reason::InvalidRequest), Exit::Usage);
        assert_eq!(exit(Reason::Internal), Exit::Failed);
        let text = Failure::of(&Reason::NeedsPurge.status("x")).text(Paint::fixed(false));
        assert_eq!(text, "error: x\nremedy: add --purge\n");
    }
}
