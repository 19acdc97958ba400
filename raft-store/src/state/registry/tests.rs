use raftserve_model::LogTime;

use super::*;
use crate::command::{Action, Command};
use crate::entry::PeerRecord;

#[derive(Default)]
struct Log {
    state: State,
    index: u64,
}

impl Log {
    fn after(index: u64) -> Self {
        Self {
            index,
            ..Self::default()
        }
    }

    fn apply(&mut self, action: Action) -> Outcome {
        self.index += 1;
        let command = Command::at(LogTime(0), action);
        self.state.apply(LogIndex(self.index), &command)
    }

    fn admit(&mut self, nonce: u64, replaces: Option<Predecessor>) -> Outcome {
        self.apply(Action::AdmitPeer {
            nonce,
            address: format!("host-{nonce}:7001"),
            promotion: Promotion::Automatic,
            replaces,
        })
    }

    fn dismiss(&mut self, node: u64, nonce: u64) -> Outcome {
        self.apply(Action::DismissPeer {
            node: NodeId(node),
            nonce,
            address: "gone:7001".to_owned(),
        })
    }

    fn standing(&self, node: u64) -> PeerStanding {
        self.state.peer(NodeId(node)).unwrap().standing
    }
}

#[test]
fn a_join_that_is_repeated_gives_one_id() {
    let mut log = Log::default();
    let first = log.admit(7, None);
    assert_eq!(first, Outcome::Index(LogIndex(1)));
    assert_eq!(log.admit(7, None), first);
    assert_eq!(log.admit(8, None), Outcome::Index(LogIndex(3)));
    assert_eq!(log.state.peers().count(), 2);
}

#[test]
fn a_removed_directory_is_never_admitted_again_and_its_id_never_another_peers() {
    let mut log = Log::default();
    log.admit(7, None);
    log.dismiss(1, 7);
    assert_eq!(
        log.standing(1),
        PeerStanding::Leaving { successor: None },
        "it goes once Raft's membership lets it"
    );
    log.apply(Action::RetirePeer { node: NodeId(1) });
    assert_eq!(log.standing(1), PeerStanding::Removed);
    let refused = Outcome::Refused(Refusal::PeerRemoved(NodeId(1)));
    assert_eq!(log.admit(7, None), refused);
    assert_eq!(log.apply(Action::PromotePeer { node: NodeId(1) }), refused);
    log.dismiss(1, 7);
    assert_eq!(log.standing(1), PeerStanding::Removed);
}

#[test]
fn a_peer_from_bootstrap_is_removed_like_any_other() {
    let mut log = Log::after(100);
    log.dismiss(2, 22);
    log.apply(Action::RetirePeer { node: NodeId(2) });
    assert_eq!(log.standing(2), PeerStanding::Removed);
    let refused = Outcome::Refused(Refusal::PeerRemoved(NodeId(2)));
    assert_eq!(log.admit(22, None), refused);
}

#[test]
fn nobody_is_admitted_under_an_id_that_another_peer_has_or_had() {
    // Of five founders, of whom something is decided while the log is shorter than they are many.
    let member = |node| (NodeId(node), PeerRecord::default());
    let members = Membership {
        configs: vec![[NodeId(1)].into()],
        nodes: [1, 2, 3, 5].map(member).into(),
    };
    let admit = |log: &mut Log, nonce, replaces| {
        log.index += 1;
        let action = Action::AdmitPeer {
            nonce,
            address: "new:7001".to_owned(),
            promotion: Promotion::Automatic,
            replaces,
        };
        let command = Command::at(LogTime(log.index), action);
        log.state
            .apply_among(LogIndex(log.index), &command, &members)
    };
    let mut log = Log::default();
    log.dismiss(4, 44);
    log.apply(Action::RetirePeer { node: NodeId(4) });
    assert_eq!(log.standing(4), PeerStanding::Removed);
    let lost = Predecessor {
        node: NodeId(1),
        nonce: 11,
    };
    for taken in [3, 4, 5] {
        let refused = Outcome::Refused(Refusal::PeerIdTaken(NodeId(taken)));
        assert_eq!(admit(&mut log, 7, Some(lost)), refused);
        assert_eq!(log.state.now(), LogTime(taken), "time goes on");
    }
    assert_eq!(log.state.peers().count(), 1, "nothing else came of it");
    let admitted = Outcome::Index(LogIndex(6));
    assert_eq!(admit(&mut log, 7, Some(lost)), admitted);
    assert_eq!(admit(&mut log, 7, Some(lost)), admitted);
    assert_eq!(log.standing(4), PeerStanding::Removed);
    assert_eq!(
        log.standing(1),
        PeerStanding::Leaving {
            successor: Some(NodeId(6))
        }
    );
}

#[test]
fn only_who_leaves_is_retired() {
    let mut log = Log::default();
    log.admit(7, None);
    log.apply(Action::RetirePeer { node: NodeId(1) });
    assert_eq!(log.standing(1), PeerStanding::Active(Promotion::Automatic));
}

#[test]
fn a_wiped_peer_has_one_successor_the_latest() {
    let mut log = Log::after(100);
    let old = Predecessor {
        node: NodeId(2),
        nonce: 22,
    };
    log.admit(7, Some(old));
    let leaving = |by| PeerStanding::Leaving {
        successor: Some(NodeId(by)),
    };
    assert_eq!(log.standing(2), leaving(101));
    log.admit(8, Some(old));
    assert_eq!(log.standing(2), leaving(102));
    assert_eq!(log.standing(101), PeerStanding::Leaving { successor: None });
    // A successor that is itself removed takes nobody with it.
    log.dismiss(102, 8);
    assert_eq!(log.standing(2), PeerStanding::Active(Promotion::Automatic));
}

#[test]
fn the_record_is_bounded_and_survives_as_records() {
    let mut log = Log::default();
    for nonce in 0..u64::try_from(REMOVED_PEERS_MAX).unwrap() + 10 {
        let Outcome::Index(id) = log.admit(nonce, None) else {
            panic!("admitted");
        };
        log.dismiss(id.0, nonce);
        log.apply(Action::RetirePeer { node: NodeId(id.0) });
    }
    assert_eq!(log.state.peers().count(), REMOVED_PEERS_MAX);
    for nonce in 0..PEERS_MAX {
        log.admit(1 << 40 | u64::try_from(nonce).unwrap(), None);
    }
    assert!(matches!(
        log.admit(1 << 50, None),
        Outcome::Refused(Refusal::Limit(_))
    ));
    let again = State::from_records(log.state.records()).unwrap();
    assert_eq!(again.digest(), log.state.digest());
    assert!(again.peers().eq(log.state.peers()));
}

#[test]
fn the_id_of_a_removed_peer_that_is_forgotten_stays_refused() {
    let mut log = Log::default();
    let mut ids = Vec::new();
    for nonce in 0..=u64::try_from(REMOVED_PEERS_MAX).unwrap() {
        let Outcome::Index(id) = log.admit(nonce, None) else {
            panic!("admitted");
        };
        log.dismiss(id.0, nonce);
        log.apply(Action::RetirePeer { node: NodeId(id.0) });
        ids.push(NodeId(id.0));
    }
    let (first, second) = (ids[0], ids[1]);
    assert_eq!(log.state.peer(first), None, "forgotten");
    let removed = Outcome::Refused(Refusal::PeerRemoved(second));
    assert_eq!(log.admit(1, None), removed, "not forgotten");
    assert_eq!(
        log.apply(Action::PromotePeer { node: first }),
        Outcome::Refused(Refusal::NoSuchPeer(first))
    );
    // The directory that is not known any more is a new one: its id is of an entry that no log had when it was removed.
    let Outcome::Index(again) = log.admit(0, None) else {
        panic!("admitted");
    };
    assert!(again.0 > ids.last().unwrap().0, "{again}");
    assert_eq!(log.state.peer(first), None);
}
