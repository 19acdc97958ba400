//! What is wrong with a service YAML: each fault with its field, its place and its remedy.

use std::fmt;

/// The most faults that are reported at once: more than anyone reads, and few enough for one reply.
pub(super) const ERRORS_MAX: usize = 100;

/// A place in a YAML source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// Counted from 1; 0 where no line of the source is at fault.
    pub(super) line: u32,
    /// Counted from 1, in characters.
    pub(super) column: u32,
}

/// One fault of a service YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The dotted path of the field, such as `service.readiness_probe.path` or `resources.ports[1]`;
    /// empty where the document as a whole is at fault.
    pub field: String,
    /// The line of the fault, from 1; 0 where no line of the source is at fault.
    pub line: u32,
    /// The column of the fault, from 1, in characters; 0 along with `line`.
    pub column: u32,
    /// What is wrong.
    pub problem: String,
    /// What is allowed instead, or how to mend it; empty where the problem says it all.
    pub remedy: String,
}

impl SpecError {
    /// A fault of the field at `path`. Long paths and texts are cut short: a key may be as long as
    /// the whole source.
    pub(super) fn new(
        path: &str,
        mark: Mark,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            field: shorten(path.to_owned()),
            line: mark.line,
            column: mark.column,
            problem: shorten(problem.into()),
            remedy: remedy.into(),
        }
    }
}

/// The text, cut short if it is longer than anyone reads.
fn shorten(mut text: String) -> String {
    /// Room for every path and message of ours.
    const SHOWN_CHARS: usize = 300;
    if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.field.as_str()) {
            (0, "") => {}
            (0, field) => write!(f, "{field}: ")?,
            (line, "") => write!(f, "line {line}: ")?,
            (line, field) => write!(f, "line {line}, {field}: ")?,
        }
        f.write_str(&self.problem)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecError {}

/// The faults that were found in a service YAML, in the order of the source: at least one and at most
/// a hundred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(Vec<SpecError>);

impl SpecErrors {
    /// All of `errors` in the order of the source, or nothing if there are none.
    pub(super) fn collect(mut errors: Vec<SpecError>) -> Option<Self> {
        errors.sort_by(|a, b| (a.line, a.column, &a.field).cmp(&(b.line, b.column, &b.field)));
        errors.dedup();
        (!errors.is_empty()).then_some(Self(errors))
    }

    /// The faults in the order of the source; at least one.
    #[must_use]
    pub fn as_slice(&self) -> &[SpecError] {
        &self.0
    }

    /// The faults, owned.
    #[must_use]
    pub fn into_vec(self) -> Vec<SpecError> {
        self.0
    }
}

impl fmt::Display for SpecErrors {
    /// One fault per line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}
