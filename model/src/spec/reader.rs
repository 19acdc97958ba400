//! Typed reading of a YAML tree, which goes on after a fault so that all of them are reported.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{ERRORS_MAX, Mark, SpecError};
use super::fields::{self, Section, Support};
use super::yaml::{Entry, Node, Value};

/// The longest duration, ten years: beyond any use, and far from any overflow.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Collects what is wrong while a tree is read.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) errors: Vec<SpecError>,
    pub(super) warnings: Vec<String>,
}

/// A mapping whose field names are checked.
pub(super) struct Fields<'n> {
    section: &'static Section,
    /// Of this mapping: that of the section, unless there are several like it.
    path: String,
    entries: &'n [Entry],
}

/// A field and its dotted path.
pub(super) struct Field<'n> {
    pub(super) path: String,
    pub(super) node: &'n Node,
}

impl<'n> Fields<'n> {
    /// The field `name`, if it is given.
    pub(super) fn get(&self, name: &str) -> Option<Field<'n>> {
        debug_assert_eq!(self.section.support(name), Some(Support::Built), "{name}");
        self.entry(name).map(|entry| Field {
            path: join(&self.path, name),
            node: &entry.value,
        })
    }

    /// Whether the field `name` is given, built or not.
    pub(super) fn given(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The field `name`, built or not.
    pub(super) fn entry(&self, name: &str) -> Option<&'n Entry> {
        debug_assert!(self.section.support(name).is_some(), "{name}");
        self.entries.iter().find(|entry| entry.key == name)
    }
}

impl Reader {
    /// Notes a fault, unless there are enough of them.
    pub(super) fn fault(
        &mut self,
        path: &str,
        mark: Mark,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if self.is_full() {
            return;
        }
        self.errors
            .push(SpecError::new(path, mark, problem, remedy));
    }

    /// Whether no further fault will be noted.
    fn is_full(&self) -> bool {
        self.errors.len() >= ERRORS_MAX
    }

    /// Notes that a field holds something of the wrong kind.
    pub(super) fn mismatch(&mut self, field: &Field<'_>, wanted: &str, remedy: impl Into<String>) {
        let problem = format!("expected {wanted}, got {}", field.node.describe());
        self.fault(&field.path, field.node.mark, problem, remedy);
    }

    /// The fields of a mapping. Those that do not exist, and those that are not built, are noted.
    pub(super) fn section<'n>(
        &mut self,
        node: &'n Node,
        section: &'static Section,
    ) -> Option<Fields<'n>> {
        self.section_at(node, section, section.path.to_owned())
    }

    /// As [`Self::section`], of a mapping of that kind which stands at another path.
    pub(super) fn section_at<'n>(
        &mut self,
        node: &'n Node,
        section: &'static Section,
        path: String,
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            let names: Vec<&str> = section
                .fields
                .iter()
                .take(3)
                .map(|(name, _)| *name)
                .collect();
            self.mismatch(
                &Field { path, node },
                "a mapping",
                format!("indent its fields ({}, …) below it", names.join(", ")),
            );
            return None;
        };
        for entry in entries {
            if self.is_full() {
                break;
            }
            let at = join(&path, &entry.key);
            match section.support(&entry.key) {
                Some(Support::Built) => {}
                Some(Support::NotBuilt) => self.not_built(&at, entry.mark),
                None => {
                    let remedy = fields::suggestion(section, &entry.key)
                        .unwrap_or_else(|| format!("allowed here: {}", names(section)));
                    self.fault(&at, entry.mark, "unknown field", remedy);
                }
            }
        }
        Some(Fields {
            section,
            path,
            entries,
        })
    }

    /// Refuses a field that SkyServe takes.
    pub(super) fn not_built(&mut self, path: &str, mark: Mark) {
        self.fault(
            path,
            mark,
            "is valid in SkyServe, but raftserve does not support it yet",
            fields::instead(path).unwrap_or("remove it"),
        );
    }

    /// A text.
    pub(super) fn text<'n>(&mut self, field: &Field<'n>) -> Option<&'n str> {
        match &field.node.value {
            Value::Str(text) => Some(text),
            Value::Seq(_) | Value::Map(_) | Value::Null => {
                self.mismatch(field, "a text", "");
                None
            }
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                self.mismatch(field, "a text", "put it in quotes");
                None
            }
        }
    }

    /// Yes or no.
    pub(super) fn boolean(&mut self, field: &Field<'_>) -> Option<bool> {
        if let Value::Bool(value) = field.node.value {
            return Some(value);
        }
        self.mismatch(field, "true or false", "");
        None
    }

    /// A whole number in `range`.
    pub(super) fn whole(&mut self, field: &Field<'_>, range: RangeInclusive<u32>) -> Option<u32> {
        let name = field.path.rsplit('.').next().unwrap_or(&field.path);
        let value = match field.node.value {
            Value::Int(value) => value,
            // JSON Schema counts 2.0 as a whole number.
            #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => value as i128,
            _ => {
                let example = (*range.start()).max(2).min(*range.end());
                let remedy = format!("write e.g. {name}: {example}");
                self.mismatch(field, "a whole number", remedy);
                return None;
            }
        };
        let fits = u32::try_from(value)
            .ok()
            .filter(|value| range.contains(value));
        if fits.is_none() {
            let allowed = format!("allowed are {} to {}", range.start(), range.end());
            self.fault(
                &field.path,
                field.node.mark,
                format!("{value} is out of range"),
                allowed,
            );
        }
        fits
    }

    /// The items of a list, each with its path.
    pub(super) fn items<'n>(&mut self, field: &Field<'n>, remedy: &str) -> Vec<Field<'n>> {
        let Value::Seq(items) = &field.node.value else {
            self.mismatch(field, "a list", remedy);
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(at, node)| Field {
                path: format!("{}[{at}]", field.path),
                node,
            })
            .collect()
    }

    /// Seconds, at least `least`, to the millisecond; whatever is above zero stays above it.
    pub(super) fn seconds(&mut self, field: &Field<'_>, least: Duration) -> Option<Duration> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds beyond 2^53 are refused below"
        )]
        let seconds = match field.node.value {
            Value::Int(value) => value as f64,
            Value::Float(value) => value,
            _ => {
                let name = field.path.rsplit('.').next().unwrap_or(&field.path);
                let remedy = format!("write e.g. {name}: 30");
                self.mismatch(field, "a number of seconds", remedy);
                return None;
            }
        };
        if seconds.is_finite()
            && (least.as_secs_f64()..=DURATION_MAX.as_secs_f64()).contains(&seconds)
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and ten years in milliseconds"
            )]
            let millis = (seconds * 1000.0).round() as u64;
            let least = u64::from(seconds > 0.0);
            return Some(Duration::from_millis(millis.max(least)));
        }
        let problem = format!("{} s is out of range", field.node.describe());
        let allowed = format!(
            "allowed are {} to {} seconds (ten years)",
            least.as_secs_f64(),
            DURATION_MAX.as_secs()
        );
        self.fault(&field.path, field.node.mark, problem, allowed);
        None
    }
}

/// The path of the field `name` in the mapping at `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn names(section: &Section) -> String {
    let built: Vec<&str> = section
        .fields
        .iter()
        .filter(|(_, support)| *support == Support::Built)
        .map(|(name, _)| *name)
        .collect();
    built.join(", ")
}
