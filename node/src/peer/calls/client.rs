//! The side that calls.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::format::{Introduction, Method, Reader, Received, RefusalKind, begin, fits, write};
use crate::access::certificates::Protocol;
use crate::access::{ReadSide, WriteSide};
use crate::peer::dial::{CONNECT_TIMEOUT, Dialer, is_refusal};
use crate::peer::directory::Caller;
use crate::peer::lives::ANNOUNCE_WITHIN;
use crate::peer::rpc::Frame;
use crate::peer::wire;

/// A connection in the making, or made: whoever needs it awaits it.
pub(crate) type Connecting = Shared<BoxFuture<'static, Result<Arc<Connection>, CallFailure>>>;

/// Begins to connect to `address` on `runtime`. Goes on even if nobody awaits it, so that the patience of one call
/// does not decide whether there is ever a connection. There is none before the peer has taken `said`, by which the
/// caller announces itself, if it does.
pub(crate) fn connect(
    runtime: &Handle,
    dialer: Dialer,
    address: String,
    caller: Caller,
    said: Option<Frame>,
) -> Connecting {
    let made = async move {
        let failed = |reason: String| CallFailure::NotSent(reason.into());
        let dialled = timeout(CONNECT_TIMEOUT, dial(&dialer, &address, caller)).await;
        let connection = dialled
            .map_err(|_| failed(format!("no connection within {CONNECT_TIMEOUT:?}")))?
            .map_err(|error| {
                let reason: Arc<str> = format!("cannot connect: {error}").into();
                match is_refusal(&error) {
                    true => CallFailure::NobodyThere(reason),
                    false => CallFailure::NotSent(reason),
                }
            })?;
        if let Some(said) = said {
            announce(&connection, &said).await?;
        }
        Ok(connection)
    };
    let made = made.boxed().shared();
    runtime.spawn(made.clone());
    made
}

async fn announce(connection: &Connection, said: &Frame) -> Result<(), CallFailure> {
    let until = Instant::now() + ANNOUNCE_WITHIN;
    let Received { tag, frame, .. } = match connection.call(Method::Announce, said, until).await {
        Ok(received) => received,
        // Nothing but the announcement can have been seen.
        Err(CallFailure::Broken(reason)) => return Err(CallFailure::NotSent(reason)),
        Err(CallFailure::Deadline) => {
            let reason = "no answer to the announcement in time";
            return Err(CallFailure::NotSent(reason.into()));
        }
        Err(failure) => return Err(failure),
    };
    if tag == 0 {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&frame.head).into();
    Err(CallFailure::Refused(RefusalKind::of(tag), reason))
}

async fn dial(dialer: &Dialer, address: &str, caller: Caller) -> io::Result<Arc<Connection>> {
    let stream = dialer.dial(address, Protocol::Frames).await?;
    let (from, mut to) = stream.into_split();
    let introduction = wire::encode(&Introduction::from(caller));
    to.write_all(&begin(&introduction)).await?;
    to.flush().await?;
    let pending = Arc::new(Mutex::new(Pending::default()));
    let reading = tokio::spawn(read(Reader::new(from), Arc::clone(&pending)));
    Ok(Arc::new(Connection {
        to: tokio::sync::Mutex::new(to),
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
async fn read(mut from: Reader<ReadSide>, pending: Arc<Mutex<Pending>>) {
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

/// A connection to one peer. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    to: tokio::sync::Mutex<WriteSide>,
    pending: Arc<Mutex<Pending>>,
    reading: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum CallFailure {
    /// Not a byte of the call was sent.
    NotSent(Arc<str>),
    /// Nor was there, since the peer's host says that nobody listens where the peer was.
    NobodyThere(Arc<str>),
    /// Nor was there, since the peer did not take the caller's announcement.
    Refused(RefusalKind, Arc<str>),
    /// The connection ended, and the peer may have seen the call.
    Broken(Arc<str>),
    /// No answer in time; the peer may have seen the call.
    Deadline,
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

/// Ends a connection on which a frame was given up half-way.
struct Sending<'c> {
    connection: &'c Connection,
    is_partial: bool,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if self.is_partial {
            self.connection
                .end(&"a call was given up while it was sent".into());
        }
    }
}

impl Connection {
    /// Whether it takes no more calls.
    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.pending).ended.is_some()
    }

    fn end(&self, reason: &Arc<str>) {
        end(&self.pending, reason);
        self.reading.abort();
    }

    /// Makes a call and waits for its answer until `until`.
    ///
    /// # Errors
    /// [`CallFailure`].
    pub(crate) async fn call(
        &self,
        method: Method,
        message: &Frame,
        until: Instant,
    ) -> Result<Received, CallFailure> {
        if !fits(message) {
            let reason = "a message that is larger than peers take";
            return Err(CallFailure::NotSent(reason.into()));
        }
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut pending = lock(&self.pending);
            let number = pending.next;
            pending.next = number.wrapping_add(1);
            pending.waiting.insert(number, answer);
            number
        };
        let _waiting = Waiting {
            pending: &self.pending,
            number,
        };
        self.send(number, method, message, until).await?;
        match timeout_at(until, answered).await {
            Ok(Ok(answer)) => answer.map_err(CallFailure::Broken),
            Ok(Err(_)) => Err(CallFailure::Broken("the connection was dropped".into())),
            Err(_) => Err(CallFailure::Deadline),
        }
    }

    async fn send(
        &self,
        number: u32,
        method: Method,
        message: &Frame,
        until: Instant,
    ) -> Result<(), CallFailure> {
        let not_sent = |reason: &str| Err(CallFailure::NotSent(reason.into()));
        let Ok(mut to) = timeout_at(until, self.to.lock()).await else {
            return not_sent("the connection is full");
        };
        if let Some(reason) = &lock(&self.pending).ended {
            return not_sent(reason);
        }
        let mut sending = Sending {
            connection: self,
            is_partial: false,
        };
        let writing = write(
            &mut *to,
            number,
            method as u8,
            message,
            &mut sending.is_partial,
        );
        match timeout_at(until, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let reason: Arc<str> = format!("the connection broke: {error}").into();
                self.end(&reason);
                Err(CallFailure::Broken(reason))
            }
            Err(_) if sending.is_partial => Err(CallFailure::Deadline),
            Err(_) => not_sent("the connection is full"),
        }
    }
}
