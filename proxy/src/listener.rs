//! Listening sockets: one per worker on each port, between which the kernel spreads connections.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// How many connections wait in the kernel to be accepted, per worker: enough for a burst of every
/// client reconnecting at once. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens `count` listeners on one port; port 0 becomes one that is free.
///
/// `SO_REUSEPORT` alone would let two processes of one user share a port unknowingly, so a plain
/// bind comes first: it fails if anyone listens there.
///
/// # Errors
/// The port is taken, or may not be opened.
pub(crate) fn open(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let probe = bind(address, false)?;
    probe.listen(1)?;
    let mut address = address;
    if address.port() == 0
        && let Some(bound) = probe.local_addr()?.as_socket()
    {
        address.set_port(bound.port());
    }
    drop(probe);
    (0..count)
        .map(|_| {
            let socket = bind(address, true)?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Connections of a former process may linger in TIME_WAIT; they do not count as taken.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_taken_port_is_refused_even_to_ourselves() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listeners = open(any, 3).expect("a free port");
        let address = listeners[0].local_addr().expect("bound");
        assert!(
            listeners
                .iter()
                .all(|each| each.local_addr().ok() == Some(address))
        );
        let again = open(address, 1).expect_err("the port is taken");
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        open(address, 2).expect("the port is free again");
    }
}
