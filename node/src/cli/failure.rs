//! How a verb fails: one clear message, what to do about it, and an exit code for scripts. Where JSON
//! was asked for, the same as one JSON object on the last line of standard error.

use std::ffi::OsString;
use std::fmt::Write;
use std::process::ExitCode;

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::connect::Nobody;
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
    Unhealthy = 7,
    Interrupted = 130,
}

impl Exit {
    /// What kind of failure it is, in JSON.
    fn kind(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unhealthy => "unhealthy",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How failures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    /// For people.
    Text,
    /// One JSON object on one line.
    Json,
}

impl ErrorForm {
    /// What the command line asks for, whether or not it can be understood otherwise.
    #[must_use]
    pub fn asked(words: impl IntoIterator<Item = OsString>) -> Self {
        let mut before = OsString::new();
        for word in words.into_iter().take_while(|word| word != "--") {
            if word == "--output=json" || (before == "--output" && word == "json") {
                return Self::Json;
            }
            before = word;
        }
        Self::Text
    }
}

/// Why a verb ended without success.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
    /// The peer's reason, if a peer answered.
    pub(super) reason: Option<Reason>,
    /// What is wrong with what was sent, one by one.
    violations: Vec<Violation>,
    /// The same as people read it, with the lines that it is about. Empty where the message says it all.
    excerpts: String,
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
            reason: None,
            violations: Vec::new(),
            excerpts: String::new(),
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

    /// What is wrong in what would have been sent, which the message says too.
    pub(super) fn violation(mut self, violation: Violation) -> Self {
        self.violations.push(violation);
        self
    }

    /// The same, said after what did not come about for it.
    pub(super) fn after(self, undone: &str) -> Self {
        Self {
            message: format!("{undone}: {}", self.message),
            ..self
        }
    }

    /// The same, where what was to be watched is no longer kept: what shows the present state comes first.
    pub(super) fn if_compacted(self, list: &str) -> Self {
        match (self.reason, &self.remedy) {
            (Some(Reason::Compacted), Some(skip)) => {
                let remedy = format!("{list}; {skip}");
                self.remedy(remedy)
            }
            _ => self,
        }
    }

    /// What a peer answered, without a YAML.
    pub(super) fn of(status: &Status) -> Self {
        Self::of_sent(status, None)
    }

    /// What a peer answered to a request that carried a YAML.
    pub(super) fn of_sent(status: &Status, sent: Option<Sent<'_>>) -> Self {
        if let Some(nobody) = Nobody::of(status) {
            return Self::new(Exit::Unavailable, nobody.to_string());
        }
        if let Some(misfit) = misfit(status) {
            let message = format!("whoever answered is no peer's admin port: {misfit}");
            return Self::new(Exit::Unavailable, message);
        }
        if let Some(sizes) = too_large(status) {
            return match sent {
                Some(sent) => Self::new(Exit::Refused, format!("{} is too large: {sizes}", sent.path))
                    .remedy("shorten the YAML (1 MiB at most), or the local files of its file_mounts, which are sent along"),
                None => Self::new(Exit::Refused, format!("what was sent or answered is too large: {sizes}"))
                    .remedy("ask for less, or send a shorter value"),
            };
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
        let violations = violations(status);
        let reason = Reason::of(status);
        let mut excerpts = String::new();
        let message = match (reason, sent) {
            (Some(Reason::InvalidSpec), Some(sent)) if !violations.is_empty() => {
                excerpts = excerpts_of(&violations, sent);
                headline(violations.len(), sent)
            }
            (Some(_), _) => status.message().to_owned(),
            (None, _) => format!(
                "the peer answered {:?}: {}",
                status.code(),
                status.message()
            ),
        };
        Self {
            remedy: match reason {
                Some(Reason::Compacted) => skipping(status),
                reason => reason.and_then(remedy).map(str::to_owned),
            },
            reason,
            violations,
            excerpts,
            ..Self::new(exit, message)
        }
    }

    /// That the command line was not understood.
    pub(super) fn unparsed(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (message, _) = text.split_once("\n\nUsage:").unwrap_or((text, ""));
        Self::usage(message.trim()).remedy("`--help` shows what is understood")
    }

    /// The same, where what failed is a login with a password.
    pub(super) fn of_password(self) -> Self {
        match self.reason {
            Some(Reason::BadCredential) => self.remedy(
                "`raftserve login` asks for it again; whoever runs the peers sets another by the line that `htpasswd -nB -C \
                 10 USER` prints, in the file htpasswd of their --credentials-dir (docs/access.md)",
            ),
            _ => self,
        }
    }

    /// Prints the failure and gives the program's exit code.
    pub(super) fn report(&self, form: ErrorForm) -> ExitCode {
        match form {
            ErrorForm::Text => eprint!("{}", self.text(Paint::of(&std::io::stderr()))),
            ErrorForm::Json => eprintln!("{}", self.value()),
        }
        ExitCode::from(self.exit as u8)
    }

    pub(super) fn value(&self) -> Value {
        let violation = |violation: &Violation| {
            json!({
                "field": violation.field,
                "line": violation.line,
                "problem": violation.problem,
            })
        };
        json!({ "error": {
            "message": self.message,
            "kind": self.exit.kind(),
            "reason": self.reason.map(Reason::as_str),
            "exit_code": self.exit as u8,
            "remedy": self.remedy,
            "violations": self.violations.iter().map(violation).collect::<Vec<_>>(),
        }})
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = format!(
            "{} {}{}\n",
            paint.tone(Tone::Bad, "error:"),
            self.message,
            self.excerpts
        );
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

/// The sizes of a message that is larger than its reader takes, as gRPC tells them without saying which message it was.
fn too_large(status: &Status) -> Option<&str> {
    let is_of_size = status.code() == Code::OutOfRange && Reason::of(status).is_none();
    let (_, sizes) = status.message().split_once("message length too large: ")?;
    is_of_size.then_some(sizes)
}

/// How a watch goes on without what is no longer kept, and what that costs.
fn skipping(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let first = details.error_info()?.metadata.get("first_index")?;
    Some(format!(
        "--from {first} goes on without it, and passes over all that came before"
    ))
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
        Reason::OutcomeUnknown => Some("look with `raftserve status` before you try again"),
        Reason::NotProposed | Reason::NoQuorum => Some(
            "`raftserve cluster status` shows what the peer sees; `status`, `kv get` and `kv list` answer without a quorum \
             with --stale; where most peers are lost for good, see docs/runbooks/lost-majority.md",
        ),
        Reason::NoCredential | Reason::CredentialExpired => Some(
            "`raftserve login` gets a credential; RAFTSERVE_TOKEN gives one for a single command",
        ),
        Reason::BadCredential => Some(
            "`raftserve login` gets another; who is known stands in the files htpasswd and tokens of the peers' \
             --credentials-dir, which on Kubernetes is the release's Secret NAME-credentials (docs/access.md)",
        ),
        Reason::RoleTooLow => {
            Some("ask for another role, or log in as another user with `raftserve login`")
        }
        Reason::InvalidSpec
        | Reason::Compacted
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
        | Reason::NoCluster
        | Reason::Internal => None,
    }
}

fn headline(violations: usize, sent: Sent<'_>) -> String {
    match violations {
        1 => format!("{} is refused", sent.path),
        many => format!("{} is refused for {many} reasons", sent.path),
    }
}

/// Each violation with the line that it is about.
fn excerpts_of(violations: &[Violation], sent: Sent<'_>) -> String {
    let mut text = String::new();
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
    fn json_tells_all_that_the_text_tells() {
        let wrong = Violation {
            field: "service.replicas".into(),
            line: Some(2),
            problem: "must be an integer".into(),
        };
        let sent = Sent {
            path: "web.yaml",
            text: "service:\n  replicas: two\n",
        };
        let failure = Failure::of_sent(&invalid_spec(&[wrong]), Some(sent));
        assert_eq!(
            failure.value(),
            json!({ "error": {
                "message": "web.yaml is refused",
                "kind": "usage",
                "reason": "INVALID_SPEC",
                "exit_code": 2,
                "remedy": null,
                "violations": [
                    { "field": "service.replicas", "line": 2, "problem": "must be an integer" },
                ],
            }})
        );
        let own = Failure::failed("x\ny").remedy("z");
        assert_eq!(own.value()["error"]["reason"], Value::Null);
        assert_eq!(own.value()["error"]["remedy"], "z");
        assert_eq!(own.value().to_string().lines().count(), 1);
    }

    #[test]
    fn json_is_printed_where_it_is_asked_for() {
        let asked = |line: &str| ErrorForm::asked(line.split(' ').map(OsString::from));
        for line in [
            "raftserve status --output json",
            "raftserve --nonsense up x.yaml --output=json",
        ] {
            assert_eq!(asked(line), ErrorForm::Json, "{line}");
        }
        for line in [
            "raftserve status",
            "raftserve status --output yaml json",
            "raftserve kv put a -- --output json",
        ] {
            assert_eq!(asked(line), ErrorForm::Text, "{line}");
        }
    }

    #[test]
    fn a_command_line_that_is_not_understood_is_told_without_its_usage() {
        let command = clap::Command::new("x").arg(clap::arg!(--yes));
        let error = command.try_get_matches_from(["x", "--no"]).unwrap_err();
        let failure = Failure::unparsed(&error);
        assert!(failure.message.starts_with("unexpected argument '--no'"));
        assert!(!failure.message.contains("Usage"), "{failure:?}");
        assert_eq!(failure.exit, Exit::Usage);
    }

    #[test]
    fn a_wrong_password_is_told_where_passwords_are_set() {
        let wrong = || Failure::of(&Reason::BadCredential.status("x"));
        let remedy = |failure: Failure| failure.remedy.unwrap_or_default();
        let of_password = remedy(wrong().of_password());
        for named in ["raftserve login", "htpasswd -nB", "--credentials-dir"] {
            assert!(of_password.contains(named), "{of_password}");
        }
        assert!(remedy(wrong()).contains("htpasswd and tokens"));
        let other = Failure::of(&Reason::NeedsPurge.status("x")).of_password();
        assert_eq!(remedy(other), "add --purge");
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
    fn a_message_that_is_too_large_is_told_with_what_to_do() {
        let text = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        let status = Status::out_of_range(text);
        let sent = Sent {
            path: "web.yaml",
            text: "",
        };
        for (sent, named) in [(Some(sent), "web.yaml"), (None, "sent or answered")] {
            let failure = Failure::of_sent(&status, sent);
            assert_eq!(failure.exit, Exit::Refused);
            assert!(failure.message.contains(named), "{failure:?}");
            assert!(
                failure
                    .message
                    .ends_with("found 9 bytes, the limit is: 8 bytes"),
                "{failure:?}"
            );
            assert!(failure.remedy.is_some(), "{failure:?}");
        }
        assert_eq!(too_large(&Reason::Compacted.status(text)), None);
    }

    #[test]
    fn what_is_no_longer_kept_is_not_passed_over_in_silence() {
        let first = [("first_index", "219".to_owned())];
        let gone = || Failure::of(&Reason::Compacted.status_with("x", first.clone()));
        let remedy = gone().if_compacted("list it").remedy.unwrap();
        assert!(remedy.starts_with("list it; --from 219 "), "{remedy}");
        assert!(
            remedy.ends_with("passes over all that came before"),
            "{remedy}"
        );
        let other = Failure::of(&Reason::NeedsPurge.status("x")).if_compacted("list it");
        assert_eq!(other.remedy.unwrap(), "add --purge");
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
