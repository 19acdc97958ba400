//! `raftserve logout`.

use std::time::Duration;

use serde_json::json;

use super::args::Target;
use super::contexts::{Contexts, Token};
use super::durations::brief;
use super::failure::{Exit, Failure};
use super::login_args::LogoutArgs;
use super::output;
use crate::clock;

/// Runs the verb. Asks no peer: a token is good without anybody keeping a list of those that are.
pub(super) fn run(args: LogoutArgs) -> Result<(), Failure> {
    let mut contexts = Contexts::load(&args.target.home)?;
    let name = chosen(&contexts, &args.target)?;
    let context = contexts.contexts.get_mut(&name);
    let token = context.and_then(|context| context.token.take());
    if token.is_some() {
        contexts.save(&args.target.home)?;
    }
    if args.target.access_token.is_some() {
        eprintln!("warning: RAFTSERVE_TOKEN is set, and is used all the same");
    }
    let value = json!({
        "context": name,
        "forgotten": token.is_some(),
        "user": token.as_ref().map(|token| &token.name),
        "expires_unix_ms": token.as_ref().and_then(|token| token.expires_unix_ms),
    });
    output::print(args.output.output, &value, || {
        said(&name, token.as_ref(), clock::unix_ms())
    })
}

/// The context that flags name, else that in use.
fn chosen(contexts: &Contexts, target: &Target) -> Result<String, Failure> {
    if let Some(name) = &target.context {
        contexts.named(name)?;
        return Ok(name.clone());
    }
    let (found, missing) = match target.server.is_empty() {
        true => {
            let current = contexts.current.as_deref();
            let current = current.filter(|name| contexts.contexts.contains_key(*name));
            (current, "no context is in use".to_owned())
        }
        false => {
            let found = contexts.of_servers(&target.server);
            let missing = format!("no context has the servers {}", target.server.join(", "));
            (found.map(|(name, _)| name), missing)
        }
    };
    found.map(str::to_owned).ok_or_else(|| {
        Failure::new(Exit::NotFound, missing).remedy(
            "name one with --context; `raftserve context list` shows them, and who is logged in",
        )
    })
}

fn said(name: &str, token: Option<&Token>, now_unix_ms: u64) -> String {
    let Some(token) = token else {
        return format!("Nobody was logged in to context {name}.\n");
    };
    let user = &token.name;
    let until = match token.expires_unix_ms {
        Some(at) if at <= now_unix_ms => "It had expired.".to_owned(),
        Some(at) => format!(
            "Peers are not told, and take it for another {}, unless the line of {user} in their file htpasswd changes.",
            brief(Duration::from_millis(at - now_unix_ms))
        ),
        None => "Peers are not told, and take it for as long as it stands in their file tokens."
            .to_owned(),
    };
    format!("Logged out of context {name}: the token of {user} is forgotten here. {until}\n")
}

#[cfg(test)]
mod tests {
    use super::super::contexts::Context;
    use super::*;

    fn token(expires_unix_ms: Option<u64>) -> Token {
        Token {
            token: "s3cret".to_owned(),
            name: "ann".to_owned(),
            expires_unix_ms,
        }
    }

    #[test]
    fn the_context_is_the_one_whose_token_would_be_used() {
        let context = |server: &str| Context {
            servers: vec![server.to_owned()],
            token: Some(token(None)),
            ..Context::default()
        };
        let mut contexts = Contexts {
            current: Some("prod".to_owned()),
            contexts: [("prod", "https://a:1"), ("test", "https://b:1")]
                .map(|(name, server)| (name.to_owned(), context(server)))
                .into(),
        };
        let named = |name: &str| Target {
            context: Some(name.to_owned()),
            ..Target::default()
        };
        let at = |server: &str| Target {
            server: vec![server.to_owned()],
            ..Target::default()
        };
        let nothing = Target::default();
        assert_eq!(chosen(&contexts, &nothing).unwrap(), "prod");
        assert_eq!(chosen(&contexts, &named("test")).unwrap(), "test");
        assert_eq!(chosen(&contexts, &at("https://b:1")).unwrap(), "test");
        for missing in [named("other"), at("https://c:1")] {
            let refused = chosen(&contexts, &missing).unwrap_err();
            assert_eq!(refused.exit, Exit::NotFound, "{refused:?}");
        }
        contexts.current = None;
        let refused = chosen(&contexts, &nothing).unwrap_err();
        assert_eq!(refused.exit, Exit::NotFound, "{refused:?}");
    }

    #[test]
    fn only_the_token_goes_and_it_is_told_that_peers_still_take_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target {
            home: super::super::contexts::ConfigHome {
                config_home: Some(folder.path().to_owned()),
                home: None,
            },
            ..Target::default()
        };
        let context = Context {
            servers: vec!["https://a:1".to_owned()],
            authorities: Some("pem".to_owned()),
            token: Some(token(Some(5))),
            ..Context::default()
        };
        let contexts = Contexts {
            current: Some("prod".to_owned()),
            contexts: [("prod".to_owned(), context.clone())].into(),
        };
        contexts.save(&target.home).unwrap();
        let args = LogoutArgs {
            output: super::super::args::Output {
                output: super::super::args::Format::Json,
            },
            target: target.clone(),
        };
        run(args).unwrap();
        let left = Contexts::load(&target.home).unwrap();
        let without = Context {
            token: None,
            ..context
        };
        assert_eq!(left.named("prod").unwrap(), &without);
        assert_eq!(left.current.as_deref(), Some("prod"));

        let text = said("prod", Some(&token(Some(60_000))), 0);
        assert!(text.contains("take it for another 1m 0s"), "{text}");
        assert!(said("prod", Some(&token(Some(5))), 5).contains("had expired"));
        assert!(said("prod", Some(&token(None)), 0).contains("file tokens"));
        assert!(said("prod", None, 0).starts_with("Nobody was logged in"));
    }
}
