//! The document's top level: name, environment, commands.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

use crate::ServiceName;

use super::error::{Mark, SpecError};
use super::fields::TASK;
use super::parse::{ParseOptions, Parsed};
use super::raftserve::{self, Settings};
use super::reader::{Field, Fields, Reader};
use super::substitute::Substitution;
use super::yaml::{Node, Value};
use super::{ServiceSpec, file_mounts, placement, port, resources, scalar, service, substitute};

/// The longest command, in bytes, once a port of five digits is put in place, and the longest
/// environment variable: Linux takes strings of 128 KiB (`MAX_ARG_STRLEN`) into a process, and some
/// room is left for what a provider puts around them.
const COMMAND_BYTES_MAX: usize = 127 << 10;

/// The largest environment of a replica, in bytes: half of what Linux takes with a default stack.
const ENVIRONMENT_BYTES_MAX: usize = 1 << 20;

/// Reads the whole document. Faults are in `reader`; without any, the answer is there.
pub(super) fn read(
    reader: &mut Reader,
    source: &str,
    mut root: Node,
    options: ParseOptions,
) -> Option<Parsed> {
    if !matches!(root.value, Value::Map(_)) {
        let problem = format!("expected a mapping, got {}", root.describe());
        let remedy = "a service file starts with fields such as service:, resources: and run:";
        reader.fault("", root.mark, problem, remedy);
        return None;
    }
    let files = options.files;
    let (envs, secrets) = environment(reader, &root, options.envs, options.secrets);
    substitute(reader, &mut root, &envs, &secrets);

    let fields = reader.section(&root, &TASK)?;
    let name = name(reader, &fields);
    let setup = command(reader, &fields, "setup");
    let run = command(reader, &fields, "run");
    let Settings {
        provider,
        affinity,
        drain_timeout,
        stop_grace,
        policy,
        probe_kind,
        traffic,
    } = raftserve::read(reader, &fields);
    let made = provider.makes_replicas();
    if run.is_none() && fields.get("run").is_none() && made {
        let remedy = "write the command that serves, e.g. run: python3 -m http.server 8080";
        reader.fault("run", Mark::default(), "missing", remedy);
    }
    num_nodes(reader, &fields);
    let mut resources = resources::read(reader, &fields);
    placement::read_task(reader, &fields, &mut resources.placement);
    let local_sources = file_mounts::read(reader, &fields, made, &resources.placement);
    let service = service::read(reader, &fields, &resources, made, probe_kind);
    let (port, run) = match made {
        true => (service.port?, run?),
        false => (service.port.unwrap_or_default(), run.unwrap_or_default()),
    };
    let mut spec = ServiceSpec {
        source: source.to_owned(),
        replicas: service.replicas,
        readiness: service.readiness,
        port,
        policy: policy.unwrap_or(service.policy),
        stream_timeout: service.stream_timeout,
        provider,
        setup,
        run,
        envs,
        secrets,
        resources: resources.shown,
        placement: resources.placement,
        affinity,
        drain_timeout,
        stop_grace,
        traffic,
        file_mounts: Vec::new(),
    };
    check_commands(reader, &fields, &spec);
    // Whoever sends a faulty YAML may well have sent no files.
    if let Some(files) = files.filter(|_| reader.errors.is_empty()) {
        spec.file_mounts = file_mounts::attach(reader, &local_sources, files);
    }
    Some(Parsed {
        name,
        spec,
        local_sources,
        warnings: Vec::new(),
    })
}

fn name(reader: &mut Reader, fields: &Fields<'_>) -> Option<ServiceName> {
    let field = fields.get("name")?;
    match reader.text(&field)?.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let error: crate::id::IdError = error;
            reader.fault(&field.path, field.node.mark, error.to_string(), "");
            None
        }
    }
}

fn command(reader: &mut Reader, fields: &Fields<'_>, name: &str) -> Option<String> {
    let field = fields.get(name)?;
    let text = reader.text(&field)?;
    let mark = field.node.mark;
    if text.contains('\0') {
        reader.fault(name, mark, "holds a NUL character", "remove it");
        return None;
    }
    if text.trim().is_empty() {
        if name == "run" {
            let remedy = "write the command that serves, e.g. run: python3 -m http.server 8080";
            reader.fault(name, mark, "the command is empty", remedy);
        }
        return None;
    }
    Some(text.to_owned())
}

fn check_commands(reader: &mut Reader, fields: &Fields<'_>, spec: &ServiceSpec) {
    for (name, text) in [("setup", spec.setup.as_deref()), ("run", Some(&*spec.run))] {
        let (Some(text), Some(field)) = (text, fields.get(name)) else {
            continue;
        };
        let bytes = port::replace(text, spec.port, u16::MAX).len();
        if bytes > COMMAND_BYTES_MAX {
            let problem =
                format!("the command has {bytes} bytes, at most {COMMAND_BYTES_MAX} can be run");
            reader.fault(name, field.node.mark, problem, "move it into a script");
        }
    }
    if !spec.provider.makes_replicas() {
        if spec.setup.is_some() || !spec.run.is_empty() {
            let warning = "setup and run are run by nobody: the provider is static";
            reader.warnings.push(warning.to_owned());
        }
        return;
    }
    let both = [spec.setup.as_deref().unwrap_or_default(), &spec.run];
    let declared = spec.port;
    if both.iter().all(|text| {
        port::replace(text, declared, !declared) == **text && !names_port_variable(text)
    }) {
        reader.warnings.push(format!(
            "run names neither {declared} nor $PORT: each replica gets a port of its own, which it \
             has to listen on"
        ));
    }
    if declared < 1000 {
        reader.warnings.push(format!(
            "the port {declared} looks like an ordinary number: each {declared} that stands alone in \
             setup and run is replaced by the replica's port"
        ));
    }
}

fn names_port_variable(text: &str) -> bool {
    text.contains("${PORT")
        || text.match_indices("$PORT").any(|(at, found)| {
            !text[at + found.len()..]
                .starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_')
        })
        // A program may read it from its environment.
        || text.contains("environ")
        || text.contains("getenv")
        || text.contains("env.PORT")
}

fn num_nodes(reader: &mut Reader, fields: &Fields<'_>) {
    let Some(field) = fields.get("num_nodes") else {
        return;
    };
    if reader
        .whole(&field, 1..=u32::MAX)
        .is_some_and(|nodes| nodes > 1)
    {
        reader.fault(
            &field.path,
            field.node.mark,
            "num_nodes above 1 is valid in SkyServe, but raftserve does not support it yet",
            "remove it",
        );
    }
}

type Variables = BTreeMap<String, String>;

fn environment(
    reader: &mut Reader,
    root: &Node,
    envs: Variables,
    secrets: Variables,
) -> (Variables, Variables) {
    let envs = variables(reader, root, "envs", "--env", envs);
    let secrets = variables(reader, root, "secrets", "--secret", secrets);
    let bytes: usize = envs
        .iter()
        .chain(&secrets)
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if bytes > ENVIRONMENT_BYTES_MAX {
        let problem = format!(
            "envs and secrets have {bytes} bytes together; at most {ENVIRONMENT_BYTES_MAX} are allowed"
        );
        reader.fault("envs", Mark::default(), problem, "pass files instead");
    }
    (envs, secrets)
}

/// The mapping `section` with `given` over it. Values are never quoted in a fault.
fn variables(
    reader: &mut Reader,
    root: &Node,
    section: &str,
    flag: &str,
    given: Variables,
) -> Variables {
    let mut variables = Variables::new();
    let entry = match &root.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == section),
        _ => None,
    };
    if let Some(entry) = entry {
        match &entry.value.value {
            Value::Map(entries) => {
                for entry in entries {
                    let path = format!("{section}.{}", entry.key);
                    let overridden = given.contains_key(&entry.key);
                    let value = variable(reader, &path, flag, &entry.value, overridden);
                    check_variable(reader, &path, entry.mark, &entry.key, value.as_deref());
                    variables.insert(entry.key.clone(), value.unwrap_or_default());
                }
            }
            Value::Seq(_) if section == "secrets" => reader.fault(
                section,
                entry.mark,
                "a list of managed secrets is valid in SkyServe, but raftserve does not support it yet",
                "write NAME: value pairs",
            ),
            _ => {
                let field = Field {
                    path: section.to_owned(),
                    node: &entry.value,
                };
                reader.mismatch(&field, "a mapping", "write NAME: value pairs");
            }
        }
    }
    for (name, value) in given {
        let path = format!("{section}.{name}");
        check_variable(reader, &path, Mark::default(), &name, Some(&value));
        variables.insert(name, value);
    }
    variables
}

/// A variable's value as SkyServe puts it into the environment: Python's text for it.
fn variable(
    reader: &mut Reader,
    path: &str,
    flag: &str,
    node: &Node,
    overridden: bool,
) -> Option<String> {
    match &node.value {
        Value::Str(text) => Some(text.clone()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(scalar::python_float(*value)),
        Value::Null if overridden => None,
        Value::Null => {
            let remedy = format!("give it one here (\"\" for an empty one) or with {flag}");
            reader.fault(path, node.mark, "has no value", remedy);
            None
        }
        Value::Seq(_) | Value::Map(_) => {
            let problem = format!("expected a text, got {}", node.describe());
            reader.fault(path, node.mark, problem, "put it in quotes");
            None
        }
    }
}

fn check_variable(reader: &mut Reader, path: &str, mark: Mark, name: &str, value: Option<&str>) {
    let legal = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !legal {
        let remedy = "letters, digits and '_' are allowed, and no digit first";
        reader.fault(path, mark, "not a name of an environment variable", remedy);
    }
    let Some(value) = value else { return };
    if value.contains('\0') {
        reader.fault(path, mark, "holds a NUL character", "remove it");
    }
    if name.len() + value.len() > COMMAND_BYTES_MAX {
        let problem = format!("longer than {COMMAND_BYTES_MAX} bytes");
        reader.fault(path, mark, problem, "pass a file instead");
    }
}

/// Puts variables in place where SkyServe does so, as far as it is built.
fn substitute(reader: &mut Reader, root: &mut Node, envs: &Variables, secrets: &Variables) {
    let Value::Map(entries) = &mut root.value else {
        return;
    };
    let mut substitution = Substitution::new(envs, secrets);
    for section in ["service", "file_mounts"] {
        let Some(entry) = entries.iter_mut().find(|entry| entry.key == section) else {
            continue;
        };
        if section == "file_mounts" {
            refuse_secret_destinations(reader, &mut entry.value, secrets);
        }
        let done: Result<(), SpecError> = substitution.apply(section, &mut entry.value);
        if let Err(error) = done {
            reader.errors.push(error);
        }
        warn_of_unknown(reader, section, &take(&mut substitution.unknown));
    }
}

/// Takes out the destinations that name secrets: where files are put is shown to everybody.
fn refuse_secret_destinations(reader: &mut Reader, mounts: &mut Node, secrets: &Variables) {
    let Value::Map(entries) = &mut mounts.value else {
        return;
    };
    entries.retain(|entry| {
        let named = substitute::names(&entry.key).find(|name| secrets.contains_key(*name));
        let Some(name) = named else {
            return true;
        };
        reader.fault(
            &format!("file_mounts.{}", entry.key),
            entry.mark,
            format!("the destination names the secret {name}, and destinations are shown"),
            "name a variable of envs",
        );
        false
    });
}

fn warn_of_unknown(reader: &mut Reader, section: &str, unknown: &BTreeSet<String>) {
    /// Enough to see what is wrong.
    const SHOWN: usize = 5;
    if unknown.is_empty() {
        return;
    }
    let mut names: Vec<String> = unknown
        .iter()
        .take(SHOWN)
        .map(|name| format!("${}", name.chars().take(64).collect::<String>()))
        .collect();
    if unknown.len() > SHOWN {
        names.push(format!("{} more", unknown.len() - SHOWN));
    }
    reader.warnings.push(format!(
        "{section} names {}, which neither envs nor secrets define: left as it is",
        names.join(", ")
    ));
}
