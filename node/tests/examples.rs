//! Every YAML under `examples/` is what it is for: a service, or objects of Kubernetes with no field that it does not know.
//! Values of the chart are left to helm, and to the tests of the walk-throughs.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolume, Service};
use raftserve_model::spec::{ParseOptions, ServiceSpec};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn yaml_files(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            yaml_files(&path, found)?;
        } else if path.extension().is_some_and(|it| it == "yaml") {
            found.push(path);
        }
    }
    Ok(())
}

/// Reads an object as its type, and back.
fn known<T: DeserializeOwned + Serialize>(object: &Value) -> anyhow::Result<Value> {
    let typed: T = serde_json::from_value(object.clone())?;
    Ok(serde_json::to_value(typed)?)
}

/// The first path in `object` that `known` lacks.
fn unknown(object: &Value, known: &Value, path: &str) -> Option<String> {
    match (object, known) {
        (Value::Object(fields), Value::Object(known)) => {
            fields.iter().find_map(|(field, value)| {
                let path = format!("{path}.{field}");
                match known.get(field) {
                    Some(known) => unknown(value, known, &path),
                    None => Some(path),
                }
            })
        }
        (Value::Array(items), Value::Array(known)) => {
            let mut pairs = items.iter().zip(known);
            pairs.find_map(|(item, known)| unknown(item, known, path))
        }
        _ => None,
    }
}

#[test]
fn every_example_is_read() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut files = Vec::new();
    yaml_files(&folder, &mut files)?;
    let (mut services, mut objects) = (0, 0);
    for file in files.iter().filter(|file| !file.ends_with("values.yaml")) {
        let (text, shown) = (fs::read_to_string(file)?, file.display());
        if !text.lines().any(|line| line.starts_with("apiVersion:")) {
            let parsed = ServiceSpec::parse(&text, ParseOptions::default());
            let parsed = parsed.unwrap_or_else(|errors| panic!("{shown}: {errors}"));
            assert_eq!(parsed.warnings, [""; 0], "{shown}");
            services += 1;
            continue;
        }
        let all: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        for object in all {
            let known = match object["kind"].as_str() {
                Some("Service") => known::<Service>(&object)?,
                Some("Deployment") => known::<Deployment>(&object)?,
                Some("PersistentVolume") => known::<PersistentVolume>(&object)?,
                other => panic!("{shown}: {other:?} is not read here yet"),
            };
            assert_eq!(unknown(&object, &known, ""), None, "{shown}");
            objects += 1;
        }
    }
    assert!(
        services >= 9 && objects >= 7,
        "{services} services, {objects} objects"
    );
    Ok(())
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_seen() -> anyhow::Result<()> {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" },
        "spec": { "ports": [{ "port": 1, "nodeProt": 2 }] },
    });
    let known = known::<Service>(&object)?;
    assert_eq!(
        unknown(&object, &known, "").as_deref(),
        Some(".spec.ports.nodeProt")
    );
    Ok(())
}
