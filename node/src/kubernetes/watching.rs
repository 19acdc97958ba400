//! A watch that also tells when it works again.
//!
//! kube's watcher tells of each try that fails, and of each object. That a try has succeeded, and nothing has changed since,
//! it does not tell: who has said that the API server is away would say so until something changes.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::Resource;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::client::ANSWER_MAX;

/// How much later than it should a failure may be told, on a busy machine.
const MARGIN: Duration = Duration::from_secs(1);

/// How long one watch lasts, in seconds. A server that says nothing any more is noticed after it; that there is no path to it
/// any more, long before, by the connection itself.
const WATCH_SECS: u32 = 60;

/// The longest pause between tries. kube's own, of a minute, are for thousands of watchers that an API server meets at once when
/// it is back; here they are the few peers of a cluster, and until one is heard again replicas may be gone that get requests.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How soon a server that refuses a try refuses the next one. Where it does not, it is taken to let us watch: what was wrong with
/// that is told anew. One that was found to take longer is given [`ANSWER_MAX`].
const REFUSED_AGAIN: Duration = Duration::from_secs(2);

/// What is heard of a watch.
#[derive(Debug)]
pub enum Heard<K> {
    /// As the watcher tells it.
    Event(Event<K>),
    /// A try failed; there will be others.
    Failed(watcher::Error),
    /// The try after that has not failed: objects are as they were told.
    Recovered,
}

/// Objects of one kind, watched for as long as somebody asks for the next event.
pub struct Watching<K> {
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>,
    pause: Arc<AtomicU64>,
    /// Whether a list is under way, whose end is told by itself.
    listing: bool,
    /// When a try must have succeeded, if none fails before.
    recovers_at: Option<Instant>,
    /// When that was last told for want of a refusal.
    recovered_at: Option<Instant>,
    /// How soon this server refuses the next try.
    refuses_within: Duration,
}

impl<K> Watching<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Those that bear `labels`. Calls nobody yet.
    #[must_use]
    pub fn begin(api: Api<K>, labels: &str) -> Self {
        let config = watcher::Config::default()
            .labels(labels)
            .timeout(WATCH_SECS);
        let pause = Arc::<AtomicU64>::default();
        let pauses = Pauses {
            pauses: DefaultBackoff::default(),
            last_ms: Arc::clone(&pause),
        };
        Self {
            events: watcher(api, config).backoff(pauses).boxed(),
            pause,
            listing: true,
            recovers_at: None,
            recovered_at: None,
            refuses_within: REFUSED_AGAIN,
        }
    }

    /// What is heard next; none if there will be nothing any more. May be given up at any time, and loses nothing by it.
    pub async fn next(&mut self) -> Option<Heard<K>> {
        let next = self.events.next();
        let heard = match self.recovers_at.filter(|_| !self.listing) {
            None => next.await,
            Some(at) => match timeout_at(at, next).await {
                Ok(heard) => heard,
                Err(_) => {
                    self.recovers_at = None;
                    self.recovered_at = Some(Instant::now());
                    return Some(Heard::Recovered);
                }
            },
        };
        Some(match heard? {
            Ok(event) => {
                // That a list begins is told before anybody is asked for it.
                self.listing = match event {
                    Event::Init | Event::InitApply(_) => true,
                    Event::InitDone | Event::Apply(_) | Event::Delete(_) => false,
                };
                if !self.listing {
                    self.recovers_at = None;
                }
                Heard::Event(event)
            }
            Err(error) => {
                let pause = Duration::from_millis(self.pause.load(Ordering::Relaxed));
                let recovered = self.recovered_at.take();
                if recovered.is_some_and(|at| at.elapsed() < ANSWER_MAX) {
                    self.refuses_within = ANSWER_MAX + MARGIN; // Nothing had recovered.
                }
                let answer_max = match is_refusal(&error) {
                    true => self.refuses_within,
                    false => ANSWER_MAX + MARGIN,
                };
                self.recovers_at = Some(Instant::now() + pause + answer_max);
                Heard::Failed(error)
            }
        })
    }
}

/// Whether a server that answers did not let us watch.
fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403))
        }
        watcher::Error::WatchError(status) => matches!(status.code, 401 | 403),
        watcher::Error::NoResourceVersion => false,
    }
}

/// The pauses that kube makes between tries, none above [`PAUSE_MAX`], of which the last is remembered.
struct Pauses {
    pauses: DefaultBackoff,
    last_ms: Arc<AtomicU64>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pauses.next()?.min(PAUSE_MAX);
        let ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.pauses.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::combinators::UnsyncBoxBody;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::Frame;
    use k8s_openapi::api::core::v1::Pod;
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// An API server that lists nothing, refuses so many watches with a code, each `after` so long, and then has nothing to tell.
    fn refusing(watches: u64, code: u16, after: Duration) -> Client {
        let asked = AtomicU64::new(0);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let is_watch = query.contains("watch=true");
            let refused = is_watch && asked.fetch_add(1, Ordering::Relaxed) < watches;
            let list = json!({
                "apiVersion": "v1", "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": [],
            });
            let (code, body): (_, UnsyncBoxBody<Bytes, Infallible>) = match (is_watch, refused) {
                (_, true) => {
                    let status = json!({
                        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                        "message": "", "reason": "", "code": code,
                    });
                    (code, Full::from(status.to_string()).boxed_unsync())
                }
                (true, _) => {
                    let silence = futures_util::stream::pending::<Result<Frame<Bytes>, _>>();
                    (200, StreamBody::new(silence).boxed_unsync())
                }
                (false, _) => (200, Full::from(list.to_string()).boxed_unsync()),
            };
            let answer = http::Response::builder().status(code).body(body);
            async move {
                if refused {
                    sleep(after).await;
                }
                answer
            }
        });
        Client::new(service, "ns")
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_watch_works_again_is_told_once_although_nothing_changes() {
        let pods: Api<Pod> = Api::namespaced(refusing(5, 503, Duration::ZERO), "ns");
        recovers(pods, PAUSE_MAX + ANSWER_MAX + MARGIN).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_that_is_granted_is_noticed_within_ten_seconds() {
        for refused in [1, 5, 20] {
            let pods: Api<Pod> = Api::namespaced(refusing(refused, 403, Duration::ZERO), "ns");
            recovers(pods, PAUSE_MAX + REFUSED_AGAIN).await;
        }
        assert!(PAUSE_MAX + REFUSED_AGAIN <= Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_its_time_to_refuse_is_taken_once_to_let_us_watch() {
        const REFUSED: u64 = 20;
        let after = REFUSED_AGAIN + Duration::from_secs(1);
        let pods: Api<Pod> = Api::namespaced(refusing(REFUSED, 403, after), "ns");
        let mut watching = Watching::begin(pods, "a=b");
        let mut told = 0;
        for _ in 0..REFUSED {
            loop {
                match watching.next().await.unwrap() {
                    Heard::Failed(_) => break,
                    Heard::Recovered => told += 1,
                    Heard::Event(_) => {}
                }
            }
        }
        assert_eq!(told, 1);
        assert!(matches!(watching.next().await, Some(Heard::Recovered)));
    }

    /// Watches until that has failed as often as it is to, and then works again, which is told once and `within` so long.
    async fn recovers(pods: Api<Pod>, within: Duration) {
        let mut watching = Watching::begin(pods, "a=b");
        let mut heard = async || watching.next().await.unwrap();
        assert!(matches!(heard().await, Heard::Event(Event::Init)));
        assert!(matches!(heard().await, Heard::Event(Event::InitDone)));
        let mut last = Instant::now();
        loop {
            match heard().await {
                Heard::Failed(_) => last = Instant::now(),
                Heard::Recovered => break,
                Heard::Event(event) => panic!("{event:?}"),
            }
        }
        assert!(last.elapsed() <= within, "{:?}", last.elapsed());
        let more = timeout(Duration::from_secs(600), heard()).await;
        assert!(more.is_err(), "{more:?}");
    }
}
