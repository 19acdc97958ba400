//! Writes a JSON value as YAML: block style, and every text that YAML could take for something else
//! in double quotes, which JSON's escapes are legal in.

use serde_json::Value;

/// `value` as one YAML document, ending in a newline.
pub(super) fn render(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => mapping(&mut text, fields, 0),
        Value::Array(items) if !items.is_empty() => sequence(&mut text, items, 0),
        scalar_or_empty => {
            text.push_str(&scalar(scalar_or_empty));
            text.push('\n');
        }
    }
    text
}

fn mapping(text: &mut String, fields: &serde_json::Map<String, Value>, depth: usize) {
    for (at, (key, value)) in fields.iter().enumerate() {
        // The first field of a mapping in a sequence stands behind the dash.
        if at > 0 || !text.ends_with("- ") {
            indent(text, depth);
        }
        text.push_str(&plain_or_quoted(key));
        text.push(':');
        nested(text, value, depth);
    }
}

fn nested(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            mapping(text, fields, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            sequence(text, items, depth);
        }
        Value::String(lines) if is_block(lines) => block(text, lines, depth + 1),
        scalar_or_empty => {
            text.push(' ');
            text.push_str(&scalar(scalar_or_empty));
            text.push('\n');
        }
    }
}

fn sequence(text: &mut String, items: &[Value], depth: usize) {
    for item in items {
        indent(text, depth);
        match item {
            Value::Object(fields) if !fields.is_empty() => {
                text.push_str("- ");
                mapping(text, fields, depth + 1);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push_str("-\n");
                sequence(text, items, depth + 1);
            }
            scalar_or_empty => {
                text.push_str("- ");
                text.push_str(&scalar(scalar_or_empty));
                text.push('\n');
            }
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => plain_or_quoted(string),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// Whether a text is best shown as lines: several, all printable, and no indentation to be guessed.
fn is_block(text: &str) -> bool {
    text.ends_with('\n')
        && text.trim_end_matches('\n').contains('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n'])
        && !text.contains(|c: char| c.is_control() && c != '\n')
}

fn block(text: &mut String, lines: &str, depth: usize) {
    text.push_str(" |\n");
    for line in lines.lines() {
        if !line.is_empty() {
            indent(text, depth);
            text.push_str(line);
        }
        text.push('\n');
    }
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Words that some YAML reader takes for a boolean or null.
const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

fn plain_or_quoted(text: &str) -> String {
    let mut letters = text.bytes();
    let plain = letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    match plain {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_values_are_written_in_block_style() {
        let value = json!({
            "services": [
                {"name": "web", "replicas": [{"id": 1, "ready": true}], "none": []},
                {"name": "8080"},
            ],
            "matrix": [[1, 2], []],
            "empty": {},
            "yaml": "name: a\nrun: |\n  x\n",
        });
        assert_eq!(
            render(&value),
            "empty: {}\nmatrix:\n-\n  - 1\n  - 2\n- []\nservices:\n- name: web\n  none: []\n  replicas:\n  \
             - id: 1\n    ready: true\n- name: \"8080\"\nyaml: |\n  name: a\n  run: |\n    x\n"
        );
    }

    #[test]
    fn what_could_be_read_otherwise_is_quoted() {
        for (text, written) in [
            ("web-1", "web-1"),
            ("Yes", "\"Yes\""),
            ("null", "\"null\""),
            ("", "\"\""),
            ("1.5", "\"1.5\""),
            ("http://a:1", "\"http://a:1\""),
            ("a\nb", "\"a\\nb\""),
            ("a # b", "\"a # b\""),
        ] {
            assert_eq!(render(&json!(text)), format!("{written}\n"));
        }
    }
}
