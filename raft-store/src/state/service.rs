//! Services and their versions.

use std::sync::Arc;

use bincode::{Decode, Encode};
use imbl::OrdMap;
use raftserve_model::spec::ServiceSpec;
use raftserve_model::{LogIndex, LogTime, ServiceId, ServiceName, ServiceVersion, WallTime};

use super::lineage::REPLICA_NUMBERS_SKIPPED;

/// The most services in one cluster.
pub const SERVICES_MAX: usize = 1_000;

/// How many services have a port of their own, as SkyServe's 30001-30020; further ones are reached
/// by host name or path prefix.
pub const SERVICE_PORTS: u16 = 20;

/// A service on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The index of the entry that created it.
    pub id: ServiceId,
    /// Its name, unique among services on record.
    pub name: ServiceName,
    /// The newest version.
    pub version: ServiceVersion,
    /// The specifications of the newest version, of the last good one, and of every version that a
    /// replica still runs.
    pub specs: OrdMap<ServiceVersion, Arc<ServiceSpec>>,
    /// Its port, counted from the first of the service ports; none if they had run out.
    pub port_slot: Option<u16>,
    /// When it was created, by the wall clock.
    pub created_at: WallTime,
    /// When a replica of it was ready for the first time, by the wall clock.
    pub first_ready_at: Option<WallTime>,
    /// Since when it is being taken down.
    pub going_down: Option<LogTime>,
    /// The number of the next replica.
    pub next_number: u32,
    /// The newest version of which a replica was ever ready: what is healed if a newer one fails.
    pub last_good: Option<ServiceVersion>,
    /// The last entry that changed the service itself.
    pub changed: LogIndex,
}

impl Service {
    /// The specification of the newest version.
    #[must_use]
    pub fn spec(&self) -> &Arc<ServiceSpec> {
        self.specs
            .get(&self.version)
            .expect("the newest version's specification is always kept")
    }

    /// The specification that a replica of `version` was made from, or the newest.
    #[must_use]
    pub fn spec_of(&self, version: ServiceVersion) -> &Arc<ServiceSpec> {
        self.specs.get(&version).unwrap_or_else(|| self.spec())
    }
}

/// A service as snapshots carry it; its specifications follow as records of their own, so that no
/// record grows with the number of versions.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ServiceRecord {
    pub(super) id: ServiceId,
    name: ServiceName,
    version: ServiceVersion,
    port_slot: Option<u16>,
    created_at: WallTime,
    first_ready_at: Option<WallTime>,
    going_down: Option<LogTime>,
    next_number: u32,
    last_good: Option<ServiceVersion>,
    changed: LogIndex,
}

impl ServiceRecord {
    /// The record with replica numbers that nobody else has given: see [`REPLICA_NUMBERS_SKIPPED`].
    pub(super) fn renumbered(self) -> Self {
        let block = self.next_number / REPLICA_NUMBERS_SKIPPED;
        let next_number = (block + 1).saturating_mul(REPLICA_NUMBERS_SKIPPED);
        Self {
            next_number: next_number.saturating_add(1),
            ..self
        }
    }
}

impl From<&Service> for ServiceRecord {
    fn from(service: &Service) -> Self {
        Self {
            id: service.id,
            name: service.name.clone(),
            version: service.version,
            port_slot: service.port_slot,
            created_at: service.created_at,
            first_ready_at: service.first_ready_at,
            going_down: service.going_down,
            next_number: service.next_number,
            last_good: service.last_good,
            changed: service.changed,
        }
    }
}

impl From<ServiceRecord> for Service {
    /// Without specifications.
    fn from(record: ServiceRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            version: record.version,
            specs: OrdMap::new(),
            port_slot: record.port_slot,
            created_at: record.created_at,
            first_ready_at: record.first_ready_at,
            going_down: record.going_down,
            next_number: record.next_number,
            last_good: record.last_good,
            changed: record.changed,
        }
    }
}
