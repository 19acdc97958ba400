//! `raftserve kv`.

use std::io::Read;

use raftserve_store::state::KV_VALUE_BYTES_MAX;
use serde_json::{Value, json};
use tonic::{Response, Status};

use super::args::{Format, Target};
use super::connect::{Link, Servers};
use super::counted::counted;
use super::failure::Failure;
use super::kv_args::{Condition, KvArgs, KvVerb};
use super::output;
use super::paint::{Paint, Tone};
use super::resume::Breaks;
use super::table::Table;
use crate::admin::errors::Reason;
use crate::admin::v1;
use crate::admin::v1::key_value_client::KeyValueClient;
use crate::admin::v1::watch_keys_response::Change;

/// What is to be done where the changes asked for are no longer kept.
const LIST: &str = "`raftserve kv list --output json` shows the keys as they are and its log_index: watch with --from one more \
                    than that";

/// Runs the verb.
pub(super) async fn run(args: KvArgs) -> Result<(), Failure> {
    match args.verb {
        KvVerb::Put {
            key,
            value,
            condition,
            output,
            target,
        } => put(key, &value, condition, output.output, &target).await,
        KvVerb::Get {
            key,
            stale,
            output,
            target,
        } => get(v1::GetKeyRequest { key, stale }, output.output, &target).await,
        KvVerb::Delete {
            key,
            if_modified_index,
            output,
            target,
        } => delete(key, if_modified_index, output.output, &target).await,
        KvVerb::List {
            prefix,
            keys_only,
            stale,
            output,
            target,
        } => {
            let request = v1::ListKeysRequest {
                prefix: prefix.unwrap_or_default(),
                keys_only,
                stale,
                ..v1::ListKeysRequest::default()
            };
            list(request, output.output, &target).await
        }
        KvVerb::Watch {
            prefix,
            from,
            no_follow,
            output,
            target,
        } => {
            let begin = match (from, no_follow) {
                (Some(from), _) => Begin::At(from),
                (None, true) => Begin::At(0),
                (None, false) => Begin::Now,
            };
            let prefix = prefix.unwrap_or_default();
            let watched = watch(prefix, begin, no_follow, output.output, &target).await;
            watched.map_err(|failure| failure.if_compacted(LIST))
        }
    }
}

fn client(channel: Link) -> KeyValueClient<Link> {
    KeyValueClient::new(channel)
}

impl Condition {
    fn if_modified_index(self) -> Option<u64> {
        match self.if_absent {
            true => Some(0),
            false => self.if_modified_index,
        }
    }
}

async fn put(
    key: String,
    value: &str,
    condition: Condition,
    format: Format,
    target: &Target,
) -> Result<(), Failure> {
    let value = match value {
        "-" => {
            let mut bytes = Vec::new();
            // One more than is allowed shows that there are too many, however many there are.
            let mut input = std::io::stdin().lock().take(KV_VALUE_BYTES_MAX as u64 + 1);
            let read = input.read_to_end(&mut bytes);
            read.map_err(|error| Failure::failed(format!("cannot read the value: {error}")))?;
            if bytes.len() > KV_VALUE_BYTES_MAX {
                return Err(Failure::usage(format!(
                    "the value on standard input has more than {KV_VALUE_BYTES_MAX} bytes, which is the most that is allowed"
                )));
            }
            bytes
        }
        text => text.as_bytes().to_vec(),
    };
    let mut servers = Servers::new(target)?;
    let request = v1::PutKeyRequest {
        key: key.clone(),
        value: value.into(),
        if_modified_index: condition.if_modified_index(),
        request_id: Some(servers.request_id().await?),
    };
    let done = servers
        .ask(|channel| {
            let request = request.clone();
            async move { client(channel).put(request).await }
        })
        .await
        .map_err(|mut failure| {
            if condition.if_absent && failure.reason == Some(Reason::KeyConflict) {
                failure.message = format!("key {key} exists already, and was left as it is");
            }
            failure
        })?;
    let shown = json!({
        "key": key,
        "created_index": done.created_index,
        "modified_index": done.modified_index,
        "version": done.version,
    });
    output::print(format, &shown, || {
        format!("{key} is set, at index {}.\n", done.modified_index)
    })
}

async fn get(request: v1::GetKeyRequest, format: Format, target: &Target) -> Result<(), Failure> {
    let found = Servers::new(target)?
        .ask(|channel| {
            let request = request.clone();
            async move { client(channel).get(request).await }
        })
        .await?;
    let entry = found.entry.unwrap_or_default();
    if format == Format::Table {
        // As it is, for a pipe; a line of its own on a terminal.
        output::write(&entry.value)?;
        return match std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            true => output::write(b"\n"),
            false => Ok(()),
        };
    }
    output::print(format, &shape(&entry, false), String::new)
}

async fn delete(
    key: String,
    if_modified_index: Option<u64>,
    format: Format,
    target: &Target,
) -> Result<(), Failure> {
    let mut servers = Servers::new(target)?;
    let request = v1::DeleteKeyRequest {
        key: key.clone(),
        if_modified_index,
        request_id: Some(servers.request_id().await?),
    };
    let done = servers
        .ask(|channel| {
            let request = request.clone();
            async move { client(channel).delete(request).await }
        })
        .await?;
    let shown = json!({ "key": key, "existed": done.existed, "log_index": done.log_index });
    output::print(format, &shown, || match done.existed {
        true => format!("{key} is deleted.\n"),
        false => format!("There was no key {key}.\n"),
    })
}

async fn list(
    mut request: v1::ListKeysRequest,
    format: Format,
    target: &Target,
) -> Result<(), Failure> {
    let mut servers = Servers::new(target)?;
    let mut entries = Vec::new();
    // Of the first page: whoever watches from there on misses nothing of what the others were too early or too late for.
    let mut index = None;
    loop {
        let page = servers
            .ask(|channel| {
                let request = request.clone();
                async move { client(channel).list(request).await }
            })
            .await?;
        index.get_or_insert(page.log_index);
        entries.extend(page.entries);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let shown: Vec<Value> = entries
        .iter()
        .map(|entry| shape(entry, request.keys_only))
        .collect();
    let value = json!({ "log_index": index, "keys": shown });
    output::print(format, &value, || {
        table(&entries, request.keys_only, Paint::of(&std::io::stdout()))
    })
}

/// Where a watch begins.
enum Begin {
    /// With what comes after this moment.
    Now,
    /// At this index.
    At(u64),
}

async fn watch(
    prefix: String,
    begin: Begin,
    no_follow: bool,
    format: Format,
    target: &Target,
) -> Result<(), Failure> {
    let mut servers = Servers::new(target)?;
    // The same for every peer, also for one that is behind: a stream that breaks before its first word loses nothing.
    let now = servers.ask(newest).await?.log_index;
    let from = match begin {
        Begin::Now => now + 1,
        Begin::At(index) => index,
    };
    if no_follow && from > now {
        eprintln!("Nothing has happened yet from index {from} on: the cluster is at index {now}.");
        return Ok(());
    }
    let mut request = v1::WatchKeysRequest {
        from_index: Some(from),
        prefix,
    };
    let mut breaks = Breaks::default();
    loop {
        let mut stream = servers
            .ask(|channel| {
                let request = request.clone();
                async move { client(channel).watch(request).await }
            })
            .await?;
        let ended = loop {
            match stream.message().await {
                Ok(Some(told)) => {
                    breaks.mended();
                    request.from_index = Some(told.log_index + 1);
                    if no_follow && told.log_index > now {
                        return Ok(());
                    }
                    if let Some(change) = told.change {
                        print_change(told.log_index, &change, format)?;
                    }
                    if no_follow && told.log_index == now {
                        return Ok(());
                    }
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        breaks.broken(ended.as_ref(), &mut servers)?;
    }
}

/// The newest index, as the leader has it.
async fn newest(channel: Link) -> Result<Response<v1::ListKeysResponse>, Status> {
    let request = v1::ListKeysRequest {
        keys_only: true,
        page_size: 1,
        ..v1::ListKeysRequest::default()
    };
    client(channel).list(request).await
}

fn print_change(index: u64, change: &Change, format: Format) -> Result<(), Failure> {
    let paint = Paint::of(&std::io::stdout());
    let (mut value, line) = match change {
        Change::Put(entry) => {
            let mut shown = shape(entry, false);
            shown["change"] = "put".into();
            (
                shown,
                change_line(index, &entry.key, Some(&entry.value), paint),
            )
        }
        Change::Deleted(key) => (
            json!({ "key": key, "change": "deleted" }),
            change_line(index, key, None, paint),
        ),
    };
    value["log_index"] = index.into();
    output::print_one(format, &value, || line)
}

/// A change on one line, whatever is in the value.
fn change_line(index: u64, key: &str, value: Option<&[u8]>, paint: Paint) -> String {
    let what = match value {
        None => paint.tone(Tone::Strong, "deleted"),
        Some(value) => match std::str::from_utf8(value) {
            Ok(text) => format!("= {}", text.replace(char::is_control, " ")),
            Err(_) => format!(
                "= {}, no text",
                counted(value.len() as u64, "byte", "bytes")
            ),
        },
    };
    format!("{index:>6}  {key}  {what}\n")
}

/// An entry as JSON has it: a value that is no text is told in hexadecimal, under another name.
fn shape(entry: &v1::KeyEntry, keys_only: bool) -> Value {
    let mut shown = json!({
        "key": entry.key,
        "created_index": entry.created_index,
        "modified_index": entry.modified_index,
        "version": entry.version,
    });
    if !keys_only {
        match std::str::from_utf8(&entry.value) {
            Ok(text) => shown["value"] = text.into(),
            Err(_) => {
                let digits = entry.value.iter().map(|byte| format!("{byte:02x}"));
                shown["value_hex"] = digits.collect::<String>().into();
            }
        }
    }
    shown
}

fn table(entries: &[v1::KeyEntry], keys_only: bool, paint: Paint) -> String {
    let mut table = Table::new(["KEY", "VERSION", "MODIFIED", "BYTES"]);
    for entry in entries {
        let plain = |text: String| (text, Tone::Plain);
        table.row([
            plain(entry.key.clone()),
            plain(entry.version.to_string()),
            plain(entry.modified_index.to_string()),
            plain(match keys_only {
                true => String::new(),
                false => entry.value.len().to_string(),
            }),
        ]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_text_is_told_in_hexadecimal() {
        let entry = |value: &'static [u8]| v1::KeyEntry {
            key: "k".into(),
            value: value.into(),
            ..v1::KeyEntry::default()
        };
        assert_eq!(shape(&entry(b"on"), false)["value"], "on");
        assert_eq!(shape(&entry(&[0xff, 0x0a]), false)["value_hex"], "ff0a");
        assert_eq!(shape(&entry(b"on"), true).get("value"), None);
    }

    #[test]
    fn a_change_is_one_line() {
        let line = |value: Option<&[u8]>| change_line(12, "k", value, Paint::fixed(false));
        assert_eq!(line(Some(b"on\noff")), "    12  k  = on off\n");
        assert_eq!(line(Some(&[0xff])), "    12  k  = 1 byte, no text\n");
        assert_eq!(line(None), "    12  k  deleted\n");
    }
}
