//! The key of a request in a JSON body, of which only the beginning may be at hand.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The value at `pointer` (RFC 6901) in the JSON text that begins with `body`: a text as it is, anything else as JSON.
/// `None` if it is not there, or null, or if the text is no JSON before its end. What follows it is not looked at, so
/// that a long body needs only its beginning; of a name written twice the first counts.
pub(crate) fn find(body: &[u8], pointer: &str) -> Option<Vec<u8>> {
    let mut found = None;
    let steps: Vec<String> = pointer.split('/').skip(1).map(unescape).collect();
    let seek = Seek {
        steps: &steps,
        found: &mut found,
    };
    let mut reader = serde_json::Deserializer::from_slice(body);
    // Having found it ends the reading as an error does.
    let _ = seek.deserialize(&mut reader);
    match found? {
        Value::Null => None,
        Value::String(text) => Some(text.into_bytes()),
        other => Some(other.to_string().into_bytes()),
    }
}

fn unescape(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

/// Goes down the steps that are left.
struct Seek<'s, 'f> {
    steps: &'s [String],
    found: &'f mut Option<Value>,
}

impl<'de> DeserializeSeed<'de> for Seek<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        if self.steps.is_empty() {
            *self.found = Some(Value::deserialize(from)?);
            return Ok(());
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list on the way to the key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, steps)) = self.steps.split_first() else {
            return Ok(());
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == *step {
                let found = self.found;
                map.next_value_seed(Seek { steps, found })?;
                return Err(A::Error::custom("nothing else is looked at"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((step, steps)) = self.steps.split_first() else {
            return Ok(());
        };
        let place: usize = step.parse().map_err(A::Error::custom)?;
        for _ in 0..place {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        let found = self.found;
        seq.next_element_seed(Seek { steps, found })?;
        Err(A::Error::custom("nothing else is looked at"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_found_by_its_pointer() {
        let body = br#"{"model": "m", "user": {"id": 7, "a/b~c": [1, {"x": "y"}]}, "none": null, "t": ""}"#;
        for (pointer, value) in [
            ("/model", Some("m")),
            ("/user/id", Some("7")),
            ("/user/a~1b~0c/1/x", Some("y")),
            ("/user/a~1b~0c/0", Some("1")),
            ("/user/a~1b~0c/1", Some("{\"x\":\"y\"}")),
            ("/t", Some("")),
            ("/none", None),
            ("/user/a~1b~0c/2", None),
            ("/user/a~1b~0c/x", None),
            ("/model/x", None),
            ("/absent", None),
        ] {
            let found = find(body, pointer);
            assert_eq!(found.as_deref(), value.map(str::as_bytes), "{pointer}");
        }
    }

    #[test]
    fn only_what_comes_before_it_has_to_be_there_and_right() {
        assert_eq!(
            find(br#"{"user": "ann", "prompt": "a long"#, "/user"),
            Some(b"ann".to_vec())
        );
        assert_eq!(
            find(br#"{"user": "ann", oops"#, "/user"),
            Some(b"ann".to_vec())
        );
        for broken in [
            "",
            "{",
            r#"{"user": "an"#,
            r#"{"a": oops, "user": "ann"}"#,
            "user=ann",
            "[]",
        ] {
            assert_eq!(find(broken.as_bytes(), "/user"), None, "{broken}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(find(deep.as_bytes(), "/0/0/0"), None);
        assert_eq!(find(format!("{{\"a\": {deep}").as_bytes(), "/b"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize) {
            let _ = find(&bytes, "/a/0");
            let whole = br#"{"x": [1, 2, {"y": "z"}], "user": "ann", "rest": [true, false]}"#;
            let found = find(&whole[..cut.min(whole.len())], "/user");
            prop_assert_eq!(found.is_some(), cut >= 39);
        }
    }
}
