//! Ports for replicas on this host.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

/// Where replicas' ports come from: above what people configure, below what Linux hands out to
/// outgoing connections by default (32768 and up), and clear of the services' own from 30001.
pub const REPLICA_PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// A port from [`REPLICA_PORTS`] that is not in use by a replica and could be bound just now, on
/// loopback and on all addresses. The search starts after `last`, the port given before, so that a
/// port comes round again only after all others. None if all are taken.
#[must_use]
pub fn free_port_after(last: u16, in_use: &BTreeSet<u16>) -> Option<u16> {
    let seed = (u64::from(last) + 1).saturating_sub(u64::from(*REPLICA_PORTS.start()));
    free_port_in(&REPLICA_PORTS, in_use, seed)
}

fn free_port_in(range: &RangeInclusive<u16>, in_use: &BTreeSet<u16>, seed: u64) -> Option<u16> {
    let count = u64::from(range.end() - range.start()) + 1;
    (0..count)
        .map(|step| (seed % count + step) % count)
        .filter_map(|offset| u16::try_from(offset).ok())
        .map(|offset| range.start() + offset)
        .find(|port| !in_use.contains(port) && can_be_bound(*port))
}

/// Whether somebody has the port. Nothing of a replica that has ended does.
#[must_use]
pub fn is_held(port: u16) -> bool {
    !can_be_bound(port)
}

/// Whether a listener could have the port. Nothing is ever accepted on it, so no connection of ours
/// is left behind to block it.
fn can_be_bound(port: u16) -> bool {
    [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]
        .into_iter()
        .all(|address| TcpListener::bind((address, port)).is_ok())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn taken_and_bound_ports_are_passed_over() {
        let first = free_port_after(24_000, &BTreeSet::new()).unwrap();
        assert!(REPLICA_PORTS.contains(&first));
        let _holder = TcpListener::bind((Ipv4Addr::UNSPECIFIED, first)).unwrap();
        let second = free_port_after(24_000, &BTreeSet::new()).unwrap();
        assert_ne!(second, first);
        let third = free_port_after(24_000, &BTreeSet::from([second])).unwrap();
        assert!(third != first && third != second);
    }

    #[test]
    fn a_port_is_held_while_somebody_listens_and_not_by_connections_that_are_over() {
        let port = free_port_after(21_000, &BTreeSet::new()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(is_held(port));
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (served, _) = listener.accept().unwrap();
        // Who closes first keeps the port in TIME_WAIT.
        drop(served);
        drop(client);
        drop(listener);
        assert!(!is_held(port));
    }

    #[test]
    fn search_wraps_and_ends() {
        let port = free_port_after(27_000, &BTreeSet::new()).unwrap();
        let range = port..=port;
        assert_eq!(free_port_in(&range, &BTreeSet::new(), u64::MAX), Some(port));
        assert_eq!(free_port_in(&range, &BTreeSet::from([port]), 1), None);
    }
}
