//! Figures for `docs/benchmarks.md`: `just bench-kube` prints them, and fails for what is beyond its bound.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use jepsen_tests::admin::Admin;
use jepsen_tests::http;
use jepsen_tests::kube::{Kube, Pod};
use jepsen_tests::wait;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::kills::kill;
use crate::served::{PODS, Served};
use crate::stage::{PATIENCE, PEERS, RELEASE, Release, on_release};

/// How many leaders are killed, as far as they can be within [`LEADERS_TIME`].
const LEADERS: usize = 50;

/// How long leaders are killed.
const LEADERS_TIME: Duration = Duration::from_secs(600);

/// How many replicas are killed.
const REPLICAS: usize = 5;

/// How long after a change all is at rest.
const SETTLE: Duration = Duration::from_secs(20);

/// For how long it is looked at: beside it, the few seconds between two looks of a kubelet are little.
const MINUTE: Duration = Duration::from_secs(60);

/// How long writes go on: its node grants a pod two seconds even if it is to be killed at once, and then there is an election.
const WRITES: Duration = Duration::from_secs(6);

/// How long one is waited for.
const WRITE_MAX: Duration = Duration::from_secs(1);

/// How soon the next one follows.
const BETWEEN_WRITES: Duration = Duration::from_millis(20);

/// The most that an idle peer may use: memory that no file is behind, in bytes, and of a core.
const IDLE_MEMORY_MAX: f64 = 60e6;
const IDLE_SHARE_MAX: f64 = 0.02;

/// The most that the leader may use of a core while [`MANY`] pods change in a minute.
const MANY_SHARE_MAX: f64 = 0.2;

/// How many replicas the large service has.
const MANY: usize = 500;

/// In how many steps they change.
const BATCHES: u32 = 20;

/// Its pods.
const MANY_PODS: &str = "raftserve.io/service=many";

/// No node has so much, so its pods are objects only.
const MANY_SERVICE: &str = r#"
name: many
service: {readiness_probe: /, replicas: 500}
resources: {ports: 8080, cpus: 1000}
config: {kubernetes: {pod_config: {spec: {securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}},
  containers: [{securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}}}
run: "true"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures: just bench-kube"]
async fn figures() -> anyhow::Result<()> {
    on_release("figures", &[], async |release| {
        if !release.kube.disruptive {
            eprintln!("skipped: volumes are not to be deleted here");
            return Ok(());
        }
        install(&release).await?;
        release.await_members(3, 0).await?;
        rest(&release).await?;
        let served = release.serve().await?;
        leaders(&release, &served).await?;
        replicas(&release, &served).await?;
        many(&release, &served).await
    })
    .await
}

/// Installs the release anew, with nothing left of it but the image on the nodes.
async fn install(release: &Release) -> anyhow::Result<()> {
    let namespace = &release.namespace;
    namespace.helm(&["uninstall", RELEASE, "--wait"]).await?;
    let record = format!("{RELEASE}-cluster");
    namespace.kubectl(&["delete", "configmap", &record]).await?;
    let claims = ["delete", "pvc", "-l", PEERS, "--wait"];
    namespace.kubectl(&claims).await?;
    let began = Instant::now();
    let answered = async {
        let entrance = wait::until("an entrance", PATIENCE, async || {
            let entrances = release.entrances().await?;
            entrances.first().copied().context("no node")
        })
        .await?;
        wait::until("an answer", PATIENCE, async || {
            let answer = http::get(entrance, "/").await;
            ensure!(answer.as_ref().is_ok_and(|answer| answer.status == 404));
            Ok(began.elapsed())
        })
        .await
    };
    let (installed, answered) = tokio::join!(release.install(&[]), answered);
    installed?;
    println!(
        "helm install: first answer after {:.1?}, three peers ready after {:.1?}",
        answered?,
        began.elapsed()
    );
    Ok(())
}

/// What a container has used when its node's kubelet last looked: the second of the day then, processor seconds, and bytes
/// of memory that no file is behind.
async fn usage(kube: &Kube, pod: &Pod) -> anyhow::Result<(f64, f64, f64)> {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", pod.node);
    let text = kube.kubectl(&["get", "--raw", &path]).await?;
    let summary: Value = serde_json::from_str(&text)?;
    let pods = summary["pods"].as_array();
    let of_pod = pods
        .into_iter()
        .flatten()
        .find(|it| it["podRef"]["uid"] == pod.uid.as_str());
    let container = &of_pod.context("the kubelet tells nothing")?["containers"][0];
    let at = container["cpu"]["time"].as_str().unwrap_or_default();
    let at = at
        .split('T')
        .nth(1)
        .context("no time")?
        .trim_end_matches('Z');
    let parts: Vec<f64> = at.split(':').filter_map(|it| it.parse().ok()).collect();
    let [hours, minutes, seconds] = parts[..] else {
        anyhow::bail!("no time: {at}");
    };
    let number = |value: &Value| value.as_f64().context("no number");
    Ok((
        hours * 3_600.0 + minutes * 60.0 + seconds,
        number(&container["cpu"]["usageCoreNanoSeconds"])? / 1e9,
        number(&container["memory"]["rssBytes"])?,
    ))
}

/// What share of a core each of the pods uses while `meanwhile` goes on, and its memory after that.
async fn shares(
    kube: &Kube,
    pods: &[Pod],
    meanwhile: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let before = try_join_all(pods.iter().map(|pod| usage(kube, pod))).await?;
    meanwhile.await?;
    let after = try_join_all(pods.iter().map(|pod| usage(kube, pod))).await?;
    let share = |((from, before, _), (to, after, memory)): ((f64, f64, f64), (f64, f64, f64))| {
        ((after - before) / (to - from), memory)
    };
    Ok(before.into_iter().zip(after).map(share).collect())
}

async fn rest(release: &Release) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let leader = release.leader().await?.name;
    let pods = release.pods().await?;
    let idle = async {
        tokio::time::sleep(MINUTE).await;
        Ok(())
    };
    let used = shares(&release.kube, &pods, idle).await?;
    for (pod, (share, memory)) in pods.iter().zip(used) {
        let role = if pod.name == leader { ", leader" } else { "" };
        let (percent, mib) = (share * 100.0, memory / 1_048_576.0);
        println!(
            "at rest, {}{role}: {percent:.1} % of a core, {mib:.0} MiB",
            pod.name
        );
        ensure!(
            share <= IDLE_SHARE_MAX && memory <= IDLE_MEMORY_MAX,
            "{} is not idle",
            pod.name
        );
    }
    Ok(())
}

/// Kills the leader's pod, and looks for the longest pause between two writes that were agreed, through the other peers.
async fn leaders(release: &Release, served: &Served) -> anyhow::Result<()> {
    let mut pauses = Vec::new();
    let began = Instant::now();
    while pauses.len() < LEADERS && began.elapsed() < LEADERS_TIME {
        let leader = release.leader().await?;
        let others = release.pods().await?.into_iter();
        let others = others
            .filter(|pod| pod.uid != leader.uid)
            .filter_map(|pod| pod.address);
        let admins: Vec<Admin> = others.map(|at| served.admin_at(at)).collect();
        for admin in &admins {
            admin.put_key("figure", "before", None, None).await?;
        }
        let writing = longest_pause(&admins);
        let (killed, longest) = tokio::join!(kill(release, &leader.name), writing);
        killed?;
        pauses.push(longest);
        release.await_successor(&leader).await?;
    }
    tell("leader's pod killed, longest pause of writes", pauses);
    Ok(())
}

/// Writes at one peer and then the other, for as long as it takes.
async fn longest_pause(admins: &[Admin]) -> Duration {
    let began = Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    for admin in admins.iter().cycle() {
        if began.elapsed() > WRITES {
            break;
        }
        let put = admin.put_key("figure", "while", None, None);
        if let Ok(Ok(_)) = timeout(WRITE_MAX, put).await {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        tokio::time::sleep(BETWEEN_WRITES).await;
    }
    longest.max(last.elapsed())
}

/// Kills a replica's pod, and waits until another one serves in its place.
async fn replicas(release: &Release, served: &Served) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..REPLICAS {
        let before = served.await_ready().await?;
        let pods = release.namespace.pods(PODS).await?;
        let victim = pods.first().context("no replica")?;
        let began = Instant::now();
        kill(release, &victim.name).await?;
        wait::until("another replica", PATIENCE, async || {
            ensure!(served.await_ready().await? != before);
            Ok(())
        })
        .await?;
        times.push(began.elapsed());
    }
    tell("replica's pod killed, until another one is ready", times);
    Ok(())
}

/// A service of many pods that no node can take, each of which changes once a minute.
async fn many(release: &Release, served: &Served) -> anyhow::Result<()> {
    let admin = served.admin().await?;
    admin.apply(MANY_SERVICE).await?;
    let began = Instant::now();
    let pods = wait::until("many pods", PATIENCE, async || {
        let pods = release.namespace.pods(MANY_PODS).await?;
        ensure!(pods.len() == MANY, "{}", pods.len());
        Ok(pods)
    })
    .await?;
    println!("{MANY} pods made in {:.1?}", began.elapsed());
    tokio::time::sleep(SETTLE).await;
    let leader = [release.leader().await?];
    let changes = async {
        // What the peers tell of each pod is another thing each time, evenly over the minute.
        let mut pace = tokio::time::interval(MINUTE / BATCHES);
        for (round, names) in pods.chunks(MANY / BATCHES as usize).enumerate() {
            pace.tick().await;
            let change = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": format!("figure {round}"),
            }]}});
            let change = change.to_string();
            let patch = ["patch", "pods", "--subresource=status", "-p", &change];
            let names = names.iter().map(|pod| pod.name.as_str());
            let patch: Vec<&str> = patch.into_iter().chain(names).collect();
            release.namespace.kubectl(&patch).await?;
        }
        pace.tick().await;
        Ok(())
    };
    for (share, memory) in shares(&release.kube, &leader, changes).await? {
        let (percent, mib) = (share * 100.0, memory / 1_048_576.0);
        println!(
            "{MANY} pods, as many changes in a minute: leader {percent:.1} % of a core, {mib:.0} MiB"
        );
        ensure!(share <= MANY_SHARE_MAX, "too much for {MANY} changes");
    }
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!(
        "{what}: median {:.2?}, p99 {:.2?} of {}: {times:.2?}",
        at(0.5),
        at(0.99),
        times.len()
    );
}
