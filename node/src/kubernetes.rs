//! A peer as a pod of a StatefulSet: what it reads from the Kubernetes API about itself and the others, and the little
//! that it writes there. Replicas of services as pods are another matter, the provider's.
//!
//! Nothing here is needed for traffic or for Raft. While the API server is away, peers serve, elect and restart as ever;
//! only what is agreed with Kubernetes waits: founding, removal, and taking a dead peer out of the endpoints.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::{Api, Client, Config};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};
use tokio::time::{Instant, timeout};

use departure::{Known, Scene, Told};
use endpoints::Gates;

pub(crate) mod client;
pub mod departure;
pub mod endpoints;
pub mod founding;
pub mod scaling;
pub mod watching;
pub mod whereabouts;

/// The longest that a call may take of those that peers make for themselves; whoever calls tries again.
const CALL_MAX: Duration = Duration::from_secs(3);

/// The way to the API server: one client for all of this process, made when it is first needed. Clones share it.
#[derive(Clone, Default)]
pub struct ApiServer(Arc<OnceCell<Client>>);

impl ApiServer {
    /// The client, as the service account of this pod or a kubeconfig says. Calls nobody yet.
    ///
    /// # Errors
    /// If there is neither. It is looked for again the next time.
    pub async fn client(&self) -> Result<Client, kube::Error> {
        let client = self.0.get_or_try_init(connect).await?;
        Ok(client.clone())
    }

    /// Whether there is an API server to call. Calls nobody.
    ///
    /// # Errors
    /// If neither a service account nor a kubeconfig tells.
    pub async fn is_known(&self) -> Result<(), kube::Error> {
        match self.0.initialized() {
            true => Ok(()),
            false => Config::infer()
                .await
                .map(drop)
                .map_err(kube::Error::InferConfig),
        }
    }
}

async fn connect() -> Result<Client, kube::Error> {
    client::client(Config::infer().await.map_err(kube::Error::InferConfig)?)
}

/// Why a call to the API server came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was refused, or did not get there.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// No answer.
    #[error("the Kubernetes API did not answer within {CALL_MAX:?}")]
    Late,
}

impl CallError {
    /// The status of the API server's answer, if there was one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            Self::Kube(_) | Self::Late => None,
        }
    }
}

/// How many peers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those with the ordinals below this, which is above 0. The others are to leave for good.
    Peers(u32),
    /// None runs on: the StatefulSet is gone, going, with its namespace or alone, wants 0, or is another one of the same name.
    /// That says *stop*, and never *leave*: whoever stops may come back, with all that it knows.
    Stopped,
}

/// Where this peer runs.
pub struct Home {
    sets: Api<StatefulSet>,
    pods: Api<Pod>,
    records: Api<ConfigMap>,
    namespaces: Api<Namespace>,
    namespace: String,
    set: String,
    pod: String,
    ordinal: u32,
    /// What follows the pod's name in the addresses of all peers of this set: the headless Service's domain, and the port.
    place: String,
    /// Of the StatefulSet that this process has first seen, for peers that may not read their own pod.
    uid: OnceLock<String>,
    /// What was read last of how many peers are wanted and who of them goes.
    known: Mutex<Known>,
    /// What keeps this peer from setting which readiness gates.
    shut: Gates,
    /// When this pod was told to stop.
    told: Mutex<Option<Told>>,
    /// What was seen last when it was asked whether this peer may go, and when; locked while somebody looks.
    looked: AsyncMutex<Option<(Instant, Arc<Scene>)>>,
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Home({}/{})", self.namespace, self.pod)
    }
}

/// Why a peer cannot say where it runs.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The flags contradict each other.
    #[error(
        "--stateful-set {set}: --advertise-peer {address} is no pod of it; its host must begin with {set}-N"
    )]
    NoPod {
        /// The StatefulSet.
        set: String,
        /// The peer's address.
        address: String,
    },
    /// There is nothing to connect with.
    #[error(
        "--stateful-set needs the Kubernetes API: run in a pod with a service account, or set KUBECONFIG ({0})"
    )]
    // No source: the error tells its causes itself.
    NoApi(kube::Error),
}

impl HomeError {
    fn no_pod(set: String, address: &str) -> Self {
        Self::NoPod {
            set,
            address: address.to_owned(),
        }
    }
}

/// The ordinal of the pod of `set` that `address` names: `set-2.peers.ns.svc:7001` is the one with 2.
#[must_use]
pub fn ordinal(set: &str, address: &str) -> Option<u32> {
    let pod = pod_of(address)?;
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let plain = digits == "0" || !digits.starts_with('0');
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    (plain && only_digits)
        .then(|| digits.parse().ok())
        .flatten()
}

fn pod_of(address: &str) -> Option<&str> {
    address.split(['.', ':']).next()
}

/// The same of the pods of this `set` alone, which are at `place`: another namespace may have a set of the same name.
fn ordinal_at(set: &str, place: &str, address: &str) -> Option<u32> {
    let pod = address.strip_suffix(place)?;
    ordinal(set, address).filter(|_| !pod.contains(['.', ':']))
}

/// The uid of the StatefulSet whose pod this is. None if nobody has it: its set was deleted and left it behind.
fn owner(pod: &Pod) -> Option<&str> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let owner = owners.find(|it| it.controller == Some(true) && it.kind == "StatefulSet")?;
    Some(&owner.uid)
}

/// What a StatefulSet, read afresh, says to a pod of the one with `uid`.
fn wanted(set: Option<&StatefulSet>, uid: Option<&str>) -> Wanted {
    let Some(set) = set else {
        return Wanted::Stopped;
    };
    let same = uid.is_some() && set.metadata.uid.as_deref() == uid;
    let stays = set.metadata.deletion_timestamp.is_none();
    // The API server fills the number in, so none is no answer.
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
    match replicas.map(u32::try_from) {
        Some(Ok(replicas)) if same && stays && replicas > 0 => Wanted::Peers(replicas),
        _ => Wanted::Stopped,
    }
}

async fn call<T>(calling: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match timeout(CALL_MAX, calling).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Late),
    }
}

impl Home {
    /// The home of the pod of StatefulSet `set` that others reach at `address`. Calls nobody yet.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn of(set: String, address: &str, api: &ApiServer) -> Result<Self, HomeError> {
        if ordinal(&set, address).is_none() {
            return Err(HomeError::no_pod(set, address));
        }
        let client = api.client().await.map_err(HomeError::NoApi)?;
        Self::with(set, address, client)
    }

    /// As [`Self::of`], by this client.
    ///
    /// # Errors
    /// [`HomeError::NoPod`].
    pub(crate) fn with(set: String, address: &str, client: Client) -> Result<Self, HomeError> {
        let (Some(ordinal), Some(pod)) = (ordinal(&set, address), pod_of(address)) else {
            return Err(HomeError::no_pod(set, address));
        };
        let namespace = client.default_namespace().to_owned();
        Ok(Self {
            sets: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            records: Api::namespaced(client.clone(), &namespace),
            namespaces: Api::all(client),
            pod: pod.to_owned(),
            place: address[pod.len()..].to_owned(),
            namespace,
            set,
            ordinal,
            uid: OnceLock::new(),
            known: Mutex::default(),
            shut: Gates::default(),
            told: Mutex::default(),
            looked: AsyncMutex::default(),
        })
    }

    /// Where the pod with `ordinal` is, or would be.
    fn address_of(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}{}", self.set, self.place)
    }

    /// The StatefulSet, read from the API server's quorum and never from a cache, and how many peers it wants, which is
    /// remembered for as long as nothing else is read.
    async fn read_set(&self) -> Result<(Option<StatefulSet>, Wanted), CallError> {
        let set = call(self.sets.get_opt(&self.set)).await?;
        let uid = set.as_ref().and_then(|set| set.metadata.uid.as_deref());
        let own = self.own_set(uid).await?;
        if set.is_some() && own.as_deref() != uid {
            tracing::warn!(
                set = self.set,
                ?uid,
                ?own,
                "this pod belongs to another StatefulSet than the one of its name, which says nothing of how many peers are wanted"
            );
        }
        let wanted = match wanted(set.as_ref(), own.as_deref()) {
            Wanted::Peers(_) if self.namespace_goes().await => Wanted::Stopped,
            wanted => wanted,
        };
        self.known().wanted = Some(wanted);
        Ok((set, wanted))
    }

    /// Whether the namespace is being deleted. Its pods are told first, and their StatefulSet stays until they are gone.
    async fn namespace_goes(&self) -> bool {
        let namespace = call(self.namespaces.get_opt(&self.namespace)).await;
        // Without the permission, peers are as they would be without Kubernetes.
        let namespace = namespace.ok().flatten();
        namespace.is_some_and(|it| it.metadata.deletion_timestamp.is_some())
    }

    /// The uid of the StatefulSet that this pod belongs to, as the pod says now: one that was left behind is adopted by
    /// the next set of the same name and selector. Without the permission to read it, it is the first that was `seen`.
    async fn own_set(&self, seen: Option<&str>) -> Result<Option<String>, CallError> {
        match call(self.pods.get_opt(&self.pod)).await {
            Ok(pod) => Ok(pod.as_ref().and_then(owner).map(str::to_owned)),
            Err(error) if error.code() == Some(403) => {
                if let Some(seen) = seen {
                    self.uid.get_or_init(|| seen.to_owned());
                }
                Ok(self.uid.get().cloned())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSetSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_peer_is_known_by_the_ordinal_in_its_name() {
        for (address, expected) in [
            ("rs-0.rs-peers.ns.svc.cluster.local:7001", Some(0)),
            ("rs-12:7001", Some(12)),
            ("rs-01.x:7001", None),
            ("rs-.x:7001", None),
            ("rs-+1.x:7001", None),
            ("rs-other-0.x:7001", None),
            ("other-0.x:7001", None),
            ("10.0.0.1:7001", None),
        ] {
            assert_eq!(ordinal("rs", address), expected, "{address}");
        }
    }

    #[test]
    fn a_pod_of_the_same_name_in_another_place_is_no_pod_of_this_set() {
        let at = |address| ordinal_at("rs", ".rs-peers.ns.svc:7001", address);
        assert_eq!(at("rs-4.rs-peers.ns.svc:7001"), Some(4));
        for other in [
            "rs-4.rs-peers.other.svc:7001",
            "rs-4.rs-peers.ns.svc:7002",
            "rs-4.x.rs-peers.ns.svc:7001",
            "old-4.rs-peers.ns.svc:7001",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn only_the_same_set_that_stays_and_wants_some_says_who_is_to_leave() {
        let set = |uid: &str, replicas| {
            let mut set = StatefulSet {
                spec: Some(StatefulSetSpec {
                    replicas,
                    ..StatefulSetSpec::default()
                }),
                ..StatefulSet::default()
            };
            set.metadata.uid = Some(uid.to_owned());
            set
        };
        let one = set("u1", Some(1));
        assert_eq!(wanted(Some(&one), Some("u1")), Wanted::Peers(1));
        let mut going = one.clone();
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        for stopped in [
            None,
            Some(&going),
            Some(&set("u2", Some(1))),
            Some(&set("u1", Some(0))),
            Some(&set("u1", None)),
        ] {
            assert_eq!(wanted(stopped, Some("u1")), Wanted::Stopped, "{stopped:?}");
        }
        assert_eq!(wanted(Some(&one), None), Wanted::Stopped, "nobody's pod");
    }

    /// What a peer reads whose pod, and the StatefulSet of the name of its own, are these.
    async fn read(pod: Option<Value>, set: Value) -> Wanted {
        read_in(None, pod, set).await
    }

    /// The same, in this namespace.
    async fn read_in(namespace: Option<Value>, pod: Option<Value>, set: Value) -> Wanted {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let answer = match request.uri().path() {
                "/api/v1/namespaces/ns" => namespace.clone(),
                path if path.contains("/pods/") => pod.clone(),
                _ => Some(set.clone()),
            };
            let forbidden = json!({
                "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                "message": "forbidden", "reason": "Forbidden", "code": 403,
            });
            let code = if answer.is_some() { 200 } else { 403 };
            let body = answer.unwrap_or(forbidden).to_string();
            let answer = http::Response::builder().status(code);
            let answer = answer.body(http_body_util::Full::<bytes::Bytes>::from(body));
            std::future::ready(answer)
        });
        let client = Client::new(service, "ns");
        let home = Home::with("rs".to_owned(), "rs-0.x:7001", client).unwrap();
        home.read_set().await.unwrap().1
    }

    #[tokio::test]
    async fn whoever_may_see_that_the_namespace_goes_stops_with_it() {
        let set = json!({"metadata": {"name": "rs", "uid": "u"}, "spec": {
            "replicas": 3, "selector": {}, "serviceName": "rs", "template": {},
        }});
        let pod = json!({"metadata": {"name": "rs-0", "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "rs", "uid": "u", "controller": true,
        }]}});
        let stays = json!({"metadata": {"name": "ns"}});
        let goes = json!({"metadata": {"name": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (namespace, wanted) in [
            (Some(goes), Wanted::Stopped),
            (Some(stays), Wanted::Peers(3)),
            (None, Wanted::Peers(3)),
        ] {
            let read = read_in(namespace.clone(), Some(pod.clone()), set.clone()).await;
            assert_eq!(read, wanted, "{namespace:?}");
        }
    }

    #[tokio::test]
    async fn the_set_that_counts_is_that_of_this_pod_whenever_it_is_asked_about() {
        let set = |uid: &str| {
            json!({"metadata": {"name": "rs", "uid": uid}, "spec": {
                "replicas": 1, "selector": {}, "serviceName": "rs", "template": {},
            }})
        };
        let pod = |uid: &str| {
            json!({"metadata": {"name": "rs-0", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "rs", "uid": uid, "controller": true,
            }]}})
        };
        // A set that took the place of this pod's own, before anybody asked for the first time.
        assert_eq!(read(Some(pod("old")), set("new")).await, Wanted::Stopped);
        // One that has adopted the pods that its predecessor left behind.
        assert_eq!(read(Some(pod("new")), set("new")).await, Wanted::Peers(1));
        let left = json!({"metadata": {"name": "rs-0"}});
        assert_eq!(read(Some(left), set("new")).await, Wanted::Stopped);
        // As it was before peers could read their pods.
        assert_eq!(read(None, set("new")).await, Wanted::Peers(1));
    }
}
