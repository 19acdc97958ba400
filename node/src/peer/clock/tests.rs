use proptest::prelude::*;
use raftserve_model::LogIndex;

use super::*;

const ME: NodeId = NodeId(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(term: u64, node: u64) -> Option<LogId> {
    Some(LogId {
        term,
        node: NodeId(node),
        index: LogIndex(1),
    })
}

#[test]
fn a_reign_runs_as_time_does_whatever_writing_takes() {
    let mut clock = Reckoning::new(ME, id(1, 2), LogTime(1_000), ms(50));
    clock.observe(id(2, 1), LogTime(1_000), ms(60));
    // Each own stamp is applied 40 ms after it was made: none of that is lost.
    for at in (100..1_000).step_by(100) {
        let stamp = clock.now(ms(at));
        assert_eq!(stamp, LogTime(1_000 + at - 50));
        clock.observe(id(2, 1), stamp, ms(at + 40));
    }
}

#[test]
fn a_new_leader_goes_on_from_the_last_stamp_of_the_former() {
    let mut clock = Reckoning::new(ME, id(1, 2), LogTime(1_000), ms(0));
    clock.observe(id(1, 2), LogTime(5_000), ms(10));
    assert_eq!(clock.now(ms(30)), LogTime(5_020));
    // The former leader had lost time (it had restarted, say): its word holds all the same.
    clock.observe(id(2, 3), LogTime(5_005), ms(1_000));
    clock.observe(id(3, 1), LogTime(5_005), ms(1_100));
    assert_eq!(clock.now(ms(1_200)), LogTime(5_205));
}

#[test]
fn stamps_of_others_that_come_with_the_first_own_entry_count_as_theirs() {
    let mut clock = Reckoning::new(ME, id(1, 2), LogTime(1_000), ms(0));
    clock.observe(id(2, 1), LogTime(9_000), ms(100));
    assert_eq!(clock.now(ms(150)), LogTime(9_050));
}

#[test]
fn a_restart_finds_time_where_it_was_left() {
    let clock = Reckoning::new(ME, id(4, 1), LogTime(7_000), ms(90_000));
    assert_eq!(clock.now(ms(90_000)), LogTime(7_000));
    assert_eq!(clock.now(ms(90_250)), LogTime(7_250));
}

#[test]
fn the_first_stamp_of_a_reign_is_later_than_all_before() {
    let mut clock = Reckoning::new(ME, id(1, 2), LogTime(1_000), ms(0));
    assert_eq!(clock.stamp(2, ms(5)), None, "what came before is not known");
    clock.observe(id(1, 2), LogTime(2_000), ms(5));
    clock.observe(id(2, 1), LogTime(2_000), ms(5));
    assert_eq!(clock.stamp(2, ms(5)), None);
    assert_eq!(clock.stamp(2, ms(6)), Some(LogTime(2_001)));
    assert_eq!(clock.stamp(2, ms(6)), Some(LogTime(2_001)));
}

/// A peer in a cluster of one log.
struct Peer {
    clock: Reckoning,
    /// What its clock since boot shows at true time 0.
    boot: u64,
    /// How much of the log it has applied.
    applied: usize,
    time: LogTime,
}

struct World {
    now: u64,
    term: u64,
    leader: usize,
    peers: Vec<Peer>,
    /// Each entry, and the true time at which it was made. None carries no stamp.
    log: Vec<(LogId, Option<LogTime>, u64)>,
}

impl World {
    fn boot_now(&self, peer: usize) -> Duration {
        ms(self.now + self.peers[peer].boot)
    }

    fn catch_up(&mut self, peer: usize, entries: usize) {
        let at = self.boot_now(peer);
        let it = &mut self.peers[peer];
        let upto = (it.applied + entries).min(self.log.len());
        if upto == it.applied {
            return;
        }
        for (_, stamp, _) in &self.log[it.applied..upto] {
            it.time = it.time.max(stamp.unwrap_or_default());
        }
        it.applied = upto;
        it.clock.observe(Some(self.log[upto - 1].0), it.time, at);
    }

    fn push(&mut self, stamp: Option<LogTime>) {
        let last = LogId {
            term: self.term,
            node: NodeId(self.leader as u64),
            index: LogIndex(self.log.len() as u64),
        };
        self.log.push((last, stamp, self.now));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    CatchUp(usize, usize),
    Elect(usize),
    Restart(usize),
    Write,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u64..3).prop_map(Step::Pass),
        2 => (0_u64..5_000).prop_map(Step::Pass),
        4 => (0_usize..3, 1_usize..5).prop_map(|(peer, entries)| Step::CatchUp(peer, entries)),
        1 => (0_usize..3).prop_map(Step::Elect),
        1 => (0_usize..3).prop_map(Step::Restart),
        4 => Just(Step::Write),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Between any two stamps agreed time passes no more than time itself: nothing expires early, whoever
    /// leads, however far behind, and whatever the clocks show.
    #[test]
    fn agreed_time_is_never_ahead_of_time(
        boots in prop::array::uniform3(0_u64..1_000_000_000),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let peers = boots.iter().zip(0..).map(|(boot, node)| Peer {
            clock: Reckoning::new(NodeId(node), None, LogTime(0), ms(*boot)),
            boot: *boot,
            applied: 0,
            time: LogTime(0),
        });
        let mut world = World { now: 0, term: 0, leader: 0, peers: peers.collect(), log: Vec::new() };
        for step in steps {
            match step {
                Step::Pass(time) => world.now += time,
                Step::CatchUp(peer, entries) => world.catch_up(peer, entries),
                Step::Elect(peer) => {
                    world.term += 1;
                    world.leader = peer;
                    world.push(None);
                }
                Step::Restart(peer) => {
                    let at = world.boot_now(peer);
                    let last = world.peers[peer].applied.checked_sub(1).map(|at| world.log[at].0);
                    let it = &mut world.peers[peer];
                    it.clock = Reckoning::new(NodeId(peer as u64), last, it.time, at);
                    // A restarted leader is elected anew.
                    if world.leader == peer {
                        world.term += 1;
                        world.push(None);
                    }
                }
                Step::Write => {
                    let (leader, term) = (world.leader, world.term);
                    let at = world.boot_now(leader);
                    let stamp = world.peers[leader].clock.stamp(term, at);
                    if stamp.is_some() && term > 0 {
                        world.push(stamp);
                    }
                }
            }
        }
        let mut agreed = LogTime(0);
        // The least lead of true time over agreed time so far must never be undercut.
        let mut lead = i128::MIN;
        for (_, stamp, made) in &world.log {
            let Some(stamp) = stamp else { continue };
            agreed = agreed.max(*stamp);
            let now = i128::from(*made) - i128::from(agreed.0);
            prop_assert!(now >= lead, "agreed time gained {} ms", lead - now);
            lead = now;
        }
    }
}
