//! `raftserve context`.

use serde_json::{Value, json};

use super::contexts::{Context, Contexts};
use super::failure::Failure;
use super::login_args::{ContextArgs, ContextVerb};
use super::paint::{Paint, Tone};
use super::table::Table;
use super::{connect, output, tls};
use crate::clock;

/// Runs the verb.
pub(super) fn run(args: ContextArgs) -> Result<(), Failure> {
    let mut contexts = Contexts::load(&args.home)?;
    match args.verb {
        ContextVerb::List { output } => {
            let value = show(&contexts);
            return output::print(output.output, &value, || table(&value));
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
                token: None,
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

fn show(contexts: &Contexts) -> Value {
    let entry = |(name, context): (&String, &Context)| {
        let token = context.token.as_ref();
        json!({
            "name": name,
            "current": contexts.current.as_ref() == Some(name),
            "servers": context.servers,
            "user": token.map(|token| &token.name),
            "expires_unix_ms": token.and_then(|token| token.expires_unix_ms),
        })
    };
    Value::Array(contexts.contexts.iter().map(entry).collect())
}

fn table(value: &Value) -> String {
    let mut table = Table::new(["USED", "NAME", "USER", "SERVERS"]);
    for entry in value.as_array().into_iter().flatten() {
        let servers = entry["servers"].as_array().into_iter().flatten();
        let servers: Vec<&str> = servers.filter_map(Value::as_str).collect();
        let expires = entry["expires_unix_ms"].as_u64();
        let user = match entry["user"].as_str() {
            None => "-".to_owned(),
            Some(user) if expires.is_some_and(|at| at <= clock::unix_ms()) => {
                format!("{user} (expired)")
            }
            Some(user) => user.to_owned(),
        };
        table.row(
            [
                (if entry["current"] == true { "*" } else { "" }).to_owned(),
                entry["name"].as_str().unwrap_or_default().to_owned(),
                user,
                servers.join(","),
            ]
            .map(|cell| (cell, Tone::Plain)),
        );
    }
    table.render(Paint::of(&std::io::stdout()))
}
