//! Merges a `pod_config` into the pod that is made, by SkyPilot's rules (`merge_k8s_configs` in
//! `sky/utils/config_utils.py`).

use serde_json::{Map, Value};

/// The lists whose one item stands for the one that is there.
const SINGLE: [&str; 1] = ["imagePullSecrets"];

/// The lists whose items are known by one of their fields, and by which: Kubernetes' own merge keys.
const KEYED: [(&str, &str); 10] = [
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("volumeMounts", "name"),
    ("resourceClaims", "name"),
    ("env", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("ports", "containerPort"),
    ("volumeDevices", "devicePath"),
];

/// Puts `over` into `base`: mappings key by key, lists as their key asks for, all else in its place.
///
/// It departs from SkyPilot in one thing: a container of another name than the replica's is put beside it, where
/// SkyPilot takes exactly one container.
pub(super) fn merge(base: &mut Map<String, Value>, over: &Map<String, Value>, main: &str) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => merge(under, over, main),
            (Some(Value::Array(under)), Value::Array(over)) => {
                for item in over {
                    merge_item(under, key, item, main);
                }
            }
            (_, value) => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn merge_item(under: &mut Vec<Value>, key: &str, item: &Value, main: &str) {
    let name = item.get("name").and_then(Value::as_str);
    let place = if key == "containers" {
        match name {
            // SkyPilot's own name for its container, which its files may say.
            None | Some("ray-node") => position(under, "name", &main.into()),
            Some(name) => position(under, "name", &name.into()),
        }
    } else if SINGLE.contains(&key) {
        (!under.is_empty()).then_some(0)
    } else {
        let field = KEYED.iter().find(|(list, _)| *list == key);
        field.and_then(|(_, field)| position(under, field, item.get(*field)?))
    };
    match (place.and_then(|place| under.get_mut(place)), item) {
        (Some(Value::Object(under)), Value::Object(over)) => {
            let kept = under.get("name").cloned();
            merge(under, over, main);
            if key == "containers"
                && let Some(name) = kept
            {
                under.insert("name".to_owned(), name);
            }
        }
        _ => under.push(item.clone()),
    }
}

fn position(items: &[Value], field: &str, value: &Value) -> Option<usize> {
    items.iter().position(|item| item.get(field) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(base: Value, over: Value) -> Value {
        let (Value::Object(mut base), Value::Object(over)) = (base, over) else {
            panic!("not mappings");
        };
        merge(&mut base, &over, "replica");
        base.into()
    }

    #[test]
    fn mappings_merge_key_by_key_and_scalars_replace() {
        let base = json!({"spec": {"a": 1, "b": {"c": 2}}});
        let over = json!({"spec": {"a": 3, "b": {"d": 4}, "e": [5]}});
        let all = json!({"spec": {"a": 3, "b": {"c": 2, "d": 4}, "e": [5]}});
        assert_eq!(merged(base, over), all);
    }

    #[test]
    fn the_container_is_merged_and_others_are_put_beside() {
        let base =
            json!({"containers": [{"name": "replica", "image": "a", "env": [{"name": "A"}]}]});
        for name in [
            json!({}),
            json!({"name": "ray-node"}),
            json!({"name": "replica"}),
        ] {
            let mut container = json!({"image": "b", "env": [{"name": "B"}]});
            if let Some(name) = name.get("name") {
                container["name"] = name.clone();
            }
            let over = json!({ "containers": [container] });
            let all = json!({"containers": [
                {"name": "replica", "image": "b", "env": [{"name": "A"}, {"name": "B"}]}
            ]});
            assert_eq!(merged(base.clone(), over), all);
        }
        let over = json!({"containers": [{"name": "side", "image": "s"}]});
        assert_eq!(merged(base, over)["containers"][1]["name"], "side");
    }

    /// The lists and fields of SkyPilot's `_PATCH_MERGE_KEYS`.
    #[test]
    fn items_of_a_keyed_list_merge_with_the_one_that_has_their_key() {
        for (list, field) in KEYED {
            let item = |value: Value, more: &str| json!({ field: value, more: 1 });
            let base = json!({ list: [item(7.into(), "a"), item("x".into(), "a")] });
            let over = json!({ list: [item("x".into(), "b"), item("y".into(), "b"), { "b": 1 }] });
            let all = json!({ list: [
                item(7.into(), "a"),
                { field: "x", "a": 1, "b": 1 },
                item("y".into(), "b"),
                { "b": 1 },
            ] });
            assert_eq!(merged(base, over), all, "{list}");
        }
    }

    #[test]
    fn the_one_pull_secret_is_merged_and_a_second_list_of_a_new_key_is_taken_whole() {
        let base = json!({"imagePullSecrets": [{"name": "a"}]});
        let over = json!({"imagePullSecrets": [{"name": "b"}], "hostAliases": [{"ip": "1"}]});
        assert_eq!(merged(base, over.clone()), over);
    }

    #[test]
    fn volumes_merge_by_name_and_other_lists_grow() {
        let base =
            json!({"volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "a"}]});
        let over = json!({
            "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "w"}],
            "tolerations": [{"key": "b"}],
        });
        let all = json!({
            "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "w"}],
            "tolerations": [{"key": "a"}, {"key": "b"}],
        });
        assert_eq!(merged(base, over), all);
    }
}
