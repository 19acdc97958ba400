//! What is known of the cluster's pods: fed by a watch, and by answers to this peer's own requests, which are
//! sometimes ahead of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use raftserve_model::{ClusterId, ReplicaId};
use tokio::sync::watch;

use super::labels;
use super::status::{self, Seen};
use crate::provider::{Observation, ProviderError, ReplicaKey};

/// How many deleted pods are remembered, so that a late answer does not bring one back. An answer is late by
/// seconds, in which a few hundred pods may go.
const DELETED_MAX: usize = 4096;

/// See the module.
pub(super) struct Cache {
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

#[derive(Default)]
struct Known {
    pods: BTreeMap<String, Entry>,
    deleted: VecDeque<String>,
    /// Counts the full lists that began; what a list does not tell of and was not noted since it began is gone.
    list: u64,
    /// Whether a list was ever complete.
    complete: bool,
    /// What keeps the watch from telling.
    trouble: Option<String>,
    /// Why nothing may be concluded from what is seen here, if that is so.
    misplaced: Option<String>,
    /// Whose the pods were, and whose they are.
    taken_over: Option<(ClusterId, ClusterId)>,
}

struct Entry {
    pod: Arc<Pod>,
    replica: ReplicaKey,
    seen: Seen,
    list: u64,
}

impl Cache {
    /// Notes a pod as an answer or the watch shows it, unless it is older than what is known.
    pub(super) fn note(&self, pod: Pod) {
        let mut known = self.known();
        let (Some(name), Some(uid)) = (pod.metadata.name.clone(), &pod.metadata.uid) else {
            return;
        };
        if known.deleted.contains(uid) {
            return;
        }
        let Some(replica) = labels::replica_of(&pod) else {
            return;
        };
        let list = known.list;
        if let Some(entry) = known.pods.get_mut(&name) {
            entry.list = list;
            if revision(&pod) <= revision(&entry.pod) {
                return;
            }
        }
        let seen = status::seen(&pod);
        let news = known
            .pods
            .get(&name)
            .is_none_or(|before| before.seen != seen);
        known.pods.insert(
            name,
            Entry {
                pod: Arc::new(pod),
                replica,
                seen,
                list,
            },
        );
        drop(known);
        if news {
            self.tell();
        }
    }

    /// Notes that a pod is gone.
    pub(super) fn gone(&self, name: &str, uid: Option<&String>) {
        let mut known = self.known();
        if let Some(uid) = uid {
            known.deleted.push_back(uid.clone());
            if known.deleted.len() > DELETED_MAX {
                known.deleted.pop_front();
            }
        }
        let same = known
            .pods
            .get(name)
            .is_some_and(|entry| uid.is_none() || entry.pod.metadata.uid.as_ref() == uid);
        if same {
            known.pods.remove(name);
        }
        drop(known);
        if same {
            self.tell();
        }
    }

    /// A full list begins.
    pub(super) fn list_begins(&self) {
        self.known().list += 1;
    }

    /// All pods of the list were noted.
    pub(super) fn list_ends(&self) {
        let mut known = self.known();
        let list = known.list;
        known.pods.retain(|_, entry| entry.list == list);
        known.complete = true;
        known.trouble = None;
        drop(known);
        self.tell();
    }

    /// Notes what the watch suffers from. Returns whether that is new.
    pub(super) fn suffers(&self, trouble: Option<String>) -> bool {
        let mut known = self.known();
        let news = known.trouble != trouble;
        known.trouble = trouble;
        drop(known);
        if news {
            self.tell();
        }
        news
    }

    /// What keeps the watch from telling, if something does.
    pub(super) fn trouble(&self) -> Option<String> {
        let known = self.known();
        match known.taken_over {
            Some((cluster, by)) => Some(ProviderError::TakenOver { cluster, by }.to_string()),
            None => known.misplaced.clone().or_else(|| known.trouble.clone()),
        }
    }

    /// Notes that the pods are somewhere else, and what to do about it; or that they are here after all.
    pub(super) fn is_misplaced(&self, why: Option<String>) {
        self.known().misplaced = why;
    }

    /// Whether the list that began last has not shown pods that were there before, and that nobody has told to go.
    pub(super) fn list_lacks_any(&self) -> bool {
        let known = self.known();
        let list = known.list;
        let mut lacking = known.pods.values().filter(|entry| entry.list != list);
        lacking.any(|entry| entry.pod.metadata.deletion_timestamp.is_none())
    }

    /// Notes that another cluster has the pods now. That is for good. Returns whether it is new.
    pub(super) fn taken_over(&self, cluster: ClusterId, by: ClusterId) -> bool {
        let taken_over = Some((cluster, by));
        let before = std::mem::replace(&mut self.known().taken_over, taken_over);
        let news = before != taken_over;
        if news {
            self.tell();
        }
        news
    }

    /// All that exists.
    pub(super) fn observe(&self) -> Result<Vec<Observation>, ProviderError> {
        let known = self.known();
        if let Some((cluster, by)) = known.taken_over {
            return Err(ProviderError::TakenOver { cluster, by });
        }
        if let Some(reason) = known.misplaced.clone() {
            return Err(ProviderError::Unavailable {
                doing: "see to replicas",
                reason,
            });
        }
        if !known.complete {
            return Err(ProviderError::Unavailable {
                doing: "list pods",
                reason: known
                    .trouble
                    .clone()
                    .unwrap_or_else(|| "the API server has not answered yet".to_owned()),
            });
        }
        let mut all: Vec<Observation> = known
            .pods
            .values()
            .map(|entry| Observation {
                replica: entry.replica.clone(),
                state: entry.seen.state.clone(),
            })
            .collect();
        all.sort_by(|one, other| one.replica.cmp(&other.replica));
        Ok(all)
    }

    /// What there is to say of pods that do not run yet.
    pub(super) fn notes(&self) -> BTreeMap<ReplicaId, String> {
        let known = self.known();
        known
            .pods
            .values()
            .filter_map(|entry| Some((entry.replica.id, entry.seen.note.clone()?)))
            .collect()
    }

    /// The pod that is known under a name.
    pub(super) fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        Some(Arc::clone(&self.known().pods.get(name)?.pod))
    }

    /// The name of the replica's pod, if one is known.
    pub(super) fn name_of(&self, id: ReplicaId) -> Option<String> {
        let known = self.known();
        let found = known.pods.iter().find(|(_, entry)| entry.replica.id == id);
        found.map(|(name, _)| name.clone())
    }

    /// Moves with each change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Revisions of one object can be compared since Kubernetes 1.35 promises so, and have always been numbers of etcd.
fn revision(pod: &Pod) -> u64 {
    let text = pod.metadata.resource_version.as_ref();
    text.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(number: u32, uid: &str, revision: u32) -> Pod {
        serde_json::from_value(json!({"metadata": {
            "name": format!("p{number}"), "uid": uid, "resourceVersion": revision.to_string(),
            "labels": {
                labels::SERVICE: "svc", labels::SERVICE_ID: "7", labels::REPLICA: number.to_string(),
            },
        }}))
        .unwrap()
    }

    fn numbers(cache: &Cache) -> Vec<u32> {
        let all = cache.observe().unwrap();
        all.iter().map(|it| it.replica.id.number).collect()
    }

    #[test]
    fn nothing_is_told_before_the_first_list_is_complete() {
        let cache = Cache::default();
        cache.list_begins();
        cache.note(pod(1, "a", 1));
        assert!(cache.observe().is_err());
        cache.list_ends();
        assert_eq!(numbers(&cache), [1]);
    }

    #[test]
    fn nothing_is_told_of_what_another_cluster_has_taken_over() {
        let cache = Cache::default();
        cache.list_begins();
        cache.note(pod(1, "a", 1));
        cache.list_ends();
        cache.taken_over(ClusterId([1; 16]), ClusterId([2; 16]));
        cache.list_begins();
        cache.list_ends();
        let refused = cache.observe().unwrap_err();
        assert!(
            matches!(refused, ProviderError::TakenOver { .. }),
            "{refused}"
        );
        assert!(cache.trouble().unwrap().contains("were taken over"));
    }

    #[test]
    fn what_a_list_lacks_is_gone_but_for_what_was_made_meanwhile() {
        let cache = Cache::default();
        cache.list_begins();
        cache.note(pod(1, "a", 1));
        cache.list_ends();
        cache.list_begins();
        cache.note(pod(2, "b", 2));
        cache.list_ends();
        assert_eq!(numbers(&cache), [2]);
    }

    #[test]
    fn late_answers_bring_nothing_back() {
        let cache = Cache::default();
        cache.list_begins();
        cache.list_ends();
        cache.note(pod(1, "a", 5));
        cache.gone("p1", Some(&"a".to_owned()));
        cache.note(pod(1, "a", 4));
        assert_eq!(numbers(&cache), [0; 0]);
        cache.note(pod(1, "b", 6));
        cache.gone("p1", Some(&"a".to_owned()));
        assert_eq!(numbers(&cache), [1]);
    }
}
