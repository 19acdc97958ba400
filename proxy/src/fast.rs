//! The short path of plain HTTP/1.1 requests.
//!
//! What most requests need is little: read a head, choose a replica, write a head, pass bytes on both
//! ways. This does that and no more, without a map of fields, a task or a timer for each request, and
//! with buffers that a connection holds only while bytes are in them (ADR 12). Routing, policy,
//! counts and refusals are those of the general path.
//!
//! What holds: nothing is taken from a connection before it is known to be plain and a replica has
//! accepted a connection for it. Until then the general path can take over, and sees every byte.
//! Once it has, it keeps the connection until that rests: a client that needs it once is likely to need it again.

mod answer;
mod buffers;
mod date;
mod exchange;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod request;
mod transfer;

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::task::Poll;

use http::Version;
use raftserve_model::spec::{LoadBalancingPolicy, Timeouts, Traffic, UpstreamProtocol};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::access_log::Record;
use crate::client_bound::ClientBound;
use crate::connection::{Client, FIRST_REQUEST_WITHIN, Lent, is_blank};
use crate::drain::{Phase, Watch};
use crate::limit::Limit;
use crate::prefixed::Prefixed;
use crate::routes::ServiceRoute;
use crate::trace;
use crate::tracer::{Asked, Sampled, Trace, Tracer, TryId};
use crate::view::ServiceView;
use crate::worker::Worker;

use buffers::{Buffer, Size, Text};
use exchange::End;
use framing::Framing;
use request::{FIELDS_MAX, Parsed, PlainRequest, Way};

pub(crate) use buffers::Buffers;
pub(crate) use date::Date;

/// How many reads a head may take. A longer one is the general path's, which does not begin anew at
/// each read.
const HEAD_READS_MAX: u32 = 4;

/// One client's connection.
struct Connection {
    worker: Rc<Worker>,
    client: Rc<Client>,
    stream: TcpStream,
    /// The request that was sent, while it may be sent again.
    replay: Option<Buffer>,
    /// What was read and not used yet.
    buffer: Option<Buffer>,
    bound: ClientBound,
    limit: Limit,
    watch: Watch,
}

/// A plain request, ready to be sent.
struct Outgoing {
    service: Rc<ServiceView>,
    /// The head for the replica.
    text: Text,
    /// How many bytes the client's head has.
    head_len: usize,
    framing: Framing,
    to_head: bool,
    close: bool,
    /// Whether it may be sent again after it was sent.
    again: bool,
    began: Instant,
    /// What the access log will say of it.
    told: Option<Box<Record>>,
    /// Where its spans are gathered, if they are to be told, and that of its try.
    traced: Option<Traced>,
}

/// Where a request's spans are gathered, and that of its only try here.
type Traced = (Rc<Trace>, TryId);

/// What the next bytes of a connection are.
enum Next {
    Plain(Outgoing),
    /// Something for the general path.
    Other,
    /// The connection has ended, or has been silent for too long.
    Ended,
}

/// Serves a connection until it ends. Its errors are the client's affair, and told to no one.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, client: Client) {
    let watch = worker.drain.watch();
    let limit = Limit::new(Instant::now() + worker.shared.config.header_timeout);
    let bound = ClientBound::new(worker.shared.config.client_user_timeout);
    let mut connection = Connection {
        worker,
        client: Rc::new(client),
        stream,
        replay: None,
        buffer: None,
        bound,
        limit,
        watch,
    };
    let mut first = true;
    loop {
        match connection.next(first).await {
            // Boxed, so that a connection which idles is small.
            Next::Plain(outgoing) => match Box::pin(exchange::run(&mut connection, outgoing)).await
            {
                End::Keep => {
                    first = false;
                    connection.await_head();
                    continue;
                }
                End::Close => return,
                // Its head is there; what the limit has measured is the silence of a replica.
                End::Unsent => connection.await_head(),
            },
            Next::Other => {}
            Next::Ended => return,
        }
        // It is larger than all of the short path, and would make every connection pay for it.
        match Box::pin(connection.lend()).await {
            // The limit is what the last answer made it: blank lines alone earn no more time.
            Some(back) => connection = back,
            None => return,
        }
        first &= connection.client.turns.begun() == 0;
    }
}

impl Connection {
    /// Gives the next head its time from now on.
    fn await_head(&mut self) {
        let header_timeout = self.worker.shared.config.header_timeout;
        self.limit.set(Instant::now() + header_timeout);
    }

    /// Has the general path serve it, until it rests or has ended.
    async fn lend(self) -> Option<Self> {
        let Self {
            worker,
            client,
            stream,
            buffer,
            bound,
            limit,
            watch,
            replay: _,
        } = self;
        let read = buffer.map_or(Vec::new(), |buffer| buffer.filled().to_vec());
        let mut lent = Lent {
            worker,
            client,
            bound,
            watch,
            limit,
        };
        let (left, stream) = lent.serve(Prefixed::new(read, stream)).await?.into_parts();
        if !is_blank(&left) {
            return None; // Part of a request, of which the library knows nothing any more.
        }
        let Lent {
            worker,
            client,
            bound,
            watch,
            limit,
        } = lent;
        Some(Self {
            worker,
            client,
            stream,
            replay: None,
            buffer: None,
            bound,
            limit,
            watch,
        })
    }

    /// Awaits the next request's head.
    async fn next(&mut self, first: bool) -> Next {
        let mut reads = 0;
        loop {
            if let Some(next) = self.parsed() {
                return next;
            }
            if let Some(buffer) = &mut self.buffer {
                buffer.compact();
                if buffer.is_full() {
                    return Next::Other;
                }
            }
            if reads == HEAD_READS_MAX {
                return Next::Other;
            }
            reads += 1;
            if !self.read(first).await {
                return Next::Ended;
            }
        }
    }

    /// What was read, as far as it can be told.
    fn parsed(&mut self) -> Option<Next> {
        let buffer = self.buffer.as_ref()?;
        let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        match PlainRequest::read(buffer.filled(), &mut room) {
            Parsed::Partial => None,
            Parsed::Other => Some(Next::Other),
            Parsed::Plain(plain) => Some(self.route(&plain).map_or(Next::Other, Next::Plain)),
        }
    }

    /// Finds a plain request's service and writes the replica's head.
    fn route(&self, plain: &PlainRequest<'_, '_>) -> Option<Outgoing> {
        let view = self.worker.view();
        let listener = self.client.listener;
        let found = view.table.resolve(plain.host, plain.path(), listener)?;
        let way = Way {
            client: self.client.address.as_bytes(),
            proto: self.client.proto,
            prefix_len: found.prefix_len,
        };
        let service = view.at(found.index);
        // Who comes while others wait, waits behind them.
        if !service.is_plain || !service.queue.is_empty() || !plain.fits(&way) {
            return None;
        }
        let traffic = &service.route.traffic;
        let bytes_max = traffic.request_body_bytes_max;
        if bytes_max.is_some_and(|most| !plain.framing.is_within(most)) {
            return None; // The general path counts, and refuses.
        }
        let head_max = traffic.request_head_bytes_max;
        if head_max.is_some_and(|most| plain.head_len > most as usize) {
            return None; // As well.
        }
        let retries = &service.route.traffic.retries;
        let again = retries.after_sent && retries.max > 0 && plain.is_idempotent();
        if again && !plain.framing.is_done() {
            return None; // Only the general path keeps a body that may have to be sent again.
        }
        let began = Instant::now();
        self.client.lifetime.used(began);
        let config = &self.worker.shared.config;
        let (traced, context) = match &config.tracer {
            None => (None, None),
            Some(tracer) => self.traced(tracer, plain, &service.route, began),
        };
        let mut text = self.worker.buffers.text();
        plain.write(&mut text, &way, context.as_ref(), trace::random);
        let told = config.access_log.as_ref().map(|log| {
            let mut record = Record::new(log, &service.route.name, &self.client.address);
            record.asked(plain.method, plain.host, plain.path());
            record.trace = request::trace_of(&text);
            Box::new(record)
        });
        Some(Outgoing {
            service: Rc::clone(service),
            text,
            head_len: plain.head_len,
            framing: plain.framing.clone(),
            to_head: plain.is_head(),
            close: plain.close,
            again,
            began,
            told,
            traced,
        })
    }

    /// Where a request's spans are gathered, if they are to be told, and the context that its replica gets instead
    /// of the client's.
    fn traced(
        &self,
        tracer: &Tracer,
        plain: &PlainRequest<'_, '_>,
        route: &ServiceRoute,
        began: Instant,
    ) -> (Option<Traced>, Option<[u8; 55]>) {
        let (parent, state) = plain.context();
        let context = match tracer.sample(parent, state, trace::random) {
            Sampled::No => return (None, None),
            Sampled::Begun(line) => return (None, Some(line)),
            Sampled::Yes(context) => context,
        };
        let asked = Asked::new(
            (&route.name, &self.client),
            plain.method,
            plain.host,
            plain.path(),
            Version::HTTP_11,
        );
        let trace = Trace::new(tracer, context, began, asked);
        let id = trace.next_try();
        let line = trace.line(id);
        (Some((Rc::new(trace), id)), Some(line))
    }

    /// Reads once. `false` if the connection has ended, by the client or by us.
    async fn read(&mut self, first: bool) -> bool {
        let buffers = &self.worker.buffers;
        let (mut stream, _) = self.stream.split();
        let (slot, limit, watch) = (&mut self.buffer, &mut self.limit, &mut self.watch);
        let mut shortened = false;
        poll_fn(|cx| {
            if let Poll::Ready(read) =
                transfer::poll_read(&mut stream, cx, slot, buffers, Size::Small, None)
            {
                return Poll::Ready(read.is_ok_and(|count| count > 0));
            }
            // What has begun to come has its whole time, even if the proxy closes.
            if !shortened && slot.is_none() && watch.poll(cx) == Phase::Ending {
                if !first {
                    return Poll::Ready(false);
                }
                shortened = true;
                limit.shorten(Instant::now() + FIRST_REQUEST_WITHIN);
            }
            limit.poll(cx).map(|()| false)
        })
        .await
    }
}

/// Whether this path does all that the service asks for: any ready replica may answer, over a
/// connection in cleartext, by the usual rules of retrying and waiting.
pub(crate) fn carries(service: &ServiceRoute) -> bool {
    let Traffic {
        hash_on: _,
        upstream,
        timeouts:
            Timeouts {
                first_byte,
                idle,
                total,
                // Nothing is switched on this path.
                tunnel_idle: _,
            },
        retries,
        ejection: _,
        slow_start: _,
        queue: _,
        // Where these matter, a request is left to the general path.
        request_body_bytes_max: _,
        request_head_bytes_max: _,
        routes,
    } = &service.traffic;
    let any_replica = match service.policy {
        LoadBalancingPolicy::RoundRobin
        | LoadBalancingPolicy::LeastLoad
        | LoadBalancingPolicy::InstanceAwareLeastLoad
        | LoadBalancingPolicy::P2c => service.affinity.is_none() && routes.is_empty(),
        LoadBalancingPolicy::RingHash | LoadBalancingPolicy::Maglev => false,
    };
    let tries_once_sent = !retries.statuses.is_empty()
        || retries.per_try_timeout.is_some()
        || retries.hedge_after.is_some();
    any_replica
        && upstream.tls.is_none()
        && upstream.protocol != UpstreamProtocol::Http2
        && [first_byte, idle, total]
            .iter()
            .all(|limit| limit.is_none())
        && !tries_once_sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_idles_is_small() {
        let bytes = size_of_future(serve);
        assert!(bytes <= 1024, "{bytes} bytes");
    }
}
