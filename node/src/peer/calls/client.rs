//! The side that calls.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::format::{Introduction, Method, Reader, Received, begin, write};
use crate::peer::directory::Caller;
use crate::peer::port;
use crate::peer::rpc::Frame;
use crate::peer::wire;

/// A dial that takes longer has met a host that is gone: the next call dials anew, with the name
/// resolved again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection in the making, or made: whoever needs it awaits it.
pub(crate) type Connecting = Shared<BoxFuture<'static, Result<Arc<Connection>, Arc<str>>>>;

/// Begins to connect to `address` on `runtime`. Goes on even if nobody awaits it, so that the patience of one call
/// does not decide whether there is ever a connection.
pub(crate) fn connect(runtime: &Handle, address: String, caller: Caller) -> Connecting {
    let made = async move {
        match timeout(CONNECT_TIMEOUT, dial(&address, caller)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(format!("cannot connect: {error}").into()),
            Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}").into()),
        }
    };
    let made = made.boxed().shared();
    runtime.spawn(made.clone());
    made
}

async fn dial(address: &str, caller: Caller) -> io::Result<Arc<Connection>> {
    let stream = TcpStream::connect(address).await?;
    port::tune(&stream)?;
    let (from, mut to) = stream.into_split();
    let introduction = wire::encode(&Introduction::from(caller));
    to.write_all(&begin(&introduction)).await?;
    let pending = Arc::new(Mutex::new(Pending::default()));
    let reading = tokio::spawn(read(Reader::new(from), Arc::clone(&pending)));
    Ok(Arc::new(Connection {
        to: tokio::sync::Mutex::new(Outgoing { to, broken: false }),
        pending,
        reading: reading.abort_handle(),
    }))
}

type Answer = Result<Received, Arc<str>>;

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Pending {
    next: u32,
    waiting: HashMap<u32, oneshot::Sender<Answer>>,
    /// Why there will be no more answers.
    ended: Option<Arc<str>>,
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Every change is a single one, so a panic elsewhere leaves nothing half done.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to who waits for them, until the connection ends.
async fn read(mut from: Reader<OwnedReadHalf>, pending: Arc<Mutex<Pending>>) {
    let error = loop {
        match from.next().await {
            Ok(received) => {
                let waiting = lock(&pending).waiting.remove(&received.number);
                if let Some(waiting) = waiting {
                    // Who is gone has given up.
                    let _ = waiting.send(Ok(received));
                }
            }
            Err(error) => break error,
        }
    };
    let reason: Arc<str> = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
        _ => format!("the connection broke: {error}").into(),
    };
    end(&pending, &reason);
}

fn end(pending: &Mutex<Pending>, reason: &Arc<str>) {
    let waiting = {
        let mut pending = lock(pending);
        pending.ended.get_or_insert_with(|| Arc::clone(reason));
        std::mem::take(&mut pending.waiting)
    };
    for (_, waiting) in waiting {
        let _ = waiting.send(Err(Arc::clone(reason)));
    }
}

#[derive(Debug)]
struct Outgoing {
    to: OwnedWriteHalf,
    /// While a frame is being written, and so for ever if that was given up half-way.
    broken: bool,
}

/// A connection to one peer. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    to: tokio::sync::Mutex<Outgoing>,
    pending: Arc<Mutex<Pending>>,
    reading: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// The connection had ended before.
    NotSent(Arc<str>),
    /// It ended, and the peer may have seen the call.
    Broken(Arc<str>),
}

/// Forgets a call that is given up.
struct Waiting<'c> {
    pending: &'c Mutex<Pending>,
    number: u32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(self.pending).waiting.remove(&self.number);
    }
}

impl Connection {
    /// Whether it takes no more calls.
    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.pending).ended.is_some()
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// [`CallFailure`].
    pub(crate) async fn call(
        &self,
        method: Method,
        message: &Frame,
    ) -> Result<Received, CallFailure> {
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut pending = lock(&self.pending);
            if let Some(reason) = &pending.ended {
                return Err(CallFailure::NotSent(Arc::clone(reason)));
            }
            let number = pending.next;
            pending.next = number.wrapping_add(1);
            pending.waiting.insert(number, answer);
            number
        };
        let _waiting = Waiting {
            pending: &self.pending,
            number,
        };
        self.send(number, method, message).await?;
        match answered.await {
            Ok(answer) => answer.map_err(CallFailure::Broken),
            Err(_) => Err(CallFailure::Broken("the connection was dropped".into())),
        }
    }

    async fn send(&self, number: u32, method: Method, message: &Frame) -> Result<(), CallFailure> {
        let mut outgoing = self.to.lock().await;
        if outgoing.broken {
            let reason: Arc<str> = "an earlier call was given up while it was sent".into();
            end(&self.pending, &reason);
            self.reading.abort();
            return Err(CallFailure::NotSent(reason));
        }
        outgoing.broken = true;
        let written = write(&mut outgoing.to, number, method as u8, message).await;
        if let Err(error) = written {
            let reason: Arc<str> = format!("the connection broke: {error}").into();
            end(&self.pending, &reason);
            self.reading.abort();
            return Err(CallFailure::Broken(reason));
        }
        outgoing.broken = false;
        Ok(())
    }
}
