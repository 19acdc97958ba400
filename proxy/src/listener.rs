//! Listening sockets: one per worker on each port, between which the kernel spreads connections.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::time::{Instant, timeout_at};

/// How many connections wait in the kernel to be accepted, per worker: enough for a burst of every
/// client reconnecting at once. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long a client may take for the last word of TCP's handshake: a long way there and back. Less than the second after
/// which those say their first word again whose first one was dropped.
pub(crate) const HANDSHAKE_WITHIN: Duration = Duration::from_millis(500);

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

/// Takes a listener out of service without resetting anyone: refuses new connections, has those that are under way
/// accepted until it is `by`, and then closes. Returns what was not accepted by then.
///
/// A closed socket resets what is in its queue, and whoever has been answered and whose last word of the handshake is
/// still under way: they take themselves for connected. Meanwhile the queue may grow. So first a socket filter drops
/// each SYN; whoever sent it sends it again after a second, and finds the port closed, or another listener there.
pub(crate) async fn close(
    listener: tokio::net::TcpListener,
    by: Instant,
    accept: impl AsyncFnOnce(&tokio::net::TcpListener) -> Infallible,
) -> Vec<(TcpStream, SocketAddr)> {
    // If the kernel takes no filter, closing is as safe as without, and no less needed.
    let _ = SockRef::from(&listener).attach_filter(&drop_syn());
    let _ = timeout_at(by, accept(&listener)).await;
    let mut left = Vec::new();
    let Ok(listener) = listener.into_std() else {
        return left; // It closes; the system cannot take it back from the event queue.
    };
    while let Ok(connection) = listener.accept() {
        left.push(connection);
    }
    left
}

/// A classic BPF program (see `linux/filter.h`) over a TCP segment: drop it if its SYN flag is set.
fn drop_syn() -> [SockFilter; 4] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
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
    use std::future::pending;
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

    /// A listener, and where.
    fn listening() -> (tokio::net::TcpListener, SocketAddr) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = open(any, 1).expect("a free port").remove(0);
        let address = listener.local_addr().expect("bound");
        let listener = tokio::net::TcpListener::from_std(listener);
        (listener.expect("a runtime"), address)
    }

    #[tokio::test]
    async fn a_closing_listener_gives_up_what_it_queued() {
        let (listener, address) = listening();
        let clients: Vec<_> = (0..5)
            .map(|_| TcpStream::connect(address).expect("it is queued"))
            .collect();
        // There was no room for any.
        let accepted = close(listener, Instant::now(), async |_| pending().await).await;
        let mut peers: Vec<_> = accepted.into_iter().map(|(_, peer)| Some(peer)).collect();
        let mut expected: Vec<_> = clients.iter().map(|each| each.local_addr().ok()).collect();
        peers.sort();
        expected.sort();
        assert_eq!(peers, expected);
        TcpStream::connect(address).expect_err("it is closed");
    }

    /// As over a long way: the listener has answered, and hears nothing of it yet.
    #[tokio::test]
    async fn a_connection_whose_handshake_is_under_way_is_accepted() {
        const LIMIT: Duration = Duration::from_secs(20);
        let (listener, address) = listening();
        let deaf = SockRef::from(&listener).attach_filter(&drop_all_but_syn());
        deaf.expect("the kernel takes the filter");
        let mut client = TcpStream::connect(address).expect("it is answered");
        let (accepted, mut came) = tokio::sync::mpsc::channel(1);
        let accept = async move |listener: &tokio::net::TcpListener| loop {
            let accepted_one = listener.accept().await.expect("it listens");
            accepted.send(accepted_one).await.expect("room");
        };
        let by = Instant::now() + 4 * HANDSHAKE_WITHIN;
        let closing = tokio::spawn(close(listener, by, accept));
        tokio::time::sleep(HANDSHAKE_WITHIN / 2).await; // It begins, on this one thread.
        std::io::Write::write_all(&mut client, b"ask").expect("it takes itself for connected");
        let came = tokio::time::timeout(LIMIT, came.recv()).await;
        let (mut stream, peer) = came.expect("in time").expect("it is not reset");
        assert_eq!(Some(peer), client.local_addr().ok());
        let mut asked = [0; 3];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut asked).await;
        read.expect("what it sent");
        assert_eq!(&asked, b"ask");
        assert!(closing.await.expect("no panic").is_empty());
        TcpStream::connect(address).expect_err("it is closed");
    }

    /// The contrary of [`drop_syn`].
    fn drop_all_but_syn() -> [SockFilter; 4] {
        let [load, jump, drop, keep] = drop_syn();
        [load, jump, keep, drop]
    }

    #[test]
    fn a_filtered_listener_answers_no_connect() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = open(any, 1).expect("a free port").remove(0);
        let address = listener.local_addr().expect("bound");
        let filtered = SockRef::from(&listener).attach_filter(&drop_syn());
        filtered.expect("the kernel takes the filter");
        let limit = std::time::Duration::from_millis(100);
        let refused = TcpStream::connect_timeout(&address, limit);
        assert_eq!(
            refused.expect_err("no answer").kind(),
            io::ErrorKind::TimedOut
        );
    }
}
