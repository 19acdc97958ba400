//! Whose place a newcomer takes: that of the peer which ran where it is now, since two cannot run there at once.
//!
//! An address is a name, and a name may be given to another data directory: where a cluster is brought up again from its
//! volumes, the one that is empty may be bound to the name of a peer that lives and was given another. What a peer has said
//! of itself counts; what was on record before it spoke counts only once it is sure that nobody will.

use std::time::Duration;

use raftserve_model::NodeId;
use raftserve_store::state::Predecessor;

use crate::peer::steward::SILENCE_MAX;

/// How long those that do not answer are looked for before it is believed that they are where they were last: long beside
/// what processes take that are started at the same time.
const LOOK: Duration = Duration::from_secs(30);

/// A member, or one that is about to be.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Its id, and its data directory.
    pub(super) peer: Predecessor,
    /// Where it is, or was last.
    pub(super) address: String,
    /// Whether it said so itself since this peer began; else it is on record.
    pub(super) said: bool,
    /// How long ago it answered last; none if never.
    pub(super) silent: Option<Duration>,
}

impl Known {
    fn answers(&self) -> bool {
        self.silent.is_some_and(|silent| silent <= SILENCE_MAX)
    }
}

/// What is known of the address that a newcomer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// No other peer was there.
    New,
    /// This one was, and can be there no more.
    Of(Predecessor),
    /// This one was, and may live elsewhere.
    Unsure(NodeId),
}

/// Whose the place is to which a peer with the data directory of `nonce` comes. `looked` is for how long this peer has
/// looked for those that do not answer.
pub(super) fn of(address: &str, nonce: u64, known: &[Known], looked: Duration) -> Place {
    let was_there = |it: &&Known| it.address == address && it.peer.nonce != nonce;
    // One that spoke from there was there last, whoever was on record before.
    let there = || known.iter().filter(was_there);
    let silent = |it: &&Known| it.silent.unwrap_or(Duration::MAX);
    let spoke = there().filter(|it| it.said).min_by_key(silent);
    let Some(last) = spoke.or_else(|| there().next()) else {
        return Place::New;
    };
    let mut others = known.iter().filter(|it| it.peer.node != last.peer.node);
    // The newcomer has the place of one that does not answer, and if there is only one such, of that.
    let is_sure = last.said || looked >= LOOK || others.all(Known::answers);
    match is_sure {
        true => Place::Of(last.peer),
        false => Place::Unsure(last.peer.node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWCOMER: u64 = 99;

    fn peer(node: u64) -> Predecessor {
        Predecessor {
            node: NodeId(node),
            nonce: node,
        }
    }

    /// `count` members, of which `met` have spoken from where they are, and the others have not been heard.
    fn members(count: u64, met: &[(u64, u64)]) -> Vec<Known> {
        let all = 1..=count;
        all.map(|node| {
            let at = met.iter().find(|(it, _)| *it == node).map(|(_, at)| *at);
            Known {
                peer: peer(node),
                address: at.unwrap_or(node).to_string(),
                said: at.is_some(),
                silent: at.map(|_| Duration::ZERO),
            }
        })
        .collect()
    }

    fn place(address: u64, known: &[Known], looked: Duration) -> Place {
        of(&address.to_string(), NEWCOMER, known, looked)
    }

    #[test]
    fn the_place_is_that_of_who_was_there_last() {
        let known = members(3, &[(1, 1), (2, 2)]);
        assert_eq!(place(3, &known, Duration::ZERO), Place::Of(peer(3)));
        assert_eq!(place(4, &known, Duration::ZERO), Place::New);
        // It ends, and comes back empty before anybody has noticed.
        assert_eq!(place(2, &known, Duration::ZERO), Place::Of(peer(2)));
        // The newcomer itself, which asks again.
        let mut known = known;
        known[2].peer.nonce = NEWCOMER;
        assert_eq!(place(3, &known, Duration::ZERO), Place::New);
    }

    #[test]
    fn who_has_spoken_from_a_place_was_there_after_those_on_record() {
        // The first is lost, and the second had its name since.
        let known = members(3, &[(2, 1), (3, 3)]);
        assert_eq!(place(1, &known, Duration::ZERO), Place::Of(peer(2)));
        // Two had it, one after the other.
        let mut known = members(3, &[(2, 1), (3, 1)]);
        for (second, third, last) in [(1, 2, 2), (2, 1, 3)] {
            known[1].silent = Some(Duration::from_secs(second));
            known[2].silent = Some(Duration::from_secs(third));
            let found = place(1, &known, Duration::ZERO);
            assert_eq!(found, Place::Of(peer(last)));
        }
    }

    #[test]
    fn no_peer_that_lives_is_followed_because_a_newcomer_has_its_former_name() {
        // Of three, the first is lost, and the others have each other's names, or its.
        for (second, third, newcomer) in [(1, 2, 3), (1, 3, 2), (3, 1, 2), (2, 1, 3), (3, 2, 1)] {
            let known = members(3, &[(2, second), (3, third)]);
            let found = place(newcomer, &known, Duration::ZERO);
            let expected = match newcomer {
                1 => Place::Of(peer(1)),
                _ => Place::New,
            };
            assert_eq!(found, expected, "{newcomer}");
        }
        // Of five, the first is lost, and the fifth starts late, under whichever name.
        for newcomer in [1, 5] {
            let known = members(5, &[(2, 2), (3, 3), (4, 4)]);
            let nearly = LOOK.checked_sub(Duration::from_nanos(1)).unwrap();
            for looked in [Duration::ZERO, nearly] {
                let found = place(newcomer, &known, looked);
                assert_eq!(found, Place::Unsure(NodeId(newcomer)));
            }
            assert_eq!(place(newcomer, &known, LOOK), Place::Of(peer(newcomer)));
            let here = 6 - newcomer;
            let known = members(5, &[(2, 2), (3, 3), (4, 4), (5, here)]);
            let expected = match newcomer {
                1 => Place::Of(peer(1)),
                _ => Place::New,
            };
            assert_eq!(place(newcomer, &known, Duration::ZERO), expected);
        }
    }
}
