//! `$NAME` and `${NAME}` put in place inside `service`.
//!
//! SkyServe (`sky/task.py`, `_fill_in_env_vars`) replaces them in the section's text from `envs` and
//! `secrets`, and leaves a name that neither defines as it is. Here they are replaced within each
//! text, so that a value with a quote in it cannot break the document apart.

use std::collections::{BTreeMap, BTreeSet};

use super::error::SpecError;
use super::yaml::{Node, SPEC_SOURCE_BYTES_MAX, Value};

/// Replaces variables in texts, keys included.
pub(super) struct Substitution<'v> {
    values: BTreeMap<&'v str, &'v str>,
    /// What may still be put in, in bytes. A value can be named over and over, so without a bound a
    /// small file could ask for gigabytes.
    left: usize,
    /// Names that were found and are not defined.
    pub(super) unknown: BTreeSet<String>,
}

impl<'v> Substitution<'v> {
    pub(super) fn new(
        envs: &'v BTreeMap<String, String>,
        secrets: &'v BTreeMap<String, String>,
    ) -> Self {
        let values = envs
            .iter()
            .chain(secrets)
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Self {
            values,
            left: SPEC_SOURCE_BYTES_MAX,
            unknown: BTreeSet::new(),
        }
    }

    /// Replaces the variables in all texts of `node`, which is the section at `path`.
    ///
    /// # Errors
    /// If the texts would grow beyond what a source may have.
    pub(super) fn apply(&mut self, path: &str, node: &mut Node) -> Result<(), SpecError> {
        let mark = node.mark;
        let too_long = || {
            let problem =
                format!("the variables up to here put in more than {SPEC_SOURCE_BYTES_MAX} bytes");
            SpecError::new(path, mark, problem, "shorten their values")
        };
        match &mut node.value {
            Value::Str(text) => {
                let replaced = self.text(text).ok_or_else(too_long)?;
                if let Some(replaced) = replaced {
                    node.written = Some(std::mem::replace(text, replaced));
                }
            }
            Value::Seq(items) => {
                for item in items {
                    self.apply(path, item)?;
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    if let Some(replaced) = self.text(&entry.key).ok_or_else(too_long)? {
                        entry.key = replaced;
                    }
                    self.apply(path, &mut entry.value)?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {}
        }
        Ok(())
    }

    /// The text with its variables replaced, nothing if it has none; `None` once too much is put in.
    #[expect(
        clippy::option_option,
        reason = "too long, and nothing to do, are two answers"
    )]
    fn text(&mut self, text: &str) -> Option<Option<String>> {
        let mut replaced = String::new();
        let mut rest = text;
        let mut changed = false;
        while let Some(at) = rest.find('$') {
            let (before, variable) = rest.split_at(at);
            replaced.push_str(before);
            let Some((name, length)) = variable_name(variable) else {
                replaced.push('$');
                rest = &variable[1..];
                continue;
            };
            match self.values.get(name) {
                Some(value) => {
                    self.left = self.left.checked_sub(value.len())?;
                    replaced.push_str(value);
                    changed = true;
                }
                None => {
                    self.unknown.insert(name.to_owned());
                    replaced.push_str(&variable[..length]);
                }
            }
            rest = &variable[length..];
        }
        replaced.push_str(rest);
        Some(changed.then_some(replaced))
    }
}

/// The names of the variables in `text`.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('$')
        .filter_map(|(at, _)| Some(variable_name(&text[at..])?.0))
}

/// The name in a text that starts with `$NAME` or `${NAME}`, and the length of the whole reference.
fn variable_name(text: &str) -> Option<(&str, usize)> {
    let body = text.strip_prefix('$')?;
    let (name_start, braces) = match body.strip_prefix('{') {
        Some(inner) => (inner, true),
        None => (body, false),
    };
    let length = name_start
        .bytes()
        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        .count();
    let name = &name_start[..length];
    if !name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
        return None;
    }
    match braces {
        true => name_start[length..]
            .starts_with('}')
            .then_some((name, length + 3)),
        false => Some((name, length + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(text: &str) -> Option<String> {
        let envs = BTreeMap::from([
            ("A".to_owned(), "one".to_owned()),
            ("A_B".to_owned(), "$A".to_owned()),
        ]);
        let secrets = BTreeMap::from([("S".to_owned(), "hush\"".to_owned())]);
        Substitution::new(&envs, &secrets)
            .text(text)
            .expect("short enough")
    }

    #[test]
    fn variables_are_replaced_once_and_by_whole_names() {
        for (text, answer) in [
            ("$A", Some("one")),
            ("${A}", Some("one")),
            ("/x/$A/${A}y", Some("/x/one/oney")),
            ("$A_B", Some("$A")),
            ("$AB", None),
            ("$S", Some("hush\"")),
            ("{\"m\": $A}", Some("{\"m\": one}")),
            ("$", None),
            ("$$A", Some("$one")),
            ("${A", None),
            ("$1", None),
            ("ä$A", Some("äone")),
            ("plain", None),
        ] {
            assert_eq!(replace(text).as_deref(), answer, "{text}");
        }
    }

    #[test]
    fn what_is_put_in_is_bounded() {
        let envs = BTreeMap::from([("A".to_owned(), "x".repeat(SPEC_SOURCE_BYTES_MAX / 2))]);
        let none = BTreeMap::new();
        assert!(Substitution::new(&envs, &none).text("$A $A").is_some());
        assert!(Substitution::new(&envs, &none).text("$A $A $A").is_none());
    }
}
