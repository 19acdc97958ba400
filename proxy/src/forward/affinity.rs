//! A request of a strictly bound session: the replica it is bound to answers it, or none.

use std::rc::Rc;
use std::time::Duration;

use http::Request;
use raftserve_model::SessionKey;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Sent, balance};
use crate::answer::Refusal;
use crate::body::UploadBody;
use crate::load::InFlight;
use crate::metrics::count;
use crate::session::{BindError, BoundReplica, Lookup};
use crate::upstream::ExchangeError;
use crate::view::ServiceView;
use crate::worker::Worker;

/// How often a waiting request looks again even if it was told of no change: a lease comes back, and
/// a replica's port opens, without a word.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Sends the request to the replica that its session is bound to, binding the session first if need be.
pub(super) async fn send(
    worker: &Rc<Worker>,
    service: &ServiceView,
    key: SessionKey,
    request: Request<UploadBody>,
) -> Result<Sent, Refusal> {
    let mut session = Session {
        worker,
        service,
        key,
        patience: None,
    };
    session.send(request).await
}

struct Session<'a> {
    worker: &'a Rc<Worker>,
    service: &'a ServiceView,
    key: SessionKey,
    /// Made at the first wait, so that a bound session costs none.
    patience: Option<Patience>,
}

/// Nothing was sent. What to do with the request now:
enum Unsent {
    /// Look at once: what is known may have changed meanwhile.
    LookAgain(Request<UploadBody>),
    /// Wait for a change, for this reason.
    Wait(Request<UploadBody>, &'static str),
}

impl Session<'_> {
    async fn send(&mut self, mut request: Request<UploadBody>) -> Result<Sent, Refusal> {
        loop {
            let why = match self.lookup() {
                Lookup::Bound(bound) => match self.send_to(bound, request).await? {
                    Ok(sent) => return Ok(sent),
                    Err(Unsent::LookAgain(unsent)) => {
                        request = unsent;
                        continue;
                    }
                    Err(Unsent::Wait(unsent, why)) => {
                        request = unsent;
                        why.to_owned()
                    }
                },
                Lookup::Unbound => {
                    self.bind().await?;
                    if self.lookup() != Lookup::Unbound {
                        continue;
                    }
                    "it could not be bound to a replica yet".to_owned()
                }
                Lookup::Wait => "its binding is not certain at this peer".to_owned(),
                Lookup::Refused { reason } => return Err(Refusal::SessionRefused(reason)),
            };
            if !self.wait().await {
                return Err(Refusal::Session(why));
            }
        }
    }

    fn lookup(&self) -> Lookup {
        let sessions = &self.worker.shared.sessions;
        sessions.lookup(self.service.route.id, self.key)
    }

    /// Has the session bound. What came of it is seen by looking again.
    async fn bind(&mut self) -> Result<(), Refusal> {
        count(&self.service.counters.session_binds);
        let end = self.patience().end;
        let sessions = &self.worker.shared.sessions;
        let bind = sessions.bind(self.service.route.id, self.key);
        match timeout_at(end, bind).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(BindError::Unavailable(reason))) => {
                tracing::debug!(%reason, "a session could not be bound yet");
                Ok(())
            }
            Ok(Err(BindError::Refused(reason))) => Err(Refusal::SessionRefused(reason)),
            Err(_) => Err(Refusal::Session("it could not be bound in time".to_owned())),
        }
    }

    /// Sends to exactly this replica. After each wait the binding must still be the same: one taken
    /// before a wait, or before this process was paused in it, is not acted on.
    async fn send_to(
        &self,
        bound: BoundReplica,
        request: Request<UploadBody>,
    ) -> Result<Result<Sent, Unsent>, Refusal> {
        let config = &self.worker.shared.config;
        let upstream = {
            let view = self.worker.view();
            let service = view.service(self.service.route.id);
            service
                .and_then(|service| service.replica(bound.replica))
                .cloned()
        };
        let Some(upstream) = upstream else {
            return Ok(Err(Unsent::Wait(request, "its replica has no address now")));
        };
        let in_flight = InFlight::start(&upstream.gauge);
        let (mut checkout, fresh) = match upstream.checkout(config) {
            Some(checkout) => (checkout, false),
            None => match upstream.connect(config).await {
                Ok(checkout) => (checkout, true),
                Err(_) => {
                    self.worker.connect_failed(self.service, &upstream);
                    return Ok(Err(Unsent::Wait(
                        request,
                        "its replica accepts no connection",
                    )));
                }
            },
        };
        if fresh && self.lookup() != Lookup::Bound(bound) {
            checkout.give_back();
            return Ok(Err(Unsent::LookAgain(request)));
        }
        match checkout
            .exchange(request, self.service.route.stream_timeout)
            .await
        {
            Ok(response) => Ok(Ok(Sent {
                response,
                in_flight,
                checkout,
            })),
            Err(ExchangeError::NotSent(unsent)) if fresh => {
                self.worker.connect_failed(self.service, &upstream);
                let why = "its replica closes connections unused";
                Ok(Err(Unsent::Wait(*unsent, why)))
            }
            Err(ExchangeError::NotSent(unsent)) => {
                upstream.clear();
                Ok(Err(Unsent::LookAgain(*unsent)))
            }
            Err(error) => Err(balance::refusal(&error)),
        }
    }

    fn patience(&mut self) -> &mut Patience {
        let shared = &self.worker.shared;
        self.patience.get_or_insert_with(|| Patience {
            end: Instant::now() + shared.config.session_wait,
            sessions: shared.sessions.changed(),
            routes: shared.routes.published(),
        })
    }

    /// Waits for anything to change. `false` once the request's patience is over.
    async fn wait(&mut self) -> bool {
        if self.patience.is_none() {
            // What changed between the look and this subscription would be missed: look again first.
            count(&self.service.counters.session_waits);
            self.patience();
            return true;
        }
        self.patience().wait().await
    }
}

/// How long a request still waits, and what for.
struct Patience {
    end: Instant,
    sessions: watch::Receiver<u64>,
    routes: watch::Receiver<u64>,
}

impl Patience {
    async fn wait(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.end {
            return false;
        }
        tokio::select! {
            Ok(()) = self.sessions.changed() => {}
            Ok(()) = self.routes.changed() => {}
            () = sleep_until(self.end.min(now + LOOK_AGAIN_AFTER)) => {}
        }
        true
    }
}
