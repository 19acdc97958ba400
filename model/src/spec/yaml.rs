//! A YAML document as a tree in which every node knows its line and column.
//!
//! Reads hostile input in bounded time and memory: the source, the depth and what aliases add are
//! bounded, and nothing recurses further than the depth bound. Stricter than YAML where a lenient
//! reading hides a mistake: a key written twice, a second document and an application's own tags
//! are refused.

use saphyr_parser::{Marker, Parser};

mod builder;

use super::error::{ERRORS_MAX, Mark, SpecError};
use super::scalar;
use builder::Builder;

/// The longest source, in bytes. A service file is a few kilobytes; one that carries whole scripts
/// stays far below this, and it still fits into one log entry.
pub const SPEC_SOURCE_BYTES_MAX: usize = 1 << 20;

/// The deepest nesting. A service file uses seven levels, and JSON to be posted a few more.
pub const SPEC_DEPTH_MAX: usize = 64;

/// What a node counts for beside its text.
const NODE_BYTES: usize = size_of::<Node>();

/// A node and its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) mark: Mark,
    /// Where the node starts and ends in the source, in characters.
    pub(super) span: (usize, usize),
    pub(super) value: Value,
    /// The text before variables were put in. Messages quote this one: it holds no secret.
    pub(super) written: Option<String>,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value. A mapping's keys differ from one another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) mark: Mark,
    pub(super) value: Node,
}

impl Node {
    /// What the node and all within it count for against a bound, in bytes.
    fn weight(&self) -> usize {
        NODE_BYTES
            + match &self.value {
                Value::Str(text) => text.len(),
                Value::Seq(items) => items.iter().map(Self::weight).sum(),
                Value::Map(entries) => entries
                    .iter()
                    .map(|entry| entry.key.len() + entry.value.weight())
                    .sum(),
                Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
            }
    }

    /// How many collections are nested in the node, itself included.
    fn height(&self) -> usize {
        match &self.value {
            Value::Seq(items) => 1 + items.iter().map(Self::height).max().unwrap_or(0),
            Value::Map(entries) => {
                1 + entries
                    .iter()
                    .map(|entry| entry.value.height())
                    .max()
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// What the node holds, for a message. Texts are quoted and cut short.
    pub(super) fn describe(&self) -> String {
        /// Enough of a text to recognise it.
        const SHOWN_CHARS: usize = 40;
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => scalar::python_float(*value),
            Value::Str(text) => {
                let text = self.written.as_ref().unwrap_or(text);
                let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                format!("{shown:?}")
            }
            Value::Seq(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Reads the one document in `source`. `None` stands for a source without any content.
///
/// # Errors
/// Everything that keeps the source from being one tree: bad syntax ends the reading at once, while
/// keys written twice are all reported.
pub(super) fn read(source: &str) -> Result<Option<Node>, Vec<SpecError>> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    if let Err(error) = check_characters(source) {
        return Err(vec![error]);
    }
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(source);
    while let Some(event) = parser.next_event() {
        let step = match event {
            Ok((event, span)) => builder.take(event, (span.start, span.end)),
            Err(error) => Err(syntax_error(source, *error.marker(), error.info())),
        };
        if let Err(error) = step {
            builder.errors.push(error);
            break;
        }
        if builder.errors.len() >= ERRORS_MAX {
            break;
        }
    }
    if builder.errors.is_empty() {
        Ok(builder.root)
    } else {
        Err(builder.errors)
    }
}

/// Control characters are not YAML; the parser would take U+0000 for the end of the source.
fn check_characters(source: &str) -> Result<(), SpecError> {
    if source.len() > SPEC_SOURCE_BYTES_MAX {
        return Err(fault(
            "",
            Mark::default(),
            format!(
                "the file has {} bytes; at most {SPEC_SOURCE_BYTES_MAX} are allowed",
                source.len()
            ),
            "move scripts and data out of it",
        ));
    }
    let illegal = |c: char| {
        (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}'))
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    let Some(at) = source.find(illegal) else {
        return Ok(());
    };
    let before = &source[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let mark = Mark {
        line: number(before.matches('\n').count() + 1),
        column: number(before[line_start..].chars().count() + 1),
    };
    let character = source[at..].chars().next().map_or(0, u32::from);
    Err(fault(
        "",
        mark,
        format!("the control character U+{character:04X} is not allowed in YAML"),
        "remove it, or write it as an escape in double quotes",
    ))
}

fn syntax_error(source: &str, at: Marker, info: &str) -> SpecError {
    let line = source
        .lines()
        .nth(at.line().saturating_sub(1))
        .unwrap_or("");
    let indentation = &line[..line.len() - line.trim_start().len()];
    if indentation.contains('\t') {
        return fault(
            "",
            mark(at),
            "a tab in the indentation".to_owned(),
            "indent with spaces",
        );
    }
    // The end of the source may be counted as one line more than it has.
    let last = number(source.lines().count().max(1));
    let mut at = mark(at);
    if at.line > last {
        let length = source.lines().last().map_or(0, |line| line.chars().count());
        (at.line, at.column) = (last, number(length + 1));
    }
    fault("", at, format!("not valid YAML: {info}"), "")
}

fn mark(at: Marker) -> Mark {
    Mark {
        line: number(at.line().max(1)),
        column: number(at.col() + 1),
    }
}

/// A line or column. The source is bounded far below where this could saturate.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn fault(field: &str, mark: Mark, problem: String, remedy: &str) -> SpecError {
    SpecError::new(field, mark, problem, remedy)
}
