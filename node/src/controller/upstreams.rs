//! Finds out where the replicas of static services are: one task for each such service, while this peer leads.

mod endpoints;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftserve_model::ServiceId;
use raftserve_model::spec::{Provider, StaticUpstreams};
use raftserve_store::State;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::kubernetes::ApiServer;

/// How often names are resolved. Resolvers do not tell how long an answer holds.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(2);

/// The longest that one name may take.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// What was found of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    /// Where its replicas are; none before that was told once.
    addresses: Option<BTreeSet<String>>,
    /// Why that is not all, or not sure.
    trouble: Option<String>,
}

/// What was found, shared with the tasks.
#[derive(Default)]
struct Found {
    by_service: Mutex<BTreeMap<ServiceId, Told>>,
    changed: Notify,
}

impl Found {
    /// Notes what was told of a service. Without addresses, those that were told last still hold.
    fn set(
        &self,
        service: ServiceId,
        addresses: Option<BTreeSet<String>>,
        trouble: Option<String>,
    ) {
        let mut all = self.all();
        let told = all.entry(service).or_default();
        let now = Told {
            addresses: addresses.or_else(|| told.addresses.clone()),
            trouble,
        };
        if *told != now {
            *told = now;
            drop(all);
            self.changed.notify_one();
        }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceId, Told>> {
        self.by_service
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task {
    of: StaticUpstreams,
    _running: AbortOnDropHandle<()>,
}

/// The static services of one reign.
pub(super) struct Upstreams {
    tasks: BTreeMap<ServiceId, Task>,
    found: Arc<Found>,
    api: ApiServer,
    namespace: Option<String>,
}

impl Upstreams {
    pub(super) fn new(api: ApiServer, namespace: Option<String>) -> Self {
        Self {
            tasks: BTreeMap::new(),
            found: Arc::default(),
            api,
            namespace,
        }
    }

    /// Follows exactly the services that are static, each as its newest version says.
    pub(super) fn follow(&mut self, state: &State) {
        let mut wanted = BTreeMap::new();
        for service in state.services().filter(|it| it.going_down.is_none()) {
            if let Provider::Static(upstreams) = &service.spec().provider {
                wanted.insert(service.id, upstreams);
            }
        }
        let same = |id: &ServiceId, task: &Task| wanted.get(id).is_some_and(|it| **it == task.of);
        self.tasks.retain(|id, task| same(id, task));
        // What was found for another list is not to be believed for this one.
        self.found.all().retain(|id, _| self.tasks.contains_key(id));
        for (id, upstreams) in wanted {
            if !self.tasks.contains_key(&id) {
                let task = self.start(id, upstreams.clone());
                self.tasks.insert(id, task);
            }
        }
    }

    /// What was told of each service last.
    pub(super) fn found(&self) -> BTreeMap<ServiceId, BTreeSet<String>> {
        let all = self.found.all();
        let told = all.iter();
        told.filter_map(|(id, told)| Some((*id, told.addresses.clone()?)))
            .collect()
    }

    /// Why replicas of some may be missing.
    pub(super) fn troubles(&self) -> BTreeMap<ServiceId, String> {
        let all = self.found.all();
        let told = all.iter();
        told.filter_map(|(id, told)| Some((*id, told.trouble.clone()?)))
            .collect()
    }

    /// Waits until something else was found.
    pub(super) async fn changed(&self) {
        self.found.changed.notified().await;
    }

    fn start(&self, id: ServiceId, of: StaticUpstreams) -> Task {
        let found = Arc::clone(&self.found);
        let running = match of.clone() {
            StaticUpstreams::Addresses(addresses) => {
                tokio::spawn(resolve(id, addresses, found, self.api.clone()))
            }
            StaticUpstreams::KubernetesService(mut service) => {
                service.namespace = service.namespace.or_else(|| self.namespace.clone());
                let tell = move |addresses, trouble| found.set(id, addresses, trouble);
                tokio::spawn(endpoints::follow(self.api.clone(), service, tell))
            }
        };
        Task {
            of,
            _running: AbortOnDropHandle::new(running),
        }
    }
}

/// Where the pods of headless Services are, by their names, as far as their cluster tells.
#[derive(Default)]
struct Headless {
    told: Mutex<BTreeMap<String, BTreeSet<String>>>,
    changed: Notify,
}

impl Headless {
    /// Follows those of `names` that may be such Services', for as long as the tasks are kept.
    fn follow(
        self: &Arc<Self>,
        names: &BTreeSet<String>,
        api: &ApiServer,
    ) -> Vec<AbortOnDropHandle<()>> {
        let services = names.iter().filter_map(|text| {
            let service = endpoints::ServiceName::parse(text)?;
            let (headless, text) = (Arc::clone(self), text.clone());
            let tell = move |told| headless.set(&text, told);
            let following = endpoints::follow_headless(api.clone(), service, tell);
            Some(AbortOnDropHandle::new(tokio::spawn(following)))
        });
        services.collect()
    }

    fn set(&self, name: &str, addresses: Option<BTreeSet<String>>) {
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match addresses {
            Some(addresses) => drop(all.insert(name.to_owned(), addresses)),
            None => drop(all.remove(name)),
        }
        drop(all);
        self.changed.notify_one();
    }

    fn of(&self, name: &str) -> Option<BTreeSet<String>> {
        let all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).cloned()
    }
}

/// Resolves again and again what is not an address already. A name that does not resolve keeps what it had. What a Kubernetes
/// cluster tells of a name is known sooner, and counts instead.
async fn resolve(id: ServiceId, addresses: BTreeSet<String>, found: Arc<Found>, api: ApiServer) {
    let headless = Arc::<Headless>::default();
    let _following = headless.follow(&addresses, &api);
    let mut known: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    let literal = |text: &String| text.parse::<SocketAddr>().is_ok();
    loop {
        let mut troubles = Vec::new();
        for text in &addresses {
            if literal(text) {
                known.insert(text, BTreeSet::from([text.clone()]));
                continue;
            }
            if let Some(told) = headless.of(text) {
                known.insert(text, told);
                continue;
            }
            match tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host(text)).await {
                Ok(Ok(resolved)) => {
                    known.insert(text, resolved.map(|address| address.to_string()).collect());
                }
                Ok(Err(error)) => troubles.push(format!("{text} cannot be resolved: {error}")),
                Err(_) => troubles.push(format!("{text} is not resolved within {RESOLVE_MAX:?}")),
            }
        }
        // A name that was never resolved says nothing about the others.
        let told = (!known.is_empty()).then(|| known.values().flatten().cloned().collect());
        let trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
        found.set(id, told, trouble);
        if addresses.iter().all(literal) {
            return;
        }
        let _ = tokio::time::timeout(RESOLVE_INTERVAL, headless.changed.notified()).await;
    }
}
