//! What a client may expect of the endpoint while peers come and go.

use crate::history::{Outage, Request};

/// Every request was answered with success in the end, whatever it took.
#[must_use]
pub fn every_request_answered(requests: &[Request]) -> Vec<String> {
    requests
        .iter()
        .filter(|request| !request.is_ok())
        .map(|request| format!("no answer after {:?}", request.attempts))
        .collect()
}

/// No attempt failed through a peer that was there from the attempt's start to its end: a fault of one
/// peer is no excuse for another.
#[must_use]
pub fn no_failure_through_live_peers(requests: &[Request], outages: &[Outage]) -> Vec<String> {
    requests
        .iter()
        .flat_map(|request| request.attempts.iter().map(move |it| (request, it)))
        .filter(|(_, attempt)| !attempt.outcome.is_ok())
        .filter(|(_, attempt)| !outages.iter().any(|outage| outage.touches(attempt)))
        .map(|(request, attempt)| {
            let took = attempt.ended.duration_since(attempt.started);
            let since: Vec<String> = outages
                .iter()
                .filter(|outage| outage.from <= attempt.started)
                .map(|outage| {
                    let ago = attempt.started.duration_since(outage.from);
                    format!("{ago:?} after the loss of peer {}", outage.peer)
                })
                .collect();
            format!(
                "peer {} after {took:?}, key {:?}: {:?} ({})",
                attempt.peer,
                request.key,
                attempt.outcome,
                since.join(", ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::history::{Attempt, Outcome};

    const OK: Outcome = Outcome::Answered {
        status: 200,
        replica: None,
    };

    struct Clock(Instant);

    impl Clock {
        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }

        fn request(&self, attempts: &[(usize, u64, u64, Outcome)]) -> Request {
            let attempt = |(peer, from, to, outcome): &(usize, u64, u64, Outcome)| Attempt {
                peer: *peer,
                started: self.at(*from),
                ended: self.at(*to),
                outcome: outcome.clone(),
            };
            Request {
                key: None,
                attempts: attempts.iter().map(attempt).collect(),
            }
        }
    }

    fn cut() -> Outcome {
        Outcome::Unknown("cut".into())
    }

    #[test]
    fn a_retry_on_another_peer_excuses_the_dead_one() {
        let clock = Clock(Instant::now());
        let history = [clock.request(&[(0, 90, 110, cut()), (1, 110, 120, OK)])];
        let outage = Outage {
            peer: 0,
            from: clock.at(100),
            until: None,
        };
        assert!(every_request_answered(&history).is_empty());
        assert!(no_failure_through_live_peers(&history, &[outage]).is_empty());
    }

    #[test]
    fn failure_through_a_survivor_is_found_even_if_a_retry_mends_it() {
        let clock = Clock(Instant::now());
        let history = [clock.request(&[(1, 150, 160, cut()), (2, 160, 170, OK)])];
        let outage = Outage {
            peer: 0,
            from: clock.at(100),
            until: None,
        };
        assert_eq!(no_failure_through_live_peers(&history, &[outage]).len(), 1);
        assert!(every_request_answered(&history).is_empty());
    }

    #[test]
    fn failure_before_the_fault_or_after_the_return_is_found() {
        let clock = Clock(Instant::now());
        let outage = Outage {
            peer: 0,
            from: clock.at(100),
            until: Some(clock.at(200)),
        };
        for (from, to) in [(50, 99), (201, 220)] {
            let history = [clock.request(&[(0, from, to, cut()), (1, to, to, OK)])];
            let found = no_failure_through_live_peers(&history, &[outage]);
            assert_eq!(found.len(), 1, "{from}..{to}");
        }
    }

    #[test]
    fn an_answer_of_503_is_a_failure() {
        let clock = Clock(Instant::now());
        let refused = Outcome::Answered {
            status: 503,
            replica: None,
        };
        let history = [clock.request(&[(1, 0, 1, refused)])];
        assert_eq!(every_request_answered(&history).len(), 1);
        assert_eq!(no_failure_through_live_peers(&history, &[]).len(), 1);
    }
}
