//! `raftserve context`.

use std::time::Duration;

use serde_json::{Value, json};

use super::contexts::{Context, Contexts, Token};
use super::durations::brief;
use super::failure::Failure;
use super::login_args::{ContextArgs, ContextVerb};
use super::paint::{Paint, Tone};
use super::table::Table;
use super::{connect, output, tls};
use crate::clock;

/// What is said where there is no context.
const NONE: &str =
    "there is no context: `raftserve login --server HOST:PORT` logs in to a cluster and keeps one";

/// Runs the verb.
pub(super) fn run(args: ContextArgs) -> Result<(), Failure> {
    let mut contexts = Contexts::load(&args.home)?;
    match args.verb {
        ContextVerb::List { output } => {
            let now = clock::unix_ms();
            let value = show(&contexts, now);
            if contexts.contexts.is_empty() {
                eprintln!("{NONE}");
            }
            return output::print(output.output, &value, || {
                table(&contexts, now).render(Paint::of(&std::io::stdout()))
            });
        }
        ContextVerb::Use { name } => {
            contexts.named(&name)?;
            contexts.current = Some(name);
        }
        ContextVerb::Add {
            name,
            server,
            ca_file,
            tls_server_name,
        } => {
            let authorities = ca_file.as_deref().map(tls::read_authorities).transpose()?;
            let context = Context {
                servers: server,
                authorities,
                tls_server_name,
                ..Context::default()
            };
            connect::check(&context)?;
            contexts.contexts.insert(name.clone(), context);
            contexts.current.get_or_insert(name);
        }
        ContextVerb::Remove { name } => {
            contexts.named(&name)?;
            contexts.contexts.remove(&name);
            contexts.current = contexts.current.filter(|current| *current != name);
        }
    }
    contexts.save(&args.home).map(drop)
}

fn show(contexts: &Contexts, now_unix_ms: u64) -> Value {
    let entry = |(name, context): (&String, &Context)| {
        let token = context.token.as_ref();
        let expires = token.and_then(|token| token.expires_unix_ms);
        json!({
            "name": name,
            "current": contexts.current.as_ref() == Some(name),
            "servers": context.servers,
            "release": context.release.as_ref().map(|release| json!({
                "kube_context": release.kube_context,
                "namespace": release.namespace,
                "name": release.name,
            })),
            "user": token.map(|token| &token.name),
            "expires_unix_ms": expires,
            "expired": expires.map(|at| at <= now_unix_ms),
        })
    };
    Value::Array(contexts.contexts.iter().map(entry).collect())
}

fn table(contexts: &Contexts, now_unix_ms: u64) -> Table {
    let mut table = Table::new(["USED", "NAME", "USER", "EXPIRES", "SERVERS"]);
    for (name, context) in &contexts.contexts {
        let is_used = contexts.current.as_ref() == Some(name);
        let token = context.token.as_ref();
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        table.row([
            plain(if is_used { "*" } else { "" }),
            plain(name),
            plain(token.map_or("", |token| &token.name)),
            token.map_or(plain(""), |token| expires(token, now_unix_ms)),
            plain(&places(context)),
        ]);
    }
    table
}

/// Its servers, or the release that it is for.
fn places(context: &Context) -> String {
    match &context.release {
        Some(release) => format!("release {release}"),
        None => context.servers.join(","),
    }
}

/// When a token ends, or how long ago it did.
fn expires(token: &Token, now_unix_ms: u64) -> (String, Tone) {
    let between = |from: u64, to: u64| brief(Duration::from_millis(to - from));
    match token.expires_unix_ms {
        // Such as one of a file of tokens, which is good for as long as it stands there.
        None => ("not by itself".to_owned(), Tone::Plain),
        Some(at) if at <= now_unix_ms => {
            let ago = between(at, now_unix_ms);
            (format!("expired {ago} ago"), Tone::Bad)
        }
        Some(at) => (format!("in {}", between(now_unix_ms, at)), Tone::Plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_when_a_token_expires_and_whether_it_has() {
        let context = |expires_unix_ms| Context {
            servers: vec!["a:1".to_owned()],
            token: Some(Token {
                token: "s3cret".to_owned(),
                name: "ann".to_owned(),
                expires_unix_ms,
            }),
            ..Context::default()
        };
        let nobody = Context {
            token: None,
            ..context(None)
        };
        let contexts = Contexts {
            current: Some("b".to_owned()),
            contexts: [
                ("a".to_owned(), context(Some(1_000))),
                ("b".to_owned(), context(Some(7_262_000))),
                ("c".to_owned(), context(None)),
                ("d".to_owned(), nobody),
            ]
            .into(),
        };
        assert_eq!(
            table(&contexts, 61_000).render(Paint::fixed(false)),
            [
                "USED  NAME  USER  EXPIRES            SERVERS\n",
                "-     a     ann   expired 1m 0s ago  a:1\n",
                "*     b     ann   in 2h 0m           a:1\n",
                "-     c     ann   not by itself      a:1\n",
                "-     d     -     -                  a:1\n",
            ]
            .concat()
        );
        let shown = show(&contexts, 61_000);
        let expired: Vec<_> = (0..4).map(|at| shown[at]["expired"].clone()).collect();
        assert_eq!(
            expired,
            [json!(true), json!(false), json!(null), json!(null)]
        );
        assert!(!shown.to_string().contains("s3cret"));
    }
}
