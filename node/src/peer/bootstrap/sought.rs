//! Members of a running cluster that look for a peer where this one, which belongs to none, is. So founders learn of a
//! cluster whose members all have other addresses by now, and do not found a second one.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::peer::locate::STRAY_PERIOD;
use crate::peer::wire::Announcement;

/// For how long who looked here is taken to look here still.
const KEPT: Duration = STRAY_PERIOD.saturating_mul(3);

/// How many places are remembered. One is enough to found nothing.
const PLACES_MAX: usize = 8;

/// Where those are who looked here, and when they did last.
#[derive(Debug, Default)]
pub(super) struct Sought(Mutex<BTreeMap<String, Instant>>);

impl Sought {
    /// Notes that who says this looks here.
    pub(super) fn note(&self, said: &Announcement) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut places);
        let place = said.peer_address.as_str();
        let is_new = !places.contains_key(place);
        if is_new && places.len() == PLACES_MAX {
            return;
        }
        places.insert(place.to_owned(), Instant::now());
        if is_new {
            tracing::warn!(
                cluster = %said.cluster, peer = %said.node, address = place,
                "a member of a running cluster looks for a peer here, and this one belongs to none"
            );
        }
    }

    /// Where those are who looked here lately.
    pub(super) fn places(&self) -> Vec<String> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut places);
        places.keys().cloned().collect()
    }
}

fn forget_old(places: &mut BTreeMap<String, Instant>) {
    places.retain(|_, at| at.elapsed() < KEPT);
}

#[cfg(test)]
mod tests {
    use raftserve_model::{ClusterId, Incarnation, NodeId};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_looked_here_is_forgotten_once_it_looks_no_more() {
        let sought = Sought::default();
        let said = |port| Announcement {
            cluster: ClusterId([7; 16]),
            node: NodeId(4),
            nonce: 1,
            incarnation: Incarnation(1),
            peer_address: format!("p:{port}"),
            admin_address: String::new(),
            proxy_address: String::new(),
            host: String::new(),
            version: String::new(),
            supports: raftserve_store::formats::SUPPORTED,
        };
        assert!(sought.places().is_empty());
        for port in 1..20 {
            sought.note(&said(port));
        }
        assert_eq!(sought.places().len(), PLACES_MAX);
        tokio::time::advance(KEPT).await;
        sought.note(&said(1));
        assert_eq!(sought.places(), ["p:1"]);
    }
}
