//! Which replica a request gets.

use std::rc::Rc;

use http::Request;
use raftserve_model::ReplicaId;
use raftserve_model::spec::{HashKey, LoadBalancingPolicy, RouteRule};

use super::ServiceView;
use crate::choice::{self, Choice};
use crate::connection::Client;
use crate::hash_key;
use crate::health::SHARE_FULL;
use crate::pool::{Member, Share};
use crate::rules::{self, Asked};
use crate::upstream::Upstream;

impl ServiceView {
    /// The rule that a request meets.
    pub(crate) fn rule<B>(
        &self,
        host: &str,
        prefix_len: usize,
        request: &Request<B>,
    ) -> Option<usize> {
        let rules = &self.route.traffic.routes;
        if rules.is_empty() {
            return None;
        }
        let asked = Asked {
            host,
            method: request.method(),
            path: request.uri().path().get(prefix_len..).unwrap_or("/"),
            headers: request.headers(),
        };
        rules::first(rules, &asked)
    }

    /// The rule of that index.
    pub(crate) fn met(&self, rule: Option<usize>) -> Option<&RouteRule> {
        rule.map(|index| &self.route.traffic.routes[index])
    }

    /// The hash of a request's key, if the service's policy looks at it.
    pub(crate) fn hash<B>(&self, request: &Request<B>, client: &Client) -> Option<u64> {
        let source = self.route.traffic.hash_on.as_ref();
        let hashes = self.route.policy.hashes();
        hashes.then(|| hash_key::of(source, request, client.address.as_bytes()))
    }

    /// Where in a JSON body the key is, if the service's policy looks for it there.
    pub(crate) fn key_in_body(&self) -> Option<&str> {
        match &self.route.traffic.hash_on {
            Some(HashKey::JsonField(pointer)) if self.route.policy.hashes() => Some(pointer),
            _ => None,
        }
    }

    /// What a request's rule and key say of its replica. Takes a turn among the versions that the rule shares requests
    /// out to, so call it once for each request.
    pub(crate) fn choose(&self, rule: Option<usize>, hash: Option<u64>) -> Choice<'_> {
        let Some(index) = rule else {
            return Choice {
                hash,
                ..Choice::default()
            };
        };
        let rule = &self.route.traffic.routes[index];
        let version = match rule.weights.is_empty() {
            true => None,
            false => self.shares[index].next(rule, &self.versions, hash),
        };
        Choice {
            rule: Some(rule),
            version,
            hash,
        }
    }

    /// Picks a ready replica by the service's policy, none of those tried: of the version chosen, or else of another
    /// one that the request's rule names. One that is ejected is picked only if there is no other, one that refused a
    /// connection lately only after all of those. That a version's replicas are new takes nothing of its share.
    pub(crate) fn pick(&self, choice: Choice<'_>, tried: &[ReplicaId]) -> Option<&Rc<Upstream>> {
        let untried = |member: &Member| !tried.contains(&member.upstream.replica);
        let Some(survey) = self.triage.survey(self.ready.members()) else {
            return self.pick_named(choice, None, untried);
        };
        let share = |member: &Member| self.triage.share(&member.upstream, survey);
        let admitted = |member: &Member| untried(member) && survey.admits(&member.upstream);
        let reached = |member: &Member| untried(member) && survey.reaches(&member.upstream);
        let drawn = |member: &Member| admitted(member) && self.draws(share(member));
        let upstream = self
            .pick_of_version(choice, Some(&share), drawn)
            .or_else(|| self.pick_of_version(choice, Some(&share), admitted))
            .or_else(|| self.pick_named(choice, Some(&share), drawn))
            .or_else(|| self.pick_named(choice, Some(&share), admitted))
            .or_else(|| self.pick_named(choice, Some(&share), reached))
            .or_else(|| self.pick_named(choice, Some(&share), untried))?;
        self.triage.picked(upstream, survey);
        Some(upstream)
    }

    /// Whether a replica with this share takes part in a pick. Where loads are compared, the share counts there
    /// instead; and a key has one replica, whatever its share.
    fn draws(&self, share: u32) -> bool {
        match self.route.policy {
            LoadBalancingPolicy::RoundRobin => {
                share >= SHARE_FULL || rand::random_range(0..SHARE_FULL) < share
            }
            LoadBalancingPolicy::LeastLoad
            | LoadBalancingPolicy::InstanceAwareLeastLoad
            | LoadBalancingPolicy::P2c
            | LoadBalancingPolicy::RingHash
            | LoadBalancingPolicy::Maglev => true,
        }
    }

    /// Picks among the usable of the version chosen, or else among those of all that the rule names. If none of these
    /// has a ready replica, any other will do.
    fn pick_named(
        &self,
        choice: Choice<'_>,
        share: Share<'_>,
        usable: impl Fn(&Member) -> bool,
    ) -> Option<&Rc<Upstream>> {
        let (ready, policy) = (&self.ready, self.route.policy);
        let key = self.hash_table.as_deref().zip(choice.hash);
        let Some(rule) = choice.shared_out_by() else {
            return ready.pick(policy, key, share, usable);
        };
        let named = |member: &Member| choice::weight(rule, member.version) > 0;
        if !ready.members().iter().any(named) {
            return ready.pick(policy, key, share, usable);
        }
        self.pick_of_version(choice, share, &usable)
            .or_else(|| ready.pick(policy, key, share, |it| named(it) && usable(it)))
    }

    fn pick_of_version(
        &self,
        choice: Choice<'_>,
        share: Share<'_>,
        usable: impl Fn(&Member) -> bool,
    ) -> Option<&Rc<Upstream>> {
        let version = choice.version?;
        let policy = self.route.policy;
        match self.hash_table.as_deref().zip(choice.hash) {
            // The table is of all, and those of the version keep their places in it.
            Some(key) => self.ready.pick(policy, Some(key), share, |member| {
                member.version == version && usable(member)
            }),
            None => {
                let at = self.versions.binary_search(&version).ok()?;
                self.pools[at].pick(policy, None, share, usable)
            }
        }
    }
}
