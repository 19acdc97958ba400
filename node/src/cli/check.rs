//! `raftserve check`: one line for each thing that must be right, and what to do where it is not.

mod kubernetes;
mod peers;

use serde_json::{Value, json};

use super::check_args::CheckArgs;
use super::failure::{Exit, Failure};
use super::output;
use super::paint::{Paint, Tone};

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works, and not as well as it could; or it cannot be told.
    Warning,
    Failed,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Good => Tone::Good,
            Self::Warning => Tone::Busy,
            Self::Failed => Tone::Bad,
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// What was looked at.
    check: &'static str,
    verdict: Verdict,
    /// What was seen.
    seen: String,
    /// What to do, unless it is good.
    remedy: Option<String>,
}

impl Line {
    fn good(check: &'static str, seen: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Good,
            seen: seen.into(),
            remedy: None,
        }
    }

    fn warning(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            remedy: Some(remedy.into()),
            ..Self::good(check, seen)
        }
    }

    fn failed(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failed,
            ..Self::warning(check, seen, remedy)
        }
    }
}

/// Runs the verb.
pub(super) async fn run(args: CheckArgs) -> Result<(), Failure> {
    let lines = match args.before {
        true => kubernetes::check(&args),
        false => peers::check(&args).await,
    };
    let value = Value::Array(lines.iter().map(show).collect());
    output::print(args.output.output, &value, || {
        text(&lines, Paint::of(&std::io::stdout()))
    })?;
    let failed = lines.iter().filter(|line| line.verdict == Verdict::Failed);
    match failed.count() {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failed, "one check failed")),
        count => Err(Failure::new(Exit::Failed, format!("{count} checks failed"))),
    }
}

fn show(line: &Line) -> Value {
    json!({
        "check": line.check,
        "verdict": line.verdict.as_str(),
        "seen": line.seen,
        "remedy": line.remedy,
    })
}

fn text(lines: &[Line], paint: Paint) -> String {
    let width = lines.iter().map(|line| line.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let verdict = format!("{:<7}", line.verdict.as_str());
        let verdict = paint.tone(line.verdict.tone(), &verdict);
        text.push_str(&format!(
            "{verdict}  {:<width$}  {}\n",
            line.check, line.seen
        ));
        if let Some(remedy) = &line.remedy {
            text.push_str(&format!("         {:width$}  {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_that_is_not_good_says_what_to_do() {
        let lines = [
            Line::good("dns", "2 servers"),
            Line::failed("storage", "there is no class x", "choose another one"),
        ];
        assert_eq!(
            text(&lines, Paint::fixed(false)),
            [
                "ok       dns      2 servers\n",
                "failed   storage  there is no class x\n",
                "                  choose another one\n",
            ]
            .concat()
        );
    }
}
