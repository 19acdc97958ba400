//! How many requests that were sent may be sent again: a share of live traffic, so that retries cannot multiply
//! the load on replicas that fail because of it. After Finagle's and Linkerd's `RetryBudget`.

use tokio::time::Instant;

/// Over how long requests and retries are compared, in slots of a second.
const WINDOW: usize = 10;

/// How many retries a window allows beyond the share, so that a service with little traffic has some.
const RESERVE: i64 = 10;

/// What a retry costs; a request brings in as much as it may add in percent.
const RETRY_COST: i64 = 100;

/// One worker's budget for one service.
#[derive(Debug)]
pub(crate) struct Budget {
    began: Instant,
    slots: [i64; WINDOW],
    /// The second that the newest slot is of.
    second: u64,
    /// Always the sum of the slots.
    balance: i64,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            slots: [0; WINDOW],
            second: 0,
            balance: 0,
        }
    }

    /// A request has come, of a service whose retries may add this share.
    pub(crate) fn deposit(&mut self, now: Instant, percent: u32) {
        self.add(now, i64::from(percent));
    }

    /// Takes a retry out, if there is one. A share of zero allows none.
    #[must_use]
    pub(crate) fn withdraw(&mut self, now: Instant, percent: u32) -> bool {
        self.add(now, 0);
        let allowed = percent > 0 && self.balance + (RESERVE - 1) * RETRY_COST >= 0;
        if allowed {
            self.add(now, -RETRY_COST);
        }
        allowed
    }

    fn add(&mut self, now: Instant, tokens: i64) {
        let second = now.saturating_duration_since(self.began).as_secs();
        let second = second.max(self.second);
        let passed = usize::try_from(second - self.second).unwrap_or(WINDOW);
        for step in 1..=passed.min(WINDOW) {
            let slot = self.slot(self.second + step as u64);
            self.balance -= std::mem::take(&mut self.slots[slot]);
        }
        self.second = second;
        let slot = self.slot(second);
        self.slots[slot] += tokens;
        self.balance += tokens;
    }

    fn slot(&self, second: u64) -> usize {
        usize::try_from(second % WINDOW as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn withdrawn(budget: &mut Budget, now: Instant, percent: u32) -> usize {
        (0..1000)
            .take_while(|_| budget.withdraw(now, percent))
            .count()
    }

    #[test]
    fn retries_are_a_share_of_requests_and_a_reserve() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        (0..500).for_each(|_| budget.deposit(now, 20));
        assert_eq!(withdrawn(&mut budget, now, 20), 110);
        assert_eq!(withdrawn(&mut budget, now, 20), 0);
    }

    #[test]
    fn what_was_not_used_runs_out_and_what_was_used_comes_back() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        (0..500).for_each(|_| budget.deposit(start, 20));
        let later = start + Duration::from_secs(WINDOW as u64);
        assert_eq!(withdrawn(&mut budget, later, 20), 10, "only the reserve");
        let still = later + Duration::from_secs(WINDOW as u64 - 1);
        assert_eq!(withdrawn(&mut budget, still, 20), 0);
        let again = later + Duration::from_secs(WINDOW as u64);
        assert_eq!(withdrawn(&mut budget, again, 20), 10);
    }

    #[test]
    fn in_any_window_retries_stay_within_the_share() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut retries = Vec::new();
        for tick in 0..3_000_u32 {
            // A hundred requests a second, each of which asks for a retry.
            let now = start + Duration::from_millis(10) * tick;
            budget.deposit(now, 20);
            if budget.withdraw(now, 20) {
                retries.push(tick);
            }
        }
        for window in (0..2_000).step_by(50) {
            let within = retries
                .iter()
                .filter(|&&tick| (window..window + 1_000).contains(&tick));
            let count = within.count();
            assert!(
                count <= 200 + 2 * 10 + 20,
                "{count} retries of 1000 requests"
            );
            assert!(count >= 150, "{count}: it is there to be used");
        }
    }

    #[test]
    fn a_share_of_zero_allows_none() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        budget.deposit(now, 0);
        assert_eq!(withdrawn(&mut budget, now, 0), 0);
    }
}
