//! What happens in which round. The seed alone decides it, so that a run can be had again.

use std::time::Duration;

use jepsen_tests::faulty_disk;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rustix::io::Errno;

/// The longest pause before a fault: over a dozen group commits.
const MOMENT_MAX_MS: u64 = 80;

/// When a peer that comes back is killed again: from before it has opened its log to when it is ready.
const AGAIN_MAX_MS: u64 = 400;

/// How long a peer stands still at most: some elections.
const PAUSE_MAX_MS: u64 = 800;

/// How long a slow disk takes at most: about an election.
const DELAY_MAX_MS: u64 = 300;

/// Calls that a disk still serves before it fails: so that it fails amid a group, a segment, a snapshot.
const SPARED_MAX: u32 = 12;

/// Whom a fault meets, as seen from the leader of that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Leader,
    /// The follower with the next number.
    Next,
    /// The other one.
    Last,
}

const ROLES: [Role; 3] = [Role::Leader, Role::Next, Role::Last];

/// What a disk says from some call on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskError {
    Write,
    Sync,
    Full,
}

impl DiskError {
    pub(super) fn fault(self) -> faulty_disk::Fault {
        match self {
            Self::Write => faulty_disk::Fault::Write(Errno::IO),
            Self::Sync => faulty_disk::Fault::Sync(Errno::IO),
            Self::Full => faulty_disk::Fault::Write(Errno::NOSPC),
        }
    }

    /// What the peer says of it.
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::Write | Self::Sync => "Input/output error",
            Self::Full => "No space left on device",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL for each, so long after the one before. If `goes_on`, the others are seen to go on before they return.
    Kill {
        victims: Vec<(Role, Duration)>,
        goes_on: bool,
    },
    /// SIGKILL, and the return only once the others' logs do not hold any more what it lacks.
    Away(Role),
    /// It stands still, and then goes on or is killed.
    Pause {
        victim: Role,
        lasting: Duration,
        killed: bool,
    },
    /// Its syncs take so much longer for some writes; then they do not, or it is killed.
    SlowDisk {
        victim: Role,
        delay: Duration,
        killed: bool,
    },
    /// Its disk fails after so many more calls. It ends by itself, and returns with a disk that is well.
    BrokenDisk {
        victim: Role,
        error: DiskError,
        spared: u32,
    },
    /// SIGKILL, and the return with an empty data directory, under a new id.
    Wipe(Role),
}

/// A round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// From writes that were acknowledged to the fault.
    pub(super) moment: Duration,
    pub(super) fault: Fault,
    /// The first that returns is killed again so long after its start.
    pub(super) again: Option<Duration>,
    /// Whether the next round begins only once all are ready.
    pub(super) awaited: bool,
}

/// The kinds of faults, as the deck of a chapter has them.
#[derive(Clone, Copy)]
enum Kind {
    Kill,
    Away,
    Pause,
    SlowDisk,
    BrokenDisk(DiskError),
    Wipe,
}

/// A chapter's rounds: each kind is in every chapter, whatever the seed.
const DECK: [(usize, Kind); 8] = [
    (15, Kind::Kill),
    (2, Kind::Away),
    (2, Kind::Pause),
    (2, Kind::SlowDisk),
    (1, Kind::BrokenDisk(DiskError::Write)),
    (1, Kind::BrokenDisk(DiskError::Sync)),
    (1, Kind::BrokenDisk(DiskError::Full)),
    (1, Kind::Wipe),
];

/// How many rounds a chapter has.
pub(super) const CHAPTER: usize = 25;

/// So many rounds.
pub(super) fn plans(seed: u64, rounds: usize) -> Vec<Plan> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut plans = Vec::with_capacity(rounds + CHAPTER);
    while plans.len() < rounds {
        let kinds = DECK.iter().flat_map(|(count, kind)| [*kind].repeat(*count));
        let mut kinds: Vec<Kind> = kinds.collect();
        kinds.shuffle(&mut random);
        plans.extend(kinds.into_iter().map(|kind| plan(kind, &mut random)));
    }
    plans.truncate(rounds);
    plans
}

fn plan(kind: Kind, random: &mut StdRng) -> Plan {
    let victim = *ROLES.choose(random).unwrap_or(&Role::Leader);
    Plan {
        moment: up_to(MOMENT_MAX_MS, random),
        fault: match kind {
            Kind::Kill => kill(random),
            Kind::Away => Fault::Away(victim),
            Kind::Pause => Fault::Pause {
                victim,
                lasting: up_to(PAUSE_MAX_MS, random),
                killed: random.random(),
            },
            Kind::SlowDisk => Fault::SlowDisk {
                victim,
                delay: up_to(DELAY_MAX_MS, random),
                killed: random.random(),
            },
            Kind::BrokenDisk(error) => Fault::BrokenDisk {
                victim,
                error,
                spared: random.random_range(0..SPARED_MAX),
            },
            Kind::Wipe => Fault::Wipe(victim),
        },
        again: random.random_bool(0.2).then(|| up_to(AGAIN_MAX_MS, random)),
        awaited: random.random_bool(0.3),
    }
}

fn kill(random: &mut StdRng) -> Fault {
    let mut victims = match random.random_range(0..5) {
        0 => vec![Role::Leader],
        1 => vec![Role::Next],
        2 => vec![Role::Leader, Role::Next],
        3 => vec![Role::Next, Role::Last],
        _ => ROLES.to_vec(),
    };
    victims.shuffle(random);
    let goes_on = victims.len() == 1 && random.random();
    let apart = |random: &mut StdRng| match random.random() {
        true => up_to(MOMENT_MAX_MS / 4, random),
        false => Duration::ZERO,
    };
    Fault::Kill {
        victims: victims.into_iter().map(|it| (it, apart(random))).collect(),
        goes_on,
    }
}

fn up_to(max_ms: u64, random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(0..max_ms))
}

#[test]
fn a_seed_gives_the_same_rounds_again_and_each_chapter_has_every_fault() {
    let rounds = plans(7, 3 * CHAPTER);
    assert_eq!(rounds, plans(7, 3 * CHAPTER));
    assert_eq!(rounds[..10], plans(7, 10));
    assert_ne!(rounds, plans(8, 3 * CHAPTER));
    for chapter in rounds.chunks(CHAPTER) {
        let count = |of: fn(&Fault) -> bool| chapter.iter().filter(|it| of(&it.fault)).count();
        assert_eq!(count(|it| matches!(it, Fault::Kill { .. })), 15);
        assert_eq!(count(|it| matches!(it, Fault::Away(_))), 2);
        assert_eq!(count(|it| matches!(it, Fault::Pause { .. })), 2);
        assert_eq!(count(|it| matches!(it, Fault::SlowDisk { .. })), 2);
        assert_eq!(count(|it| matches!(it, Fault::BrokenDisk { .. })), 3);
        assert_eq!(count(|it| matches!(it, Fault::Wipe(_))), 1);
    }
}
