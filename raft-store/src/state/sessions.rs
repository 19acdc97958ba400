//! Strict session affinity (binding, rebinding and the fence between the two).
//!
//! A key is bound to one replica by an entry; the entry's index is the binding's epoch. As long as
//! the replica may serve, every later bind of the key only renews it. Once the replica is going, a
//! bind moves the key to another: while requests of the old binding may still be dispatched by a
//! peer that has not applied this entry, the new one is unusable. The leader moves the fence past
//! the entry when every peer has applied it or has lost its lease to use what it read before. If
//! nothing of the old replica exists any more there is nothing to overlap with, and no fence.
//!
//! An expired binding is removed in two steps for the same reason: marked, so that every peer that
//! has applied the mark asks again, and removed once the fence has passed the mark.

use bincode::{Decode, Encode};
use imbl::{OrdMap, OrdSet};
use raftserve_model::{LogIndex, LogTime, ReplicaId, ServiceId, SessionEpoch, SessionKey};

use super::State;
use super::edits::{Edit, edits};
use super::record::Record;
use super::summed::{Sum, Summed};
use crate::command::{BindRefusal, Binding, Outcome};

/// The most expired sessions that one entry removes, so that it stays cheap to apply.
pub const SESSIONS_REMOVED_MAX: usize = 1_000;

/// One binding. With its 16-byte key it takes 56 bytes in memory (and its place in the order of expiry 24 more),
/// and at most 57 on disk, about 30 as numbers mostly are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Session {
    /// Where every request of the session goes.
    pub replica: ReplicaId,
    /// The entry that bound it there.
    pub epoch: SessionEpoch,
    /// What the fence must reach before the binding may be used; 0 if at once.
    pub usable_from: LogIndex,
    /// When it expires unless it is used.
    pub expires_at: LogTime,
}

/// The sessions of one service.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionTable {
    by_key: Summed<SessionKey, Session>,
    /// Exactly the sessions of `by_key`.
    by_expiry: OrdSet<(LogTime, SessionKey)>,
    /// How many sessions are bound to each replica; never zero.
    counts: OrdMap<ReplicaId, u32>,
    /// The replicas that may be given sessions, by how many they have.
    candidates: OrdSet<(u32, ReplicaId)>,
    /// The greatest `usable_from` ever given.
    moved: LogIndex,
    /// Sessions that expired by this time are removed once the fence reaches this index.
    expired: Option<(LogTime, LogIndex)>,
}

impl SessionTable {
    pub(super) fn get(&self, key: &SessionKey) -> Option<&Session> {
        self.by_key.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn iter_after(
        &self,
        after: Option<SessionKey>,
    ) -> impl Iterator<Item = (&SessionKey, &Session)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.by_key.range((from, std::ops::Bound::Unbounded))
    }

    pub(super) fn fence_wanted(&self, fence: LogIndex) -> Option<LogIndex> {
        let expired = self.expired.map(|(_, index)| index);
        // A mark is done with when its sessions are removed, whatever the fence says.
        (self.moved > fence).then_some(self.moved).max(expired)
    }

    pub(super) fn next_expiry(&self) -> Option<LogTime> {
        match self.expired {
            Some(_) => None,
            None => self.by_expiry.get_min().map(|(time, _)| *time),
        }
    }

    pub(super) fn marks_record(&self, service: ServiceId) -> Record {
        Record::SessionMarks {
            service,
            moved: self.moved,
            expired: self.expired,
        }
    }

    /// What makes a store of `base` one of this table.
    pub(super) fn edits_since<'a>(
        &'a self,
        service: ServiceId,
        base: Option<&'a Self>,
    ) -> impl Iterator<Item = Edit> + 'a {
        let marks = self.marks_record(service);
        let same = base.is_some_and(|base| base.marks_record(service) == marks);
        let marks = (!same).then_some(Edit::Put(marks));
        let changed = base.map(|base| edits(&base.by_key, &self.by_key));
        let new = base.is_none().then(|| {
            let sessions = self.by_key.iter();
            sessions.map(move |(key, it)| Edit::Put(Record::Sessions(service, vec![(*key, *it)])))
        });
        marks
            .into_iter()
            .chain(changed.into_iter().flatten())
            .chain(new.into_iter().flatten())
    }

    /// What removes this table from a store.
    pub(super) fn removals(&self, service: ServiceId) -> impl Iterator<Item = Edit> + '_ {
        let marks = Edit::Remove(self.marks_record(service).key());
        let sessions = self.by_key.iter().map(move |(key, session)| {
            let record = Record::Sessions(service, vec![(*key, *session)]);
            Edit::Remove(record.key())
        });
        std::iter::once(marks).chain(sessions)
    }

    /// The sum of the sessions' records, without that of the marks.
    pub(super) fn sum(&self) -> Sum {
        self.by_key.sum()
    }

    pub(super) fn restore_marks(&mut self, moved: LogIndex, expired: Option<(LogTime, LogIndex)>) {
        self.moved = moved;
        self.expired = expired;
    }

    /// Puts a session, in place of the key's former one.
    pub(super) fn insert(&mut self, key: SessionKey, session: Session) {
        self.remove(&key);
        self.by_key.insert(key, session);
        self.by_expiry.insert((session.expires_at, key));
        self.recount(session.replica, 1);
    }

    fn remove(&mut self, key: &SessionKey) {
        if let Some(session) = self.by_key.remove(key) {
            self.by_expiry.remove(&(session.expires_at, *key));
            self.recount(session.replica, -1);
        }
    }

    fn recount(&mut self, replica: ReplicaId, by: i32) {
        let count = self.counts.get(&replica).copied().unwrap_or(0);
        let new = count.saturating_add_signed(by);
        if new == 0 {
            self.counts.remove(&replica);
        } else {
            self.counts.insert(replica, new);
        }
        if self.candidates.remove(&(count, replica)).is_some() {
            self.candidates.insert((new, replica));
        }
    }

    /// Says whether `replica` may be given sessions from now on.
    pub(super) fn set_candidate(&mut self, replica: ReplicaId, may: bool) {
        let place = (self.counts.get(&replica).copied().unwrap_or(0), replica);
        if may {
            self.candidates.insert(place);
        } else {
            self.candidates.remove(&place);
        }
    }

    #[cfg(test)]
    pub(super) fn candidates(&self) -> std::collections::BTreeSet<(u32, ReplicaId)> {
        self.candidates.iter().copied().collect()
    }

    fn least_bound(&self) -> Option<ReplicaId> {
        self.candidates.get_min().map(|(_, replica)| *replica)
    }

    /// Removes what the mark covers, if the fence has reached it; keeps the mark while some remain.
    fn remove_expired(&mut self, fence: LogIndex) {
        let Some((cutoff, _)) = self.expired.filter(|(_, index)| *index <= fence) else {
            return;
        };
        for _ in 0..SESSIONS_REMOVED_MAX {
            match self.by_expiry.get_min().copied() {
                Some((time, key)) if time <= cutoff => self.remove(&key),
                _ => {
                    self.expired = None;
                    return;
                }
            }
        }
    }
}

impl State {
    pub(super) fn bind_sessions(
        &mut self,
        index: LogIndex,
        service: ServiceId,
        keys: &[SessionKey],
    ) -> Outcome {
        let bound = keys
            .iter()
            .map(|key| self.bind_session(index, service, *key))
            .collect();
        Outcome::Bound(bound)
    }

    fn bind_session(
        &mut self,
        index: LogIndex,
        id: ServiceId,
        key: SessionKey,
    ) -> Result<Binding, BindRefusal> {
        let service = self.services.get(&id).ok_or(BindRefusal::NoService)?;
        let affinity = service
            .spec()
            .affinity
            .as_ref()
            .ok_or(BindRefusal::NoService)?;
        let (expires_at, max) = (self.now.plus(affinity.ttl), affinity.max_sessions);
        let table = self.sessions.entry(id).or_default();
        let before = table.get(&key).copied();
        let old = before.and_then(|session| self.replicas.get(&session.replica));
        let fence = self.fence;
        let session = match before {
            Some(session) if old.is_some_and(|replica| replica.keeps_sessions()) => Session {
                expires_at: expires_at.max(session.expires_at),
                ..session
            },
            Some(moved) => Session {
                replica: table.least_bound().ok_or(BindRefusal::NoReplica)?,
                epoch: index,
                // What is on record and not gone may still be answering; and a move before this one may
                // still wait until nobody acts on what was before it.
                usable_from: match old.filter(|replica| replica.occupies_resources()) {
                    Some(_) => index,
                    None if moved.usable_from > fence => moved.usable_from,
                    None => LogIndex(0),
                },
                expires_at,
            },
            None if table.len() >= max as usize => return Err(BindRefusal::TooMany),
            None => Session {
                replica: table.least_bound().ok_or(BindRefusal::NoReplica)?,
                epoch: index,
                usable_from: LogIndex(0),
                expires_at,
            },
        };
        table.moved = table.moved.max(session.usable_from);
        if before != Some(session) {
            table.insert(key, session);
        }
        Ok(Binding {
            replica: session.replica,
            epoch: session.epoch,
            usable_from: session.usable_from,
        })
    }

    /// Marks what has expired by now; one mark at a time in each service.
    pub(super) fn mark_expired_sessions(&mut self, index: LogIndex) {
        let now = self.now;
        let due: Vec<ServiceId> = self
            .sessions
            .iter()
            .filter(|(_, table)| table.next_expiry().is_some_and(|time| time <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(table) = self.sessions.get_mut(&id) {
                table.expired = Some((now, index));
            }
        }
    }

    pub(super) fn remove_expired_sessions(&mut self) {
        let fence = self.fence;
        let marked: Vec<ServiceId> = self
            .sessions
            .iter()
            .filter(|(_, table)| table.expired.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in marked {
            if let Some(table) = self.sessions.get_mut(&id) {
                table.remove_expired(fence);
            }
        }
    }
}
