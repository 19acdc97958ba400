//! The state as a stream of records: what snapshots and digests are made of.

use std::sync::Arc;

use bincode::{Decode, Encode};
use imbl::Vector;
use raftserve_model::{ClusterId, LogIndex, LogTime, ServiceId, SessionKey};
use sha2::{Digest, Sha256};

use super::clients::ClientRecord;
use super::events::Event;
use super::replica::Replica;
use super::service::ServiceRecord;
use super::sessions::Session;
use super::{Control, State};

/// How many sessions share a record: about 24 KB.
const SESSIONS_PER_RECORD: usize = 512;

/// A part of the state. New kinds are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Record {
    /// What there is one of. First in every stream.
    Head {
        /// The cluster's id.
        cluster: Option<ClusterId>,
        /// Log time.
        now: LogTime,
        /// The reign in force.
        control: Control,
        /// The session fence.
        fence: LogIndex,
        /// The port that was given to a replica last.
        last_port: u16,
        /// Events up to here may have been dropped.
        events_compacted: LogIndex,
        /// The last change to routing.
        routes_changed: LogIndex,
        /// The last change to what the controller plans from.
        plan_changed: LogIndex,
    },
    /// A service.
    Service(ServiceRecord),
    /// A replica; its service came before.
    Replica(Arc<Replica>),
    /// The marks of a service's sessions.
    SessionMarks {
        /// The service.
        service: ServiceId,
        /// The greatest index that a session waits for.
        moved: LogIndex,
        /// Sessions that are to be removed.
        expired: Option<(LogTime, LogIndex)>,
    },
    /// Some sessions of a service.
    Sessions(ServiceId, Vec<(SessionKey, Session)>),
    /// A client session.
    Client(ClientRecord),
    /// An event.
    Event(Arc<Event>),
}

/// A stream of records that is not a state.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The first record must be the head, and no other may be.
    #[error("record {at} is out of place")]
    OutOfPlace {
        /// Its number in the stream, from 0.
        at: usize,
    },
    /// There was none.
    #[error("the stream is empty")]
    Empty,
}

impl State {
    /// The whole state as records. Equal states give equal streams.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let head = Record::Head {
            cluster: self.cluster,
            now: self.now,
            control: self.control,
            fence: self.fence,
            last_port: self.last_port,
            events_compacted: self.events.compacted(),
            routes_changed: self.routes_changed,
            plan_changed: self.plan_changed,
        };
        let services = self
            .services
            .values()
            .map(|service| Record::Service(ServiceRecord::from(service.as_ref())));
        let replicas = self.replicas.values().cloned().map(Record::Replica);
        std::iter::once(head)
            .chain(services)
            .chain(replicas)
            .chain(self.session_records())
            .chain(self.clients.records().map(Record::Client))
            .chain(self.events.iter().cloned().map(Record::Event))
    }

    /// SHA-256 over the records: equal on every peer that has applied the same log.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for record in self.records() {
            let bytes = bincode::encode_to_vec(&record, bincode::config::standard())
                .expect("encoding into memory does not fail");
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }

    fn session_records(&self) -> impl Iterator<Item = Record> + '_ {
        self.sessions.iter().flat_map(|(id, table)| {
            let marks = Record::SessionMarks {
                service: *id,
                moved: table.moved(),
                expired: table.expired_mark(),
            };
            let mut rest = table.iter_after(None);
            let chunks = std::iter::from_fn(move || {
                let chunk: Vec<_> = rest
                    .by_ref()
                    .take(SESSIONS_PER_RECORD)
                    .map(|(key, session)| (*key, *session))
                    .collect();
                (!chunk.is_empty()).then_some(Record::Sessions(*id, chunk))
            });
            std::iter::once(marks).chain(chunks)
        })
    }

    /// The state that a stream of records describes.
    ///
    /// # Errors
    /// [`RecordError`] if the stream does not begin with its one head.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Self, RecordError> {
        let mut records = records.into_iter().enumerate();
        let mut state = match records.next() {
            Some((_, head @ Record::Head { .. })) => Self::from_head(head),
            Some((at, _)) => return Err(RecordError::OutOfPlace { at }),
            None => return Err(RecordError::Empty),
        };
        let mut events = Vector::new();
        for (at, record) in records {
            match record {
                Record::Head { .. } => return Err(RecordError::OutOfPlace { at }),
                Record::Service(record) => {
                    let service = super::Service::from(record);
                    state.names.insert(service.name.clone(), service.id);
                    state.services.insert(service.id, Arc::new(service));
                }
                Record::Replica(replica) => state.restore_replica(replica),
                Record::SessionMarks {
                    service,
                    moved,
                    expired,
                } => state
                    .sessions
                    .entry(service)
                    .or_default()
                    .restore_marks(moved, expired),
                Record::Sessions(service, sessions) => {
                    let table = state.sessions.entry(service).or_default();
                    for (key, session) in sessions {
                        table.insert(key, session);
                    }
                }
                Record::Client(record) => state.clients.restore(record),
                Record::Event(event) => events.push_back(event),
            }
        }
        state.events.restore(events);
        Ok(state)
    }

    fn from_head(head: Record) -> Self {
        let Record::Head {
            cluster,
            now,
            control,
            fence,
            last_port,
            events_compacted,
            routes_changed,
            plan_changed,
        } = head
        else {
            return Self::default();
        };
        let mut state = Self {
            cluster,
            now,
            control,
            fence,
            last_port,
            routes_changed,
            plan_changed,
            ..Self::default()
        };
        state.events.restore_compacted(events_compacted);
        state
    }

    fn restore_replica(&mut self, replica: Arc<Replica>) {
        let ready = replica.phase == super::Phase::Ready;
        self.sessions
            .entry(replica.id.service)
            .or_default()
            .set_candidate(replica.id, ready);
        self.replicas.insert(replica.id, replica);
    }
}
