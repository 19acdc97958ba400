//! Removes peers that the StatefulSet does not want any more, and those that were pods of another one and are dead.
//!
//! A pod that is told to stop cannot tell a restart from the end. So the leader alone decides, on a fresh read of the
//! StatefulSet, and removes all that are to leave in one change. Under `podManagementPolicy: Parallel` they are all told
//! to stop at the same moment; they stay full voters until that change is agreed (see [`super::departure`]).

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use raftserve_model::NodeId;
use raftserve_store::state::{PeerStanding, State};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Home, Wanted, ordinal_at};
use crate::consensus::{Consensus, MemberView};

/// How often the leader looks even if nothing has changed.
const LOOK: Duration = Duration::from_secs(30);

/// How long after something has stood in the way it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long a voter that this peer has never heard must have been looked for before it counts as lost. What merely restarts
/// is back long before. Peers look for each other whoever leads, so that elections do not make it longer.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// The same for one that this leader has heard: its place may merely be cut off, or be upgraded as a whole.
const HEARD_LOST_AFTER: Duration = Duration::from_secs(15 * 60);

/// How long agreeing on a removal may take.
const DECIDE_MAX: Duration = Duration::from_secs(2);

/// Who of `peers`, each with its address, is to be told to leave, and was not yet. Those that are no pods of the set, whose
/// pods are at `place`, are none of its business.
fn surplus<'a>(
    set: &str,
    place: &str,
    wanted: Wanted,
    peers: impl IntoIterator<Item = (NodeId, &'a str)>,
    standing: impl Fn(NodeId) -> Option<PeerStanding>,
) -> BTreeSet<NodeId> {
    let Wanted::Peers(count) = wanted else {
        return BTreeSet::new();
    };
    let peers = peers.into_iter();
    let surplus = peers.filter(|(id, address)| {
        let is_beyond = ordinal_at(set, place, address).is_some_and(|ordinal| ordinal >= count);
        is_beyond && stays(standing(*id))
    });
    surplus.map(|(id, _)| id).collect()
}

/// The members where they are, and those that were let in a moment ago and are no members yet where they came.
fn known<'a>(
    members: &'a [MemberView],
    state: &'a State,
) -> impl Iterator<Item = (NodeId, &'a str)> {
    let is_member = |id| members.iter().any(|member| member.id == id);
    let let_in = state.peers().filter(move |peer| !is_member(peer.id));
    let let_in = let_in.map(|peer| (peer.id, peer.address.as_str()));
    let members = members.iter().map(|it| (it.id, it.address.as_str()));
    members.chain(let_in)
}

fn stays(standing: Option<PeerStanding>) -> bool {
    standing.is_none_or(|standing| matches!(standing, PeerStanding::Active(_)))
}

/// Whether `address` is a pod's of a StatefulSet with a headless Service: `SET-N.SERVICE.NAMESPACE.svc...`.
fn is_pod(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let labels: Vec<&str> = host.split('.').collect();
    let ordinal = labels[0].rsplit_once('-').map(|(_, ordinal)| ordinal);
    labels.get(3) == Some(&"svc") && ordinal.is_some_and(|it| it.parse::<u32>().is_ok())
}

/// Voters that are silent, and were pods of another place than that of the `count` that are wanted, or of a name at which
/// another peer answers now. `members` are those that nobody has told to leave, and `place` is what follows the pods'
/// names in addresses.
fn stray(set: &str, place: &str, count: u32, members: &[MemberView]) -> BTreeSet<NodeId> {
    let answering = || members.iter().filter(|member| member.up);
    // Two cannot be at one address, and where a silent one was last may be anybody's by now.
    let displaced = |member: &MemberView| answering().any(|it| it.address == member.address);
    let silent = |member: &&MemberView| {
        let ago = member.last_contact;
        let silent = ago.is_none_or(|ago| ago >= HEARD_LOST_AFTER);
        let elsewhere = here(set, place, count, member).is_none() && is_pod(&member.address);
        member.voter && !member.up && silent && (elsewhere || displaced(member))
    };
    members.iter().filter(silent).map(|it| it.id).collect()
}

/// The ordinal of a member that is one of the pods that are wanted.
fn here(set: &str, place: &str, count: u32, member: &MemberView) -> Option<u32> {
    ordinal_at(set, place, &member.address).filter(|ordinal| *ordinal < count)
}

/// Whether the voters that are [`stray`] go, whose volumes did not come along when a cluster was brought up from its volumes:
/// while each pod that is wanted here answers, and either as many have come since, or the leader has `looked_for` them for
/// long enough and more vote than are wanted, as where some of the volumes of five peers were brought up as three. Names say
/// nothing of who was lost: volumes may be bound to other ones than before. A cluster that has peers in several places on
/// purpose has one that answers from there. Where a pod comes back to its own place, its successor is known by the address.
fn are_lost(
    stray: &BTreeSet<NodeId>,
    set: &str,
    place: &str,
    count: u32,
    members: &[MemberView],
    looked_for: Duration,
) -> bool {
    let answering = || members.iter().filter(|member| member.up);
    let places = answering().map(|member| here(set, place, count, member));
    let complete = places.collect::<BTreeSet<_>>() == (0..count).map(Some).collect();
    // Ids follow the order of arrival.
    let come_since = |id: NodeId| answering().filter(|member| member.id > id).count();
    let followed = stray.iter().all(|id| come_since(*id) >= stray.len());
    let voters = members.iter().filter(|member| member.voter).count();
    // Nobody stands in for these: they may live where this leader cannot reach them now.
    let outnumber =
        looked_for >= HEARD_LOST_AFTER && u32::try_from(voters).is_ok_and(|voters| voters > count);
    complete && (followed || outnumber)
}

/// What to do about voters that are gone for all that is known, and of which that is not sure enough.
fn advice(stray: &BTreeSet<NodeId>, members: &[MemberView]) -> String {
    let members = members.iter().filter(|it| stray.contains(&it.id));
    let (said, done): (Vec<_>, Vec<_>) = members
        .map(|it| {
            let said = format!("peer {} at {}", it.id, it.address);
            (said, format!("raftserve cluster remove {}", it.id))
        })
        .unzip();
    format!(
        "there are voters that do not answer and are no pods of this StatefulSet: {}. Each counts against the quorum for as long \
         as it is a voter. If they are gone for good: {}",
        said.join(", "),
        done.join("; ")
    )
}

/// Says what there is to say, unless it is what was told last.
fn tell(told: &mut Option<String>, news: Option<String>) {
    if let Some(news) = news.as_ref().filter(|_| *told != news) {
        tracing::warn!("{news}");
    }
    *told = news;
}

impl Home {
    /// Counts what happens to the StatefulSet. Only that something has happened is used: how many peers are wanted
    /// is read afresh, by each peer, so that one that is told to stop while the API server is away knows it.
    async fn watch_set(&self, changes: &watch::Sender<u64>) {
        let watched = watcher::watch_object(self.sets.clone(), &self.set).default_backoff();
        let mut watched = pin!(watched);
        let mut is_unread = false;
        loop {
            let next = watched.next();
            let event = match is_unread {
                true => timeout(LOOK, next).await.ok(),
                false => Some(next.await),
            };
            match event {
                Some(None) => return,
                Some(Some(Err(error))) => {
                    tracing::debug!(%error, "the StatefulSet is not watched now");
                    continue;
                }
                Some(Some(Ok(_))) => changes.send_modify(|count| *count += 1),
                None => {}
            }
            let read = self.read_set().await;
            is_unread = read.is_err();
            if let Err(error) = read {
                tracing::debug!(%error, "cannot read how many peers are wanted");
            }
        }
    }

    /// Decides. True if there is nothing left to decide for now. What it cannot decide it says, once for each thing `told`.
    async fn try_scale(&self, consensus: &Consensus, told: &mut Option<String>) -> bool {
        let wanted = match self.read_set().await {
            Ok((_, wanted)) => wanted,
            Err(error) => {
                tracing::warn!(%error, "cannot read how many peers are wanted");
                return false;
            }
        };
        let members = consensus.members();
        let state = consensus.state();
        let standing = |node| state.peer(node).map(|peer| peer.standing);
        let mut surplus = surplus(
            &self.set,
            &self.place,
            wanted,
            known(&members, &state),
            standing,
        );
        let mut unsure = None;
        if let Wanted::Peers(count) = wanted
            && consensus.looked_for() >= LOST_AFTER
            && surplus.is_empty()
        {
            let mut staying = members;
            staying.retain(|member| stays(standing(member.id)));
            let stray = stray(&self.set, &self.place, count, &staying);
            unsure = (!stray.is_empty()).then(|| advice(&stray, &staying));
            let looked_for = consensus.looked_for();
            if are_lost(&stray, &self.set, &self.place, count, &staying, looked_for) {
                surplus = stray;
            }
        }
        if surplus.is_empty() {
            tell(told, unsure);
            return true;
        }
        match consensus.dismiss_members(surplus.clone(), DECIDE_MAX).await {
            Ok(()) => {
                tracing::info!(?wanted, peers = ?surplus, "peers are to leave");
                true
            }
            Err(error) => {
                tracing::warn!(%error, peers = ?surplus, "peers are to leave and cannot yet");
                let is_lost = unsure.is_some();
                tell(told, unsure);
                is_lost
            }
        }
    }

    /// Removes, while this peer leads, what the StatefulSet does not want. Runs as long as the peer does.
    pub async fn scale(self: Arc<Self>, consensus: Consensus) {
        let (changes, mut changed) = watch::channel(0);
        tokio::join!(self.watch_set(&changes), async {
            let mut leadership = consensus.leadership();
            let mut told = None;
            while leadership.wait_for(|now| now.is_self).await.is_ok() {
                changed.mark_unchanged();
                if self.try_scale(&consensus, &mut told).await {
                    let _ = timeout(LOOK, changed.changed()).await;
                } else {
                    sleep(RETRY).await;
                }
            }
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use raftserve_model::{LogIndex, LogTime};
    use raftserve_store::Outcome;
    use raftserve_store::command::{Action, Command};
    use raftserve_store::state::Promotion;

    use super::*;

    /// A voter that answers.
    pub(in crate::kubernetes) fn member(id: u64, address: &str) -> MemberView {
        MemberView {
            id: NodeId(id),
            address: address.to_owned(),
            admin_address: None,
            voter: true,
            leader: false,
            matched: None,
            last_contact: Some(Duration::ZERO),
            up: true,
        }
    }

    /// Where `members` are.
    fn at(members: &[MemberView]) -> impl Iterator<Item = (NodeId, &str)> {
        members.iter().map(|it| (it.id, it.address.as_str()))
    }

    /// What follows the pods' names.
    const PEERS: &str = ".rs-peers:7001";

    /// Who goes of those that are stray.
    fn lost(
        set: &str,
        place: &str,
        count: u32,
        members: &[MemberView],
        looked_for: Duration,
    ) -> BTreeSet<NodeId> {
        let mut stray = stray(set, place, count, members);
        let go = are_lost(&stray, set, place, count, members, looked_for);
        stray.retain(|_| go);
        stray
    }

    #[test]
    fn those_beyond_the_wanted_number_leave_and_nobody_leaves_who_is_only_stopped() {
        // Ids follow the order of arrival, not the ordinals.
        let members = [
            member(1, "rs-0.rs-peers:7001"),
            member(40, "rs-1.rs-peers:7001"),
            member(3, "rs-2.rs-peers:7001"),
            member(4, "elsewhere-9:7001"),
            // Of another namespace, on purpose.
            member(5, "rs-4.rs-peers.other:7001"),
        ];
        let leaving = |wanted| surplus("rs", PEERS, wanted, at(&members), |_| None);
        assert_eq!(leaving(Wanted::Peers(3)), [].into());
        assert_eq!(leaving(Wanted::Peers(2)), [NodeId(3)].into());
        assert_eq!(leaving(Wanted::Peers(1)), [NodeId(3), NodeId(40)].into());
        assert_eq!(leaving(Wanted::Stopped), [].into());
    }

    #[test]
    fn a_voter_whose_volume_was_lost_with_its_place_goes_and_nobody_else_does() {
        const PLACE: &str = ".new-peers.to.svc.cluster.local:7001";
        let cluster = |set: &str, from: &str| {
            // Two came along with their volumes; the third is dead where it was, and an empty one has joined.
            let mut members = [
                member(1, &format!("new-0{PLACE}")),
                member(2, &format!("new-1{PLACE}")),
                member(
                    3,
                    &format!("{set}-2.{set}-peers.{from}.svc.cluster.local:7001"),
                ),
                member(77, &format!("new-2{PLACE}")),
            ];
            (members[2].up, members[2].last_contact) = (false, None);
            members[3].voter = false;
            members
        };
        let lost = |members: &[MemberView]| lost("new", PLACE, 3, members, LOST_AFTER);
        for (set, from) in [("old", "to"), ("new", "from")] {
            assert_eq!(
                lost(&cluster(set, from)),
                [NodeId(3)].into(),
                "{set} {from}"
            );
        }
        let spared = |change: fn(&mut [MemberView; 4])| {
            let mut members = cluster("old", "from");
            change(&mut members);
            assert_eq!(lost(&members), [].into(), "{members:?}");
        };
        spared(|it| it[2].last_contact = Some(HEARD_LOST_AFTER - Duration::from_millis(1)));
        spared(|it| it[3].up = false);
        spared(|it| it[0].up = false);
        spared(|it| it[2].address = "vm-2:7001".to_owned());
        // Nobody else answers where it was last.
        spared(|it| {
            it[2].address = format!("new-2{PLACE}");
            it[3].up = false;
        });
        // It came after all of these: it is one more, and nobody's predecessor.
        spared(|it| it[2].id = NodeId(78));
        let mut stretched = Vec::from(cluster("old", "from"));
        stretched.push(member(4, "old-1.old-peers.from.svc.cluster.local:7001"));
        assert_eq!(lost(&stretched), [].into());
        let mut heard = cluster("old", "from");
        heard[2].last_contact = Some(HEARD_LOST_AFTER);
        assert_eq!(lost(&heard), [NodeId(3)].into());
    }

    #[test]
    fn of_five_that_were_brought_up_as_three_elsewhere_two_go_although_nobody_came_since() {
        const PLACE: &str = ".new-peers.to.svc.cluster.local:7001";
        let after = |members: &[MemberView], looked_for| lost("new", PLACE, 3, members, looked_for);
        let lost = |members: &[MemberView]| after(members, HEARD_LOST_AFTER);
        let here = |id: u64| member(id, &format!("new-{}{PLACE}", id - 1));
        let gone = |id: u64| MemberView {
            up: false,
            last_contact: None,
            ..member(
                id,
                &format!("old-{}.old-peers.from.svc.cluster.local:7001", id - 1),
            )
        };
        let five = || vec![here(1), here(2), here(3), gone(4), gone(5)];
        assert_eq!(lost(&five()), [NodeId(4), NodeId(5)].into());
        // A leader that has led for a minute may be cut off from a place in which they live.
        assert_eq!(after(&five(), LOST_AFTER), [].into());
        // Volumes may be bound to other names, and the set may be called as it was.
        let mut bound = five();
        bound[2].id = NodeId(4);
        bound[3].id = NodeId(3);
        bound[3].address = format!("new-0{PLACE}");
        assert_eq!(lost(&bound), [NodeId(3), NodeId(5)].into());
        let spared = |change: fn(&mut Vec<MemberView>)| {
            let mut members = five();
            change(&mut members);
            assert_eq!(lost(&members), [].into(), "{members:?}");
        };
        // One of those that are wanted does not answer.
        spared(|it| (it[2].up, it[2].last_contact) = (false, Some(Duration::from_secs(2))));
        // Somebody answers from elsewhere.
        spared(|it| it[3].up = true);
        let mut heard = five();
        heard[3].last_contact = Some(HEARD_LOST_AFTER / 2);
        assert_eq!(lost(&heard), [NodeId(5)].into());
    }

    #[test]
    fn of_voters_that_may_be_lost_it_is_told_how_they_are_removed() {
        const PLACE: &str = ".new-peers.to.svc.cluster.local:7001";
        let old = "old-2.old-peers.from.svc.cluster.local:7001";
        let mut members = [
            member(1, &format!("new-0{PLACE}")),
            member(2, &format!("new-1{PLACE}")),
            member(3, old),
        ];
        (members[2].up, members[2].last_contact) = (false, None);
        assert_eq!(lost("new", PLACE, 3, &members, HEARD_LOST_AFTER), [].into());
        let stray = stray("new", PLACE, 3, &members);
        let said = advice(&stray, &members);
        for words in ["peer 3 at old-2.", "raftserve cluster remove 3"] {
            assert!(said.contains(words), "{said}");
        }
    }

    /// All orders of `items`.
    fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
        if items.is_empty() {
            return vec![Vec::new()];
        }
        let each = items.iter().enumerate();
        each.flat_map(|(at, first)| {
            let mut rest = items.to_vec();
            rest.remove(at);
            orders(&rest).into_iter().map(move |mut order| {
                order.insert(0, first.clone());
                order
            })
        })
        .collect()
    }

    /// Whichever volumes are empty, and whichever names the others and the empty ones are bound to: in another place, under
    /// another name, or where all is called as it was.
    #[test]
    fn whose_volume_is_empty_is_found_however_names_are_bound_to_volumes() {
        const PLACE: &str = ".new-peers.to.svc.cluster.local:7001";
        let mut seen = 0;
        for (count, empty) in [(3_u64, 1), (5, 1), (5, 2)] {
            for order in orders(&Vec::from_iter(1..=count)) {
                // Each set of empty volumes once, whatever their order.
                let (gone, kept) = order.split_at(empty);
                if !gone.is_sorted() || !kept.is_sorted() {
                    continue;
                }
                let newcomers = 31..31 + u64::try_from(empty).unwrap();
                let bound: Vec<u64> = kept.iter().copied().chain(newcomers).collect();
                for bound in orders(&bound) {
                    for old in ["new", "old"] {
                        let last = |id: &u64| match old {
                            "new" => format!("new-{}{PLACE}", id - 1),
                            _ => format!("old-{}.old-peers.from.svc.cluster.local:7001", id - 1),
                        };
                        let mut members: Vec<MemberView> = gone
                            .iter()
                            .map(|id| MemberView {
                                up: false,
                                last_contact: None,
                                ..member(*id, &last(id))
                            })
                            .collect();
                        members.extend(bound.iter().enumerate().map(|(at, id)| MemberView {
                            voter: *id <= count,
                            ..member(*id, &format!("new-{at}{PLACE}"))
                        }));
                        let wanted: BTreeSet<NodeId> = gone.iter().copied().map(NodeId).collect();
                        let peers = u32::try_from(count).unwrap();
                        let found = lost("new", PLACE, peers, &members, LOST_AFTER);
                        assert_eq!(found, wanted, "{bound:?} are at new-0 and on, {old}");
                        // One that is away for a moment is no reason.
                        let away = members.last_mut().unwrap();
                        (away.up, away.last_contact) = (false, Some(Duration::from_secs(2)));
                        let found = lost("new", PLACE, peers, &members, LOST_AFTER);
                        assert_eq!(found, [].into(), "{bound:?}");
                        seen += 1;
                    }
                }
            }
        }
        assert_eq!(seen, 2 * (3 * 6 + 5 * 120 + 10 * 120));
    }

    #[test]
    fn who_was_told_to_leave_is_not_told_again() {
        let members = [
            member(1, "rs-0.rs-peers:7001"),
            member(2, "rs-1.rs-peers:7001"),
            member(3, "rs-2.rs-peers:7001"),
            member(4, "rs-3.rs-peers:7001"),
        ];
        let standing = |node| match node {
            NodeId(2) => Some(PeerStanding::Leaving { successor: None }),
            NodeId(3) => Some(PeerStanding::Removed),
            _ => Some(PeerStanding::Active(Promotion::Automatic)),
        };
        let leaving = surplus("rs", PEERS, Wanted::Peers(1), at(&members), standing);
        assert_eq!(leaving, [NodeId(4)].into());
    }

    #[test]
    fn who_was_let_in_and_is_no_member_yet_leaves_as_well_and_members_count_where_they_are() {
        let mut state = State::default();
        for (id, address) in [(30, "rs-3.rs-peers:7001"), (40, "rs-4.rs-peers:7001")] {
            let admit = Action::AdmitPeer {
                nonce: id,
                address: address.to_owned(),
                promotion: Promotion::Automatic,
                replaces: None,
            };
            let admit = Command::at(LogTime::default(), admit);
            let outcome = state.apply(LogIndex(id), &admit);
            assert!(matches!(outcome, Outcome::Index(_)), "{outcome:?}");
        }
        // The one that was let in at rs-3 has another name since.
        let members = [
            member(1, "rs-0.rs-peers:7001"),
            member(30, "rs-1.rs-peers:7001"),
        ];
        let standing = |node| state.peer(node).map(|peer| peer.standing);
        let leaving = |count| {
            surplus(
                "rs",
                PEERS,
                Wanted::Peers(count),
                known(&members, &state),
                standing,
            )
        };
        assert_eq!(leaving(5), [].into());
        assert_eq!(leaving(3), [NodeId(40)].into());
    }
}
