//! When a pod that is told to stop may go: its `preStop` hook waits for this.
//!
//! A StatefulSet's rolling update takes the next pod down without a look at whether lower ordinals are well
//! (kubernetes#96218), and a scale-down tells all surplus pods to stop at once. So a peer holds itself while its going
//! would cost the quorum, and one that is to be removed waits for its removal. Both waits are bounded.
//!
//! While the API server does not answer, what it said last counts. Where it never said who else is told to stop, peers
//! let those with higher ordinals go first, so that several which stop together do not all go.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{CallError, Home, Wanted, call, ordinal, ordinal_at};
use crate::consensus::Consensus;
use crate::peer::core::LAG_MAX;

/// How long connections may still come after the pod is told to stop: every node has to hear that it is no endpoint
/// any more.
const ENDPOINTS_LAG: Duration = Duration::from_secs(5);

/// How long clients who connect anew may come back here. Who is told to go elsewhere later finds another peer.
const NEW_CONNECTIONS_LAG: Duration = Duration::from_secs(1);

/// How often it looks again.
const LOOK: Duration = Duration::from_millis(500);

/// How long the leader's answer may take.
const ASK_MAX: Duration = Duration::from_secs(1);

/// What is left for its requests of a peer that is held until its grace ends: who is to be removed gets no new ones by then.
const DRAIN_MIN: Duration = Duration::from_secs(5);

/// How a pod's grace is shared out; what ends the peer itself is none of it.
#[derive(Clone, Copy, Debug)]
pub struct Graces {
    /// How long a peer is held at the most until the others can do without it.
    pub hold: Duration,
    /// How long its requests may take after that.
    pub drain: Duration,
}

impl Graces {
    fn whole(self) -> Duration {
        self.hold + self.drain
    }

    /// How long one is held that is to be removed: if it went before, the others would go on needing its vote.
    fn removal(self) -> Duration {
        self.whole() - self.drain.min(DRAIN_MIN)
    }
}

/// How long it counts who was seen to be told to stop: as long as stops usually take. Later they may be back.
const GOING_KEPT: Duration = Duration::from_secs(120);

/// How long a peer that may not see who else is told to stop lets others go first: long enough for one that goes without
/// requests to be away, and well below what a peer is held at the most.
const UNSEEN_MAX: Duration = Duration::from_secs(15);

/// The label by which the controller of StatefulSets says from which revision a pod was made.
const REVISION: &str = "controller-revision-hash";

/// When this pod was told to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    at: Instant,
    /// Whether it surely was. Anybody may ask for its departure.
    surely: bool,
}

/// What the API server has said last.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// How many peers are wanted.
    pub(super) wanted: Option<Wanted>,
    /// Who goes before this peer, and when that was seen.
    ahead: Option<(Instant, BTreeSet<u32>)>,
    /// Who runs what the StatefulSet has its pods replaced with, and stays.
    renewed: BTreeSet<u32>,
}

/// Peers that go before this one, and do not count any more.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ahead {
    /// Those that were told to stop before it.
    Told(BTreeSet<u32>),
    /// The API server has not said, lately: whoever has a higher ordinal, since each may be told to stop and learn no more
    /// than this one.
    Unknown {
        /// Whether it will not say, however often it is asked.
        refused: bool,
    },
}

/// A voter, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Voter {
    ordinal: Option<u32>,
    /// Whether it answers and is about caught up.
    fit: bool,
}

/// What is known when it is asked whether this peer may go.
#[derive(Debug)]
pub(super) struct Scene {
    ordinal: u32,
    /// None if the API server has never said.
    wanted: Option<Wanted>,
    /// The voters, this peer among them if it is one; none if no leader says.
    voters: Option<Vec<Voter>>,
    ahead: Ahead,
}

/// Whether to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Go(&'static str),
    Hold(&'static str),
    /// As a hold, and for as long as the grace allows: this peer is to be removed.
    Leave(&'static str),
}

impl Scene {
    /// Whether to go, `waited` after this peer was told to stop.
    fn judge(&self, waited: Duration) -> Verdict {
        match self.wanted {
            Some(Wanted::Stopped) => return Verdict::Go("all peers stop"),
            Some(Wanted::Peers(count)) if self.ordinal >= count => {
                return Verdict::Leave("this peer is to be removed first");
            }
            Some(Wanted::Peers(_)) | None => {}
        }
        let Some(voters) = &self.voters else {
            return Verdict::Hold("there is no leader");
        };
        let me = |voter: &&Voter| voter.ordinal == Some(self.ordinal);
        if !voters.iter().any(|voter| me(&voter)) {
            return Verdict::Go("this peer has no vote");
        }
        let quorum = voters.len() / 2 + 1;
        if voters.len() - 1 < quorum {
            return Verdict::Go("the others are no quorum in any case");
        }
        let others = voters.iter().filter(|voter| !me(voter));
        let counts = |voter: &Voter| {
            let goes = voter.ordinal.is_some_and(|it| self.is_ahead(it, waited));
            voter.fit && !goes
        };
        match others.filter(|voter| counts(voter)).count() >= quorum {
            true => Verdict::Go("the others are a quorum"),
            false => Verdict::Hold("without this peer there would be no quorum"),
        }
    }

    fn is_ahead(&self, ordinal: u32, waited: Duration) -> bool {
        match &self.ahead {
            Ahead::Told(ahead) => ahead.contains(&ordinal),
            Ahead::Unknown { refused } if *refused && waited >= UNSEEN_MAX => false,
            Ahead::Unknown { .. } => ordinal > self.ordinal,
        }
    }
}

/// Those of `pods` that are told to stop and go before `mine`: who was told earlier, and of equals the highest.
fn ahead(set: &str, mine: u32, pods: &[Pod]) -> BTreeSet<u32> {
    let going: Vec<_> = pods
        .iter()
        .filter_map(|pod| {
            let told = pod.metadata.deletion_timestamp.as_ref()?.0;
            // The time is that at which its grace ends.
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            let ordinal = ordinal(set, pod.metadata.name.as_deref()?)?;
            Some((told.as_second() - grace, std::cmp::Reverse(ordinal)))
        })
        .collect();
    let own = going.iter().find(|(_, it)| it.0 == mine).copied();
    going
        .into_iter()
        .filter(|it| it.1.0 != mine && own.is_none_or(|own| *it < own))
        .map(|it| it.1.0)
        .collect()
}

/// Those of `pods` that are of the revision which the set has its pods replaced with, and are not told to stop.
fn renewed(set: &StatefulSet, pods: &[Pod]) -> BTreeSet<u32> {
    let status = set.status.as_ref();
    let (Some(name), Some(revision)) = (
        &set.metadata.name,
        status.and_then(|status| status.update_revision.as_ref()),
    ) else {
        return BTreeSet::new();
    };
    let is_renewed = |pod: &&Pod| {
        let labels = pod.metadata.labels.as_ref();
        let of = labels.and_then(|labels| labels.get(REVISION));
        of == Some(revision) && pod.metadata.deletion_timestamp.is_none()
    };
    pods.iter()
        .filter(is_renewed)
        .filter_map(|pod| ordinal(name, pod.metadata.name.as_deref()?))
        .collect()
}

/// Waits until `judge` lets this peer go, which was told to at `told`, or until `graces` allow no more, whatever is still
/// being asked then. Says why.
async fn hold<F>(mut judge: impl FnMut() -> F, told: Instant, graces: Graces) -> &'static str
where
    F: Future<Output = Verdict>,
{
    let mut said = None;
    let mut deadline = told + graces.hold;
    while let Ok(verdict) = timeout_at(deadline, judge()).await {
        let (why, held) = match verdict {
            Verdict::Go(why) => return why,
            Verdict::Hold(why) => (why, graces.hold),
            Verdict::Leave(why) => (why, graces.removal()),
        };
        if said.replace(why) != Some(why) {
            tracing::info!(why, "told to stop, and waiting");
        }
        deadline = told + held;
        let next = Instant::now() + LOOK;
        sleep_until(next.min(deadline)).await;
        if next > deadline {
            break;
        }
    }
    let why = said.unwrap_or("it could not be told in time whether the others are a quorum");
    tracing::warn!(why, "going all the same: the pod's grace runs out");
    why
}

impl Home {
    async fn pods_of(&self, set: &StatefulSet) -> Result<Vec<Pod>, CallError> {
        let selector = set.spec.as_ref().map(|spec| &spec.selector);
        let labels = selector.and_then(|selector| selector.match_labels.as_ref());
        let labels = labels.into_iter().flatten();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let asked = ListParams::default().labels(&labels.join(","));
        Ok(call(self.pods.list(&asked)).await?.items)
    }

    /// The scene, looked at no more often than one asks, however many do.
    async fn last_scene(&self, consensus: &Consensus) -> Arc<Scene> {
        let mut looked = self.looked.lock().await;
        if let Some((at, scene)) = looked.as_ref()
            && at.elapsed() < LOOK
        {
            return Arc::clone(scene);
        }
        let scene = Arc::new(self.scene(consensus).await);
        *looked = Some((Instant::now(), Arc::clone(&scene)));
        scene
    }

    async fn scene(&self, consensus: &Consensus) -> Scene {
        let addresses = consensus.members();
        let health = consensus.member_health(ASK_MAX).await.ok();
        let voters = health.map(|members| {
            let voters = members.iter().filter(|member| member.voter);
            voters
                .map(|member| {
                    let known = addresses.iter().find(|it| it.id == member.node);
                    let me = member.node == consensus.node_id();
                    Voter {
                        ordinal: match me {
                            true => Some(self.ordinal),
                            // Where this pod is now, a peer may have been whose volume is lost.
                            false => known
                                .and_then(|it| ordinal_at(&self.set, &self.place, &it.address))
                                .filter(|other| *other != self.ordinal),
                        },
                        fit: member.answers && member.lag.is_some_and(|lag| lag < LAG_MAX),
                    }
                })
                .collect()
        });
        let (wanted, ahead) = self.said().await;
        let renewed = self.known().renewed.clone();
        let is_renewed = |address: &str| {
            ordinal_at(&self.set, &self.place, address).is_some_and(|it| renewed.contains(&it))
        };
        let renewed = addresses.iter().filter(|it| is_renewed(&it.address));
        consensus.note_renewed(renewed.map(|it| it.id).collect());
        Scene {
            ordinal: self.ordinal,
            wanted,
            voters,
            ahead,
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many peers are wanted and who goes before this one, as the API server says now, or else as it said last.
    async fn said(&self) -> (Option<Wanted>, Ahead) {
        let set = self.read_set().await;
        let is_refused = |error: &CallError| matches!(error.code(), Some(401 | 403));
        let is_withdrawn = set.as_ref().is_err_and(is_refused);
        let seen = match set {
            Ok((Some(set), _)) => {
                let pods = self.pods_of(&set).await;
                pods.map(|pods| (renewed(&set, &pods), pods))
            }
            // Then all peers stop.
            Ok((None, _)) => Ok((BTreeSet::new(), Vec::new())),
            Err(error) => Err(error),
        };
        let mut known = self.known();
        let refused = match seen {
            Ok((renewed, pods)) => {
                known.renewed = renewed;
                let ahead = ahead(&self.set, self.ordinal, &pods);
                known.ahead = Some((Instant::now(), ahead));
                false
            }
            Err(error) => {
                tracing::debug!(%error, "cannot see who else is told to stop");
                is_refused(&error)
            }
        };
        let lately = known.ahead.as_ref();
        let lately = lately.filter(|(at, _)| at.elapsed() < GOING_KEPT);
        let ahead = match lately {
            Some((_, ahead)) => Ahead::Told(ahead.clone()),
            // A permission that there was goes with the whole release: whoever waited for others would do so in vain.
            None if is_withdrawn && known.wanted.is_some() => Ahead::Told(BTreeSet::new()),
            None => Ahead::Unknown { refused },
        };
        (known.wanted, ahead)
    }

    /// Awaits `announce` if the API server has been told to delete this pod, which cannot be taken back. Otherwise its
    /// container may be restarted only, or somebody asked at `asked` who is not its node.
    async fn announce(&self, asked: Instant, announce: impl Future<Output = ()>) {
        let pod = call(self.pods.get_opt(&self.pod)).await.ok().flatten();
        if pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
            self.surely_told(asked);
            announce.await;
        }
    }

    fn told(&self) -> MutexGuard<'_, Option<Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that somebody asks for this pod's departure. What nothing came of within `hold` was no stop.
    fn perhaps_told(&self, hold: Duration) {
        let mut told = self.told();
        let holds = told.is_some_and(|told| told.surely || told.at.elapsed() < hold);
        if !holds {
            *told = Some(Told {
                at: Instant::now(),
                surely: false,
            });
        }
    }

    /// Notes that this pod is being stopped, as the one who asked at `asked` was.
    fn surely_told(&self, asked: Instant) {
        let mut told = self.told();
        if told.is_none_or(|told| !told.surely) {
            *told = Some(Told {
                at: asked,
                surely: true,
            });
        }
    }

    /// How long requests may take from now on: what is left of `graces`, which began when this pod was told to stop. If
    /// nobody has told it by its hook, as long as may be without.
    #[must_use]
    pub fn drain_grace(&self, graces: Graces) -> Duration {
        let told = *self.told();
        let told = told.filter(|told| told.surely || told.at.elapsed() <= graces.hold);
        let left = told.map(|told| graces.whole().saturating_sub(told.at.elapsed()));
        left.filter(|left| !left.is_zero()).unwrap_or(graces.drain)
    }

    /// Returns when this pod, which is told to stop, may be stopped: no earlier than that no new connections come, and
    /// no later than `graces` allow after it was asked. Says why. A peer that is removed meanwhile ends by itself.
    ///
    /// Awaits `announce`, which tells clients to go elsewhere, as soon as they would: so they are told while this waits, and
    /// not only after it. Not so where the pod is not deleted: anybody may ask for its departure.
    pub async fn departure(
        self: Arc<Self>,
        consensus: Consensus,
        graces: Graces,
        announce: impl Future<Output = ()> + Send,
    ) -> &'static str {
        let asked = Instant::now();
        self.perhaps_told(graces.hold);
        sleep(NEW_CONNECTIONS_LAG).await;
        self.announce(asked, announce).await;
        sleep_until(asked + ENDPOINTS_LAG).await;
        let judge = || async {
            let verdict = self.last_scene(&consensus).await.judge(asked.elapsed());
            // What the set does not want is told to stop, whether or not it could be seen.
            if matches!(verdict, Verdict::Leave(_)) {
                self.surely_told(asked);
            }
            verdict
        };
        hold(judge, asked, graces).await
    }
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn scene(count: u32) -> Scene {
        let voter = |ordinal| Voter {
            ordinal: Some(ordinal),
            fit: true,
        };
        Scene {
            ordinal: 1,
            wanted: Some(Wanted::Peers(count)),
            voters: Some((0..count).map(voter).collect()),
            ahead: Ahead::Told(BTreeSet::new()),
        }
    }

    fn goes(scene: &Scene) -> bool {
        goes_after(scene, 5)
    }

    /// The same so many seconds after it was told.
    fn goes_after(scene: &Scene, secs: u64) -> bool {
        let verdict = scene.judge(Duration::from_secs(secs));
        matches!(verdict, Verdict::Go(_))
    }

    #[test]
    fn a_peer_goes_only_if_the_others_are_a_quorum() {
        assert!(goes(&scene(3)));
        for unfit in [0, 2] {
            let mut scene = scene(3);
            scene.voters.as_mut().unwrap()[unfit].fit = false;
            assert!(!goes(&scene), "{unfit}");
        }
        let mut five = scene(5);
        five.voters.as_mut().unwrap()[4].fit = false;
        assert!(goes(&five));
        five.ahead = Ahead::Told([0].into());
        assert!(!goes(&five), "two of five are away, and one more goes");
        let leaderless = Scene {
            voters: None,
            ..scene(3)
        };
        assert!(!goes(&leaderless));
    }

    #[test]
    fn a_peer_that_nobody_could_replace_is_not_held_in_vain() {
        let mut two = scene(2);
        two.voters.as_mut().unwrap()[0].fit = false;
        assert!(goes(&two));
        let mut learner = scene(3);
        learner.ordinal = 3;
        learner.wanted = Some(Wanted::Peers(4));
        learner.voters.as_mut().unwrap()[0].fit = false;
        assert!(goes(&learner));
    }

    /// Of a pod with 75 seconds.
    const GRACES: Graces = Graces {
        hold: Duration::from_secs(35),
        drain: Duration::from_secs(30),
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_held_for_as_long_as_it_is_told_and_not_a_moment_longer() {
        let began = Instant::now();
        let held = hold(|| async { Verdict::Hold("alone") }, began, GRACES).await;
        assert_eq!((held, began.elapsed().as_secs()), ("alone", 35));
        let began = Instant::now();
        hold(std::future::pending, began, GRACES).await;
        assert_eq!(began.elapsed().as_secs(), 35, "nobody answers");
        let began = Instant::now();
        let well = || match began.elapsed() < Duration::from_secs(20) {
            true => Verdict::Hold("alone"),
            false => Verdict::Go("not alone"),
        };
        let went = hold(|| std::future::ready(well()), began, GRACES).await;
        assert_eq!((went, began.elapsed().as_secs()), ("not alone", 20));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_to_be_removed_is_held_until_the_grace_has_nothing_left_but_for_its_requests()
     {
        let began = Instant::now();
        let held = hold(|| async { Verdict::Leave("removal") }, began, GRACES).await;
        assert_eq!((held, began.elapsed().as_secs()), ("removal", 60));
        let began = Instant::now();
        // The set was scaled up again.
        let wanted = || match began.elapsed() < Duration::from_secs(50) {
            true => Verdict::Leave("removal"),
            false => Verdict::Hold("alone"),
        };
        let went = hold(|| std::future::ready(wanted()), began, GRACES).await;
        assert_eq!((went, began.elapsed().as_secs()), ("alone", 50));
        let short = Graces {
            drain: Duration::from_secs(2),
            ..GRACES
        };
        assert_eq!(short.removal(), short.hold);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_is_not_held_for_is_left_to_its_requests() {
        let home = home(1, |_| 404);
        let drain = || home.drain_grace(GRACES).as_secs();
        assert_eq!(drain(), 30, "told without a hook");
        let hook = Instant::now();
        home.perhaps_told(GRACES.hold);
        tokio::time::advance(ENDPOINTS_LAG).await;
        assert_eq!(drain(), 60);
        home.surely_told(hook);
        tokio::time::advance(GRACES.removal() - ENDPOINTS_LAG).await;
        assert_eq!(drain(), DRAIN_MIN.as_secs(), "all is within the grace");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_before_the_pod_is_told_to_stop_takes_nothing_from_its_requests() {
        let home = home(1, |_| 404);
        let drain = || home.drain_grace(GRACES).as_secs();
        home.perhaps_told(GRACES.hold);
        tokio::time::advance(GRACES.whole() / 2).await;
        assert_eq!(drain(), 32, "perhaps it was the hook");
        tokio::time::advance(GRACES.whole()).await;
        assert_eq!(drain(), 30, "it was not");
        home.perhaps_told(GRACES.hold);
        tokio::time::advance(ENDPOINTS_LAG).await;
        assert_eq!(drain(), 60, "the hook of a later stop");

        // Somebody asks, and then the pod is deleted.
        tokio::time::advance(GRACES.whole()).await;
        home.perhaps_told(GRACES.hold);
        tokio::time::advance(GRACES.hold / 2).await;
        let hook = Instant::now();
        home.perhaps_told(GRACES.hold);
        tokio::time::advance(ENDPOINTS_LAG).await;
        home.surely_told(hook);
        assert_eq!(drain(), 60);
        home.surely_told(Instant::now());
        assert_eq!(drain(), 60, "whoever asks later");
    }

    #[test]
    fn one_that_is_to_be_removed_waits_for_it_and_one_that_is_stopped_with_all_does_not() {
        let mut surplus = scene(3);
        surplus.wanted = Some(Wanted::Peers(1));
        assert_eq!(
            surplus.judge(Duration::ZERO),
            Verdict::Leave("this peer is to be removed first")
        );
        surplus.wanted = Some(Wanted::Stopped);
        surplus.voters = None;
        assert!(goes(&surplus));
        let unknown = Scene {
            wanted: None,
            ..scene(3)
        };
        assert!(goes(&unknown), "the API server is not needed to restart");
    }

    #[test]
    fn of_several_that_cannot_see_each_other_stop_so_many_go_that_a_quorum_stays() {
        let going = |refused, secs| {
            let goes = |ordinal: &u32| {
                let scene = Scene {
                    ordinal: *ordinal,
                    wanted: None,
                    ahead: Ahead::Unknown { refused },
                    ..scene(5)
                };
                goes_after(&scene, secs)
            };
            Vec::from_iter((0..5).filter(goes))
        };
        assert_eq!(going(false, 5), [3, 4]);
        assert_eq!(going(false, 34), [3, 4]);
        assert_eq!(going(true, 5), [3, 4]);
        let all = [0, 1, 2, 3, 4];
        assert_eq!(going(true, UNSEEN_MAX.as_secs()), all, "as without it");
    }

    /// The home of pod `rs-2` where the API server answers what is asked with that code, and has a set of so many pods.
    pub(in crate::kubernetes) fn home(
        replicas: u32,
        answer: impl Fn(&str) -> u16 + Send + Clone + 'static,
    ) -> Home {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let path = request.uri().path();
            let code = answer(path);
            let body = match path {
                _ if code != 200 => json!({
                    "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                    "message": "no", "reason": "no", "code": code,
                }),
                path if path.ends_with("/pods") => json!({
                    "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [{"metadata": {
                        "name": "rs-1", "deletionTimestamp": "2026-01-01T00:00:00Z",
                        "deletionGracePeriodSeconds": 75, "labels": {REVISION: "new"},
                    }}, {"metadata": {"name": "rs-0", "labels": {REVISION: "new"}}}],
                }),
                path if path.contains("/pods/") => {
                    json!({"metadata": {"name": "rs-2", "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "rs", "uid": "u", "controller": true,
                    }]}})
                }
                path if path.contains("/statefulsets/") => {
                    json!({"metadata": {"name": "rs", "uid": "u"}, "spec": {
                        "replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "serviceName": "rs", "template": {},
                    }, "status": {"replicas": replicas, "updateRevision": "new"}})
                }
                _ => json!({"metadata": {"name": "ns"}}),
            };
            let body = http_body_util::Full::<bytes::Bytes>::from(body.to_string());
            std::future::ready(http::Response::builder().status(code).body(body))
        });
        let client = kube::Client::new(service, "ns");
        Home::with("rs".to_owned(), "rs-2.x:7001", client).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_api_server_said_last_counts_while_it_says_nothing() {
        let code = Arc::new(std::sync::atomic::AtomicU16::new(500));
        let answers = Arc::clone(&code);
        let home = home(1, move |_| {
            answers.load(std::sync::atomic::Ordering::Relaxed)
        });
        let away = Ahead::Unknown { refused: false };
        assert_eq!(home.said().await, (None, away.clone()));

        code.store(200, std::sync::atomic::Ordering::Relaxed);
        // As it is read whenever the set has changed.
        home.read_set().await.unwrap();
        code.store(500, std::sync::atomic::Ordering::Relaxed);
        let wanted = Some(Wanted::Peers(1));
        let said = home.said().await;
        assert_eq!(said, (wanted, away.clone()));
        let condemned = Scene {
            ordinal: 2,
            wanted: said.0,
            ahead: said.1,
            ..scene(3)
        };
        assert!(!goes(&condemned), "it is to be removed first");

        code.store(200, std::sync::atomic::Ordering::Relaxed);
        let told = Ahead::Told([1].into());
        assert_eq!(home.said().await, (wanted, told.clone()));
        code.store(403, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(home.said().await, (wanted, told));
        tokio::time::advance(GOING_KEPT).await;
        let nobody = Ahead::Told(BTreeSet::new());
        assert_eq!(home.said().await, (wanted, nobody));
    }

    #[tokio::test]
    async fn a_permission_that_is_withdrawn_makes_nobody_wait_for_others() {
        let code = Arc::new(std::sync::atomic::AtomicU16::new(403));
        let answers = Arc::clone(&code);
        let home = home(1, move |_| {
            answers.load(std::sync::atomic::Ordering::Relaxed)
        });
        let never_had = Ahead::Unknown { refused: true };
        assert_eq!(home.said().await, (None, never_had));
        code.store(200, std::sync::atomic::Ordering::Relaxed);
        home.read_set().await.unwrap();
        code.store(403, std::sync::atomic::Ordering::Relaxed);
        let nobody = Ahead::Told(BTreeSet::new());
        assert_eq!(home.said().await, (Some(Wanted::Peers(1)), nobody));
    }

    #[tokio::test]
    async fn who_may_not_list_pods_does_not_take_it_that_nobody_else_goes() {
        let home = home(1, |path| if path.ends_with("/pods") { 403 } else { 200 });
        let unseen = Ahead::Unknown { refused: true };
        assert_eq!(home.said().await, (Some(Wanted::Peers(1)), unseen));
    }

    #[tokio::test]
    async fn clients_are_told_only_of_a_pod_that_the_api_server_says_is_deleted() {
        let stays = json!({"metadata": {"name": "rs-0"}});
        let goes =
            json!({"metadata": {"name": "rs-0", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (pod, told) in [(Some(goes), true), (Some(stays), false), (None, false)] {
            let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
                let code = if pod.is_some() { 200 } else { 403 };
                let body = pod.clone().unwrap_or_default().to_string();
                let body = http_body_util::Full::<bytes::Bytes>::from(body);
                std::future::ready(http::Response::builder().status(code).body(body))
            });
            let client = kube::Client::new(service, "ns");
            let home = Home::with("rs".to_owned(), "rs-0.x:7001", client).unwrap();
            let announced = std::cell::Cell::new(false);
            home.announce(Instant::now(), async { announced.set(true) })
                .await;
            assert_eq!(announced.get(), told);
            assert_eq!(home.told().is_some(), told);
        }
    }

    #[test]
    fn who_is_of_the_revision_to_come_and_stays_is_renewed() {
        let mut set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "rs"}, "status": {"replicas": 5, "updateRevision": "new"},
        }))
        .unwrap();
        let pod = |name: &str, revision: &str| -> Pod {
            let labels = json!({REVISION: revision});
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        let mut pods = ["rs-0", "rs-1"].map(|name| pod(name, "old")).to_vec();
        pods.extend(["rs-2", "rs-3", "rs-4", "other-0"].map(|name| pod(name, "new")));
        pods[4].metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        pods.push(Pod::default());
        assert_eq!(renewed(&set, &pods), [2, 3].into());
        set.status = None;
        assert_eq!(renewed(&set, &pods), [].into());
    }

    #[tokio::test]
    async fn who_is_renewed_is_remembered_as_the_api_server_said_it_last() {
        let home = home(3, |_| 200);
        home.said().await;
        assert_eq!(home.known().renewed, [0].into());
    }

    #[test]
    fn of_several_that_are_told_to_stop_one_goes_first() {
        let pod = |name: &str, second: Option<i64>| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.to_owned());
            let at = second.map(|second| Timestamp::from_second(second + 75).unwrap());
            pod.metadata.deletion_timestamp = at.map(Time);
            pod.metadata.deletion_grace_period_seconds = at.map(|_| 75);
            pod
        };
        let pods = [
            pod("rs-0", None),
            pod("rs-1", Some(10)),
            pod("rs-2", Some(10)),
            pod("rs-3", Some(9)),
            pod("other-4", Some(1)),
        ];
        assert_eq!(ahead("rs", 3, &pods), [].into());
        assert_eq!(ahead("rs", 2, &pods), [3].into());
        assert_eq!(ahead("rs", 1, &pods), [2, 3].into());
        assert_eq!(ahead("rs", 0, &pods), [1, 2, 3].into());
    }
}
