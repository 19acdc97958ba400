//! What a replica asks of what it runs in, beyond commands and environment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fields::{CONFIG, KUBERNETES};
use super::reader::{Field, Fields, Reader};
use super::yaml::{Node, Value};

/// What a replica asks of what it runs in. The Kubernetes provider obeys it; processes of a host have none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// The container image, without SkyServe's `docker:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Accelerators that it has for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<Accelerators>,
    /// It runs on capacity that may be taken away.
    #[serde(skip_serializing_if = "is_false")]
    pub use_spot: bool,
    /// Labels of what is made for it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names of volumes, by the path where each is mounted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, String>,
    /// A part of a pod, as JSON, that is merged into the one that is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_config: Option<serde_json::Value>,
}

/// Accelerators of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerators {
    /// SkyPilot's name of the kind, such as `A100`.
    pub kind: String,
    /// How many, at least 1.
    pub count: u32,
}

impl Placement {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Reads what `resources` says of it.
pub(super) fn read_resources(reader: &mut Reader, resources: &Fields<'_>) -> Placement {
    Placement {
        image: resources
            .get("image_id")
            .and_then(|field| image(reader, &field)),
        accelerators: resources
            .get("accelerators")
            .and_then(|field| accelerators(reader, &field)),
        use_spot: resources
            .get("use_spot")
            .and_then(|field| reader.boolean(&field))
            .unwrap_or_default(),
        labels: resources
            .get("labels")
            .map(|field| labels(reader, &field))
            .unwrap_or_default(),
        ..Placement::default()
    }
}

/// Reads what the document says of it beside `resources`.
pub(super) fn read_task(reader: &mut Reader, task: &Fields<'_>, placement: &mut Placement) {
    if let Some(field) = task.get("volumes") {
        placement.volumes = volumes(reader, &field);
    }
    if let Some(field) = task.get("config")
        && let Some(config) = reader.section(field.node, &CONFIG)
        && let Some(field) = config.get("kubernetes")
        && let Some(kubernetes) = reader.section(field.node, &KUBERNETES)
        && let Some(field) = kubernetes.get("pod_config")
    {
        match field.node.value {
            Value::Map(_) => placement.pod_config = Some(json(field.node)),
            _ => reader.mismatch(&field, "a mapping", "write e.g. pod_config: {spec: {…}}"),
        }
    }
}

fn image(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let remedy = "write e.g. image_id: docker:python:3.11-slim";
    let text = reader.text(field)?;
    let image = text.strip_prefix("docker:").map(str::trim);
    let legal =
        |image: &&str| !image.is_empty() && image.bytes().all(|byte| byte.is_ascii_graphic());
    let Some(image) = image.filter(legal) else {
        let problem = format!("{} is not a container image", field.node.describe());
        reader.fault(&field.path, field.node.mark, problem, remedy);
        return None;
    };
    Some(image.to_owned())
}

/// `A100`, `A100:8` or `{A100: 8}`.
fn accelerators(reader: &mut Reader, field: &Field<'_>) -> Option<Accelerators> {
    let remedy = "write e.g. accelerators: A100:8";
    let (kind, count) = match &field.node.value {
        Value::Str(text) => match text.split_once(':') {
            Some((kind, count)) => (kind.trim(), count.trim().parse().ok()),
            None => (text.trim(), Some(1)),
        },
        Value::Map(entries) if entries.len() == 1 => {
            let count = match entries[0].value.value {
                Value::Int(count) => u32::try_from(count).ok(),
                Value::Null => Some(1),
                _ => None,
            };
            (entries[0].key.as_str(), count)
        }
        Value::Map(_) | Value::Seq(_) => {
            let problem = "a choice of accelerators is valid in SkyServe, but raftserve does not support it yet";
            reader.fault(&field.path, field.node.mark, problem, "keep one of them");
            return None;
        }
        _ => {
            reader.mismatch(field, "a kind and a number", remedy);
            return None;
        }
    };
    let named = !kind.is_empty()
        && kind
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    match count.filter(|count| named && *count >= 1) {
        Some(count) => Some(Accelerators {
            kind: kind.to_owned(),
            count,
        }),
        None => {
            let problem = format!(
                "{} is not a kind and a whole number from 1",
                field.node.describe()
            );
            reader.fault(&field.path, field.node.mark, problem, remedy);
            None
        }
    }
}

fn labels(reader: &mut Reader, field: &Field<'_>) -> BTreeMap<String, String> {
    let word = |text: &str| {
        text.len() <= 63
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    texts(reader, field, "write NAME: value pairs", |key, value| {
        let name = key.rsplit('/').next().unwrap_or(key);
        let legal = word(name) && (value.is_empty() || word(value));
        (!legal).then_some("is not a label that Kubernetes takes")
    })
}

fn volumes(reader: &mut Reader, field: &Field<'_>) -> BTreeMap<String, String> {
    let remedy = "write /where/to/mount: name-of-the-volume";
    texts(reader, field, remedy, |path, name| {
        let legal = path.starts_with('/')
            && !name.is_empty()
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
            });
        (!legal).then_some("is not an absolute path with the name of a volume")
    })
}

/// A mapping of texts to texts, each of which `fault` finds nothing against.
fn texts(
    reader: &mut Reader,
    field: &Field<'_>,
    remedy: &'static str,
    fault: impl Fn(&str, &str) -> Option<&'static str>,
) -> BTreeMap<String, String> {
    let Value::Map(entries) = &field.node.value else {
        reader.mismatch(field, "a mapping", remedy);
        return BTreeMap::new();
    };
    let mut read = BTreeMap::new();
    for entry in entries {
        let path = format!("{}.{}", field.path, entry.key);
        let value = match &entry.value.value {
            Value::Str(text) => text.clone(),
            Value::Int(value) => value.to_string(),
            Value::Bool(value) => value.to_string(),
            _ => {
                let field = Field {
                    path,
                    node: &entry.value,
                };
                reader.mismatch(&field, "a text", remedy);
                continue;
            }
        };
        match fault(&entry.key, &value) {
            Some(problem) => reader.fault(&path, entry.mark, problem, remedy),
            None => {
                read.insert(entry.key.clone(), value);
            }
        }
    }
    read
}

/// The same in JSON.
fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => {
            i64::try_from(*value).map_or_else(|_| value.to_string().into(), Into::into)
        }
        Value::Float(value) => (*value).into(),
        Value::Str(text) => text.clone().into(),
        Value::Seq(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), json(&entry.value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}
