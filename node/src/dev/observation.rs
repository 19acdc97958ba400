//! What is to be seen of the cluster: asked from the peers twice a second, and what changed from one
//! look to the next. The look does I/O; the differences are pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::admin_client::PeerAdmin;
use super::fleet::PeerPhase;
use super::ports::Block;
use crate::admin::v1;

/// The pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What a peer says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerAnswer {
    /// Its Raft id.
    pub(super) node_id: u64,
    /// Its term.
    pub(super) term: u64,
    /// The leader that it knows; 0 while there is none.
    pub(super) leader_id: u64,
    /// Whether a leader with a quorum stands behind it.
    pub(super) quorum: bool,
    /// Whether it takes requests.
    pub(super) ready: bool,
    /// The log index up to which it has applied.
    pub(super) applied: u64,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerSeen {
    /// Its number, from 1.
    pub(super) number: u16,
    /// What its process does.
    pub(super) phase: PeerPhase,
    /// What it says; none if it does not answer.
    pub(super) answer: Option<PeerAnswer>,
}

impl PeerSeen {
    /// Whether it runs and takes requests.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, PeerPhase::Running { .. })
            && self.answer.as_ref().is_some_and(|answer| answer.ready)
    }
}

/// The cluster at one moment, as far as it answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Observation {
    /// The peers, in the order of their numbers.
    pub(super) peers: Vec<PeerSeen>,
    /// The services by name, as the peer that is furthest along knows them.
    pub(super) services: Vec<v1::Service>,
    /// Their replicas.
    pub(super) replicas: Vec<v1::Replica>,
    /// The number of the peer that told of services and replicas; 0 before the first did.
    pub(super) told_by: u16,
}

impl Observation {
    /// The number of the peer that leads: the one that most lately was known to, if it still runs.
    pub(super) fn leader(&self) -> Option<u16> {
        let answers = || {
            self.peers
                .iter()
                .filter_map(|peer| Some((peer.number, peer.answer.as_ref()?)))
        };
        let (_, newest) = answers().max_by_key(|(_, answer)| (answer.term, answer.leader_id))?;
        answers()
            .find(|(_, answer)| answer.node_id == newest.leader_id)
            .map(|(number, _)| number)
    }

    /// Whether the cluster decides.
    pub(super) fn quorum(&self) -> bool {
        self.peers
            .iter()
            .filter_map(|peer| peer.answer.as_ref())
            .any(|answer| answer.quorum)
    }

    /// Whether all peers run and take requests.
    pub(super) fn all_ready(&self) -> bool {
        !self.peers.is_empty() && self.peers.iter().all(PeerSeen::is_ready)
    }

    /// The same of those that the cluster has not removed.
    pub(super) fn all_left_ready(&self) -> bool {
        let left = || {
            let all = self.peers.iter();
            all.filter(|peer| peer.phase != PeerPhase::Removed)
        };
        left().next().is_some() && left().all(PeerSeen::is_ready)
    }

    /// The URLs of the service's own port, one for each of the peers at `blocks`; none if it has no
    /// port of its own.
    pub(super) fn endpoints(&self, service: &v1::Service, blocks: &[Block]) -> Option<Vec<String>> {
        let (_, port) = service.endpoint.rsplit_once(':')?;
        let told_by = blocks.get(usize::from(self.told_by.checked_sub(1)?))?;
        let slot = port
            .parse::<u16>()
            .ok()?
            .checked_sub(told_by.service_base())?;
        let urls = blocks.iter().map(|block| {
            let address = SocketAddr::new(block.proxy().ip(), block.service_base() + slot);
            format!("http://{address}")
        });
        Some(urls.collect())
    }

    /// The service of this name.
    pub(super) fn service(&self, name: &str) -> Option<&v1::Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The replicas of a service.
    pub(super) fn replicas_of(&self, service: &str) -> impl Iterator<Item = &v1::Replica> {
        self.replicas
            .iter()
            .filter(move |replica| replica.service_name == service)
    }
}

/// Who looks.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    peers: Vec<PeerAdmin>,
    phases: Vec<watch::Receiver<PeerPhase>>,
}

impl Observer {
    /// Looks at these peers.
    pub(super) fn new(peers: Vec<PeerAdmin>, phases: Vec<watch::Receiver<PeerPhase>>) -> Self {
        Self { peers, phases }
    }

    /// Looks again and again, until nobody wants to know.
    pub(super) async fn run(self, seen: watch::Sender<Observation>) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !seen.is_closed() {
            ticks.tick().await;
            let before = seen.borrow().clone();
            seen.send_replace(self.look(before).await);
        }
    }

    /// Looks once. What cannot be seen now is shown as it was `before`.
    pub(super) async fn look(&self, before: Observation) -> Observation {
        let answers = join_all(self.peers.iter().map(|peer| peer.status())).await;
        let peers: Vec<PeerSeen> = (1..)
            .zip(&self.phases)
            .zip(answers)
            .map(|((number, phase), answer)| PeerSeen {
                number,
                phase: *phase.borrow(),
                answer: answer.ok().map(PeerAnswer::from),
            })
            .collect();
        let furthest = peers
            .iter()
            .zip(&self.peers)
            // One that has not caught up since its start would tell of the past.
            .filter(|(seen, _)| seen.is_ready())
            .filter_map(|(seen, admin)| Some((seen.answer.as_ref()?.applied, seen.number, admin)))
            .max_by_key(|(applied, _, _)| *applied);
        let Some((_, told_by, admin)) = furthest else {
            return Observation { peers, ..before };
        };
        match tokio::join!(admin.services(), admin.replicas()) {
            (Ok(services), Ok(replicas)) => Observation {
                peers,
                services,
                replicas,
                told_by,
            },
            _ => Observation { peers, ..before },
        }
    }
}

impl From<v1::StatusResponse> for PeerAnswer {
    fn from(status: v1::StatusResponse) -> Self {
        Self {
            node_id: status.node_id,
            term: status.term,
            leader_id: status.leader_id,
            quorum: status.quorum,
            ready: status.ready,
            applied: status.applied_index,
        }
    }
}

/// A replica's status as it is shown.
pub(super) fn replica_status(replica: &v1::Replica) -> &'static str {
    let name = replica.status().as_str_name();
    name.strip_prefix("REPLICA_STATUS_").unwrap_or(name)
}

/// A service's status as it is shown.
pub(super) fn service_status(service: &v1::Service) -> &'static str {
    let name = service.status().as_str_name();
    name.strip_prefix("SERVICE_STATUS_").unwrap_or(name)
}

/// What changed between two looks, one line each: peers, the leader, services, then replicas.
pub(super) fn changes(before: &Observation, now: &Observation) -> Vec<String> {
    let mut lines = Vec::new();
    let was_ready = |number| {
        before
            .peers
            .iter()
            .any(|peer| peer.number == number && peer.is_ready())
    };
    for peer in now.peers.iter().filter(|peer| peer.is_ready()) {
        if !was_ready(peer.number) {
            lines.push(format!("peer {} is ready", peer.number));
        }
    }
    match (before.leader(), now.leader()) {
        (_, Some(leader)) if before.leader() != Some(leader) => {
            lines.push(format!("peer {leader} leads"));
        }
        (Some(_), None) => lines.push("no peer leads".to_owned()),
        _ => {}
    }
    service_changes(before, now, &mut lines);
    replica_changes(before, now, &mut lines);
    lines
}

fn service_changes(before: &Observation, now: &Observation, lines: &mut Vec<String>) {
    let index = |observation: &Observation| -> BTreeMap<String, v1::Service> {
        let services = observation.services.iter();
        services
            .map(|service| (service.name.clone(), service.clone()))
            .collect()
    };
    let (before, now) = (index(before), index(now));
    for (name, service) in &now {
        let status = service_status(service);
        match before.get(name) {
            Some(old) if old.id == service.id => {
                if old.version != service.version {
                    lines.push(format!("service {name} has version {}", service.version));
                }
                if old.status != service.status {
                    lines.push(format!("service {name} is {status}"));
                }
            }
            _ => lines.push(format!("service {name} is {status}")),
        }
    }
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        lines.push(format!("service {name} is gone"));
    }
}

fn replica_changes(before: &Observation, now: &Observation, lines: &mut Vec<String>) {
    let index = |observation: &Observation| -> BTreeMap<(u64, u32), v1::Replica> {
        let replicas = observation.replicas.iter();
        replicas
            .map(|replica| ((replica.service_id, replica.id), replica.clone()))
            .collect()
    };
    let (before, now) = (index(before), index(now));
    for (key, replica) in &now {
        if before
            .get(key)
            .is_some_and(|old| old.status == replica.status)
        {
            continue;
        }
        let (name, status) = (&replica.service_name, replica_status(replica));
        let mut line = format!("replica {} of {name} is {status}", replica.id);
        if !replica.reason.is_empty() {
            line = format!("{line}: {}", replica.reason);
        }
        lines.push(line);
    }
    for (key, replica) in before.iter().filter(|(key, _)| !now.contains_key(key)) {
        lines.push(format!(
            "replica {} of {} is gone",
            key.1, replica.service_name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u16, term: u64, leader_id: u64) -> PeerSeen {
        PeerSeen {
            number,
            phase: PeerPhase::Running { pid: 1 },
            answer: Some(PeerAnswer {
                node_id: u64::from(number) + 10,
                term,
                leader_id,
                quorum: leader_id != 0,
                ready: true,
                applied: 1,
            }),
        }
    }

    fn replica(id: u32, status: v1::ReplicaStatus, reason: &str) -> v1::Replica {
        v1::Replica {
            service_name: "web".to_owned(),
            service_id: 7,
            id,
            status: status.into(),
            reason: reason.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn leader_is_that_of_the_newest_term_and_must_answer() {
        let seen = |peers| Observation {
            peers,
            ..Default::default()
        };
        let stale = seen(vec![peer(1, 3, 11), peer(2, 4, 12), peer(3, 4, 12)]);
        assert_eq!(stale.leader(), Some(2));
        let mut dead = stale.clone();
        dead.peers[1].answer = None;
        assert_eq!(dead.leader(), None);
        let open = seen(vec![peer(1, 5, 0), peer(2, 4, 12)]);
        assert_eq!(open.leader(), None);
        assert_eq!(changes(&stale, &dead), ["no peer leads"]);
        assert_eq!(changes(&dead, &stale), ["peer 2 is ready", "peer 2 leads"]);
        assert_eq!(changes(&stale, &stale), [""; 0]);
    }

    #[test]
    fn endpoints_are_the_same_slot_on_each_peer() {
        let blocks = [1, 2, 3].map(Block::default_of);
        let seen = Observation {
            told_by: 2,
            ..Default::default()
        };
        let mut service = v1::Service {
            endpoint: "http://127.0.0.1:30104".to_owned(),
            ..Default::default()
        };
        let urls = seen.endpoints(&service, &blocks).unwrap();
        let expected = [30004, 30104, 30204].map(|port| format!("http://127.0.0.1:{port}"));
        assert_eq!(urls, expected);
        service.endpoint.clear();
        assert_eq!(seen.endpoints(&service, &blocks), None);
    }

    #[test]
    fn each_change_of_a_replica_is_told_once_with_its_reason() {
        let seen = |replicas| Observation {
            replicas,
            ..Default::default()
        };
        let first = seen(vec![replica(1, v1::ReplicaStatus::Starting, "")]);
        let second = seen(vec![
            replica(1, v1::ReplicaStatus::Failed, "run exited with 127"),
            replica(2, v1::ReplicaStatus::Pending, ""),
        ]);
        assert_eq!(
            changes(&first, &second),
            [
                "replica 1 of web is FAILED: run exited with 127",
                "replica 2 of web is PENDING",
            ]
        );
        let third = seen(vec![replica(2, v1::ReplicaStatus::Pending, "")]);
        assert_eq!(changes(&second, &third), ["replica 1 of web is gone"]);
    }
}
