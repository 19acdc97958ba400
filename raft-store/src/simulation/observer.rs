//! What must hold in every step, checked as it happens.
//!
//! The observer sees what no peer sees: all logs, all states, all answers. It keeps one reference state, to
//! which each committed entry is applied once, in order; every peer's state must equal it at the same index.

use std::collections::{BTreeMap, BTreeSet};

use openraft::EntryPayload;
use openraft::alias::EntryOf;
use raftserve_model::{LogIndex, NodeId};

use crate::codec;
use crate::command::{Action, Outcome};
use crate::entry::{LogId, Payload, Vote};
use crate::raft::acked::Cut;
use crate::raft::{TypeConfig, log_id_from, membership_from};
use crate::state::State;

/// A leadership: the term, and who has it. openraft lets two peers lead one term, one after the other, and
/// orders them by id (`leader_id_adv`); so it is this pair that nobody may lead under twice.
pub(super) type Leadership = (u64, NodeId);

/// One life of a peer.
pub(super) type Life = (NodeId, u64);

/// What the observer knows of one peer.
#[derive(Debug, Default)]
struct Peer {
    /// Ids of the entries in its log, by index.
    log: BTreeMap<u64, LogId>,
    /// Up to where its log was purged, or replaced by a snapshot.
    purged: Option<LogId>,
    applied: Option<LogId>,
    /// The highest vote that it was told is durable.
    vote: Vote,
    leads: Option<Leadership>,
    /// Whether its disk once lost what was synced.
    lost_writes: bool,
}

impl Peer {
    fn last(&self) -> Option<LogId> {
        let last = self.log.values().next_back().copied();
        last.max(self.purged)
    }

    fn holds(&self, id: LogId) -> bool {
        self.purged.is_some_and(|purged| purged.index >= id.index)
            || self.log.get(&id.index.0) == Some(&id)
    }
}

/// An entry that some peer applied or acknowledged.
#[derive(Clone, Copy, Debug)]
struct Committed {
    id: LogId,
    /// The latest leadership under which it can have been committed.
    under: Leadership,
}

#[derive(Debug, Default)]
pub(super) struct Observer {
    peers: BTreeMap<NodeId, Peer>,
    /// For each entry ever appended: the one before it, and a sum of its payload.
    entries: BTreeMap<LogId, (Option<LogId>, u32)>,
    /// Which life had a leadership.
    leaderships: BTreeMap<Leadership, Life>,
    committed: BTreeMap<u64, Committed>,
    /// What clients asked for in committed entries: the session, and the request's number.
    asked: BTreeSet<(LogIndex, u64)>,
    /// The reference after each index, and what applying it answered.
    states: BTreeMap<u64, (State, Outcome)>,
    violations: Vec<String>,
    pub(super) counts: Counts,
}

/// How much a run has seen, to tell that it tests what it should.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) elections: u64,
    pub(super) truncations: u64,
    pub(super) snapshots_installed: u64,
    /// Transfers that went on where an earlier one had ended.
    pub(super) snapshots_resumed: u64,
    pub(super) purges: u64,
    pub(super) memberships: u64,
    pub(super) writes: u64,
    pub(super) reads: u64,
    /// Attempts of a client that were not answered with what it asked for.
    pub(super) retries: u64,
    /// Writes that were committed once more.
    pub(super) repeats: u64,
    pub(super) kills: u64,
    pub(super) power_cuts: u64,
    pub(super) disk_errors: u64,
    pub(super) found_cut: u64,
    pub(super) agreed_cut: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.elections += other.elections;
        self.truncations += other.truncations;
        self.snapshots_installed += other.snapshots_installed;
        self.snapshots_resumed += other.snapshots_resumed;
        self.purges += other.purges;
        self.memberships += other.memberships;
        self.writes += other.writes;
        self.reads += other.reads;
        self.retries += other.retries;
        self.repeats += other.repeats;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.disk_errors += other.disk_errors;
        self.found_cut += other.found_cut;
        self.agreed_cut += other.agreed_cut;
    }
}

impl Counts {
    /// What many runs must have met, and these have not.
    pub(super) fn unmet(&self) -> Vec<&'static str> {
        let all = [
            ("elections", self.elections),
            ("truncations", self.truncations),
            ("snapshots installed", self.snapshots_installed),
            ("snapshots resumed", self.snapshots_resumed),
            ("purges", self.purges),
            ("changes of the membership", self.memberships),
            ("writes", self.writes),
            ("reads", self.reads),
            ("retries", self.retries),
            ("writes committed twice", self.repeats),
            ("kills", self.kills),
            ("power cuts", self.power_cuts),
            ("disk errors", self.disk_errors),
        ];
        let unmet = all.into_iter().filter(|(_, count)| *count == 0);
        unmet.map(|(what, _)| what).collect()
    }
}

fn payload_sum(entry: &EntryOf<TypeConfig>) -> u32 {
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(command) => Payload::Command(command.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(membership_from(membership)),
    };
    crc32c::crc32c(&codec::encode(&payload).unwrap())
}

impl Observer {
    /// Notes that something does not hold which must.
    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    fn peer(&mut self, node: NodeId) -> &mut Peer {
        self.peers.entry(node).or_default()
    }

    /// A peer has opened its store.
    pub(super) fn opened(
        &mut self,
        node: NodeId,
        vote: Option<Vote>,
        purged: Option<LogId>,
        log: impl Iterator<Item = LogId>,
        applied: Option<LogId>,
    ) {
        let peer = self.peer(node);
        let (log, before, lost_writes, vote) = (
            log.map(|id| (id.index.0, id)).collect(),
            peer.vote,
            peer.lost_writes,
            vote.unwrap_or_default(),
        );
        *peer = Peer {
            log,
            purged,
            applied,
            vote: before.max(vote),
            leads: None,
            lost_writes,
        };
        self.must(vote >= before, || {
            format!("the vote of peer {node} went back from {before:?} to {vote:?}")
        });
        if let Some(applied) = applied {
            self.snapshot_state_must_be_committed(node, applied);
        }
    }

    fn snapshot_state_must_be_committed(&mut self, node: NodeId, applied: LogId) {
        let committed = self.committed.get(&applied.index.0).map(|it| it.id);
        self.must(committed == Some(applied), || {
            format!("peer {node} has a snapshot up to {applied}, where {committed:?} was committed")
        });
    }

    /// A vote is durable.
    pub(super) fn voted(&mut self, node: NodeId, vote: Vote) {
        let before = self.peer(node).vote;
        self.must(vote >= before, || {
            format!("peer {node} voted {vote:?} after {before:?}")
        });
        self.peer(node).vote = vote.max(before);
    }

    /// A peer has put entries into its log; perhaps not on disk yet.
    pub(super) fn appended(&mut self, node: NodeId, entry: &EntryOf<TypeConfig>) {
        let id = log_id_from(&entry.log_id);
        let peer = self.peer(node);
        let before = peer.last();
        peer.log.insert(id.index.0, id);
        let fact = (before, payload_sum(entry));
        let known = *self.entries.entry(id).or_insert(fact);
        self.must(known == fact, || {
            format!("log matching: entry {id} is {fact:?} on peer {node}, and {known:?} elsewhere")
        });
        let follows = before.is_none_or(|before| before < id);
        self.must(follows, || {
            format!("peer {node} appended {id} after {before:?}")
        });
    }

    /// A peer has dropped every entry after `keep`.
    pub(super) fn truncated(&mut self, node: NodeId, keep: Option<LogId>) {
        let end = keep.map_or(0, |id| id.index.0 + 1);
        let applied = self.peer(node).applied;
        self.peer(node).log.split_off(&end);
        self.counts.truncations += 1;
        self.must(applied.is_none_or(|id| id.index.0 < end), || {
            format!("peer {node} dropped entries from {end}, of which it applied up to {applied:?}")
        });
    }

    /// A peer has dropped every entry up to `upto`.
    pub(super) fn purged(&mut self, node: NodeId, upto: LogId) {
        let peer = self.peer(node);
        peer.log = peer.log.split_off(&(upto.index.0 + 1));
        peer.purged = peer.purged.max(Some(upto));
        let applied = peer.applied;
        self.counts.purges += 1;
        self.must(
            applied.is_some_and(|applied| applied.index >= upto.index),
            || format!("peer {node} purged {upto}, and has applied {applied:?}"),
        );
    }

    /// A peer is about to apply an entry.
    pub(super) fn applies(&mut self, node: NodeId, entry: &EntryOf<TypeConfig>) {
        let id = log_id_from(&entry.log_id);
        let vote = self.peer(node).vote;
        let applied = self.peer(node).applied.replace(id);
        let next = applied.map_or(0, |applied| applied.index.0 + 1);
        self.must(id.index.0 == next, || {
            format!("peer {node} applies {id} after {applied:?}")
        });
        self.commits(
            id,
            (vote.term, vote.node),
            &format!("peer {node} applies it"),
        );
        if self.states.contains_key(&id.index.0) {
            return;
        }
        let before = self.states.last_key_value();
        let mut state = match before {
            Some((index, (state, _))) if index + 1 == id.index.0 => state.clone(),
            None => State::default(),
            Some((index, _)) => {
                let what = format!("entry {id} is applied first, and none after {index}");
                return self.violations.push(what);
            }
        };
        let outcome = match &entry.payload {
            EntryPayload::Normal(command) => {
                if let Action::Client {
                    client, sequence, ..
                } = command.action
                    && !self.asked.insert((client, sequence))
                {
                    self.counts.repeats += 1;
                }
                state.apply(id.index, command)
            }
            EntryPayload::Membership(_) => {
                self.counts.memberships += 1;
                Outcome::default()
            }
            EntryPayload::Blank => Outcome::default(),
        };
        self.states.insert(id.index.0, (state, outcome));
    }

    /// An entry is known to be committed.
    fn commits(&mut self, id: LogId, under: Leadership, why: &str) {
        let committed = Committed { id, under };
        let known = *self.committed.entry(id.index.0).or_insert(committed);
        self.must(known.id == id, || {
            format!("{id} is committed ({why}), and so is {}", known.id)
        });
    }

    /// A peer's state after applying, or installing a snapshot.
    pub(super) fn reached(&mut self, node: NodeId, last: Option<LogId>, state: &State) {
        let Some(last) = last else { return };
        let Some((reference, _)) = self.states.get(&last.index.0) else {
            return self.violations.push(format!(
                "peer {node} has the state of {last}, which nobody applied"
            ));
        };
        let (found, expected) = (state.digest(), reference.digest());
        self.must(found == expected, || {
            format!("peer {node} has another state at {last} than its log gives")
        });
    }

    /// A peer has installed a snapshot.
    pub(super) fn installed(&mut self, node: NodeId, last: LogId) {
        self.counts.snapshots_installed += 1;
        let before = self.peer(node).applied.replace(last);
        self.must(before.is_none_or(|before| before <= last), || {
            format!("peer {node} installed a snapshot up to {last} over {before:?}")
        });
        self.snapshot_state_must_be_committed(node, last);
    }

    /// Whom a peer holds for the leader: itself, under this leadership, or not itself.
    pub(super) fn leads(&mut self, node: NodeId, life: u64, leads: Option<Leadership>) {
        if self.peer(node).leads == leads {
            return;
        }
        self.peer(node).leads = leads;
        let Some(leadership) = leads else { return };
        self.counts.elections += 1;
        let holder = *self.leaderships.entry(leadership).or_insert((node, life));
        self.must(holder == (node, life), || {
            format!(
                "election safety: {leadership:?} is held by {holder:?} and by {:?}",
                (node, life)
            )
        });
        let missing: Vec<LogId> = self
            .committed
            .values()
            .filter(|it| it.under < leadership)
            .map(|it| it.id)
            .filter(|id| !self.peers[&node].holds(*id))
            .collect();
        self.must(missing.is_empty(), || {
            format!(
                "leader completeness: peer {node} leads under {leadership:?} without {missing:?}"
            )
        });
    }

    /// A leader holds `node` for one that lost what it acknowledged, and perhaps that finds so too. Unless its disk lied,
    /// that is wrong.
    pub(super) fn found_cut(&mut self, node: NodeId, cut: Cut, agrees: Option<bool>) {
        self.counts.found_cut += 1;
        let lied = self.peer(node).lost_writes;
        self.must(lied, || {
            format!(
                "peer {node} is taken for one that lost entries: {cut:?}; it agrees: {agrees:?}"
            )
        });
        if agrees == Some(true) {
            self.counts.agreed_cut += 1;
        }
    }

    /// The disk of a peer has lost what was synced.
    pub(super) fn lost_writes(&mut self, node: NodeId) {
        self.peer(node).lost_writes = true;
    }

    /// A client was told what its write did.
    pub(super) fn acknowledged(&mut self, id: LogId, outcome: &Outcome) {
        self.counts.writes += 1;
        // The leader has applied it, so that it is known.
        let expected = self.states.get(&id.index.0).map(|(_, outcome)| outcome);
        let committed = self.committed.get(&id.index.0).map(|it| it.id);
        if expected != Some(outcome) || committed != Some(id) {
            let what = format!(
                "{id} was acknowledged with {outcome:?}, and {committed:?} gives {expected:?}"
            );
            self.violations.push(what);
        }
    }

    /// The reference, after every entry that was committed.
    pub(super) fn newest(&self) -> Option<(LogIndex, &State)> {
        let (index, (state, _)) = self.states.last_key_value()?;
        Some((LogIndex(*index), state))
    }

    /// Whether a peer that has applied `last` has applied all that the reference has, and holds its state.
    pub(super) fn equals_reference(
        &self,
        node: NodeId,
        last: Option<LogId>,
        state: &State,
    ) -> Result<(), String> {
        let Some((newest, reference)) = self.newest() else {
            return Err("nothing was ever applied".to_owned());
        };
        if last.map(|last| last.index) != Some(newest) {
            return Err(format!("peer {node} ends at {last:?}, and not at {newest}"));
        }
        if state.digest() != reference.digest() {
            return Err(format!(
                "peer {node} ends in another state than {newest} gives"
            ));
        }
        Ok(())
    }
}

/// A service's history, as its only writer and all its readers see it. It is a counter: the writer adds one
/// with each write, so that what a linearizable read may return is known exactly.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Register {
    /// Nothing older may be returned by a read that begins now: it was acknowledged, or read.
    pub(super) at_least: u32,
    /// Nothing newer can be returned by a read that ends now: no more was ever sent.
    pub(super) at_most: u32,
}

impl Register {
    /// A read that began with `before` known has returned `found`.
    pub(super) fn read(&mut self, before: u32, found: u32) -> Result<(), String> {
        let fits = (before..=self.at_most).contains(&found);
        self.at_least = self.at_least.max(found);
        if fits {
            return Ok(());
        }
        Err(format!(
            "a read returned {found}, not {before} to {}",
            self.at_most
        ))
    }
}
