//! What is to be done next about the membership. Pure: a view in, one step out, so that a new leader that sees
//! the same goes on where the former stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use raftserve_model::NodeId;
use raftserve_store::state::{PeerEntry, PeerStanding, Promotion};

/// How a member looks to the leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Whether it answers.
    pub(crate) answers: bool,
    /// Whether its log is not far behind.
    pub(crate) keeps_up: bool,
    /// For how long it has answered and been caught up, without a break.
    pub(crate) steady: Option<Duration>,
    /// For how long it has been silent.
    pub(crate) silent: Duration,
}

/// What the leader knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The leader.
    pub(crate) me: NodeId,
    /// Whether a joint change was begun and not ended.
    pub(crate) joint: bool,
    /// Who votes; in a joint change, who will.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Voters and learners.
    pub(crate) members: BTreeSet<NodeId>,
    /// Members that lost entries which they had acknowledged.
    pub(crate) cut: BTreeSet<NodeId>,
    /// What is on record.
    pub(crate) peers: Vec<Arc<PeerEntry>>,
    /// Members that say they are elsewhere than the membership has them, and where.
    pub(crate) moved: BTreeMap<NodeId, String>,
    /// How the others are, those that were admitted and are no members yet among them.
    pub(crate) conditions: BTreeMap<NodeId, Condition>,
    /// Whose leases are surely over, of those that are to go.
    pub(crate) lease_free: BTreeSet<NodeId>,
    /// How long a learner must have been steady.
    pub(crate) promote_after: Duration,
    /// After how long a silent voter is removed; never, if none.
    pub(crate) dead_after: Option<Duration>,
}

/// Whether a member votes, or how it may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Vote {
    /// It votes.
    Has,
    /// It gets a vote by itself once it has been steady for long enough.
    Due,
    /// It gets one by itself once another peer has joined too.
    NeedsAnother,
    /// It gets one only if somebody says so.
    ByHand,
    /// It is to go.
    Leaving,
    /// It lost log entries that it had acknowledged, and must be wiped: whether it votes or not, it does not count.
    LogCut,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ends a joint change that its leader left half-way.
    Flatten,
    /// Makes an admitted peer a learner.
    AddLearner(NodeId),
    /// Gives learners a vote.
    Promote(BTreeSet<NodeId>),
    /// Gives the votes of `old` to `new`, in one joint change.
    Replace {
        old: BTreeSet<NodeId>,
        new: BTreeSet<NodeId>,
    },
    /// Takes the votes and the membership of all these, in one joint change.
    RemoveVoters(BTreeSet<NodeId>),
    /// Forgets a learner.
    RemoveLearner(NodeId),
    /// The leader itself is to go: another one must lead first.
    HandOver,
    /// No member any more: its id is given up for ever.
    Retire(NodeId),
    /// Puts on record where a member is now, for those that look for it later.
    Readdress(NodeId, String),
    /// Decides that a voter, or who was to take one's vote over, has been silent for too long and is to go.
    Dismiss(NodeId),
}

/// Who is meant.
fn named<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    let names = nodes.into_iter().map(|node| format!("peer {node}"));
    names.collect::<Vec<_>>().join(" and ")
}

/// Who is meant, and the verb.
fn are(nodes: &BTreeSet<NodeId>) -> String {
    let verb = if nodes.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", named(nodes))
}

fn majority(of: usize) -> usize {
    of / 2 + 1
}

impl View {
    fn answers(&self, node: NodeId) -> bool {
        node == self.me || self.conditions.get(&node).is_some_and(|it| it.answers)
    }

    /// Whether a quorum can be made of `node` now.
    fn counts(&self, node: NodeId) -> bool {
        let condition = self.conditions.get(&node);
        node == self.me || condition.is_some_and(|it| it.answers && it.keeps_up)
    }

    fn is_ready(&self, node: NodeId) -> bool {
        let steady = self.conditions.get(&node).and_then(|it| it.steady);
        steady.is_some_and(|steady| steady >= self.promote_after)
    }

    fn is_learner(&self, node: NodeId) -> bool {
        self.members.contains(&node) && !self.voters.contains(&node)
    }

    /// Whether it may be decided that all of `nodes` are to go: whether the cluster still has a quorum without them and
    /// without whoever is to go already.
    ///
    /// # Errors
    /// Why it may not.
    pub(crate) fn may_dismiss(&self, nodes: &BTreeSet<NodeId>) -> Result<(), String> {
        let going = self.going();
        let more: BTreeSet<NodeId> = self
            .voters
            .intersection(nodes)
            .filter(|node| !going.contains(node))
            .copied()
            .collect();
        if more.is_empty() {
            return Ok(());
        }
        self.may_lose(&more.union(&going).copied().collect())
            .map_err(|reason| match going.is_empty() {
                true => reason,
                false => format!("{reason} ({} to go already)", are(&going)),
            })
    }

    /// Whether the cluster still has a quorum of voters that answer and keep up without all of `nodes`.
    ///
    /// # Errors
    /// Why it has not.
    fn may_lose(&self, nodes: &BTreeSet<NodeId>) -> Result<(), String> {
        if self.voters.is_disjoint(nodes) {
            return Ok(());
        }
        let (count, live) = self.left_without(nodes);
        if count == 0 {
            return Err(format!(
                "{} all voters that there are: let another join and be promoted first",
                are(&self.voters)
            ));
        }
        if live < majority(count) {
            let left = self.voters.difference(nodes);
            return Err(format!(
                "of the {count} voters that would be left {live} answer and are not far behind, and {} must: bring {} back \
                 first",
                majority(count),
                named(left.filter(|voter| !self.counts(**voter)))
            ));
        }
        Ok(())
    }

    /// How many voters are left without `nodes`, and how many of those a quorum can be made of now.
    fn left_without(&self, nodes: &BTreeSet<NodeId>) -> (usize, usize) {
        let rest = self.voters.difference(nodes);
        rest.fold((0, 0), |(count, live), voter| {
            (count + 1, live + usize::from(self.counts(*voter)))
        })
    }

    /// What is to be done about one that is to go, other than taking the vote of one without a successor.
    fn next_departure(&self, leaving: &PeerEntry, successor: Option<NodeId>) -> Option<Step> {
        let node = leaving.id;
        if !self.members.contains(&node) {
            return Some(Step::Retire(node));
        }
        if node == self.me {
            return Some(Step::HandOver);
        }
        if !self.lease_free.contains(&node) {
            return None;
        }
        if self.is_learner(node) {
            return Some(Step::RemoveLearner(node));
        }
        let new = self.pending(successor)?;
        let ready = self.is_learner(new) && self.is_ready(new);
        ready.then(|| Step::Replace {
            old: [node].into(),
            new: [new].into(),
        })
    }

    /// The successor, as long as it does not vote itself.
    fn pending(&self, successor: Option<NodeId>) -> Option<NodeId> {
        successor.filter(|successor| !self.voters.contains(successor))
    }

    /// Voters that are to go, and whose votes nobody is to take over.
    fn going(&self) -> BTreeSet<NodeId> {
        let going = self.leaving().filter_map(|(peer, successor)| {
            let alone = self.pending(successor).is_none() && self.voters.contains(&peer.id);
            alone.then_some(peer.id)
        });
        going.collect()
    }

    /// Learners that are ready for the votes of `going`: as many as leave the number of voters odd, and never more than go.
    fn substitutes(&self, going: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let (rest, _) = self.left_without(going);
        let ready = self.promotable(Promotion::Automatic);
        let most = ready.len().min(going.len());
        let odd = (0..=most).rev().find(|new| (rest + new) % 2 == 1);
        ready.into_iter().take(odd.unwrap_or(0)).collect()
    }

    /// Takes the votes of `going`, which learners that are ready get in the same change; none while there is no quorum to
    /// agree to that, or would be none after it.
    fn removal_of(&self, going: BTreeSet<NodeId>) -> Option<Step> {
        let new = self.substitutes(&going);
        if new.is_empty() {
            let may_go = self.may_lose(&going).is_ok();
            return may_go.then_some(Step::RemoveVoters(going));
        }
        let (before, live_before) = self.left_without(&BTreeSet::new());
        let (rest, live) = self.left_without(&going);
        let agrees =
            live_before >= majority(before) && live + new.len() >= majority(rest + new.len());
        agrees.then_some(Step::Replace { old: going, new })
    }

    /// All that are to go together go in one change: between two, those that stay might need a vote of one that
    /// has been told to end. Failing that, whoever can.
    fn removals(&self) -> Option<Step> {
        let going = self.going();
        if going.is_empty() || !going.is_subset(&self.lease_free) {
            return None;
        }
        let mut each = going.iter().copied();
        self.removal_of(going.clone())
            .or_else(|| each.find_map(|node| self.removal_of([node].into())))
    }

    fn leaving(&self) -> impl Iterator<Item = (&Arc<PeerEntry>, Option<NodeId>)> {
        self.peers.iter().filter_map(|peer| match peer.standing {
            PeerStanding::Leaving { successor } => Some((peer, successor)),
            PeerStanding::Active(_) | PeerStanding::Removed => None,
        })
    }

    fn departures(&self) -> Option<Step> {
        let mut leaving = self.leaving();
        leaving
            .find_map(|(peer, successor)| self.next_departure(peer, successor))
            .or_else(|| self.removals())
    }

    fn arrivals(&self) -> Vec<Step> {
        let active = |peer: &&Arc<PeerEntry>| matches!(peer.standing, PeerStanding::Active(_));
        let peers = self.peers.iter().filter(active);
        let missing = peers.filter(|peer| !self.members.contains(&peer.id));
        missing.map(|peer| Step::AddLearner(peer.id)).collect()
    }

    /// Whether `node` takes the vote of one that is to go.
    fn succeeds(&self, node: NodeId) -> bool {
        let successor = Some(node);
        let mut peers = self.peers.iter();
        peers.any(|peer| peer.standing == PeerStanding::Leaving { successor })
    }

    fn promotable(&self, promotion: Promotion) -> Vec<NodeId> {
        let peers = self.peers.iter();
        peers
            .filter(|peer| peer.standing == PeerStanding::Active(promotion))
            .map(|peer| peer.id)
            .filter(|id| self.is_learner(*id) && self.is_ready(*id) && !self.succeeds(*id))
            .collect()
    }

    /// An even number of voters survives no more losses than one less, and needs one more to agree. Learners that may take
    /// over the votes of those that go are kept for that.
    fn promotions(&self) -> Option<Step> {
        let mut chosen: BTreeSet<_> = self.promotable(Promotion::Ordered).into_iter().collect();
        if chosen.is_empty() && self.going().is_empty() {
            let ready = self.promotable(Promotion::Automatic);
            let even = self.voters.len().is_multiple_of(2);
            let count = if even { 1 } else { 2 };
            if ready.len() >= count {
                chosen.extend(ready.into_iter().take(count));
            }
        }
        (!chosen.is_empty()).then_some(Step::Promote(chosen))
    }

    /// Whether `node`, a member, votes, or how it may come to, as things are.
    pub(crate) fn vote(&self, node: NodeId) -> Vote {
        let on_record = |id: NodeId| self.peers.iter().find(|peer| peer.id == id);
        let standing = on_record(node).map(|peer| peer.standing);
        match standing {
            Some(PeerStanding::Leaving { .. } | PeerStanding::Removed) => Vote::Leaving,
            _ if self.cut.contains(&node) => Vote::LogCut,
            _ if self.voters.contains(&node) => Vote::Has,
            _ if self.succeeds(node) => Vote::Due,
            Some(PeerStanding::Active(Promotion::Ordered)) => Vote::Due,
            Some(PeerStanding::Active(Promotion::Manual)) | None => Vote::ByHand,
            Some(PeerStanding::Active(Promotion::Automatic)) => self.turn(node),
        }
    }

    /// Of the learners that get a vote by themselves, the first goes where the voters are even in number, and then
    /// they go in pairs.
    fn turn(&self, node: NodeId) -> Vote {
        let automatic = PeerStanding::Active(Promotion::Automatic);
        let waiting = self.peers.iter().filter(|peer| {
            peer.standing == automatic
                && self.is_learner(peer.id)
                && !self.succeeds(peer.id)
                && (peer.id == node || self.answers(peer.id))
        });
        let waiting: Vec<NodeId> = waiting.map(|peer| peer.id).collect();
        let (staying, _) = self.left_without(&self.going());
        let even = staying.is_multiple_of(2);
        let left_over = waiting.len().is_multiple_of(2) == even;
        let last = waiting.last().is_some_and(|last| *last == node);
        match left_over && last {
            true => Vote::NeedsAnother,
            false => Vote::Due,
        }
    }

    /// Of a member that does not answer it is not sure that it is still where it was heard last.
    fn moves(&self) -> Option<Step> {
        let mut moved = self.moved.iter();
        let (node, address) = moved.find(|(node, _)| self.answers(**node))?;
        Some(Step::Readdress(*node, address.clone()))
    }

    /// One voter at a time, never if it would leave fewer than three, and only while more than the quorum of
    /// what is left answers: whoever is cut off with a minority removes nobody. Before any, a peer that was to take
    /// a vote over and is gone as well: whoever waits for it stays, and may be next.
    fn clean_up(&self) -> Option<Step> {
        let after = self.dead_after?;
        let long = |node: &NodeId| {
            self.conditions
                .get(node)
                .is_some_and(|it| !it.answers && it.silent >= after)
        };
        let mut leaving = self.leaving().peekable();
        if leaving.peek().is_some() {
            let awaited = leaving.filter(|(peer, _)| self.voters.contains(&peer.id));
            let mut pending = awaited.filter_map(|(_, successor)| self.pending(successor));
            return pending.find(long).map(Step::Dismiss);
        }
        if self.voters.len() <= 3 {
            return None;
        }
        let dead: Vec<NodeId> = self
            .voters
            .iter()
            .copied()
            .filter(|voter| *voter != self.me && !self.answers(*voter))
            .collect();
        if dead.len() >= majority(self.voters.len()) {
            return None;
        }
        let first = dead.into_iter().find(long)?;
        self.may_lose(&[first].into())
            .is_ok()
            .then_some(Step::Dismiss(first))
    }

    /// What to do, the first that can be done.
    pub(crate) fn steps(&self) -> Vec<Step> {
        if self.joint {
            return vec![Step::Flatten];
        }
        let mut steps: Vec<Step> = self.departures().into_iter().collect();
        // One that cannot be reached must not hold up the others.
        steps.extend(self.arrivals());
        steps.extend(self.promotions());
        steps.extend(self.moves());
        steps.extend(self.clean_up());
        steps
    }
}

#[cfg(test)]
mod tests {
    use raftserve_model::LogIndex;

    use super::*;

    const STEADY: Duration = Duration::from_secs(5);

    fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn peer(id: u64, standing: PeerStanding) -> Arc<PeerEntry> {
        Arc::new(PeerEntry {
            id: NodeId(id),
            nonce: id,
            address: String::new(),
            standing,
            changed: LogIndex(1),
        })
    }

    const AUTOMATIC: PeerStanding = PeerStanding::Active(Promotion::Automatic);

    /// Peer 1 leads; everybody answers and is caught up.
    fn view(voters: u64, learners: &[(u64, PeerStanding)]) -> View {
        let voters = ids(1..=voters);
        let peers: Vec<_> = learners.iter().map(|(id, it)| peer(*id, *it)).collect();
        let members: BTreeSet<_> = voters
            .iter()
            .copied()
            .chain(peers.iter().map(|peer| peer.id))
            .collect();
        let fit = Condition {
            answers: true,
            keeps_up: true,
            steady: Some(STEADY),
            silent: Duration::ZERO,
        };
        View {
            me: NodeId(1),
            conditions: members.iter().map(|member| (*member, fit)).collect(),
            lease_free: members.clone(),
            voters,
            members,
            peers,
            promote_after: STEADY,
            ..View::default()
        }
    }

    fn silence(view: &mut View, node: u64, silent: Duration) {
        let silent = Condition {
            answers: false,
            keeps_up: false,
            steady: None,
            silent,
        };
        view.conditions.insert(NodeId(node), silent);
    }

    #[test]
    fn voters_are_odd_in_number_unless_somebody_orders_otherwise() {
        assert_eq!(view(1, &[(10, AUTOMATIC)]).steps(), []);
        assert_eq!(
            view(1, &[(10, AUTOMATIC), (11, AUTOMATIC)]).steps(),
            [Step::Promote(ids([10, 11]))]
        );
        assert_eq!(view(3, &[(10, AUTOMATIC)]).steps(), []);
        assert_eq!(
            view(2, &[(10, AUTOMATIC), (11, AUTOMATIC)]).steps(),
            [Step::Promote(ids([10]))]
        );
        let ordered = PeerStanding::Active(Promotion::Ordered);
        assert_eq!(
            view(1, &[(10, ordered)]).steps(),
            [Step::Promote(ids([10]))]
        );
        let manual = PeerStanding::Active(Promotion::Manual);
        assert_eq!(view(2, &[(10, manual)]).steps(), []);
    }

    #[test]
    fn a_learner_is_promoted_only_when_it_has_been_steady() {
        let mut view = view(2, &[(10, AUTOMATIC)]);
        for steady in [None, Some(STEADY - Duration::from_millis(1))] {
            let condition = Condition {
                answers: true,
                keeps_up: true,
                steady,
                silent: Duration::ZERO,
            };
            view.conditions.insert(NodeId(10), condition);
            assert_eq!(view.steps(), []);
        }
    }

    #[test]
    fn a_half_done_joint_change_is_ended_before_anything_else() {
        let mut view = view(2, &[(10, AUTOMATIC)]);
        view.joint = true;
        assert_eq!(view.steps(), [Step::Flatten]);
    }

    #[test]
    fn a_wiped_voter_is_replaced_in_one_change_once_its_successor_is_ready() {
        let leaving = PeerStanding::Leaving {
            successor: Some(NodeId(10)),
        };
        let mut view = view(3, &[(10, AUTOMATIC)]);
        view.peers.push(peer(3, leaving));
        silence(&mut view, 3, STEADY);
        let replace = Step::Replace {
            old: ids([3]),
            new: ids([10]),
        };
        assert_eq!(view.steps(), [replace]);
        let before = view.clone();
        view.lease_free.remove(&NodeId(3));
        assert_eq!(view.steps(), [], "it may yet use what it read");
        let mut view = before;
        silence(&mut view, 10, STEADY);
        assert_eq!(view.steps(), [], "nor does it lose its vote to nobody");
    }

    #[test]
    fn learners_that_are_ready_get_the_votes_of_those_that_go_in_the_same_change() {
        let gone = PeerStanding::Leaving { successor: None };
        let lost = |voters, lost: &[u64], learners: &[u64]| {
            let learners: Vec<_> = learners.iter().map(|id| (*id, AUTOMATIC)).collect();
            let mut view = view(voters, &learners);
            view.me = NodeId((1..).find(|id| !lost.contains(id)).unwrap());
            view.peers.extend(lost.iter().map(|id| peer(*id, gone)));
            for id in lost {
                silence(&mut view, *id, STEADY);
            }
            view
        };
        let replace = |old: &[u64], new: &[u64]| Step::Replace {
            old: ids(old.iter().copied()),
            new: ids(new.iter().copied()),
        };
        for old in 1..=3 {
            let mut view = lost(3, &[old], &[31]);
            assert_eq!(view.vote(NodeId(31)), Vote::Due);
            assert_eq!(view.steps(), [replace(&[old], &[31])]);
            view.lease_free.remove(&NodeId(old));
            assert_eq!(view.steps(), [], "it may yet use what it read");
        }
        for (one, other) in [(1, 2), (1, 5), (2, 4), (4, 5)] {
            let two = [one, other];
            assert_eq!(
                lost(5, &two, &[31, 32]).steps(),
                [replace(&two, &[31, 32])],
                "{two:?}"
            );
            // Four voters would be no better than three.
            let steps = lost(5, &two, &[31]).steps();
            assert_eq!(steps, [Step::RemoveVoters(ids(two))]);
        }
        // A learner that is not ready yet is waited for by nobody: it is promoted later.
        let mut early = lost(3, &[1], &[31]);
        silence(&mut early, 31, STEADY);
        assert_eq!(early.steps(), [Step::RemoveVoters(ids([1]))]);
        // One that gets a vote by hand only takes none.
        let mut by_hand = lost(3, &[1], &[]);
        let manual = peer(31, PeerStanding::Active(Promotion::Manual));
        by_hand.peers.push(manual);
        by_hand.members.insert(NodeId(31));
        assert_eq!(by_hand.steps(), [Step::RemoveVoters(ids([1]))]);
        // Nor is a vote moved where too few are left to agree to anything after it.
        let mut few = lost(3, &[1], &[31]);
        silence(&mut few, 3, STEADY);
        assert_eq!(few.steps(), [], "one of three answers");
        let mut few = lost(5, &[1, 2], &[31, 32]);
        assert!(!few.steps().is_empty());
        silence(&mut few, 5, STEADY);
        assert_eq!(few.steps(), [], "two of five answer");
    }

    #[test]
    fn departures_go_step_by_step() {
        let leaving = PeerStanding::Leaving { successor: None };
        let mut view = view(3, &[]);
        view.peers.push(peer(3, leaving));
        assert_eq!(view.steps(), [Step::RemoveVoters(ids([3]))]);
        view.voters.remove(&NodeId(3));
        assert_eq!(view.steps(), [Step::RemoveLearner(NodeId(3))]);
        view.members.remove(&NodeId(3));
        assert_eq!(view.steps(), [Step::Retire(NodeId(3))]);
        view.peers = vec![peer(1, leaving)];
        assert_eq!(view.steps(), [Step::HandOver]);
    }

    #[test]
    fn those_that_are_to_go_together_go_in_one_change_and_never_the_leader_among_them() {
        let leaving = PeerStanding::Leaving { successor: None };
        let mut view = view(5, &[]);
        view.peers.extend([peer(4, leaving), peer(5, leaving)]);
        view.lease_free.remove(&NodeId(5));
        assert_eq!(view.steps(), [], "none before all are free of leases");
        view.lease_free.insert(NodeId(5));
        assert_eq!(view.steps(), [Step::RemoveVoters(ids([4, 5]))]);
        view.me = NodeId(4);
        assert_eq!(view.steps(), [Step::HandOver]);
        view.me = NodeId(1);
        silence(&mut view, 2, STEADY);
        silence(&mut view, 3, STEADY);
        assert_eq!(view.steps(), [], "one of three would be left");
    }

    #[test]
    fn a_removal_never_goes_below_a_quorum_of_answering_voters() {
        let mut view = view(3, &[]);
        assert_eq!(view.may_dismiss(&ids([2])), Ok(()));
        silence(&mut view, 3, STEADY);
        let refused = view.may_dismiss(&ids([2])).unwrap_err();
        assert!(
            refused.contains("1 answer") && refused.contains("2 must"),
            "{refused}"
        );
        assert!(refused.ends_with("bring peer 3 back first"), "{refused}");
        assert_eq!(view.may_dismiss(&ids([3])), Ok(()));
        let behind = Condition {
            answers: true,
            ..Condition::default()
        };
        view.conditions.insert(NodeId(3), behind);
        assert!(
            view.may_dismiss(&ids([2])).is_err(),
            "it answers, and is far behind"
        );
        assert_eq!(view.may_dismiss(&ids([3])), Ok(()));
        view.voters = ids([1]);
        assert!(view.may_dismiss(&ids([1])).is_err());
    }

    #[test]
    fn who_is_to_go_already_is_not_counted_on_when_another_one_is_to_go() {
        let leaving = |id| (id, PeerStanding::Leaving { successor: None });
        let of_three = view(3, &[leaving(3)]);
        assert_eq!(of_three.may_dismiss(&ids([3])), Ok(()), "agreed already");
        assert_eq!(of_three.may_dismiss(&ids([2])), Ok(()));
        let refused = of_three.may_dismiss(&ids([1, 2])).unwrap_err();
        assert!(refused.ends_with("(peer 3 is to go already)"), "{refused}");
        let mut view = view(3, &[leaving(2), leaving(3), (4, AUTOMATIC)]);
        let refused = view.may_dismiss(&ids([1])).unwrap_err();
        assert!(refused.contains("all voters"), "{refused}");
        assert_eq!(view.may_dismiss(&ids([4])), Ok(()), "it has no vote");
        // Its vote is taken over, not lost.
        let successor = Some(NodeId(4));
        view.peers = vec![
            peer(3, PeerStanding::Leaving { successor }),
            peer(4, AUTOMATIC),
        ];
        silence(&mut view, 3, STEADY);
        assert!(view.may_dismiss(&ids([2])).is_err());
    }

    #[test]
    fn who_may_come_to_a_vote_and_how_is_told_as_promotions_go() {
        let votes = |voters, learners: &[(u64, PeerStanding)]| {
            let view = view(voters, learners);
            let ids = learners.iter().map(|(id, _)| NodeId(*id));
            ids.map(|id| view.vote(id)).collect::<Vec<_>>()
        };
        let [ten, eleven, twelve] = [10, 11, 12].map(|id| (id, AUTOMATIC));
        assert_eq!(votes(1, &[ten]), [Vote::NeedsAnother]);
        assert_eq!(votes(1, &[ten, eleven]), [Vote::Due, Vote::Due]);
        assert_eq!(
            votes(3, &[ten, eleven, twelve]),
            [Vote::Due, Vote::Due, Vote::NeedsAnother]
        );
        assert_eq!(votes(2, &[ten]), [Vote::Due]);
        assert_eq!(votes(2, &[ten, eleven]), [Vote::Due, Vote::NeedsAnother]);
        let by_hand = (13, PeerStanding::Active(Promotion::Manual));
        let ordered = (14, PeerStanding::Active(Promotion::Ordered));
        assert_eq!(
            votes(1, &[by_hand, ordered, ten]),
            [Vote::ByHand, Vote::Due, Vote::NeedsAnother]
        );
        let mut view = view(1, &[ten, eleven]);
        silence(&mut view, 11, STEADY);
        assert_eq!(view.vote(NodeId(10)), Vote::NeedsAnother);
        let successor = Some(NodeId(10));
        let leaving = peer(1, PeerStanding::Leaving { successor });
        view.peers.push(leaving);
        assert_eq!(view.vote(NodeId(10)), Vote::Due);
        assert_eq!(view.vote(NodeId(1)), Vote::Leaving);
    }

    #[test]
    fn a_member_that_moved_is_put_on_record_while_it_answers() {
        let mut view = view(3, &[]);
        for node in [1, 2] {
            view.moved.insert(NodeId(node), format!("new-{node}:7001"));
        }
        let readdress = |node, address: &str| Step::Readdress(NodeId(node), address.to_owned());
        assert_eq!(view.steps(), [readdress(1, "new-1:7001")]);
        view.moved.remove(&NodeId(1));
        assert_eq!(view.steps(), [readdress(2, "new-2:7001")]);
        silence(&mut view, 2, STEADY);
        assert_eq!(view.steps(), []);
    }

    #[test]
    fn a_successor_that_is_gone_is_given_up_and_whoever_waited_for_it_is_next() {
        let hour = Duration::from_secs(3_600);
        let leaving = PeerStanding::Leaving {
            successor: Some(NodeId(10)),
        };
        for voters in [3, 5] {
            let mut view = view(voters, &[(10, AUTOMATIC)]);
            view.peers.push(peer(3, leaving));
            for node in [3, 10] {
                silence(&mut view, node, hour);
            }
            assert_eq!(view.steps(), [], "clean-up is off");
            view.dead_after = Some(hour);
            assert_eq!(view.steps(), [Step::Dismiss(NodeId(10))]);
            let before = view.clone();
            silence(&mut view, 10, hour - Duration::from_secs(1));
            assert_eq!(view.steps(), [], "it may come back");
            let mut view = before;
            // It was admitted, and never came so far as to be a member.
            view.members.remove(&NodeId(10));
            let learner = Step::AddLearner(NodeId(10));
            assert_eq!(view.steps(), [learner, Step::Dismiss(NodeId(10))]);
            // As agreed then: the one leaves, and the other stays.
            let gone = PeerStanding::Leaving { successor: None };
            view.peers = vec![peer(3, AUTOMATIC), peer(10, gone)];
            assert_eq!(view.steps(), [Step::Retire(NodeId(10))]);
            view.peers.pop();
            let next = (voters > 3).then_some(Step::Dismiss(NodeId(3)));
            assert_eq!(view.steps(), Vec::from_iter(next));
        }
    }

    #[test]
    fn clean_up_is_off_by_default_and_never_takes_more_than_a_minority() {
        let hour = Duration::from_secs(3_600);
        let mut view = view(5, &[]);
        silence(&mut view, 4, hour);
        assert_eq!(view.steps(), []);
        view.dead_after = Some(hour);
        assert_eq!(view.steps(), [Step::Dismiss(NodeId(4))]);
        silence(&mut view, 5, hour - Duration::from_secs(1));
        assert_eq!(view.steps(), [Step::Dismiss(NodeId(4))]);
        silence(&mut view, 3, hour);
        assert_eq!(view.steps(), [], "a majority is silent");
        let mut view = super::tests::view(3, &[]);
        view.dead_after = Some(hour);
        silence(&mut view, 3, hour);
        assert_eq!(view.steps(), [], "three voters are the least");
    }
}
