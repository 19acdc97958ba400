//! Readiness probes: one task for each replica that runs, at the pace its service asks for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use raftserve_model::ReplicaId;
use raftserve_model::spec::ReadinessProbe;
use raftserve_store::State;
use raftserve_store::state::{Phase, Replica};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::plan::ProbeView;
use crate::share::Suspects;

/// The longest pause between probes until the first success, so that a replica serves soon after it
/// can, whatever the interval.
const STARTING_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// The first pause after a failed probe of a starting replica; it doubles up to the longest.
const STARTING_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The most redirects followed, within the replica's own address.
const REDIRECTS_MAX: usize = 5;

/// The verdicts so far, shared with the probing tasks.
#[derive(Default)]
struct Verdicts {
    by_replica: Mutex<BTreeMap<ReplicaId, Verdict>>,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Verdict {
    last: Result<(), String>,
    failing_since: Option<Instant>,
}

impl Verdicts {
    /// Notes a verdict; tells the controller unless it only repeats a success.
    fn note(&self, replica: ReplicaId, result: Result<(), String>) {
        let now = Instant::now();
        let mut map = self
            .by_replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = map.get(&replica);
        let news = result.is_err() || before.is_none_or(|verdict| verdict.last.is_err());
        let failing_since = match &result {
            Ok(()) => None,
            Err(_) => Some(before.and_then(|it| it.failing_since).unwrap_or(now)),
        };
        map.insert(
            replica,
            Verdict {
                last: result,
                failing_since,
            },
        );
        drop(map);
        if news {
            self.changed.notify_one();
        }
    }
}

struct Task {
    address: String,
    readiness: ReadinessProbe,
    poke: Arc<Notify>,
    _running: AbortOnDropHandle<()>,
}

/// All probes of one reign.
pub(super) struct Probes {
    tasks: BTreeMap<ReplicaId, Task>,
    verdicts: Arc<Verdicts>,
    suspects: Arc<Suspects>,
}

impl Probes {
    pub(super) fn new(suspects: Arc<Suspects>) -> Self {
        Self {
            tasks: BTreeMap::new(),
            verdicts: Arc::default(),
            suspects,
        }
    }

    /// Probes exactly the replicas that run, each by its version's readiness rules.
    pub(super) fn follow(&mut self, state: &State) {
        let mut wanted = BTreeMap::new();
        for replica in state.replicas() {
            if let (
                Some(address),
                Some(service),
                Phase::Starting | Phase::Ready | Phase::NotReady { .. },
            ) = (
                &replica.address,
                state.service(replica.id.service),
                &replica.phase,
            ) {
                let spec = service.spec_of(replica.version);
                if spec.provider.tells_readiness() {
                    continue;
                }
                let readiness = &spec.readiness;
                wanted.insert(replica.id, (address, readiness, replica));
            }
        }
        self.tasks.retain(|id, task| {
            wanted.get(id).is_some_and(|(address, readiness, _)| {
                task.address == **address && task.readiness == **readiness
            })
        });
        self.verdicts
            .by_replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|id, _| wanted.contains_key(id));
        for (id, (address, readiness, replica)) in wanted {
            if !self.tasks.contains_key(&id) {
                let task = self.start(address, readiness, replica);
                self.tasks.insert(id, task);
            }
        }
    }

    /// Waits for a verdict that may matter. Probes of suspected replicas are brought forward meanwhile.
    pub(super) async fn changed(&self) {
        loop {
            tokio::select! {
                () = self.verdicts.changed.notified() => return,
                suspects = self.suspects.take() => {
                    for suspect in suspects {
                        if let Some(task) = self.tasks.get(&suspect) {
                            task.poke.notify_one();
                        }
                    }
                }
            }
        }
    }

    pub(super) fn views(&self) -> BTreeMap<ReplicaId, ProbeView> {
        self.verdicts
            .by_replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(id, verdict)| {
                let view = ProbeView {
                    last: Some(verdict.last.clone()),
                    failing_for: verdict.failing_since.map(|since| since.elapsed()),
                };
                (*id, view)
            })
            .collect()
    }

    fn start(&self, address: &str, readiness: &ReadinessProbe, replica: &Replica) -> Task {
        let poke = Arc::new(Notify::new());
        let prober = Prober {
            id: replica.id,
            starting: replica.phase == Phase::Starting,
            address: address.to_owned(),
            readiness: readiness.clone(),
            verdicts: Arc::clone(&self.verdicts),
            poke: Arc::clone(&poke),
        };
        Task {
            address: address.to_owned(),
            readiness: readiness.clone(),
            poke,
            _running: AbortOnDropHandle::new(tokio::spawn(prober.run())),
        }
    }
}

struct Prober {
    id: ReplicaId,
    starting: bool,
    address: String,
    readiness: ReadinessProbe,
    verdicts: Arc<Verdicts>,
    poke: Arc<Notify>,
}

impl Prober {
    async fn run(mut self) {
        let mut starting_pause = STARTING_INTERVAL_MIN;
        loop {
            let result = self.probe().await;
            self.starting &= result.is_err();
            self.verdicts.note(self.id, result);
            let pause = if self.starting {
                let pause = starting_pause;
                starting_pause = (pause * 2).min(STARTING_INTERVAL_MAX);
                pause.min(self.readiness.interval)
            } else {
                self.readiness.interval
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => {}
            }
        }
    }

    async fn probe(&self) -> Result<(), String> {
        match tokio::time::timeout(self.readiness.timeout, self.ask()).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "no answer to {} within {:?}",
                self.readiness.path, self.readiness.timeout
            )),
        }
    }

    /// Only 200 counts, after redirects within the replica.
    async fn ask(&self) -> Result<(), String> {
        let mut path = self.readiness.path.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.ask_once(&path).await?;
            match answer.location {
                Some(location) if (300..400).contains(&answer.status) => {
                    path = self.path_within(&location)?;
                }
                _ if answer.status == 200 => return Ok(()),
                _ => {
                    return Err(format!("{path} answered {}, not 200", answer.status));
                }
            }
        }
        Err(format!("{path} redirected more than {REDIRECTS_MAX} times"))
    }

    fn path_within(&self, location: &str) -> Result<String, String> {
        let own = format!("http://{}", self.address);
        let path = location.strip_prefix(&own).unwrap_or(location);
        if path.starts_with('/') && !path.starts_with("//") {
            Ok(path.to_owned())
        } else {
            Err(format!("redirected elsewhere, to {location}"))
        }
    }

    async fn ask_once(&self, path: &str) -> Result<Answer, String> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| format!("cannot connect to {}: {error}", self.address))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("no HTTP: {error}"))?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its end, good or bad, reaches us as the answer or its absence.
            let _ = connection.await;
        }));
        let response = sender
            .send_request(self.request(path)?)
            .await
            .map_err(|error| format!("no answer to {path}: {error}"))?;
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get(http::header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        // Read to the end, so that the replica does not log a broken pipe, but not without end.
        let mut body = http_body_util::Limited::new(response.into_body(), 1 << 20);
        while let Some(Ok(_)) = body.frame().await {}
        Ok(Answer { status, location })
    }

    fn request(&self, path: &str) -> Result<http::Request<Full<Bytes>>, String> {
        let (method, body) = match &self.readiness.post_data {
            Some(data) => (http::Method::POST, Bytes::from(data.clone())),
            None => (http::Method::GET, Bytes::new()),
        };
        let mut request = http::Request::builder()
            .method(&method)
            .uri(path)
            .header(http::header::HOST, &self.address)
            .header(http::header::USER_AGENT, "raftserve-probe");
        if method == http::Method::POST {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in &self.readiness.headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(body))
            .map_err(|error| format!("cannot ask for {path}: {error}"))
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
}
