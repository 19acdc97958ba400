//! What `raftserve dev` does once its peers run: waits for them, brings the service up, says where it
//! is, and lets chaos loose. What it has to tell goes to whoever holds the screen.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use raftserve_model::spec::{ParseOptions, ServiceSpec};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::admin_client::{self, PeerAdmin};
use super::observation::{Observation, replica_status};
use super::ports::Block;
use super::service_file::ServiceFile;
use super::tally::{SessionTally, Tally};
use super::traffic::{self, Target};
use super::{chaos, session_watch, shell_word};
use crate::admin::v1;

/// How long the peers may take to start and to find their leader. They need a second or two, and more
/// on a machine that is busy, or with much to replay.
const PEERS_PATIENCE: Duration = Duration::from_secs(60);

/// How long a peer may take to serve what the others serve already.
const ROUTES_PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two tries to reach a service.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How many replicas of a version may fail before any was ready: the controller then gives it up.
const NEVER_READY_MAX: usize = 3;

/// What is to be done, and with what.
pub(super) struct Story {
    /// The peers' admin APIs, in the order of their numbers.
    pub(super) peers: Vec<PeerAdmin>,
    /// The peers' ports.
    pub(super) blocks: Vec<Block>,
    /// What is seen of the cluster.
    pub(super) seen: watch::Receiver<Observation>,
    /// Where lines to be shown go.
    pub(super) lines: mpsc::Sender<String>,
    /// Set once the cluster has answered.
    pub(super) answered: watch::Sender<bool>,
    /// The service to bring up.
    pub(super) file: Option<ServiceFile>,
    /// What to do if it exists.
    pub(super) if_exists: v1::IfExists,
    /// How often to kill a peer, if at all.
    pub(super) chaos: Option<Duration>,
    /// What kills a peer.
    pub(super) kills: Vec<mpsc::Sender<()>>,
    /// Where traffic is counted.
    pub(super) tally: watch::Sender<Tally>,
    /// What to call this program in commands to try.
    pub(super) program: PathBuf,
    /// The replicas that the peers remembered from an earlier run: they ended with it, which the
    /// cluster may not have noticed yet.
    pub(super) former: BTreeSet<ReplicaKey>,
}

/// A replica: its service's id and its number.
pub(super) type ReplicaKey = (u64, u32);

fn key(replica: &v1::Replica) -> ReplicaKey {
    (replica.service_id, replica.id)
}

/// A service that answers through the peers.
struct Served {
    name: String,
    urls: Vec<String>,
    target: Target,
}

impl Story {
    /// Tells the story, which has no end but a bad one.
    ///
    /// # Errors
    /// If the cluster or the service does not come up.
    pub(super) async fn run(mut self) -> Result<Infallible> {
        self.await_peers().await?;
        self.remember_former().await?;
        self.answered.send_replace(true);
        let served = match self.file.clone() {
            Some(file) => Some(self.bring_up(&file).await?),
            None => self.resume().await?,
        };
        self.show_endpoints(served.as_ref()).await;
        match (self.chaos, served) {
            (None, _) => pending().await,
            (Some(every), Some(served)) => self.let_chaos_loose(every, served).await,
            (Some(_), None) => {
                bail!("--chaos needs a service to send traffic to: name a SERVICE.yaml")
            }
        }
    }

    async fn await_peers(&mut self) -> Result<()> {
        let up = |seen: &Observation| seen.all_left_ready() && seen.quorum();
        let up = timeout(PEERS_PATIENCE, self.seen.wait_for(up))
            .await
            .map(|seen| seen.map(|_| ()));
        match up {
            Ok(seen) => seen.context("nobody looks at the peers"),
            Err(_) => {
                let seen = self.seen.borrow();
                let late = seen.peers.iter().filter(|peer| !peer.is_ready());
                let late: Vec<String> = late.map(|peer| peer.number.to_string()).collect();
                Err(match late.is_empty() {
                    true => anyhow!("the peers found no leader in {PEERS_PATIENCE:?}"),
                    false => anyhow!(
                        "peer {} was not ready in {PEERS_PATIENCE:?}",
                        late.join(", peer ")
                    ),
                })
            }
        }
    }

    async fn remember_former(&mut self) -> Result<()> {
        let told = self.seen.wait_for(|seen| seen.told_by != 0).await;
        let replicas = &told.context("nobody looks at the peers")?.replicas;
        self.former = replicas.iter().map(key).collect();
        Ok(())
    }

    /// Has the former replicas forgotten that the cluster has found to be gone: their end is no failure
    /// that anybody should look into.
    async fn forget_former(&self) {
        let gone: Vec<v1::Replica> = {
            let seen = self.seen.borrow();
            let former = seen
                .replicas
                .iter()
                .filter(|replica| self.former.contains(&key(replica)));
            former
                .filter(|replica| is_failed(replica))
                .cloned()
                .collect()
        };
        for replica in gone {
            for peer in &self.peers {
                if peer.forget(&replica).await.is_ok() {
                    break;
                }
            }
        }
    }

    async fn bring_up(&mut self, file: &ServiceFile) -> Result<Served> {
        let applied = admin_client::apply(&self.peers, file, self.if_exists).await?;
        for warning in &applied.warnings {
            self.say(format!("{}: {warning}", applied.name)).await;
        }
        self.say(match applied.existed {
            true => format!(
                "service {} is updated to version {}",
                applied.name, applied.version
            ),
            false => format!("service {} is agreed on", applied.name),
        })
        .await;
        let outcome = self
            .await_ready(&applied.name, applied.version, applied.wanted_replicas)
            .await?;
        if let Err(reason) = outcome {
            if !applied.existed {
                bail!("service {} did not come up: {reason}", applied.name);
            }
            let (name, version) = (&applied.name, applied.version);
            self.say(format!(
                "version {version} of service {name} is given up: {reason}"
            ))
            .await;
        }
        let spec = ServiceSpec::parse(&file.yaml, ParseOptions::default())?.spec;
        self.serve(&applied.name, &spec).await
    }

    /// Waits until as many replicas of the version as wanted are ready, or so many have failed that it
    /// is given up, and then says why.
    async fn await_ready(
        &mut self,
        name: &str,
        version: u32,
        wanted: u32,
    ) -> Result<Result<(), String>> {
        loop {
            let verdict = {
                let seen = self.seen.borrow_and_update();
                verdict(&seen, &self.former, name, version, wanted)
            };
            match verdict {
                Some(verdict) => {
                    self.forget_former().await;
                    return Ok(verdict);
                }
                None => self
                    .seen
                    .changed()
                    .await
                    .context("nobody looks at the service")?,
            }
        }
    }

    /// The service that the peers remember, the first by name if there are several.
    async fn resume(&mut self) -> Result<Option<Served>> {
        let Some(service) = self.seen.borrow().services.first().cloned() else {
            return Ok(None);
        };
        self.say(format!("service {} is resumed", service.name))
            .await;
        let outcome = self
            .await_ready(&service.name, service.version, service.wanted_replicas)
            .await?;
        if let Err(reason) = outcome {
            self.say(format!("service {} is not well: {reason}", service.name))
                .await;
        }
        let mut yaml = Err(anyhow!("there is no peer to ask"));
        for peer in &self.peers {
            yaml = peer
                .service(&service.name)
                .await
                .map(|found| found.yaml)
                .map_err(Into::into);
            if yaml.is_ok() {
                break;
            }
        }
        let yaml = yaml.with_context(|| format!("cannot read service {}", service.name))?;
        let spec = ServiceSpec::parse(&yaml, ParseOptions::default())?.spec;
        self.serve(&service.name, &spec).await.map(Some)
    }

    /// Waits until every peer serves the service.
    async fn serve(&mut self, name: &str, spec: &ServiceSpec) -> Result<Served> {
        let urls = {
            let seen = self.seen.borrow();
            seen.service(name)
                .and_then(|service| seen.endpoints(service, &self.blocks))
        };
        let served = match urls {
            Some(urls) => {
                let addresses = urls.iter().map(|url| {
                    let address = url.trim_start_matches("http://");
                    address
                        .parse::<SocketAddr>()
                        .expect("it was made of an address")
                });
                let target = Target::new(spec, addresses.collect(), "")?;
                Served {
                    name: name.to_owned(),
                    urls,
                    target,
                }
            }
            None => {
                let addresses: Vec<SocketAddr> =
                    self.blocks.iter().map(|block| block.proxy()).collect();
                let urls = addresses
                    .iter()
                    .map(|address| format!("http://{address}/{name}"));
                let urls = urls.collect();
                let target = Target::new(spec, addresses, &format!("/{name}"))?;
                Served {
                    name: name.to_owned(),
                    urls,
                    target,
                }
            }
        };
        for peer in 0..self.peers.len() {
            let deadline = Instant::now() + ROUTES_PATIENCE;
            while let Err(why) = traffic::ask_once(&served.target, peer).await {
                if Instant::now() > deadline {
                    self.say(format!("{name} does not answer yet: {why:#}"))
                        .await;
                    break;
                }
                sleep(RETRY_PAUSE).await;
            }
        }
        Ok(served)
    }

    async fn show_endpoints(&self, served: Option<&Served>) {
        let mut lines = vec![String::new()];
        match served {
            Some(served) => lines.push(format!("Service {} answers at", served.name)),
            None => lines.push("There is no service yet. The peers answer at".to_owned()),
        }
        for (number, block) in (1..).zip(&self.blocks) {
            let shared = format!("http://{}", block.proxy());
            lines.push(match served {
                Some(served) => format!(
                    "  peer {number}  {}   (every service: {shared})",
                    served.urls[number - 1]
                ),
                None => format!("  peer {number}  {shared}"),
            });
        }
        let admins: Vec<String> = self
            .blocks
            .iter()
            .map(|block| block.admin().to_string())
            .collect();
        let (program, admins) = (shell_word(&self.program), admins.join(","));
        lines.push(String::new());
        lines.push("Try".to_owned());
        match served {
            Some(served) => {
                lines.push(format!("  curl {}/", served.urls[0].trim_end_matches('/')));
                lines.push(format!("  {program} status --server {admins}"));
                let seen = self.seen.borrow();
                let newest = seen.replicas_of(&served.name).last();
                lines.extend(newest.map(|replica| {
                    let (name, id) = (&served.name, replica.id);
                    format!("  {program} logs {name} {id} --server {admins}")
                }));
            }
            None => lines.push(format!("  {program} up SERVICE.yaml --server {admins}")),
        }
        lines.push(format!("  {program} cluster status --server {admins}"));
        lines.push(String::new());
        self.say(lines.join("\n")).await;
    }

    async fn let_chaos_loose(self, every: Duration, served: Served) -> Result<Infallible> {
        let has_sessions = served.target.has_sessions();
        self.tally.send_modify(|tally| {
            tally.kill_every = every;
            tally.sessions = has_sessions.then(SessionTally::default);
        });
        let watching = async {
            match has_sessions {
                true => {
                    session_watch::run(self.peers.clone(), served.name, self.tally.clone()).await
                }
                false => pending().await,
            }
        };
        tokio::join!(
            traffic::run(served.target, self.tally.clone()),
            watching,
            chaos::run(
                every,
                self.kills.clone(),
                self.seen.clone(),
                self.tally.clone()
            ),
        );
        bail!("chaos ended")
    }

    async fn say(&self, line: String) {
        // Nobody listens any more once all is being torn down.
        let _ = self.lines.send(line).await;
    }
}

fn is_failed(replica: &v1::Replica) -> bool {
    replica_status(replica).starts_with("FAILED")
}

/// Whether a version of a service has come up, was given up, or neither yet.
fn verdict(
    seen: &Observation,
    former: &BTreeSet<ReplicaKey>,
    name: &str,
    version: u32,
    wanted: u32,
) -> Option<Result<(), String>> {
    let of_version = || {
        seen.replicas_of(name)
            .filter(|replica| replica.version == version && !former.contains(&key(replica)))
    };
    let in_status = |status: v1::ReplicaStatus| {
        of_version()
            .filter(|replica| replica.status() == status)
            .count()
    };
    let known = seen
        .service(name)
        .is_some_and(|service| service.version >= version);
    if known && in_status(v1::ReplicaStatus::Ready) >= usize::try_from(wanted).unwrap_or(usize::MAX)
    {
        return Some(Ok(()));
    }
    let failed: Vec<&v1::Replica> = of_version().filter(|replica| is_failed(replica)).collect();
    let ever_ready = of_version().any(|replica| replica.first_ready_at.is_some());
    let last = failed
        .last()
        .filter(|_| failed.len() >= NEVER_READY_MAX && !ever_ready)?;
    let mut reason = format!("replica {} is {}", last.id, replica_status(last));
    if !last.reason.is_empty() {
        reason = format!("{reason}: {}", last.reason);
    }
    Some(Err(format!(
        "{} replicas failed, none was ever ready; {reason}",
        failed.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(statuses: &[v1::ReplicaStatus]) -> Observation {
        let replica = |(id, status): (u32, &v1::ReplicaStatus)| v1::Replica {
            service_name: "web".to_owned(),
            id,
            version: 2,
            status: (*status).into(),
            reason: "run exited with 127".to_owned(),
            ..Default::default()
        };
        Observation {
            services: vec![v1::Service {
                name: "web".to_owned(),
                version: 2,
                ..Default::default()
            }],
            replicas: (1..).zip(statuses).map(replica).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn version_is_up_with_all_wanted_replicas_and_given_up_after_three_failures() {
        use v1::ReplicaStatus::{Failed, Ready, Starting};
        let verdict = |statuses: &[_]| verdict(&seen(statuses), &BTreeSet::new(), "web", 2, 2);
        assert_eq!(verdict(&[Ready, Starting]), None);
        assert_eq!(verdict(&[Ready, Failed, Ready]), Some(Ok(())));
        assert_eq!(verdict(&[Failed, Failed, Starting]), None);
        let given_up = verdict(&[Failed, Failed, Failed]).unwrap().unwrap_err();
        assert!(
            given_up.contains("replica 3 is FAILED: run exited with 127"),
            "{given_up}"
        );
    }

    #[test]
    fn replicas_of_an_older_version_do_not_count() {
        let mut old = seen(&[v1::ReplicaStatus::Ready, v1::ReplicaStatus::Ready]);
        old.replicas
            .iter_mut()
            .for_each(|replica| replica.version = 1);
        let verdict = |version, wanted| verdict(&old, &BTreeSet::new(), "web", version, wanted);
        assert_eq!(verdict(2, 2), None);
        // An update that is agreed on, but has not reached the peer that is looked at.
        assert_eq!(verdict(3, 0), None);
    }

    #[test]
    fn replicas_of_a_former_run_do_not_count() {
        let seen = seen(&[v1::ReplicaStatus::Ready, v1::ReplicaStatus::Ready]);
        let former = BTreeSet::from([(0, 1)]);
        assert_eq!(verdict(&seen, &former, "web", 2, 2), None);
        assert_eq!(verdict(&seen, &former, "web", 2, 1), Some(Ok(())));
    }
}
