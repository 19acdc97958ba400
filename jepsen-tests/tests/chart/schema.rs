//! The schema of the values: helm refuses what breaks any of its rules, and names the place; and it knows each value and no
//! other.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use crate::{RENDER, chart, defaults, files, have_helm, helm, masked, render};

/// A text that no enumeration of the schema takes.
const NONSENSE: &str = "?!";

/// What is not for the schema to say: helm's own, and what the API server checks.
const FREE: [&str; 3] = ["global", "resources", "affinity"];

fn schema() -> anyhow::Result<Value> {
    let text = fs::read_to_string(chart().join("values.schema.json"))?;
    Ok(serde_json::from_str(&text)?)
}

/// A rule of the schema broken: the path of the value, a value that does it, and what helm says of it.
struct Broken {
    path: Vec<String>,
    value: Value,
    said: String,
}

/// Each rule that `schema`, of the value at `path`, has for values that are no tables: helm keeps tables in place of others
/// by itself. There is no pattern among them, which nobody wants to read: templates say what to write.
fn broken(schema: &Value, path: &[String], all: &mut Vec<Broken>) {
    let place = format!("at '/{}'", path.join("/"));
    let mut add = |value: Value, said: String| {
        let path = path.to_vec();
        all.push(Broken { path, value, said });
    };
    let told = |what: &str| format!("{place}: {what}");
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        other => other.as_str().into_iter().collect::<Vec<_>>(),
    };
    match types.first() {
        Some(&"string") => add(json!(7), told("got number")),
        Some(&"integer") => {
            add(json!(1.5), told("got number"));
            add(json!(NONSENSE), told("got string"));
        }
        Some(&("boolean" | "array")) => add(json!(NONSENSE), told("got string")),
        _ => {}
    }
    if schema["enum"].is_array() {
        add(json!(NONSENSE), told("value must be"));
    }
    assert!(schema["pattern"].is_null(), "{place} has a pattern");
    if schema["minLength"].is_u64() {
        add(json!(""), told("minLength"));
    }
    if let Some(most) = schema["maxLength"].as_u64() {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        add(json!("a".repeat(most + 1)), told("maxLength"));
    }
    if let Some(least) = schema["minimum"].as_i64() {
        add(json!(least - 1), told("minimum"));
    }
    if let Some(most) = schema["maximum"].as_i64() {
        add(json!(most + 1), told("maximum"));
    }
    if schema["minItems"].is_u64() {
        add(json!([]), told("minItems"));
    }
    let mut items = Vec::new();
    if schema["items"]["type"] == "object" {
        add(json!([NONSENSE]), format!("at '/{}/0'", path.join("/")));
    } else if schema["items"].is_object() {
        broken(
            &schema["items"],
            &[path, &["0".to_owned()]].concat(),
            &mut items,
        );
    }
    all.extend(items.into_iter().map(|item| Broken {
        path: path.to_vec(),
        value: json!([item.value]),
        ..item
    }));
}

/// All rules of a table and of what is in it.
fn broken_within(schema: &Value, path: &[String], all: &mut Vec<Broken>) -> anyhow::Result<()> {
    let name = path.join(".");
    match &schema["additionalProperties"] {
        Value::Bool(false) => {
            // Helm tells who has another name for a value which ones there are.
            let known = schema["properties"].as_object().context("no values")?;
            let told = schema["propertyNames"]["enum"].as_array();
            let told = told.with_context(|| format!("{name} names no values"))?;
            let told: BTreeSet<&str> = told.iter().filter_map(Value::as_str).collect();
            let known: BTreeSet<&str> = known.keys().map(String::as_str).collect();
            ensure!(told == known, "{name}: {told:?}");
            let place = path.iter().map(|part| format!("/{part}"));
            let place: String = place.collect();
            all.push(Broken {
                path: [path, &["nobodyKnows".to_owned()]].concat(),
                value: json!(1),
                said: format!("at '{place}': additional properties 'nobodyKnows' not allowed"),
            });
        }
        Value::Object(_) => broken(
            &schema["additionalProperties"],
            &[path, &["key".to_owned()]].concat(),
            all,
        ),
        _ => ensure!(FREE.contains(&name.as_str()), "{name} takes anything"),
    }
    let none = Map::new();
    for (key, of) in schema["properties"].as_object().unwrap_or(&none) {
        let path = [path, std::slice::from_ref(key)].concat();
        match of["type"] == "object" {
            true => broken_within(of, &path, all)?,
            false => broken(of, &path, all),
        }
    }
    Ok(())
}

/// Puts a value at its path.
fn put(values: &mut Value, path: &[String], value: Value) {
    let mut place = values;
    for part in path {
        place = &mut place[part.as_str()];
    }
    *place = value;
}

#[test]
fn each_rule_of_the_schema_refuses_what_breaks_it() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let mut left = Vec::new();
    broken_within(&schema()?, &[], &mut left)?;
    ensure!(left.len() > 140, "{} rules", left.len());
    let folder = tempfile::tempdir()?;
    // Helm tells all at once: as many as are of different values are asked for together.
    while !left.is_empty() {
        let (mut values, mut seen, mut now) = (json!({}), BTreeSet::new(), Vec::new());
        let mut later = Vec::new();
        for broken in left {
            if seen.insert(broken.path.clone()) {
                put(&mut values, &broken.path, broken.value.clone());
                now.push(broken);
            } else {
                later.push(broken);
            }
        }
        let file = folder.path().join("values.json");
        fs::write(&file, values.to_string())?;
        let output = render(&file)?;
        let said = String::from_utf8_lossy(&output.stderr);
        for broken in now {
            ensure!(
                said.contains(&broken.said),
                "{} as {} is not refused with {:?}: {said}",
                broken.path.join("."),
                broken.value,
                broken.said
            );
        }
        left = later;
    }
    Ok(())
}

#[test]
fn each_name_that_no_object_can_have_is_refused_with_a_sentence() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.json");
    for value in [
        "nameOverride",
        "tls.existingSecret",
        "certificates.existingSecret",
        "auth.existingSecret",
        "provider.namespace",
        "ingress.tlsSecret",
        "serviceAccount.name",
    ] {
        // The whole name is another matter.
        let mut values = json!({ "fullnameOverride": "serve" });
        let path: Vec<String> = value.split('.').map(str::to_owned).collect();
        put(&mut values, &path, json!("No_Name"));
        fs::write(&file, values.to_string())?;
        let output = render(&file)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let told = format!("{value}: no object can be named No_Name: write lower-case letters");
        ensure!(said.contains(&told), "{said}");
    }
    Ok(())
}

#[test]
fn the_schema_knows_each_value_and_no_other() -> anyhow::Result<()> {
    fn leaves(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
        match schema["properties"].as_object() {
            Some(properties) => {
                for (key, of) in properties {
                    let path = match path {
                        "" => key.clone(),
                        path => format!("{path}.{key}"),
                    };
                    leaves(of, &path, all);
                }
            }
            None => drop(all.insert(path.to_owned())),
        }
    }
    let mut known = BTreeSet::new();
    leaves(&schema()?, "", &mut known);
    known.retain(|path| path != "global");
    let values = defaults()?.into_iter().map(|(path, _)| {
        let within = path
            .split_once('.')
            .filter(|(first, _)| FREE.contains(first));
        within.map_or(path.clone(), |(first, _)| first.to_owned())
    });
    let values: BTreeSet<String> = values.collect();
    let differ: Vec<_> = known.symmetric_difference(&values).collect();
    ensure!(differ.is_empty(), "in one of both: {differ:?}");
    values.first().context("no values").map(drop)
}

/// Whether a value's default says nothing, so that null can say the same.
fn is_empty(default: &str) -> bool {
    ["\"\"", "[]", "{}", "null", "false"].contains(&default)
}

/// All values by their paths, without those of the FREE tables.
fn closed() -> anyhow::Result<Vec<(Vec<String>, String)>> {
    let all = defaults()?.into_iter().map(|(path, default)| {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        (path, default)
    });
    let is_closed = |path: &[String]| path.len() == 1 || !FREE.contains(&path[0].as_str());
    Ok(all.filter(|(path, _)| is_closed(path)).collect())
}

#[test]
fn a_null_means_the_default_where_that_is_empty() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let mut nulls = json!({});
    for (path, default) in closed()? {
        if is_empty(&default) {
            put(&mut nulls, &path, Value::Null);
        }
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("nulls.json");
    fs::write(&file, nulls.to_string())?;
    let nulls = file.display().to_string();
    for values in files("values")? {
        // What the second file gives is not null any more.
        let output = helm(&[&RENDER[..], &["--values", &nulls]].concat(), &values)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", values.display());
        let golden = chart().join("tests/golden");
        let golden = golden.join(values.file_name().context("a file has a name")?);
        let rendered = masked(&String::from_utf8(output.stdout)?);
        for (rendered, expected) in rendered.lines().zip(fs::read_to_string(&golden)?.lines()) {
            ensure!(rendered == expected, "{}: {rendered}", values.display());
        }
    }
    Ok(())
}

#[test]
fn a_null_is_refused_by_name_where_the_default_says_something() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let values = closed()?;
    let tables = values.iter().filter_map(|(path, _)| path.get(..1));
    let tables: BTreeSet<Vec<String>> = tables
        .filter(|table| {
            values
                .iter()
                .any(|(path, _)| path.len() > 1 && path[0] == table[0])
        })
        .map(<[String]>::to_vec)
        .chain([vec!["resources".to_owned()]])
        .collect();
    let told = values.iter().filter(|(_, default)| !is_empty(default));
    let leaves: BTreeSet<Vec<String>> = told.map(|(path, _)| path.clone()).collect();
    ensure!(
        tables.len() > 10 && leaves.len() > 20,
        "{tables:?}, {leaves:?}"
    );
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.json");
    for paths in [tables, leaves] {
        let mut nulls = json!({});
        for path in &paths {
            put(&mut nulls, path, Value::Null);
        }
        fs::write(&file, nulls.to_string())?;
        let output = render(&file)?;
        let said = String::from_utf8_lossy(&output.stderr);
        for path in &paths {
            let (last, above) = path.split_last().context("a path")?;
            let place: String = above.iter().map(|part| format!("/{part}")).collect();
            // Several of one table are told together.
            let line = said
                .lines()
                .find(|line| line.contains(&format!("at '{place}': missing propert")));
            ensure!(
                line.is_some_and(|line| line.contains(&format!("'{last}'"))),
                "{} may be null: {said}",
                path.join(".")
            );
        }
    }
    Ok(())
}
