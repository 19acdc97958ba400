//! The key of a request under a hash policy.

use std::time::Duration;

use http::{HeaderMap, Request};
use raftserve_model::spec::HashKey;

use crate::body::UploadBody;
use crate::json_key;
use crate::policy::hash;
use crate::session::cookie;

/// Seeds all keys alike: equal values meet equal replicas, wherever they stood.
const KEY_SEED: u64 = 0;

/// The hash of the key that `source` names in a request, or else of the client's address: also where the key is empty.
/// A key in the body counts as absent here: [`of_body`] looks for it.
pub(crate) fn of<B>(source: Option<&HashKey>, request: &Request<B>, client: &[u8]) -> u64 {
    let found = source.and_then(|source| find(source, request.headers(), request.uri().query()));
    hash(
        KEY_SEED,
        found.filter(|key| !key.is_empty()).unwrap_or(client),
    )
}

/// The hash of a key in the body, which may be empty and then is none.
pub(crate) async fn of_body(
    pointer: &str,
    body: &UploadBody,
    silence_max: Duration,
) -> Option<u64> {
    let beginning = body.peek(silence_max).await;
    let key = json_key::find(&beginning, pointer)?;
    (!key.is_empty()).then(|| hash(KEY_SEED, &key))
}

/// A key that stands in what comes before the body.
pub(crate) fn find<'r>(
    source: &HashKey,
    headers: &'r HeaderMap,
    query: Option<&'r str>,
) -> Option<&'r [u8]> {
    match source {
        HashKey::Header(name) => Some(headers.get(name.as_str())?.as_bytes()),
        HashKey::Cookie(name) => cookie(headers, name.as_bytes()),
        HashKey::Query(name) => query?
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value.as_bytes())),
        HashKey::SourceAddress | HashKey::JsonField(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_from_where_the_service_says_or_else_the_address() {
        let request = Request::get("/p?user=ann&user=eve&u=&flag")
            .header("x-user", "ann")
            .header("x-empty", "")
            .header("cookie", "a=1; user=ann")
            .body(())
            .expect("a good request");
        let of = |source| of(Some(&source), &request, b"10.0.0.1");
        let name = |name: &str| name.to_owned();
        let (ann, address) = (hash(0, b"ann"), hash(0, b"10.0.0.1"));
        assert_eq!(of(HashKey::Header(name("x-user"))), ann);
        assert_eq!(of(HashKey::Cookie(name("user"))), ann);
        assert_eq!(of(HashKey::Query(name("user"))), ann);
        for absent in [
            HashKey::SourceAddress,
            HashKey::Header(name("x-none")),
            HashKey::Header(name("x-empty")),
            HashKey::Cookie(name("User")),
            HashKey::Query(name("u")),
            HashKey::Query(name("flag")),
            HashKey::Query(name("ser")),
            HashKey::JsonField(name("/user")),
        ] {
            assert_eq!(of(absent.clone()), address, "{absent:?}");
        }
        assert_eq!(super::of(None, &request, b"10.0.0.1"), address);
    }
}
