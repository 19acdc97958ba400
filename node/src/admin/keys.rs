//! The service `KeyValue`.

use std::sync::Arc;

use raftserve_model::LogIndex;
use raftserve_store::command::Request as Asked;
use raftserve_store::state::{
    Compacted, KV_VALUE_BYTES_MAX, KvChange, KvCondition, KvEntry, KvKey,
};
use raftserve_store::{Outcome, State};
use tonic::{Request, Response, Status};

use super::door::RESERVED;
use super::errors::{self, Reason};
use super::gate::admitted;
use super::pages;
use super::shared::Shared;
use super::v1::{self, key_value_server::KeyValue};
use super::watch::{self, Batches, Page, Watched};

/// The bytes of keys and values in one page, unless a single one has more: well within the 4 MiB that gRPC
/// clients take by default.
const PAGE_BYTES: usize = 1 << 20;

/// How many changes are read in one go, of which a watch holds those that match.
const CHANGES_READ_MAX: usize = 256;

/// The bytes of keys and values that are read in one go, and one change more.
const CHANGES_READ_BYTES: usize = 128 << 10;

/// See the module.
pub(super) struct KeyValueApi(pub(super) Arc<Shared>);

fn key(field: &str, text: &str) -> Result<KvKey, Status> {
    if text.starts_with(RESERVED) {
        let problem = format!("begins with {RESERVED}, which is raftserve's own");
        return Err(errors::invalid_request(field, problem));
    }
    text.parse()
        .map_err(|error: raftserve_store::state::KvKeyError| {
            errors::invalid_request(field, error.to_string())
        })
}

fn condition(if_modified_index: Option<u64>) -> KvCondition {
    match if_modified_index {
        None => KvCondition::Any,
        Some(0) => KvCondition::Absent,
        Some(index) => KvCondition::ModifiedAt(LogIndex(index)),
    }
}

fn show(key: &KvKey, entry: &KvEntry, keys_only: bool) -> v1::KeyEntry {
    v1::KeyEntry {
        key: key.to_string(),
        value: match keys_only {
            true => Default::default(),
            false => prost::bytes::Bytes::copy_from_slice(&entry.value),
        },
        created_index: entry.created.0,
        modified_index: entry.modified.0,
        version: entry.version,
    }
}

impl KeyValueApi {
    async fn write(
        &self,
        id: Option<v1::RequestId>,
        request: Asked,
    ) -> Result<(LogIndex, Outcome), Status> {
        let proposer = &self.0.proposer;
        let (index, outcome) = match id {
            Some(_) => proposer.execute(id, request).await?,
            None => proposer.execute_at_most_once(request).await?,
        };
        self.0.catch_up(index).await;
        Ok((index, outcome))
    }
}

#[tonic::async_trait]
impl KeyValue for KeyValueApi {
    type WatchStream = Batches<v1::WatchKeysResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchKeysRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (asked, _held) = admitted(request);
        if !asked.prefix.is_empty() {
            key("prefix", &asked.prefix)?;
        }
        let keys = WatchedKeys {
            prefix: asked.prefix,
        };
        watch::begin(&self.0, keys, asked.from_index)
    }

    async fn put(
        &self,
        request: Request<v1::PutKeyRequest>,
    ) -> Result<Response<v1::PutKeyResponse>, Status> {
        let (asked, _held) = admitted(request);
        if asked.value.len() > KV_VALUE_BYTES_MAX {
            let problem = format!(
                "has {} bytes; at most {KV_VALUE_BYTES_MAX} are allowed",
                asked.value.len()
            );
            return Err(errors::invalid_request("value", problem));
        }
        let put = Asked::PutKey {
            key: key("key", &asked.key)?,
            value: Arc::from(&*asked.value),
            condition: condition(asked.if_modified_index),
        };
        match self.write(asked.request_id, put).await? {
            (
                _,
                Outcome::KeyPut {
                    created,
                    modified,
                    version,
                },
            ) => Ok(Response::new(v1::PutKeyResponse {
                created_index: created.0,
                modified_index: modified.0,
                version,
            })),
            (_, other) => Err(unexpected(&other)),
        }
    }

    async fn get(
        &self,
        request: Request<v1::GetKeyRequest>,
    ) -> Result<Response<v1::GetKeyResponse>, Status> {
        let (asked, _held) = admitted(request);
        let key = key("key", &asked.key)?;
        let (state, index) = self.0.read(asked.stale, "the key cannot be told").await?;
        let entry = state.key(&asked.key).ok_or_else(|| {
            Reason::NoSuchKey.status_with(
                format!("there is no key {key}"),
                [("key", asked.key.clone())],
            )
        })?;
        Ok(Response::new(v1::GetKeyResponse {
            entry: Some(show(&key, entry, false)),
            log_index: index.0,
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteKeyRequest>,
    ) -> Result<Response<v1::DeleteKeyResponse>, Status> {
        let (asked, _held) = admitted(request);
        let delete = Asked::DeleteKey {
            key: key("key", &asked.key)?,
            condition: condition(asked.if_modified_index),
        };
        match self.write(asked.request_id, delete).await? {
            (index, Outcome::KeyDeleted { modified }) => Ok(Response::new(v1::DeleteKeyResponse {
                existed: modified.is_some(),
                log_index: index.0,
            })),
            (_, other) => Err(unexpected(&other)),
        }
    }

    async fn list(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        let (asked, _held) = admitted(request);
        let after: Option<KvKey> = pages::after(&asked.page_token)?;
        let after = after.as_ref().map(KvKey::as_str);
        let (state, index) = self.0.read(asked.stale, "the keys cannot be told").await?;
        let is_open = |(key, _): &(&KvKey, _)| !key.as_str().starts_with(RESERVED);
        let entries = state.keys_with(&asked.prefix, after).filter(is_open);
        let reserved = state.keys_with(RESERVED, None).count();
        let bytes = |(key, entry): &(&KvKey, &Arc<KvEntry>)| match asked.keys_only {
            true => key.as_str().len(),
            false => key.as_str().len() + entry.value.len(),
        };
        let bound = pages::Bound {
            bytes_max: PAGE_BYTES,
            bytes,
        };
        let (page, next_page_token) =
            pages::take_bounded(asked.page_size, entries, bound, |(key, _)| (*key).clone())?;
        let entries = page
            .into_iter()
            .map(|(key, entry)| show(key, entry, asked.keys_only))
            .collect();
        Ok(Response::new(v1::ListKeysResponse {
            entries,
            next_page_token,
            total: (state.key_count() - reserved) as u64,
            log_index: index.0,
        }))
    }
}

/// The changes of the keys with a prefix.
struct WatchedKeys {
    prefix: String,
}

impl Watched for WatchedKeys {
    type Batch = v1::WatchKeysResponse;

    /// Each may be of a whole value.
    const WAITING_MAX: usize = 4;

    fn read(&self, state: &State, after: LogIndex) -> Result<Page<Self::Batch>, Compacted> {
        let mut page: Page<Self::Batch> = Page {
            batches: Vec::new(),
            read_upto: None,
        };
        let (mut bytes, mut last) = (0, None);
        for (count, change) in state.key_changes_after(after)?.enumerate() {
            if count >= CHANGES_READ_MAX || bytes >= CHANGES_READ_BYTES {
                page.read_upto = last;
                break;
            }
            last = Some(change.index);
            let key = change.key.as_str();
            if key.starts_with(&self.prefix) && !key.starts_with(RESERVED) {
                let value = change.entry.as_ref().map_or(0, |entry| entry.value.len());
                bytes += key.len() + value;
                page.batches.push((change.index, told(change)));
            }
        }
        Ok(page)
    }

    fn bookmark(index: LogIndex) -> Self::Batch {
        v1::WatchKeysResponse {
            log_index: index.0,
            change: None,
        }
    }
}

fn told(change: &KvChange) -> v1::WatchKeysResponse {
    let key = &change.key;
    v1::WatchKeysResponse {
        log_index: change.index.0,
        change: Some(match &change.entry {
            Some(entry) => v1::watch_keys_response::Change::Put(show(key, entry, false)),
            None => v1::watch_keys_response::Change::Deleted(key.to_string()),
        }),
    }
}

fn unexpected(outcome: &Outcome) -> Status {
    Reason::Internal.status(format!("a change of a key gave {outcome}"))
}

#[cfg(test)]
mod tests {
    use raftserve_model::LogTime;
    use raftserve_store::Command;
    use raftserve_store::command::Action;

    use super::*;

    /// A state with a put of each of these keys, from index 1 on.
    fn state(keys: &[String], value: &[u8]) -> State {
        let mut state = State::default();
        for (index, key) in (1..).zip(keys) {
            let put = Asked::PutKey {
                key: key.parse().unwrap(),
                value: value.into(),
                condition: KvCondition::Any,
            };
            let command = Command::at(LogTime(index), Action::Request(put));
            state.apply(LogIndex(index), &command);
        }
        state
    }

    fn read_all(state: &State, prefix: &str) -> (Vec<u64>, usize) {
        let keys = WatchedKeys {
            prefix: prefix.to_owned(),
        };
        let (mut indices, mut pages, mut after) = (Vec::new(), 0, LogIndex(0));
        loop {
            let page = keys.read(state, after).unwrap();
            pages += 1;
            indices.extend(page.batches.iter().map(|(_, batch)| batch.log_index));
            match page.read_upto {
                Some(upto) => after = upto,
                None => return (indices, pages),
            }
        }
    }

    #[test]
    fn changes_are_read_in_pages_without_gap_or_overlap() {
        let keys = |count| (0..count).map(|it| format!("k/{it}")).collect::<Vec<_>>();
        let count = 3 * CHANGES_READ_MAX as u64 + 1;
        let (indices, pages) = read_all(&state(&keys(count), b""), "");
        assert_eq!(indices, (1..=count).collect::<Vec<_>>());
        assert_eq!(pages, 4);
        let fit = CHANGES_READ_BYTES / KV_VALUE_BYTES_MAX;
        let count = 2 * fit as u64 + 1;
        let large = vec![7; KV_VALUE_BYTES_MAX];
        let (indices, pages) = read_all(&state(&keys(count), &large), "k/");
        assert_eq!(indices, (1..=count).collect::<Vec<_>>());
        assert_eq!(pages, 3);
    }

    #[test]
    fn only_keys_with_the_prefix_are_told_and_none_of_our_own() {
        let own = format!("{RESERVED}x");
        let keys = ["a", "b/1", &own, "b/2", "c"].map(str::to_owned);
        let state = state(&keys, b"");
        assert_eq!(read_all(&state, "").0, [1, 2, 4, 5]);
        assert_eq!(read_all(&state, "b/").0, [2, 4]);
        assert_eq!(read_all(&state, RESERVED).0, [0; 0]);
    }
}
