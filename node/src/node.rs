//! One peer, wired: [`run`] starts its parts in order, waits for a reason to stop, and stops them in
//! the opposite order.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use raftserve_model::{Incarnation, LogIndex, ReplicaId};
use raftserve_proxy::{
    AccessLog, Announcer, OpenFiles, PortState, PortStatus, Proxy, ProxyConfig, Routes, Tracer,
};
use raftserve_store::formats::SUPPORTED;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{self, Certificates, Credentials};
use crate::admin::{self, AdminParts, Audience, Denials};
use crate::bindings::Bindings;
use crate::cli::node_args::NodeArgs;
use crate::clock;
use crate::config::NodeConfig;
use crate::consensus::{Consensus, Leadership};
use crate::controller::Controller;
use crate::kubernetes::departure::Graces;
use crate::kubernetes::{ApiServer, Home};
use crate::logging;
use crate::ops::{self, Readiness, Report};
use crate::otlp::Exporter;
use crate::peer::{self, BootstrapError, Founding, Peer, PeerConfig, StartError};
use crate::projection;
use crate::provider::Provider;
use crate::provider::host::HostFingerprint;
use crate::provider::kubernetes::KubernetesProvider;
use crate::provider::process::{ProcessProvider, ReplicaRoot};
use crate::provider::run_dir::SocketPath;
use crate::raft_metrics;
use crate::share::{Loads, Share, Suspects};

/// Why a peer stops that the cluster has removed.
const REMOVED: &str = "the cluster has removed this peer";

/// The exit code of a peer that the cluster has removed: to start it again helps nobody before its directory is empty.
pub(crate) const REMOVED_EXIT: u8 = 6;

/// The exit code for flags that do not fit one another, as for one that cannot be understood.
const USAGE_EXIT: u8 = 2;

/// How long handing leadership over may hold up a stop.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(2);

/// How long tasks may take to end after they are told to.
const TASKS_DEADLINE: Duration = Duration::from_secs(5);

/// The longest that one try to catch up with a leader may take.
const CATCH_UP_TRY: Duration = Duration::from_secs(2);

/// How long Raft and the log may take to close.
const PEER_STOP_MAX: Duration = Duration::from_secs(20);

/// Threads for the controller and projections. Traffic, Raft and the admin API have their own.
const THREADS: usize = 1;

/// Threads for the admin API. With one, what a connection and its requests tell each other costs no wake of another
/// thread, and no thread looks for work that is not there.
const ADMIN_THREADS: usize = 1;

/// How many refused connections may wait to be reported; more tell nothing new.
const CONNECT_FAILURES_MAX: usize = 64;

/// The ports of a peer, bound before anything else starts, so that a taken one is told at once.
struct Ports {
    peer: StdTcpListener,
    admin: TcpListener,
    ops: TcpListener,
}

impl Ports {
    async fn bind(config: &NodeConfig) -> anyhow::Result<Self> {
        let peer = ops::bind("peer", "--peer-addr", config.peer_listen).await?;
        let admin = ops::bind("admin", "--admin-addr", config.admin_listen).await?;
        let ops = ops::bind("ops", "--ops-addr", config.ops_listen).await?;
        // The workers share their port, which would hide that somebody else has it.
        drop(ops::bind("proxy", "--proxy-addr", config.proxy_listen).await?);
        if let Some(tls) = &config.tls {
            drop(ops::bind("TLS", "--tls-addr", tls.listen).await?);
        }
        let peer = peer.into_std().context("cannot take the peer port over")?;
        Ok(Self { peer, admin, ops })
    }
}

/// Runs one peer as the whole process.
#[must_use]
pub fn main(args: NodeArgs) -> ExitCode {
    logging::init(args.log_level, args.log_format);
    let config = match NodeConfig::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("raftserve node: {error}");
            return ExitCode::from(USAGE_EXIT);
        }
    };
    let outcome = threads("control", THREADS).and_then(|control| {
        let admin = threads("admin", ADMIN_THREADS)?;
        let ran = control.block_on(run(config, admin.handle()));
        control.shutdown_timeout(TASKS_DEADLINE);
        admin.shutdown_timeout(TASKS_DEADLINE);
        ran
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raftserve node: {error:#}");
            match is_removed(&error) {
                true => ExitCode::from(REMOVED_EXIT),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn is_removed(error: &anyhow::Error) -> bool {
    let found = match error.downcast_ref() {
        Some(StartError::Bootstrap(why)) => Some(why),
        _ => error.downcast_ref(),
    };
    matches!(found, Some(BootstrapError::Removed { .. }))
}

fn threads(name: &str, count: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count)
        .thread_name(name)
        .enable_all()
        .build()
        .context("cannot start threads")
}

/// Runs one peer until it is told to stop. `admin_threads` serve the admin API.
///
/// # Errors
/// One chain that says what could not be done and what to do about it.
pub async fn run(config: NodeConfig, admin_threads: &tokio::runtime::Handle) -> anyhow::Result<()> {
    if let Some(path) = &config.lifeline {
        hold_lifeline(path)?;
    }
    let open_files = OpenFiles::raise().context("cannot raise the limit of open files")?;
    let certificates = match config.cert_dir.clone() {
        Some(directory) => Some(Arc::new(
            Certificates::read(directory).context("cannot use --cert-dir")?,
        )),
        None => None,
    };
    let credentials = match config.credentials_dir.clone() {
        Some(directory) => Some(Arc::new(
            Credentials::read(directory, config.login_lifetime)
                .context("cannot use --credentials-dir")?,
        )),
        None => None,
    };
    if let Some(tls) = &config.tls {
        tls.check().context("cannot use --tls-dir")?;
    }
    let access_log = config.access_log.as_deref().map(access_log).transpose()?;
    let api = ApiServer::default();
    if config.kubernetes.is_some() {
        api.is_known().await.map_err(|error| no_cluster(&error))?;
    }
    let ports = Ports::bind(&config).await?;
    let mut stop = Stop::listen()?;
    let readiness = Arc::new(Readiness::default());
    let report = Arc::new(OnceLock::new());
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(ops::serve(
        ports.ops,
        Arc::clone(&readiness),
        Arc::clone(&report),
        shutdown.clone(),
    ));

    tasks.spawn(access::watch(
        certificates.clone(),
        credentials.clone(),
        shutdown.clone(),
    ));

    let incarnation = Incarnation(rand::random());
    let host = match &config.kubernetes {
        // Pods are found from anywhere.
        Some(_) => String::new(),
        None => HostFingerprint::of(&config.replica_root)
            .with_context(|| {
                format!(
                    "cannot use --replica-root {}",
                    config.replica_root.display()
                )
            })?
            .as_str()
            .to_owned(),
    };
    let home = match config.stateful_set.clone() {
        Some(set) => Some(Arc::new(Home::of(set, &config.peer_address, &api).await?)),
        None => None,
    };
    let founding = match (&home, &config.kubernetes) {
        (Some(home), _) => Some(Arc::clone(home) as Arc<dyn Founding>),
        (None, None) => {
            let root = ReplicaRoot::new(config.replica_root.clone());
            Some(Arc::new(root) as Arc<dyn Founding>)
        }
        (None, Some(_)) => None,
    };
    let waits_for = watch::Sender::default();
    let audience = match credentials {
        Some(_) => Audience::Unknown,
        None => Audience::Trusted,
    };
    let waiting = admin::answer_while_waiting(
        &ports.admin,
        certificates.clone(),
        waits_for.subscribe(),
        audience,
    );
    let starting = peer::start(PeerConfig {
        data_dir: config.data_dir.clone(),
        listener: ports.peer,
        peers: config.peers.clone(),
        join: config.join.clone(),
        policy: config.policy,
        address: config.peer_address.clone(),
        admin_address: config.admin_address.clone(),
        proxy_address: config.proxy_listen.to_string(),
        host,
        incarnation,
        profile: config.profile,
        growth: config.growth,
        supports: SUPPORTED,
        wall_clock: clock::wall_now,
        certificates: certificates.clone(),
        founding,
        waits_for,
    });
    let peer = tokio::select! {
        () = waiting => unreachable!("it is answered until there is an answer"),
        peer = starting => peer.inspect_err(|error| {
            let removed = matches!(error, StartError::Bootstrap(BootstrapError::Removed { .. }));
            if removed && home.is_some() {
                set_aside(&config.data_dir);
            }
        })?,
        why = stop.told() => {
            tracing::info!(why, "stopping before this peer has begun");
            return Ok(());
        }
    };
    tracing::info!(cluster = %peer.cluster_id(), node = %peer.node_id(), "this peer has begun");

    let (ended_badly, mut bad_ends) = mpsc::channel(1);
    let vital = Vital {
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
        ended_badly,
    };
    let provider = provider(&config, &peer, &api, (home.clone(), open_files)).await?;
    let beneath = Beneath {
        provider,
        api,
        access_log,
        open_files,
    };
    let parts = Parts::start(&config, &peer, incarnation, beneath, &vital)?;
    let denials = Arc::new(Denials::default());
    let _ = report.set(Arc::new(Metrics {
        consensus: peer.consensus(),
        share: Arc::clone(&parts.share),
        proxy: parts.proxy.metrics(),
        announcer: parts.proxy.announcer(),
        certificates: certificates.clone(),
        credentials: credentials.clone(),
        denials: Arc::clone(&denials),
        home: home.clone(),
        graces: graces(&config),
    }) as Arc<dyn Report>);
    if let Some(home) = &home {
        let consensus = || peer.consensus();
        vital.spawn("scaling", Arc::clone(home).scale(consensus()));
        vital.spawn("endpoints", Arc::clone(home).keep_gates(consensus()));
        vital.spawn("the record", Arc::clone(home).write_down(consensus()));
        let ready = readiness.watch();
        vital.spawn("the gate", Arc::clone(home).open_gate(consensus(), ready));
    }
    tasks.spawn(become_ready(
        peer.consensus(),
        parts.catch_up.clone(),
        parts.reflected.clone(),
        Arc::clone(&readiness),
    ));
    let admin = admin::serve(
        ports.admin,
        AdminParts {
            consensus: peer.consensus(),
            ready: readiness.watch(),
            service_port_base: config.service_port_base,
            service_ports: parts.proxy.ports(),
            advertise_host: config.advertise_host.clone(),
            api: parts.api.clone(),
            home: home.clone(),
            provider: Arc::clone(&parts.provider),
            certificates: certificates.clone(),
            credentials: credentials.clone(),
            denials: Arc::clone(&denials),
        },
        shutdown.clone(),
    );
    let (mut fatal, mut removed) = (peer.fatal(), peer.removed());
    let admin = tasks.spawn_on(admin, admin_threads);
    let why = tokio::select! {
        why = stop.told() => Ok(why),
        Ok(_) = removed.wait_for(|removed| *removed) => Ok(REMOVED),
        why = fatal.wait_for(Option::is_some) => Err(anyhow::anyhow!(
            "this peer cannot go on, and stops: {}",
            why.ok().and_then(|why| why.clone()).unwrap_or_default()
        )),
        Some(name) = bad_ends.recv() => Err(anyhow::anyhow!("the task of {name} panicked")),
        ended = admin => Err(match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => anyhow::anyhow!("the admin port ended by itself"),
            Err(error) => error.into(),
        }),
    };
    readiness.drain();
    let (cluster, node) = (peer.cluster_id(), peer.node_id());
    match &why {
        Ok(why) => {
            tracing::info!(why, "stopping");
            logging::raft_will_stop();
            let held = home.as_ref().map(|home| home.drain_grace(graces(&config)));
            let drain_grace = held.unwrap_or(config.drain_grace);
            let stopping = stop_gently(&peer, parts, drain_grace, &shutdown, &tasks);
            tokio::select! {
                () = stopping => {}
                _ = stop.told() => tracing::warn!("told again: stopping at once"),
            }
        }
        Err(error) => tracing::error!("{error:#}"),
    }
    if tokio::time::timeout(PEER_STOP_MAX, peer.stop())
        .await
        .is_err()
    {
        // A disk that hangs holds a thread for ever; the log is whole at any instant all the same.
        tracing::error!("the log cannot be closed in time: ending without it");
        std::process::exit(1);
    }
    tracing::info!("stopped");
    match why? {
        REMOVED => {
            if home.is_some() {
                set_aside(&config.data_dir);
            }
            Err(BootstrapError::Removed {
                folder: config.data_dir,
                cluster,
                node,
            }
            .into())
        }
        _ => Ok(()),
    }
}

/// Makes room for a peer under a new id, in the volume of one that the cluster has removed: a StatefulSet that grows again
/// brings the volume back. What was removed last is kept beside it.
fn set_aside(data_dir: &Path) {
    let aside = data_dir.with_extension("removed");
    let moved = match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::rename(data_dir, &aside),
    };
    match moved {
        Ok(()) => tracing::info!(to = %aside.display(), "set the removed peer's data aside"),
        Err(error) => tracing::error!(%error, "cannot set the removed peer's data aside"),
    }
}

/// Leadership first, so that the cluster does not wait for an election; then traffic; then the rest.
async fn stop_gently(
    peer: &Peer,
    parts: Parts,
    drain_grace: Duration,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) {
    hand_over(peer).await;
    parts.proxy.shutdown(drain_grace).await;
    // It may have been elected again meanwhile.
    hand_over(peer).await;
    shutdown.cancel();
    tasks.close();
    if tokio::time::timeout(TASKS_DEADLINE, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("some tasks did not end in time");
    }
}

async fn hand_over(peer: &Peer) {
    let consensus = peer.consensus();
    if consensus.leadership().borrow().is_self && consensus.members().len() > 1 {
        match consensus.transfer_leader(None, TRANSFER_DEADLINE).await {
            Ok(node) => tracing::info!(%node, "leadership handed over"),
            Err(error) => tracing::warn!(%error, "an election will follow"),
        }
    }
}

/// What the parts on top of the log are given.
struct Beneath {
    provider: Arc<dyn Provider>,
    api: ApiServer,
    access_log: Option<AccessLog>,
    open_files: OpenFiles,
}

/// What runs on top of the log.
struct Parts {
    share: Arc<Share>,
    proxy: Proxy,
    api: ApiServer,
    provider: Arc<dyn Provider>,
    catch_up: watch::Sender<bool>,
    reflected: watch::Receiver<LogIndex>,
}

impl Parts {
    fn start(
        config: &NodeConfig,
        peer: &Peer,
        incarnation: Incarnation,
        beneath: Beneath,
        vital: &Vital,
    ) -> anyhow::Result<Self> {
        let Beneath {
            provider,
            api,
            access_log,
            open_files,
        } = beneath;
        let consensus = peer.consensus();
        let loads = Arc::new(Loads::default());
        let (reflect, reflected) = watch::channel(LogIndex(0));
        let share = Arc::new(Share::new(
            peer.node_id(),
            incarnation,
            consensus.applied(),
            reflected.clone(),
            consensus.clone(),
            Arc::clone(&loads),
        ));
        peer.set_exchange(Arc::clone(&share) as Arc<dyn peer::ExchangeHandler>);
        let (bindings, binding) = Bindings::new(consensus.clone(), Arc::clone(&share));
        vital.spawn("session binding", binding);

        let routes = Arc::new(Routes::default());
        let (catch_up, caught_up) = watch::channel(false);
        let projecting = projection::run(
            consensus.clone(),
            Arc::clone(&routes),
            config.service_port_base,
            reflect,
            caught_up,
        );
        vital.spawn("routing", projecting);

        let mut tracer = None;
        if let Some((collector, share)) = &config.spans {
            let (told, traces) = Tracer::new(*share);
            tracer = Some(told);
            let peer = peer.node_id().to_string();
            let exporter = Exporter::new(collector, &peer, traces);
            let exporting = exporter
                .start(vital.shutdown.clone())
                .context("cannot start a thread for spans")?;
            vital.tasks.spawn(exporting);
        }
        let (failures, failed) = mpsc::channel(CONNECT_FAILURES_MAX);
        let usual = ProxyConfig::default();
        let proxy = Proxy::start(
            ProxyConfig {
                listen: config.proxy_listen,
                http1_path: config.http1_path,
                connection_age: Some(config.connection_age),
                connection_age_grace: config.connection_age_grace,
                access_log,
                tracer,
                tls: config.tls.clone(),
                connections_max: connections(open_files, usual.connections_max),
                ..usual
            },
            routes,
            Arc::new(bindings),
            Some(failures),
        )?;
        loads.connect(proxy.peer_loads());
        vital.spawn("service ports", tell_of_ports(proxy.ports()));
        vital.spawn("suspicion", suspect(failed, share.suspected()));

        let controller = Arc::new(Controller {
            consensus,
            provider: Arc::clone(&provider),
            api: api.clone(),
            namespace: config.kubernetes_namespace.clone(),
            share: Arc::clone(&share),
            incarnation,
            lifeline: config.lifeline.clone(),
        });
        vital.spawn("control", controller.run(vital.shutdown.clone()));
        Ok(Self {
            share,
            proxy,
            api,
            provider,
            catch_up,
            reflected,
        })
    }
}

/// What to do where there is no Kubernetes cluster to be found. The error tells its causes itself.
fn no_cluster(error: &kube::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "--provider kubernetes finds no cluster: run in a pod with a service account, or set KUBECONFIG; with --provider \
         process replicas are processes on this host ({error})"
    )
}

/// The most client connections, `wanted` unless there are too few files for these.
fn connections(open_files: OpenFiles, wanted: usize) -> usize {
    let most = open_files.connections(wanted);
    match open_files.now {
        Some(files) if most < wanted => tracing::warn!(
            files,
            connections = most,
            "the limit of open files leaves room for fewer client connections than the usual {wanted}; raise the hard \
             limit (ulimit -Hn, LimitNOFILE= of systemd)"
        ),
        files => tracing::info!(?files, connections = most, "the most client connections"),
    }
    most
}

/// Who makes replicas, as configured.
async fn provider(
    config: &NodeConfig,
    peer: &Peer,
    api: &ApiServer,
    (home, open_files): (Option<Arc<Home>>, OpenFiles),
) -> anyhow::Result<Arc<dyn Provider>> {
    if let Some(settings) = &config.kubernetes {
        let settings = settings.clone();
        let provider = KubernetesProvider::new(settings, peer.cluster_id(), api, home).await;
        let provider = provider.map_err(|error| no_cluster(&error))?;
        return Ok(Arc::new(provider));
    }
    let root = &config.replica_root;
    let provider = ProcessProvider::new(root, peer.cluster_id(), open_files.begun_with)
        .with_context(|| format!("cannot use --replica-root {}", root.display()))?;
    Ok(Arc::new(provider))
}

/// Starts what a peer cannot do without: if it panics, so that nobody does its work any more, the peer
/// stops and leaves it to the others.
struct Vital {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    ended_badly: mpsc::Sender<&'static str>,
}

impl Vital {
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (shutdown, ended_badly) = (self.shutdown.clone(), self.ended_badly.clone());
        self.tasks.spawn(async move {
            let task = AssertUnwindSafe(task).catch_unwind();
            let panicked = tokio::select! {
                () = shutdown.cancelled() => false,
                ended = task => ended.is_err(),
            };
            if panicked {
                // One such word is enough.
                let _ = ended_badly.try_send(name);
            }
        });
    }
}

/// A service whose own port somebody else has is reached by host and path only: that must be told.
async fn tell_of_ports(mut ports: watch::Receiver<Vec<PortStatus>>) {
    let mut refused: BTreeSet<u16> = BTreeSet::new();
    loop {
        let now = ports.borrow_and_update().clone();
        for status in &now {
            match &status.state {
                PortState::Refused { reason } if refused.insert(status.port) => tracing::warn!(
                    port = status.port, service = %status.service, %reason,
                    "the service's own port cannot be had; free it, or choose another --service-port-base"
                ),
                PortState::Open if refused.remove(&status.port) => {
                    tracing::info!(port = status.port, "the service's own port is open now");
                }
                PortState::Refused { .. } | PortState::Open => {}
            }
        }
        refused.retain(|port| now.iter().any(|status| status.port == *port));
        if ports.changed().await.is_err() {
            return;
        }
    }
}

/// Replicas that refused a connection are to be probed at once, by whoever leads.
async fn suspect(mut failed: mpsc::Receiver<ReplicaId>, suspects: Arc<Suspects>) {
    while let Some(replica) = failed.recv().await {
        suspects.add(replica);
    }
}

/// Ready once a leader was known, its log applied here, and routes made of it.
async fn become_ready(
    consensus: Consensus,
    catch_up: watch::Sender<bool>,
    mut reflected: watch::Receiver<LogIndex>,
    readiness: Arc<Readiness>,
) {
    let mut leadership = consensus.leadership();
    loop {
        match consensus.read_barrier(CATCH_UP_TRY).await {
            Ok(index) => {
                catch_up.send_replace(true);
                if reflected
                    .wait_for(|reached| *reached >= index)
                    .await
                    .is_ok()
                {
                    readiness.caught_up();
                    tracing::info!(%index, "ready");
                }
                return;
            }
            Err(error) => {
                tracing::info!(%error, "not ready yet");
                if !another_leader(&mut leadership).await {
                    return;
                }
            }
        }
    }
}

/// Waits for another leader, the likeliest cure for one that cannot be followed, though not for ever. False once the
/// peer has stopped, and there will be none.
async fn another_leader(leadership: &mut watch::Receiver<Leadership>) -> bool {
    let changed = tokio::time::timeout(CATCH_UP_TRY, leadership.changed()).await;
    !matches!(changed, Ok(Err(_)))
}

/// What asks this process to stop.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// Sent by those who move log files away, as to other servers. The access log needs no such word; by default it
    /// would end the process.
    reopen: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            reopen: listen(SignalKind::user_defined1())?,
        })
    }

    async fn told(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                Some(()) = self.reopen.recv() => {}
            }
        }
    }
}

/// Ties this process to whoever holds the other end of the socket: when that ends, so does this,
/// at once. A thread of its own, so that nothing else can delay it.
fn hold_lifeline(path: &Path) -> anyhow::Result<()> {
    let mut lifeline = SocketPath::new(path)
        .and_then(|short| UnixStream::connect(short.as_path()))
        .with_context(|| {
            format!(
                "cannot reach the lifeline {}: whoever started this peer is gone",
                path.display()
            )
        })?;
    std::thread::Builder::new()
        .name("lifeline".to_owned())
        .spawn(move || {
            let mut byte = [0];
            loop {
                match lifeline.read(&mut byte) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => std::process::exit(0),
                    Ok(_) => {}
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Opens the access log at the end of what it holds already.
fn access_log(path: &Path) -> anyhow::Result<AccessLog> {
    let started = if path == Path::new("-") {
        AccessLog::start(std::io::stdout())
    } else {
        AccessLog::in_file(path.to_owned())
    };
    started.with_context(|| format!("cannot start the access log {}", path.display()))
}

/// What the ops port tells.
struct Metrics {
    consensus: Consensus,
    share: Arc<Share>,
    proxy: raftserve_proxy::MetricsHandle,
    announcer: Announcer,
    certificates: Option<Arc<Certificates>>,
    credentials: Option<Arc<Credentials>>,
    denials: Arc<Denials>,
    home: Option<Arc<Home>>,
    graces: Graces,
}

fn graces(config: &NodeConfig) -> Graces {
    Graces {
        hold: config.hold_grace,
        drain: config.drain_grace,
    }
}

impl Report for Metrics {
    fn departure(&self) -> BoxFuture<'static, &'static str> {
        match self.home.clone() {
            Some(home) => {
                let announcer = self.announcer.clone();
                let announce = async move { announcer.announce().await };
                home.departure(self.consensus.clone(), self.graces, announce)
                    .boxed()
            }
            None => std::future::ready("nothing to wait for").boxed(),
        }
    }

    fn has_quorum(&self) -> bool {
        self.consensus.leadership().borrow().leader.is_some() && self.share.holds_lease()
    }

    fn metrics(&self) -> String {
        let mut text = self.proxy.render_prometheus();
        if let Some(certificates) = &self.certificates {
            text.push_str(&certificates.render());
        }
        if let Some(credentials) = &self.credentials {
            text.push_str(&credentials.render());
            text.push_str(&self.denials.render());
        }
        raft_metrics::render(&self.consensus, &mut text);
        let held = u64::from(self.share.holds_lease());
        raft_metrics::line(&mut text, "session_lease_held", "gauge", held);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stops_before_it_was_ready_waits_for_no_leader() {
        let (leads, mut leadership) = watch::channel(Leadership::default());
        assert!(another_leader(&mut leadership).await, "none comes in time");
        leads.send_replace(Leadership::default());
        assert!(another_leader(&mut leadership).await);
        drop(leads);
        assert!(!another_leader(&mut leadership).await);
    }
}
