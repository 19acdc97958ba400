//! The replicas that one worker balances requests over.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use raftserve_model::ServiceVersion;
use raftserve_model::spec::LoadBalancingPolicy;
use tokio::time::Instant;

use crate::health::SHARE_FULL;
use crate::policy::{self, HashTable, Relative, Smooth};
use crate::upstream::Upstream;

/// A replica in a [`Pool`].
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) version: ServiceVersion,
    /// What it can take beside the others; at least 1.
    pub(crate) weight: u32,
}

/// What each replica gets of its share, in thousandths, while not all get theirs whole.
pub(crate) type Share<'s> = Option<&'s dyn Fn(&Member) -> u32>;

/// Ready replicas, and whose turn it is.
#[derive(Debug)]
pub(crate) struct Pool {
    /// By replica: a [`HashTable`] counts them so.
    members: Vec<Member>,
    heaviest: u32,
    /// Whether all weigh the same.
    is_even: bool,
    /// Where the next pick starts.
    cursor: Cell<usize>,
    turns: RefCell<Smooth>,
}

impl Pool {
    /// Begins anywhere, so that workers and peers do not pick in step.
    pub(crate) fn new(mut members: Vec<Member>, cursor: usize) -> Self {
        members.sort_by_key(|member| member.upstream.replica);
        let weights = members.iter().map(|member| member.weight);
        let heaviest = weights.clone().max().unwrap_or(1);
        Self {
            is_even: weights.min().is_none_or(|least| least == heaviest),
            members,
            heaviest,
            cursor: Cell::new(cursor),
            turns: RefCell::default(),
        }
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn cursor(&self) -> usize {
        self.cursor.get()
    }

    /// One of the usable replicas, by `policy`. A hash policy without `key`, its table and the hash, goes by load.
    pub(crate) fn pick(
        &self,
        policy: LoadBalancingPolicy,
        key: Option<(&HashTable, u64)>,
        share: Share<'_>,
        usable: impl Fn(&Member) -> bool,
    ) -> Option<&Rc<Upstream>> {
        let usable = |index: usize| usable(&self.members[index]);
        let index = match (policy, key) {
            (LoadBalancingPolicy::RoundRobin, _) => self.in_turn(usable),
            (LoadBalancingPolicy::InstanceAwareLeastLoad, _) => self.by_load(
                |index| Relative {
                    load: self.shared_load(index, share),
                    weight: self.members[index].weight,
                },
                usable,
            ),
            (LoadBalancingPolicy::P2c, _) => {
                let now = Instant::now();
                let cost = |index: usize| {
                    let cost = self.members[index].upstream.cost(now);
                    cost.saturating_mul(u64::from(SHARE_FULL)) / self.share(index, share)
                };
                policy::p2c(self.members.len(), rand::random(), cost, usable)
            }
            (LoadBalancingPolicy::RingHash | LoadBalancingPolicy::Maglev, Some((table, hash))) => {
                table.pick(hash, |index| self.load(index), usable)
            }
            (
                LoadBalancingPolicy::LeastLoad
                | LoadBalancingPolicy::RingHash
                | LoadBalancingPolicy::Maglev,
                _,
            ) => self.by_load(|index| self.shared_load(index, share), usable),
        }?;
        self.cursor.set(index + 1);
        Some(&self.members[index].upstream)
    }

    fn in_turn(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let (count, start) = (self.members.len(), self.cursor.get());
        if self.is_even {
            return policy::round_robin(count, start, usable);
        }
        let weight = |index: usize| self.members[index].weight;
        let mut turns = self.turns.borrow_mut();
        if count > policy::FULL_SCAN_MAX {
            return turns.pick_in_passing(count, start, self.heaviest, weight, usable);
        }
        turns.pick(count, weight, usable)
    }

    fn by_load<L: Ord>(
        &self,
        load: impl Fn(usize) -> L,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let count = self.members.len();
        let draw = match count > policy::FULL_SCAN_MAX {
            true => rand::random(),
            false => 0,
        };
        policy::least_load(count, self.cursor.get(), draw, load, usable)
    }

    /// The load by which replicas are compared. With a tenth of its share, a replica's one request weighs as much as
    /// ten, and the one that comes weighs already.
    fn shared_load(&self, index: usize, share: Share<'_>) -> u64 {
        let load = u64::from(self.load(index));
        match share {
            None => load,
            Some(_) => (load + 1) * u64::from(SHARE_FULL) / self.share(index, share),
        }
    }

    fn share(&self, index: usize, share: Share<'_>) -> u64 {
        share.map_or(u64::from(SHARE_FULL), |share| {
            u64::from(share(&self.members[index]).max(1))
        })
    }

    fn load(&self, index: usize) -> u32 {
        self.members[index].upstream.gauge.total()
    }
}
