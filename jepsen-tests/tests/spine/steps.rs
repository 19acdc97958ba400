//! The leader dies at each step of starting and stopping replicas. In the end the right ones run, each
//! once, and nothing else does.

use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::admin::{Admin, Events};
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::program::{Counters, Service};
use jepsen_tests::wait;
use tonic::{Code, Status};

use crate::stage::{self, SETTLE, Share};

/// When the leader is killed, counted from the request: before it is agreed, between its steps, and when
/// most of it is done.
const MOMENTS_MS: [u64; 4] = [5, 40, 150, 450];

/// Long enough for the leader to see a replica being set up, on a loaded machine too.
const SETUP: &str = "sleep 0.4";

/// What is asked for, and is under way when the leader dies.
#[derive(Clone, Debug)]
enum Request {
    Up(Service),
    Update(Service),
    Terminate(Service),
    Down(Service),
}

impl Request {
    fn service(&self) -> &Service {
        match self {
            Self::Up(it) | Self::Update(it) | Self::Terminate(it) | Self::Down(it) => it,
        }
    }

    /// Whether an error of a repeated request says that it was carried out before.
    fn was_done(&self, status: &Status) -> bool {
        match self {
            Self::Up(_) => status.code() == Code::AlreadyExists,
            Self::Update(_) => false,
            Self::Terminate(_) | Self::Down(_) => {
                matches!(status.code(), Code::FailedPrecondition | Code::NotFound)
            }
        }
    }

    async fn send(&self, admin: &Admin, replica: u32) -> Result<(), Status> {
        match self {
            Self::Up(it) => admin.apply(&it.yaml()).await.map(drop),
            Self::Update(it) => admin.update(&it.name, &it.yaml()).await.map(drop),
            Self::Terminate(it) => admin.terminate(&it.name, replica).await,
            Self::Down(it) => admin.delete(&it.name).await,
        }
    }

    /// Sends it until it is known to have been carried out.
    async fn insist(&self, admin: &Admin) -> anyhow::Result<()> {
        let replica = match self {
            Self::Terminate(it) => newest_replica(admin, &it.name).await?,
            Self::Up(_) | Self::Update(_) | Self::Down(_) => 0,
        };
        wait::until("the request", PATIENCE, async || {
            match self.send(admin, replica).await {
                Err(status) if !self.was_done(&status) => Err(status.into()),
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await
    }
}

async fn newest_replica(admin: &Admin, name: &str) -> anyhow::Result<u32> {
    let replicas = admin.replicas().await?;
    let of_service = replicas.iter().filter(|it| it.service_name == name);
    let live = of_service.filter(|it| jepsen_tests::admin::is_live(it.status()));
    live.map(|it| it.id).max().context("no replica is live")
}

/// When the leader dies.
#[derive(Clone, Copy, Debug)]
enum Moment {
    After(Duration),
    /// As soon as a replica's new status is known.
    At(&'static str),
}

/// Sends a request through another peer, kills the leader meanwhile, and waits until all is well again.
async fn round(cluster: &mut Cluster, request: &Request, moment: Moment) -> anyhow::Result<()> {
    let leader = cluster.leader().await?;
    let admin = cluster.admin(cluster.another(leader)?);
    let mut events = admin.events(None).await?;
    let fault = async {
        match moment {
            // When the fault comes, not what is waited for.
            Moment::After(time) => tokio::time::sleep(time).await,
            Moment::At(status) => seen(&mut events, status).await?,
        }
        cluster.kill(leader)
    };
    let (carried_out, killed) = tokio::join!(request.insist(&admin), fault);
    killed?;
    carried_out?;
    cluster.restart(leader).await?;
    let service = request.service();
    match request {
        Request::Down(_) => cluster.gone(&service.name, SETTLE).await?,
        Request::Up(_) | Request::Update(_) | Request::Terminate(_) => {
            let running = cluster.settled(&service.name, SETTLE).await?;
            let wanted = usize::try_from(service.replicas)?;
            ensure!(running.len() == wanted, "{wanted} are wanted: {running:?}");
        }
    }
    Ok(())
}

async fn seen(events: &mut Events, status: &str) -> anyhow::Result<()> {
    let wait = async {
        while !events.next().await?.1.iter().any(|it| it.kind == status) {}
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("no replica was seen {status}"))?
}

/// A life of a service, with the leader killed in each step of it.
async fn life(
    cluster: &mut Cluster,
    name: &str,
    moments: impl Fn(&Request) -> Vec<Moment>,
) -> anyhow::Result<()> {
    let counters = Counters::create(cluster.path(&format!("count-{name}")))?;
    let one = Service::new(name, 1, &counters).with_setup(SETUP);
    let three = one.clone().with_replicas(3);
    let changed = three.clone().with_tag("v2");
    let steps = [
        Request::Up(one),
        Request::Update(three.clone()),
        Request::Terminate(three),
        Request::Update(changed.clone()),
        Request::Update(changed.clone().with_replicas(1)),
        Request::Down(changed),
    ];
    for step in &steps {
        for (repetition, moment) in moments(step).into_iter().enumerate() {
            // What can only be done once is done in another life.
            if repetition > 0 && !matches!(step, Request::Terminate(_)) {
                continue;
            }
            round(cluster, step, moment)
                .await
                .with_context(|| format!("killed {moment:?} during {step:?}"))?;
        }
    }
    counters.check_single_starts()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_replicas_run_whenever_the_leader_dies() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let mut cluster = Cluster::start().await?;
        for (life_number, moment) in MOMENTS_MS.into_iter().enumerate() {
            let moment = Moment::After(Duration::from_millis(moment));
            let name = format!("web-{life_number}");
            life(&mut cluster, &name, |_| vec![moment]).await?;
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_replicas_run_whatever_status_the_leader_dies_at() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let mut cluster = Cluster::start().await?;
        let starting = ["PENDING", "PROVISIONING", "STARTING"];
        for (life_number, status) in starting.into_iter().enumerate() {
            let name = format!("web-{life_number}");
            let moments = |request: &Request| match request {
                Request::Up(_) => vec![Moment::At(status)],
                Request::Update(it) if it.replicas == 1 => vec![Moment::At("SHUTTING_DOWN")],
                Request::Update(_) => vec![Moment::At(status)],
                Request::Terminate(_) => vec![Moment::At("SHUTTING_DOWN"), Moment::At(status)],
                Request::Down(_) => vec![Moment::At("SHUTTING_DOWN")],
            };
            life(&mut cluster, &name, moments).await?;
        }
        cluster.pass();
        Ok(())
    })
    .await
}
