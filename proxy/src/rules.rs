//! The route rules of a service: which of them a request meets, and what becomes of its path.

use std::borrow::Cow;

use http::{HeaderMap, Method};
use raftserve_model::spec::RouteRule;

/// What a request is, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// Maybe with a port.
    pub(crate) host: &'a str,
    pub(crate) method: &'a Method,
    /// Without the service's own prefix, and without the query.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

/// The index of the first rule whose conditions all hold.
pub(crate) fn first(rules: &[RouteRule], asked: &Asked<'_>) -> Option<usize> {
    rules.iter().position(|rule| matches(rule, asked))
}

fn matches(rule: &RouteRule, asked: &Asked<'_>) -> bool {
    let path = rule.path_prefix.as_deref();
    path.is_none_or(|prefix| below(asked.path, prefix).is_some())
        && any(&rule.methods, |method| method == asked.method.as_str())
        && any(&rule.hosts, |host| is_host(asked.host, host))
        && rule.headers.iter().all(|(name, value)| {
            let mut lines = asked.headers.get_all(name.as_str()).iter();
            lines.any(|line| line.as_bytes() == value.as_bytes())
        })
}

/// Whether one of the conditions holds; having none holds.
fn any(conditions: &[String], holds: impl Fn(&str) -> bool) -> bool {
    conditions.is_empty() || conditions.iter().any(|condition| holds(condition))
}

/// What follows `prefix` in `path`, with its slash; empty if nothing does. `None` if `path` does not begin so in whole
/// segments. A slash at the end of `prefix` says nothing.
fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn is_host(asked: &str, host: &str) -> bool {
    let port = asked.rfind(':').filter(|at| !asked[*at..].contains(']'));
    let name = &asked[..port.unwrap_or(asked.len())];
    let name = name.strip_suffix('.').unwrap_or(name);
    match host.strip_prefix('*') {
        None => name.eq_ignore_ascii_case(host),
        // What is left begins with a dot, and something stands before it.
        Some(parent) => {
            let at = name.len().checked_sub(parent.len());
            at.filter(|&at| at > 0)
                .and_then(|at| name.get(at..))
                .is_some_and(|end| end.eq_ignore_ascii_case(parent))
        }
    }
}

/// What the replica gets in place of `target`, a path with its query, which began with the rule's prefix when the rule
/// was met. All beside the prefix stays byte for byte.
pub(crate) fn rewrite<'t>(rule: &RouteRule, target: &'t str) -> Cow<'t, str> {
    let (Some(prefix), Some(new)) = (&rule.path_prefix, &rule.rewrite_prefix) else {
        return Cow::Borrowed(target);
    };
    let query = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(query);
    let Some(rest) = below(path, prefix) else {
        return Cow::Borrowed(target);
    };
    let new = new.trim_end_matches('/');
    let slash = if new.is_empty() && rest.is_empty() {
        "/"
    } else {
        ""
    };
    Cow::Owned(format!("{new}{slash}{rest}{query}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderValue;

    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn met(rule: &RouteRule, host: &str, method: &str, path: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.append("x-beta", HeaderValue::from_static("0"));
        headers.append("x-beta", HeaderValue::from_static("1"));
        let asked = Asked {
            host,
            method: &method.parse().expect("a method"),
            path,
            headers: &headers,
        };
        first(std::slice::from_ref(rule), &asked).is_some()
    }

    #[test]
    fn a_prefix_is_whole_segments_and_nothing_is_decoded() {
        for prefix in ["/v1", "/v1/"] {
            let rule = RouteRule {
                path_prefix: Some(prefix.to_owned()),
                ..RouteRule::default()
            };
            for path in ["/v1", "/v1/", "/v1/x", "/v1//x", "/v1/../y"] {
                assert!(met(&rule, "", "GET", path), "{path}");
            }
            for path in ["/v1x", "/V1", "/", "/v1%2Fx", "/%761", "*", "//v1"] {
                assert!(!met(&rule, "", "GET", path), "{path}");
            }
        }
        let all = RouteRule {
            path_prefix: Some("/".to_owned()),
            ..RouteRule::default()
        };
        assert!(met(&all, "", "GET", "/") && met(&all, "", "GET", "/x"));
    }

    #[test]
    fn hosts_are_told_apart_without_port_and_case() {
        let rule = RouteRule {
            hosts: texts(&["api.example.com", "*.lab.example"]),
            ..RouteRule::default()
        };
        for host in [
            "api.example.com",
            "API.example.com:8080",
            "api.example.com.",
            "a.lab.example",
            "a.b.LAB.example:1",
        ] {
            assert!(met(&rule, host, "GET", "/"), "{host}");
        }
        for host in [
            "",
            "example.com",
            "x.api.example.com",
            "lab.example",
            ".lab.example",
            "xlab.example",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(!met(&rule, host, "GET", "/"), "{host}");
        }
    }

    #[test]
    fn methods_and_headers_have_to_be_exactly_these() {
        let rule = RouteRule {
            methods: texts(&["GET", "PURGE"]),
            headers: BTreeMap::from([("x-beta".to_owned(), "1".to_owned())]),
            ..RouteRule::default()
        };
        assert!(met(&rule, "", "GET", "/") && met(&rule, "", "PURGE", "/"));
        assert!(!met(&rule, "", "POST", "/"));
        let other = RouteRule {
            headers: BTreeMap::from([("x-beta".to_owned(), "2".to_owned())]),
            ..RouteRule::default()
        };
        assert!(!met(&other, "", "GET", "/"));
    }

    #[test]
    fn the_first_that_matches_wins() {
        let prefixed = |prefix: &str| RouteRule {
            path_prefix: Some(prefix.to_owned()),
            ..RouteRule::default()
        };
        let rules = [prefixed("/a/b"), prefixed("/a"), RouteRule::default()];
        let which = |path| {
            let asked = Asked {
                host: "",
                method: &Method::GET,
                path,
                headers: &HeaderMap::new(),
            };
            (first(&rules, &asked), first(&rules[..2], &asked))
        };
        assert_eq!(which("/a/b/c"), (Some(0), Some(0)));
        assert_eq!(which("/a/c"), (Some(1), Some(1)));
        assert_eq!(which("/c"), (Some(2), None));
    }

    #[test]
    fn a_prefix_is_rewritten_and_all_else_stays() {
        for (prefix, new, target, expected) in [
            (
                "/v1",
                "/api/v2",
                "/v1/a%2Fb//c?d=/v1",
                "/api/v2/a%2Fb//c?d=/v1",
            ),
            ("/v1", "/", "/v1", "/"),
            ("/v1", "/", "/v1?q", "/?q"),
            ("/v1/", "/", "/v1/x", "/x"),
            ("/v1", "/v2/", "/v1/", "/v2/"),
            ("/", "/api", "/", "/api/"),
            ("/", "/api", "/x?y", "/api/x?y"),
        ] {
            let rule = RouteRule {
                path_prefix: Some(prefix.to_owned()),
                rewrite_prefix: Some(new.to_owned()),
                ..RouteRule::default()
            };
            assert_eq!(rewrite(&rule, target), expected, "{prefix} {new} {target}");
        }
        assert_eq!(rewrite(&RouteRule::default(), "/v1?x"), "/v1?x");
    }
}
