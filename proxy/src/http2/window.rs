//! How much room a client's connection of HTTP/2 has for the bodies of its requests, and all connections of a peer together.
//!
//! What a client was told room for may have to be held: its replica may not read, or there may be none yet. So a connection
//! begins with what the protocol gives each, and is told of more out of a budget of the whole peer: as much as is held of it
//! already, so that who takes nothing stops nobody else, and as much again as keeps its link busy. Nobody has more than an
//! eighth of what is left to him. Once little is left, a connection's streams share what it has; none is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::server::CONNECTION_WINDOW;
use crate::memory::MemoryBudget;

/// What each connection begins with (RFC 9113, 6.9.2). It does not count.
pub(crate) const LEAST: u64 = 65_535;

/// The most that a connection has beside what is held of it: enough for 800 Mbit/s and 10 ms. Envoy advises as much at an edge.
const SPARE_MAX: u64 = 1 << 20;

/// What of the budget one connection may have beside what is held of it, and in all: one of so many parts.
const SPARE_PART: u64 = 512;
const PART: u64 = 8;

/// A client that has used half of its room within this time needs more, up to twice as much.
const BUSY: Duration = Duration::from_secs(1);

/// What may have come and be no whole frame yet: the library neither holds it nor has let go of it. Its buffer is smaller.
const BEGUN_MAX: u64 = 64 << 10;

/// How much has to come before a connection is looked at again, at least.
const LOOK_AFTER: u64 = 4 << 10;

/// The window of one connection. Dropped with it: then nothing of it can come any more.
#[derive(Debug)]
pub(crate) struct Window {
    budget: Arc<MemoryBudget>,
    /// What may come and what is held, together, as the library keeps it.
    target: u64,
    /// The most that both may be: a window that a client was told of is not taken back, only told of no more. Never below the
    /// target. What is above [`LEAST`] is taken from the budget.
    told: u64,
    /// Whether there was less than it needs.
    is_short: bool,
    /// When it was last looked at, what was held then, and how much had come.
    looked: Instant,
    held: u64,
    received: u64,
    /// What was told when room may last have been told of up to it, and how much had been let go of by then, at most.
    told_then: u64,
    let_go: u64,
}

impl Window {
    pub(crate) fn new(budget: Arc<MemoryBudget>, now: Instant) -> Self {
        Self {
            budget,
            target: LEAST,
            told: LEAST,
            is_short: false,
            looked: now,
            held: 0,
            received: 0,
            told_then: LEAST,
            let_go: 0,
        }
    }

    /// Whether there is less than it needs.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short
    }

    /// Whether to [`Self::look`] anew, once `received` bytes of bodies have come in all.
    pub(crate) fn is_due(&self, received: u64) -> bool {
        let room = self.target.saturating_sub(self.held);
        let came = received - self.received;
        let has_more = || self.share(PART) >= self.told - LEAST + LOOK_AFTER;
        came >= LOOK_AFTER.max(room / 2) || self.is_short && has_more()
    }

    /// The size of the window from `now` on, with what may come and what is `held` together, once `received` bytes of bodies
    /// have come in all.
    #[must_use = "the library has to be told"]
    pub(crate) fn look(&mut self, now: Instant, received: u64, held: u64) -> u32 {
        let let_go = received.saturating_sub(held);
        let at_least = let_go.saturating_sub(self.let_go + BEGUN_MAX);
        // Nothing was told of meanwhile as long as there was more than the target.
        let left = self.told_then.saturating_sub(at_least).max(self.target);
        self.tell(left.min(self.told));
        if self.told <= self.target + 2 * BEGUN_MAX {
            (self.told_then, self.let_go) = (self.told, let_go);
        }
        let is_busy = now.saturating_duration_since(self.looked) < BUSY;
        // Step by step: a short body on a new connection is no reason to keep room for a long one.
        let room = self.target.saturating_sub(self.held).max(LEAST);
        let spare = match is_busy {
            true => self.share(SPARE_PART).clamp(LEAST, SPARE_MAX).min(2 * room),
            false => LEAST,
        };
        let wanted = (held + spare).min(CONNECTION_WINDOW.into());
        let most = LEAST + self.share(PART);
        self.target = wanted.min(most.max(self.told));
        if self.target > self.told {
            match self.budget.take(self.target - self.told) {
                true => self.told = self.target,
                false => self.target = self.told, // Another was faster.
            }
            (self.told_then, self.let_go) = (self.told, let_go);
        }
        self.is_short = self.target < wanted;
        (self.looked, self.held, self.received) = (now, held, received);
        u32::try_from(self.target).expect("no larger than the largest")
    }

    /// A part of what is left in the budget beside what others have.
    fn share(&self, part: u64) -> u64 {
        (self.budget.left() + (self.told - LEAST)) / part
    }

    /// No more than so much may come and be held any more.
    fn tell(&mut self, told: u64) {
        self.budget.give(self.told - told);
        self.told = told;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.tell(LEAST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A connection, as its client and the library see it.
    struct Simulated {
        window: Window,
        now: Instant,
        /// What the client may still send.
        room: u64,
        /// What has come, and is no whole frame yet.
        begun: u64,
        held: u64,
        received: u64,
        /// Less room than so many quarters of the window the library does not tell of.
        quarters: u64,
    }

    impl Simulated {
        fn new(budget: &Arc<MemoryBudget>) -> Self {
            let now = Instant::now();
            Self {
                window: Window::new(Arc::clone(budget), now),
                now,
                room: LEAST,
                begun: 0,
                held: 0,
                received: 0,
                quarters: 0,
            }
        }

        /// The client sends so much, as far as it may, the last of it as the beginning of a frame, and of what is held so much
        /// is taken. The library then tells of room as far as the window lets it; sometimes only later.
        fn step(&mut self, sends: u64, begins: u64, taken: u64, tells_first: bool) {
            self.held += std::mem::take(&mut self.begun);
            let sends = sends.min(self.room);
            self.room -= sends;
            self.received += sends;
            self.begun = begins.min(sends);
            self.held += sends - self.begun;
            self.held -= taken.min(self.held);
            if tells_first {
                self.tell();
            }
            self.now += BUSY / 10;
            if self.window.is_due(self.received) {
                let size = self.window.look(self.now, self.received, self.held);
                assert_eq!(u64::from(size), self.window.target);
            }
            self.tell();
            let most = self.room + self.begun + self.held;
            assert!(most <= self.window.told, "{most}: {:?}", self.window);
        }

        fn tell(&mut self) {
            let size = self.window.target;
            let free = size.saturating_sub(self.held + self.begun);
            if free > self.room && free - self.room >= size * self.quarters / 4 {
                self.room = free;
            }
        }

        /// It sends as much as it may, and nobody takes any.
        fn stall(&mut self) -> u64 {
            let mut before = u64::MAX;
            while self.held != before || self.room > 0 {
                before = self.held;
                self.step(u64::MAX, 0, 0, false);
            }
            self.held
        }
    }

    #[test]
    fn all_that_stalled_connections_hold_is_bounded_and_none_takes_all() {
        let budget = Arc::new(MemoryBudget::new(64 * MIB));
        let mut connections: Vec<_> = (0..1000).map(|_| Simulated::new(&budget)).collect();
        let held: Vec<u64> = connections.iter_mut().map(Simulated::stall).collect();
        assert_eq!(held[0], LEAST + 8 * MIB, "an eighth");
        assert!(held[1] > 7 * MIB && held[8] > 2 * MIB, "{held:?}");
        let sum: u64 = held.iter().sum();
        assert!(sum <= 64 * MIB + 1000 * LEAST, "{sum} bytes");
        drop(connections);
        assert_eq!(budget.left(), 64 * MIB);
        assert_eq!(Simulated::new(&budget).stall(), LEAST + 8 * MIB);
    }

    #[test]
    fn a_connection_alone_has_room_for_all_its_streams_and_gives_it_back_as_it_uses_it() {
        let budget = Arc::new(MemoryBudget::new(1 << 40));
        let mut connection = Simulated::new(&budget);
        assert_eq!(connection.stall(), u64::from(CONNECTION_WINDOW));
        connection.step(0, 0, u64::MAX, true);
        assert_eq!(connection.held, 0);
        // All was told of once more before anybody looked: the client may use it.
        assert_eq!(connection.room, u64::from(CONNECTION_WINDOW));
        let taken = |budget: &MemoryBudget| (1 << 40) - budget.left();
        assert_eq!(taken(&budget), u64::from(CONNECTION_WINDOW) - LEAST);
        for _ in 0..200 {
            connection.step(MIB, 0, MIB, false);
        }
        assert!(
            taken(&budget) <= SPARE_MAX + 2 * BEGUN_MAX,
            "{connection:?}",
            connection = connection.window
        );
    }

    #[test]
    fn a_short_body_takes_little_of_what_all_share() {
        let budget = Arc::new(MemoryBudget::new(512 * MIB));
        let mut connection = Simulated::new(&budget);
        connection.step(40 << 10, 0, 40 << 10, false);
        assert!(connection.room >= LEAST, "{:?}", connection.window);
        let taken = 512 * MIB - budget.left();
        assert!(taken <= LEAST, "{taken} bytes");
    }

    #[test]
    fn who_lacked_room_has_it_once_another_has_ended() {
        let budget = Arc::new(MemoryBudget::new(16 * MIB));
        let others: Vec<_> = (0..100)
            .map(|_| {
                let mut other = Simulated::new(&budget);
                other.stall();
                other
            })
            .collect();
        let mut connection = Simulated::new(&budget);
        let held = connection.stall();
        assert!(held < 2 * LEAST, "{held} bytes");
        drop(others);
        assert!(connection.window.is_due(connection.received));
        assert!(connection.stall() > MIB);
    }

    proptest! {
        #[test]
        fn what_may_be_held_is_taken_from_the_budget_whatever_happens(
            steps in prop::collection::vec(
                (0..8_usize, 0..4 * MIB, 0..16_384_u64, 0..4 * MIB, any::<bool>(), 0..4_u64), 1..400,
            ),
        ) {
            let budget = Arc::new(MemoryBudget::new(20 * MIB));
            let mut connections: Vec<_> = (0..8).map(|_| Simulated::new(&budget)).collect();
            for (which, sends, begins, taken, tells_first, quarters) in steps {
                connections[which].quarters = quarters;
                connections[which].step(sends, begins, taken, tells_first);
                let told: u64 = connections.iter().map(|it| it.window.told - LEAST).sum();
                prop_assert_eq!(told + budget.left(), 20 * MIB);
            }
        }
    }
}
