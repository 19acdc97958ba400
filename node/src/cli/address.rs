//! Addresses as flags have them.

use std::net::SocketAddr;

/// The host and the port of HOST:PORT. A host that is an IPv6 address is in brackets, or its end could be taken for a port.
pub(crate) fn parts(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_host = !host.is_empty() && (!host.contains(':') || host.ends_with(']'));
    is_host.then_some((host, port.parse().ok()?))
}

/// Where somebody is reached; a name is looked up later.
pub(super) fn host_port(text: &str) -> Result<String, String> {
    match parts(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("write HOST:PORT, such as 127.0.0.1:7001".to_owned()),
    }
}

/// Where to listen, which no name says.
pub(super) fn ip_port(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "an IP address and a port are needed, such as 127.0.0.1:7001 or [::1]:7001; a name is none"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_host_and_a_port() {
        for good in ["127.0.0.1:7001", "p-0.peers:7001", "[::1]:7001"] {
            assert_eq!(host_port(good), Ok(good.to_owned()));
        }
        for bad in ["nonsense", "p-0:", ":7001", "p-0:70000", "::1", ""] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_no_place_to_listen_at() {
        assert!(ip_port("[::1]:7001").is_ok());
        let refused = ip_port("localhost:7001").unwrap_err();
        assert!(refused.contains("an IP address and a port"), "{refused}");
    }
}
