//! How far a new peer is. Pure.

use std::collections::BTreeSet;

use crate::admin::v1;

/// Whom to look for.
#[derive(Debug)]
pub(super) struct Lookout {
    before: BTreeSet<u64>,
    address: String,
    is_chosen: bool,
    found: Option<u64>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody new is a member.
    Awaited,
    /// It is a member that does not answer, or is this many entries behind.
    Behind { id: u64, lag: Option<u64> },
    /// It has what the others have, and waits for its vote.
    VoteDue { id: u64 },
    /// There is nothing more to wait for.
    Arrived(v1::MemberHealth),
    /// It is a member no more, or about to be none.
    Leaving { id: u64 },
}

impl Lookout {
    /// For whoever comes to `address`. Who was a member `before` counts where somebody `is_chosen`, by that address.
    pub(super) fn new(before: BTreeSet<u64>, address: String, is_chosen: bool) -> Self {
        Self {
            before,
            address,
            is_chosen,
            found: None,
        }
    }

    /// Where the peer is looked for.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether somebody was found.
    pub(super) fn has_found(&self) -> bool {
        self.found.is_some()
    }

    /// Whether it was a member before it was looked for.
    pub(super) fn was_before(&self, id: u64) -> bool {
        self.before.contains(&id)
    }

    fn find<'a>(&self, members: &'a [v1::MemberHealth]) -> Option<&'a v1::MemberHealth> {
        // A peer that lost its volume, and is to be replaced, was at the same address.
        members.iter().rfind(|member| {
            let counts = self.is_chosen || !self.was_before(member.id);
            counts && member.up && member.peer_address == self.address
        })
    }

    /// How far it is, as the leader sees the members, which are in the order of their ids.
    pub(super) fn look(&mut self, members: &[v1::MemberHealth]) -> Stage {
        let Some(id) = self.found.or_else(|| self.find(members).map(|it| it.id)) else {
            return Stage::Awaited;
        };
        self.found = Some(id);
        let Some(member) = members.iter().find(|member| member.id == id) else {
            return Stage::Leaving { id };
        };
        let caught_up = member.healthy_for.is_some();
        match member.vote() {
            v1::Vote::Has => Stage::Arrived(member.clone()),
            v1::Vote::Leaving => Stage::Leaving { id },
            _ if !caught_up => Stage::Behind {
                id,
                lag: member.lag,
            },
            v1::Vote::Due => Stage::VoteDue { id },
            v1::Vote::NeedsAnother
            | v1::Vote::ByHand
            | v1::Vote::LogCut
            | v1::Vote::Unspecified => Stage::Arrived(member.clone()),
        }
    }
}

impl Stage {
    /// What is waited for.
    pub(super) fn waits_for(&self, address: &str) -> String {
        match self {
            Self::Awaited => format!("waiting for a new peer at {address}"),
            Self::Behind { id, lag: None } => {
                format!(
                    "peer {id} is a member: waiting until it answers and has been sent a snapshot"
                )
            }
            Self::Behind { id, lag: Some(_) } => {
                format!("peer {id} is a member: waiting until it has caught up")
            }
            Self::VoteDue { id } => format!(
                "peer {id} is caught up: waiting until it has been so for --promote-after, and has its vote"
            ),
            Self::Arrived(member) => format!("peer {} is there", member.id),
            Self::Leaving { id } => format!("peer {id} is going"),
        }
    }
}

/// What has come about, for people. Nothing has with one that `was_before`.
pub(super) fn outcome(member: &v1::MemberHealth, voters: usize, was_before: bool) -> String {
    let mut peer = format!("Peer {} at {}", member.id, member.peer_address);
    if was_before {
        peer.push_str(" is a member already: it");
    }
    let promote = format!("`raftserve cluster promote {}`", member.id);
    match member.vote() {
        v1::Vote::Has => format!("{peer} votes.\n"),
        v1::Vote::NeedsAnother => format!(
            "{peer} is caught up, and has no vote yet: {} voters survive no more losses than {voters}.\nIt gets one as \
             soon as another peer has joined too; {promote} gives it one now.\n",
            voters + 1
        ),
        _ => format!("{peer} is a learner, and caught up. {promote} gives it a vote.\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, vote: v1::Vote) -> v1::MemberHealth {
        v1::MemberHealth {
            id,
            up: true,
            vote: vote.into(),
            peer_address: format!("h:{id}"),
            healthy_for: Some(prost_types::Duration::default()),
            ..v1::MemberHealth::default()
        }
    }

    #[test]
    fn a_new_peer_is_followed_from_its_admission_to_its_vote() {
        let mut lookout = Lookout::new([1].into(), "h:9".to_owned(), false);
        let first = member(1, v1::Vote::Has);
        assert_eq!(lookout.look(std::slice::from_ref(&first)), Stage::Awaited);
        let mut behind = member(9, v1::Vote::Due);
        behind.healthy_for = None;
        behind.lag = Some(70);
        let look = [first.clone(), behind];
        let lag = Some(70);
        assert_eq!(lookout.look(&look), Stage::Behind { id: 9, lag });
        let due = [first.clone(), member(9, v1::Vote::Due)];
        assert_eq!(lookout.look(&due), Stage::VoteDue { id: 9 });
        // Another one that comes meanwhile is not the one.
        let look = [
            first.clone(),
            member(7, v1::Vote::Has),
            member(9, v1::Vote::Has),
        ];
        assert_eq!(
            lookout.look(&look),
            Stage::Arrived(member(9, v1::Vote::Has))
        );
        assert_eq!(lookout.look(&[first]), Stage::Leaving { id: 9 });
    }

    #[test]
    fn a_learner_that_stays_one_has_arrived_once_it_is_caught_up() {
        for vote in [v1::Vote::NeedsAnother, v1::Vote::ByHand] {
            let mut lookout = Lookout::new([1].into(), "h:9".to_owned(), false);
            let mut learner = member(9, vote);
            learner.healthy_for = None;
            assert_eq!(lookout.look(&[learner]), Stage::Behind { id: 9, lag: None });
            let learner = member(9, vote);
            assert_eq!(
                lookout.look(std::slice::from_ref(&learner)),
                Stage::Arrived(learner)
            );
        }
    }

    #[test]
    fn whoever_answers_at_the_address_is_meant() {
        let mut lookout = Lookout::new([1, 2].into(), "h:2".to_owned(), true);
        let mut lost = member(2, v1::Vote::Leaving);
        lost.up = false;
        assert_eq!(lookout.look(&[lost.clone()]), Stage::Awaited);
        let mut new = member(9, v1::Vote::Due);
        new.peer_address = "h:2".to_owned();
        assert_eq!(lookout.look(&[lost, new]), Stage::VoteDue { id: 9 });
    }

    #[test]
    fn who_was_a_member_before_counts_only_if_its_address_was_chosen_and_is_said_to_be_one() {
        let members = [member(1, v1::Vote::Has), member(2, v1::Vote::Has)];
        let lookout = |is_chosen| Lookout::new([1, 2].into(), "h:2".to_owned(), is_chosen);
        assert_eq!(lookout(false).look(&members), Stage::Awaited);
        let there = Stage::Arrived(members[1].clone());
        assert_eq!(lookout(true).look(&members), there);
        let said = outcome(&members[1], 2, lookout(true).was_before(2));
        assert_eq!(said, "Peer 2 at h:2 is a member already: it votes.\n");
        // Nor does one that joins elsewhere.
        let elsewhere = [member(9, v1::Vote::Has)];
        for is_chosen in [false, true] {
            assert_eq!(lookout(is_chosen).look(&elsewhere), Stage::Awaited);
        }
        assert_eq!(outcome(&elsewhere[0], 3, false), "Peer 9 at h:9 votes.\n");
    }
}
