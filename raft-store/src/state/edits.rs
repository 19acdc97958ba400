//! What changed between two states, as edits of a keyed store: found by their structure, not by a log of changes.
//!
//! The maps of the state share what did not change between two versions of it, and comparing skips what is
//! shared. So nothing has to be noted when something changes, and finding out costs what changed.

use std::fmt;

use imbl::ordmap::DiffItem;
use raftserve_model::{ServiceId, SessionKey};

use super::State;
use super::events::Events;
use super::kv::KvChange;
use super::record::Record;
use super::summed::{Recorded, Summed};
use super::trail::Trail;

/// Where a record is kept: a byte for the kind, then numbers big-endian, so that keys sort as their parts do. Only a
/// user's key is of any length; it holds no zero byte, so that what a store appends to a key leaves the order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

impl Key {
    fn new(table: u8, parts: &[&[u8]]) -> Self {
        let mut bytes = vec![table];
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Self(bytes)
    }

    /// As it is stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Record {
    /// Where a keyed store keeps this record. Sessions and users' keys are kept one by one, under their own.
    /// Records in the order of their keys are a state's stream.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Head { .. } => Key::new(0, &[]),
            Self::Service(service) => Key::new(1, &[&service.id.0.to_be_bytes()]),
            Self::Spec {
                service, version, ..
            } => Key::new(2, &[&service.0.to_be_bytes(), &version.0.to_be_bytes()]),
            Self::Replica(replica) => {
                let id = replica.id;
                Key::new(3, &[&id.service.0.to_be_bytes(), &id.number.to_be_bytes()])
            }
            Self::SessionMarks { service, .. } => Key::new(4, &[&service.0.to_be_bytes()]),
            Self::Sessions(service, sessions) => {
                let first = sessions.first().map_or(SessionKey::default(), |it| it.0);
                Key::new(5, &[&service.0.to_be_bytes(), &first.0])
            }
            Self::Client(client) => Key::new(6, &[&client.id.0.to_be_bytes()]),
            Self::Event { number, .. } => Key::new(7, &[&number.to_be_bytes()]),
            Self::KeyValues(entries) => {
                let first = entries.first().map_or("", |it| it.0.as_str());
                Key::new(8, &[first.as_bytes()])
            }
            Self::Peer(peer) => Key::new(9, &[&peer.id.0.to_be_bytes()]),
            Self::KeyChange { number, .. } => Key::new(10, &[&number.to_be_bytes()]),
        }
    }
}

/// A state's trails, without the rest of it.
#[derive(Clone, Debug, Default)]
pub struct Trails {
    events: Events,
    key_changes: Trail<KvChange>,
}

/// One change of a keyed store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Put the record under its key, in place of what is there.
    Put(Record),
    /// Remove what is under the key.
    Remove(Key),
}

impl State {
    /// The edits that make a store of `base` one of this state, each key at most once, but for the trails; a store of
    /// nothing, if `base` is the default. Costs what differs, if this state came from `base` by applying entries; else
    /// all of both.
    pub fn edits_since<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = Edit> + 'a {
        std::iter::once(Edit::Put(self.head_record()))
            .chain(edits(&base.services, &self.services))
            .chain(edits(&base.replicas, &self.replicas))
            .chain(self.session_edits(base))
            .chain(self.clients.edits_since(&base.clients))
            .chain(self.keys.edits_since(&base.keys))
            .chain(edits(&base.peers, &self.peers))
    }

    /// What happened lately to services and keys.
    #[must_use]
    pub fn trails(&self) -> Trails {
        Trails {
            events: self.events.clone(),
            key_changes: self.keys.changes().clone(),
        }
    }

    /// The edits that make a store which holds the trails of `base` one that holds this state's. Apart, because under load
    /// they are another within a second, whatever else stays.
    pub fn trail_edits_since<'a>(&'a self, base: &'a Trails) -> impl Iterator<Item = Edit> + 'a {
        let events = self.events.edits_since(&base.events);
        events.chain(self.keys.changes().edits_since(&base.key_changes))
    }

    fn session_edits<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = Edit> + 'a {
        let gone = base.sessions.iter().filter(|(id, _)| {
            let id: &ServiceId = id;
            !self.sessions.contains_key(id)
        });
        let gone = gone.flat_map(|(id, table)| table.removals(*id));
        let kept = self.sessions.iter();
        kept.flat_map(|(id, table)| table.edits_since(*id, base.sessions.get(id)))
            .chain(gone)
    }
}

/// The edits that make a store of `base` one of `now`.
pub(super) fn edits<'a, K, V>(
    base: &'a Summed<K, V>,
    now: &'a Summed<K, V>,
) -> impl Iterator<Item = Edit> + 'a
where
    K: Ord + Clone,
    V: Recorded<K> + PartialEq,
{
    base.diff(now).flat_map(|item| {
        let (key, before, after) = match item {
            DiffItem::Add(key, after) => (key, None, Some(after)),
            DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
            DiffItem::Remove(key, before) => (key, Some(before), None),
        };
        let (mut edits, mut keys) = (Vec::with_capacity(1), Vec::new());
        if let Some(after) = after {
            after.records_beyond(key, before, &mut |record| {
                if before.is_some() {
                    keys.push(record.key());
                }
                edits.push(Edit::Put(record));
            });
        }
        if let Some(before) = before {
            before.records_beyond(key, after, &mut |record| {
                let key = record.key();
                if !keys.contains(&key) {
                    edits.push(Edit::Remove(key));
                }
            });
        }
        edits
    })
}
