//! Takes a dead peer out of the client Service at once, and puts it back when it is well.
//!
//! Kubernetes itself needs up to twenty seconds to notice a dead node, and as long sends a share of all connections there.
//! The peers notice within a second, and at once if the dead peer's host refuses connections for it. So each pod has a
//! readiness gate, which the peer opens when it is ready for the first time, and which the leader closes while the peer does
//! not answer. A node that is dead cannot draw the conclusion from its pod's gate: so the leader closes what the node would
//! have, the pod's `Ready`, too. A node that lives puts that right.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{CallError, Home, call, ordinal_at};
use crate::consensus::{Consensus, Leadership, MemberView};

/// The gate's name, as the chart has it.
pub(crate) const GATE: &str = "raftserve.io/reachable";

/// How often the leader looks. Together with the second after which a silent peer counts as such, or an election if it
/// led, this must stay below two seconds.
const PERIOD: Duration = Duration::from_millis(100);

/// How often a gate is set again that is thought to be right: somebody else may have set it since, such as a former leader
/// whose word was still under way.
const REPEAT: Duration = Duration::from_secs(5);

/// How long a leader may take to be sure that it is one.
const CONFIRM_MAX: Duration = Duration::from_secs(1);

/// How long without a leader says that the quorum is lost: many times what an election takes.
const LEADERLESS: Duration = Duration::from_secs(10);

/// How long after a failed try a peer opens its own gate again.
const RETRY: Duration = Duration::from_secs(1);

/// What keeps this peer from setting gates, by ordinal: its own, and while it leads those of the others.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<Tried>);

#[derive(Debug, Default)]
struct Tried {
    /// Why a gate could not be set the last time.
    failed: BTreeMap<u32, String>,
    /// Whether this peer has set its own gate at all.
    own_is_set: bool,
}

/// Whether the API server will not have it, however often it is asked.
fn is_refusal(error: &CallError) -> bool {
    matches!(error.code(), Some(401 | 403 | 404 | 405 | 422))
}

impl Gates {
    fn lock(&self) -> MutexGuard<'_, Tried> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of setting the gate of `ordinal`. Only a refusal counts, since gates are set again and again, and that the
    /// API server is away is told elsewhere; but where this peer's `own` gate was never set, whatever keeps it from that does.
    fn tried(&self, ordinal: u32, own: bool, result: Result<(), &CallError>) {
        let mut tried = self.lock();
        match result {
            Err(error) if is_refusal(error) || (own && !tried.own_is_set) => {
                tried.failed.insert(ordinal, error.to_string());
            }
            Ok(()) | Err(_) => {
                tried.own_is_set |= own && result.is_ok();
                tried.failed.remove(&ordinal);
            }
        }
    }

    /// Forgets what came of gates but of the `own` one and those that `is_kept`: whoever leads sees to the others, and
    /// those of pods that are gone are nobody's.
    fn keep(&self, own: u32, is_kept: impl Fn(u32) -> bool) {
        let kept = |ordinal: &u32| *ordinal == own || is_kept(*ordinal);
        self.lock().failed.retain(|ordinal, _| kept(ordinal));
    }

    /// What is wrong, and what to do, for the pod `own` of `set`.
    fn trouble(&self, set: &str, own: u32) -> Option<String> {
        let tried = self.lock();
        let failed = &tried.failed;
        let other = || failed.iter().next();
        let (ordinal, why) = failed.get_key_value(&own).or_else(other)?;
        let said = match *ordinal == own {
            true => "cannot be put among the endpoints of the client Service",
            false => {
                "cannot be put among the endpoints of the client Service, or taken out of them"
            }
        };
        Some(format!(
            "pod {set}-{ordinal} {said}: {why}; the peers' service account must be allowed to patch pods/status of its own pods, \
             as in Role {set}-peers of the chart (rbac.create), and the API server must answer"
        ))
    }
}

/// Whether each pod of `set`, at `place`, among `members` is to get requests.
fn reachable(set: &str, place: &str, members: &[MemberView]) -> BTreeMap<u32, bool> {
    let pods = members.iter().filter_map(|member| {
        let ordinal = ordinal_at(set, place, &member.address)?;
        Some((ordinal, member.up))
    });
    let mut reachable = BTreeMap::new();
    for (ordinal, up) in pods {
        // A wiped peer's former self may still be a member.
        *reachable.entry(ordinal).or_default() |= up;
    }
    reachable
}

/// The gates as they are to be now, as `look` finds them. One that has led, and was paused, finds all others silent: so
/// nobody is found silent but by one that `leads` after having looked.
async fn judged(
    look: impl Fn() -> BTreeMap<u32, bool>,
    leads: impl Future<Output = bool>,
) -> Option<BTreeMap<u32, bool>> {
    let looked = look();
    if looked.values().all(|up| *up) {
        return Some(looked);
    }
    // An answer may have come meanwhile.
    leads.await.then(look)
}

/// Which of the gates `judged` are to be set now, and how each was set before, if it was: those that are otherwise in
/// `done`, and those that were set [`REPEAT`] ago.
fn due(
    judged: BTreeMap<u32, bool>,
    done: &BTreeMap<u32, (bool, Instant)>,
) -> impl Iterator<Item = (u32, bool, Option<bool>)> {
    judged.into_iter().filter_map(|(ordinal, up)| {
        let before = done.get(&ordinal).copied();
        let holds = before.is_some_and(|(was, at)| was == up && at.elapsed() < REPEAT);
        (!holds).then_some((ordinal, up, before.map(|(was, _)| was)))
    })
}

/// The gates that are being set, each by itself: where one answer is long in coming, the others need not wait for it.
#[derive(Default)]
struct Setting {
    /// How and when each was set last.
    done: BTreeMap<u32, (bool, Instant)>,
    /// How each is being set.
    under_way: BTreeMap<u32, (bool, AbortHandle)>,
    tasks: JoinSet<Option<(u32, (bool, Instant))>>,
}

impl Setting {
    /// Begins with what is due of `judged`, by `set`, which is given how the gate was set before and tells whether it is
    /// set now. What is under way and not wanted any more is given up.
    fn begin<F>(
        &mut self,
        judged: BTreeMap<u32, bool>,
        mut set: impl FnMut(u32, bool, Option<bool>) -> F,
    ) where
        F: Future<Output = bool> + Send + 'static,
    {
        while let Some(ended) = self.tasks.try_join_next() {
            self.done.extend(ended.ok().flatten());
        }
        self.under_way.retain(|_, (_, task)| !task.is_finished());
        for (ordinal, up, before) in due(judged, &self.done) {
            match self.under_way.get(&ordinal) {
                Some((wanted, _)) if *wanted == up => continue,
                Some((_, other)) => other.abort(),
                None => {}
            }
            let setting = set(ordinal, up, before);
            let task = self.tasks.spawn(async move {
                let set = setting.await;
                set.then(|| (ordinal, (up, Instant::now())))
            });
            self.under_way.insert(ordinal, (up, task));
        }
    }
}

/// Waits until there was no leader for [`LEADERLESS`]; false if nobody tells any more.
async fn leaderless(leadership: &mut watch::Receiver<Leadership>) -> bool {
    loop {
        if leadership
            .wait_for(|now| now.leader.is_none())
            .await
            .is_err()
        {
            return false;
        }
        let found = leadership.wait_for(|now| now.leader.is_some());
        match timeout(LEADERLESS, found).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return false,
            Err(_) => return true,
        }
    }
}

fn conditions(up: bool) -> Value {
    let status = if up { "True" } else { "False" };
    let gate =
        json!({"type": GATE, "status": status, "reason": if up { "Answers" } else { "Silent" }});
    let conditions = match up {
        true => vec![gate],
        false => vec![
            gate,
            json!({
                "type": "Ready", "status": "False", "reason": "PeerSilent",
                "message": "the leader of the raftserve cluster does not hear this peer",
            }),
        ],
    };
    json!({"status": {"conditions": conditions}})
}

impl Home {
    async fn set_gate(&self, ordinal: u32, up: bool) -> Result<(), CallError> {
        let pod = format!("{}-{ordinal}", self.set);
        let status = conditions(up);
        let patch = Patch::Strategic(&status);
        let params = PatchParams::default();
        let set = match call(self.pods.patch_status(&pod, &params, &patch)).await {
            Ok(_) => Ok(()),
            // It has no endpoint either.
            Err(error) if error.code() == Some(404) => Ok(()),
            Err(error) => Err(error),
        };
        let result = set.as_ref().copied();
        self.shut.tried(ordinal, ordinal == self.ordinal, result);
        set
    }

    /// What keeps this peer from being an endpoint of the client Service, or from saying who of the others is one, and what
    /// to do about it. None if nothing does.
    #[must_use]
    pub fn gate_trouble(&self) -> Option<String> {
        self.shut.trouble(&self.set, self.ordinal)
    }

    /// Opens this peer's own gate when it is ready for the first time, and whenever it has had no leader for a while:
    /// one that was closed just before the leader was lost would else stay closed until there is a quorum again, and
    /// traffic needs none. If there is a leader after all, who does not hear this peer, it has the last word.
    pub async fn open_gate(
        self: Arc<Self>,
        consensus: Consensus,
        mut ready: watch::Receiver<bool>,
    ) {
        if ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        let mut leadership = consensus.leadership();
        loop {
            while let Err(error) = self.set_gate(self.ordinal, true).await {
                tracing::warn!(%error, pod = self.pod, "cannot put this peer among the endpoints");
                sleep(RETRY).await;
            }
            if leadership
                .wait_for(|now| now.leader.is_some())
                .await
                .is_err()
                || !leaderless(&mut leadership).await
            {
                return;
            }
        }
    }

    /// Sets one gate, and says so if it was otherwise before.
    async fn set(&self, ordinal: u32, up: bool, before: Option<bool>) -> bool {
        match self.set_gate(ordinal, up).await {
            Ok(()) => {
                if before.is_some_and(|before| before != up) || (before.is_none() && !up) {
                    tracing::info!(ordinal, up, "a peer's endpoint");
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, ordinal, up, "cannot set a peer's endpoint");
                false
            }
        }
    }

    /// Closes and opens the others' gates while this peer leads. Runs as long as the peer does.
    pub async fn keep_gates(self: Arc<Self>, consensus: Consensus) {
        let mut leadership = consensus.leadership();
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if leadership.wait_for(|now| now.is_self).await.is_err() {
                return;
            }
            let mut setting = Setting::default();
            while leadership.borrow().is_self {
                period.tick().await;
                let look = || reachable(&self.set, &self.place, &consensus.members());
                let leads = async {
                    consensus.read_barrier(CONFIRM_MAX).await.is_ok()
                        && consensus.leadership().borrow().is_self
                };
                let judged = judged(look, leads).await;
                if let Some(judged) = &judged {
                    self.shut.keep(self.ordinal, |it| judged.contains_key(&it));
                }
                let judged = judged.unwrap_or_default();
                setting.begin(judged, |ordinal, up, before| {
                    let home = Arc::clone(&self);
                    async move { home.set(ordinal, up, before).await }
                });
            }
            // Ends what is under way first, which would else tell of it later.
            setting.tasks.shutdown().await;
            self.shut.keep(self.ordinal, |_| false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt;
    use raftserve_model::NodeId;

    use super::super::scaling::tests::member;

    use super::*;

    #[test]
    fn a_silent_peer_gets_no_requests_and_a_silent_former_self_does_not_matter() {
        let mut members = [
            member(1, "rs-0.x:7001"),
            member(2, "rs-1.x:7001"),
            member(9, "rs-1.x:7001"),
            member(4, "elsewhere:7001"),
            member(5, "rs-1.elsewhere:7001"),
        ];
        members[1].up = false;
        let all = BTreeMap::from([(0, true), (1, true)]);
        assert_eq!(reachable("rs", ".x:7001", &members), all);
        members.swap(1, 2);
        assert_eq!(reachable("rs", ".x:7001", &members), all, "in either order");
        members[1].up = false;
        assert!(!reachable("rs", ".x:7001", &members)[&1]);
    }

    #[tokio::test]
    async fn only_who_leads_after_having_looked_finds_a_peer_silent() {
        let gates = |up| BTreeMap::from([(0, true), (1, up)]);
        let unasked = judged(|| gates(true), std::future::pending()).now_or_never();
        assert_eq!(unasked, Some(Some(gates(true))));
        let led = judged(|| gates(false), async { false }).await;
        assert_eq!(led, None, "a former leader judges nobody");
        let answers = Cell::new(false);
        let leads = async {
            answers.set(true);
            true
        };
        let meanwhile = judged(|| gates(answers.get()), leads).await;
        assert_eq!(meanwhile, Some(gates(true)));
        assert_eq!(
            judged(|| gates(false), async { true }).await,
            Some(gates(false))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_is_set_when_it_changes_and_again_after_a_while() {
        let judged = BTreeMap::from([(0, true), (1, false)]);
        let due = |done: &BTreeMap<_, _>| due(judged.clone(), done).collect::<Vec<_>>();
        let mut done = BTreeMap::new();
        assert_eq!(due(&done), [(0, true, None), (1, false, None)]);
        let now = Instant::now();
        done.extend([(0, (true, now)), (1, (true, now))]);
        assert_eq!(due(&done), [(1, false, Some(true))]);
        done.insert(1, (false, now));
        assert_eq!(due(&done), []);
        tokio::time::advance(REPEAT).await;
        assert_eq!(due(&done), [(0, true, Some(true)), (1, false, Some(false))]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_patch_that_hangs_holds_up_no_other_gate_and_gives_way_to_another_word() {
        let (tell, mut told) = tokio::sync::mpsc::channel(8);
        // Time passes here only if nothing else can happen.
        let mut told = async || timeout(REPEAT, told.recv()).await.ok().flatten();
        let mut setting = Setting::default();
        let mut begin = |gates: [(u32, bool); 2]| {
            setting.begin(gates.into(), |ordinal, up, _| {
                let tell = tell.clone();
                async move {
                    tell.send((ordinal, up)).await.unwrap();
                    // The first pod's gate cannot be opened now.
                    match (ordinal, up) {
                        (0, true) => std::future::pending().await,
                        _ => true,
                    }
                }
            });
        };
        begin([(0, true), (1, true)]);
        assert_eq!(told().await, Some((0, true)));
        assert_eq!(told().await, Some((1, true)));
        begin([(0, true), (1, false)]);
        assert_eq!(told().await, Some((1, false)), "and only that");
        begin([(0, false), (1, false)]);
        assert_eq!(told().await, Some((0, false)));
    }

    #[test]
    fn only_what_is_closed_is_closed_on_the_nodes_behalf() {
        let types = |up| {
            let status = conditions(up);
            let all = status["status"]["conditions"].as_array().unwrap().clone();
            let pairs = all.into_iter();
            pairs
                .map(|it| (it["type"].to_string(), it["status"].to_string()))
                .collect::<Vec<_>>()
        };
        let quoted = |text: &str| format!("\"{text}\"");
        assert_eq!(types(true), [(quoted(GATE), quoted("True"))]);
        let closed = [GATE, "Ready"].map(|kind| (quoted(kind), quoted("False")));
        assert_eq!(types(false), closed);
    }

    #[tokio::test]
    async fn a_gate_that_may_not_be_set_is_told_until_it_is_set() {
        let code = Arc::new(std::sync::atomic::AtomicU16::new(403));
        let answers = Arc::clone(&code);
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let code = answers.load(std::sync::atomic::Ordering::Relaxed);
            let body = match code {
                200 => json!({"metadata": {"name": "rs-0"}}),
                _ => json!({
                    "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                    "message": "cannot patch pods/status", "reason": "Forbidden", "code": code,
                }),
            };
            let body = http_body_util::Full::<bytes::Bytes>::from(body.to_string());
            std::future::ready(http::Response::builder().status(code).body(body))
        });
        let client = kube::Client::new(service, "ns");
        let home = Home::with("rs".to_owned(), "rs-0.x:7001", client).unwrap();
        assert_eq!(home.gate_trouble(), None);
        home.set_gate(1, false).await.unwrap_err();
        let other = home.gate_trouble().expect("of the other");
        assert!(other.contains("rs-1"), "{other}");
        home.shut.keep(0, |ordinal| ordinal == 1);
        assert!(home.gate_trouble().is_some());
        home.shut.keep(0, |_| false);
        assert_eq!(home.gate_trouble(), None, "its pod is gone");
        home.set_gate(1, false).await.unwrap_err();
        home.set_gate(0, true).await.unwrap_err();
        let own = home.gate_trouble().expect("of its own first");
        for said in [
            "rs-0",
            "cannot patch pods/status",
            "Role rs-peers",
            "rbac.create",
        ] {
            assert!(own.contains(said), "{own}");
        }
        home.shut.keep(0, |_| false);
        code.store(200, std::sync::atomic::Ordering::Relaxed);
        home.set_gate(0, true).await.unwrap();
        assert_eq!(home.gate_trouble(), None);
    }

    #[test]
    fn that_the_api_server_is_away_counts_only_for_a_peer_whose_own_gate_was_never_set() {
        let gates = Gates::default();
        gates.tried(1, false, Err(&CallError::Late));
        assert_eq!(gates.trouble("rs", 0), None);
        gates.tried(0, true, Err(&CallError::Late));
        let own = gates.trouble("rs", 0).expect("its own");
        assert!(own.contains("did not answer"), "{own}");
        gates.tried(0, true, Ok(()));
        gates.tried(0, true, Err(&CallError::Late));
        assert_eq!(gates.trouble("rs", 0), None, "it is an endpoint");
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_is_no_loss_of_the_quorum() {
        let leadership = |leader| Leadership {
            leader,
            ..Leadership::default()
        };
        let (tell, mut told) = watch::channel(leadership(Some(NodeId(1))));
        let began = Instant::now();
        let telling = async {
            for leader in [None, Some(NodeId(2)), None] {
                sleep(LEADERLESS - Duration::from_secs(1)).await;
                tell.send_replace(leadership(leader));
            }
            sleep(LEADERLESS * 2).await;
        };
        let (lost, ()) = tokio::join!(
            async {
                let lost = timeout(LEADERLESS * 20, leaderless(&mut told)).await;
                assert!(lost.expect("some time"));
                began.elapsed()
            },
            telling
        );
        let waited = (LEADERLESS - Duration::from_secs(1)) * 3 + LEADERLESS;
        assert!(
            lost >= waited && lost < waited + Duration::from_secs(1),
            "{lost:?}"
        );
        drop(tell);
        assert!(!leaderless(&mut told).await);
    }
}
