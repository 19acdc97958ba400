//! Pods, watched at the API server: every state that it tells of, and not only those that somebody looks at.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Namespace;

/// How long something is waited for that the API server tells about when others do.
const TOLD_MAX: Duration = Duration::from_secs(90);

/// One pod, as it was last told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its name.
    pub name: String,
    /// How often its container was started again.
    pub restarts: u64,
    /// Whether it is there, not told to stop, and has not ended.
    pub stands: bool,
}

/// All that was told.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Every pod that ever was, by its uid.
    pub pods: BTreeMap<String, Sighting>,
    /// The most that stood at one time.
    pub most: usize,
}

impl Seen {
    /// Takes in an event of a watch.
    ///
    /// # Errors
    /// If it is none of a pod.
    pub fn take(&mut self, event: &Value) -> anyhow::Result<()> {
        let kind = event["type"].as_str().unwrap_or_default();
        ensure!(
            ["ADDED", "MODIFIED", "DELETED"].contains(&kind),
            "no event of a pod: {event}"
        );
        let pod = super::pod(&event["object"]);
        let phase = event["object"]["status"]["phase"].as_str();
        let ended = matches!(phase, Some("Failed" | "Succeeded"));
        let sighting = Sighting {
            name: pod.name,
            restarts: pod.restarts,
            stands: kind != "DELETED" && !pod.going && !ended,
        };
        self.pods.insert(pod.uid, sighting);
        let stand = self.pods.values().filter(|pod| pod.stands).count();
        self.most = self.most.max(stand);
        Ok(())
    }
}

/// A watch of pods. Ends when dropped.
#[derive(Debug)]
pub struct Watched {
    seen: Arc<Mutex<Seen>>,
    reading: JoinHandle<anyhow::Error>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Watched {
    /// What was seen so far.
    ///
    /// # Errors
    /// If the watch has ended, so that something may have been missed.
    pub fn seen(&self) -> anyhow::Result<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!self.reading.is_finished(), "the watch has ended: {seen:?}");
        Ok(seen.clone())
    }
}

/// When something was told of a pod for the first time. Ends when dropped.
#[derive(Debug)]
pub struct Told {
    at: watch::Receiver<Option<Instant>>,
    reading: JoinHandle<anyhow::Error>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Told {
    /// When it was, once it was.
    ///
    /// # Errors
    /// If the watch ends before.
    pub async fn at(&mut self) -> anyhow::Result<Instant> {
        let at = self.at.wait_for(Option::is_some).await;
        let at = at.context("the watch has ended")?;
        (*at).context("it was told")
    }

    /// How long after it something was `seen`; nothing if before.
    ///
    /// # Errors
    /// If it is still not told long after.
    pub async fn until(&mut self, seen: Instant) -> anyhow::Result<Duration> {
        let at = timeout(TOLD_MAX, self.at()).await;
        let at = at.context("the API server never told")??;
        Ok(seen.saturating_duration_since(at))
    }
}

impl Namespace {
    /// Watches the pods that `selector` finds, those that are there and those to come.
    ///
    /// # Errors
    /// If it cannot.
    pub fn watch_pods(&self, selector: &str) -> anyhow::Result<Watched> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let taken = Arc::clone(&seen);
        let reading = self.watch(selector, move |line| {
            let event = serde_json::from_str(line).context("no JSON")?;
            let mut seen = taken.lock().unwrap_or_else(PoisonError::into_inner);
            seen.take(&event)
        })?;
        Ok(Watched { seen, reading })
    }

    /// Watches all pods for `words`, as they stand in their JSON.
    ///
    /// # Errors
    /// If it cannot.
    pub fn watch_for(&self, words: &'static str) -> anyhow::Result<Told> {
        let (told, at) = watch::channel(None);
        let reading = self.watch("", move |line| {
            if line.contains(words) && told.borrow().is_none() {
                told.send_replace(Some(Instant::now()));
            }
            Ok(())
        })?;
        Ok(Told { at, reading })
    }

    fn watch(
        &self,
        selector: &str,
        mut take: impl FnMut(&str) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<JoinHandle<anyhow::Error>> {
        let path = format!(
            "/api/v1/namespaces/{}/pods?watch=1&labelSelector={selector}",
            self.name
        );
        let mut child = Command::new("kubectl")
            .args(["get", "--raw", &path])
            .env("KUBECONFIG", &self.kube.config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run kubectl")?;
        let output = child.stdout.take().context("no output")?;
        Ok(tokio::spawn(async move {
            let _child = child;
            let mut lines = BufReader::new(output).lines();
            loop {
                let line = match lines.next_line().await {
                    Ok(Some(line)) => line,
                    Ok(None) => return anyhow::anyhow!("the watch was closed"),
                    Err(error) => return error.into(),
                };
                if let Err(error) = take(&line) {
                    return error;
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, uid: &str, phase: &str, going: bool) -> Value {
        let mut metadata = json!({"name": "a", "uid": uid});
        if going {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let restarts = json!([{"restartCount": 0}]);
        let status = json!({"phase": phase, "containerStatuses": restarts});
        json!({"type": kind, "object": {"metadata": metadata, "status": status}})
    }

    #[test]
    fn pods_that_go_make_room_and_all_that_ever_were_are_remembered() {
        let mut seen = Seen::default();
        for (event, most) in [
            (event("ADDED", "1", "Pending", false), 1),
            (event("MODIFIED", "1", "Running", true), 1),
            (event("ADDED", "2", "Pending", false), 1),
            (event("DELETED", "1", "Running", true), 1),
            (event("ADDED", "3", "Running", false), 2),
            (event("MODIFIED", "3", "Failed", false), 2),
            (event("ADDED", "4", "Running", false), 2),
        ] {
            seen.take(&event).unwrap();
            assert_eq!(seen.most, most, "{event}");
        }
        assert_eq!(seen.pods.len(), 4);
        assert!(!seen.pods["3"].stands && seen.pods["4"].stands);
        assert!(seen.take(&json!({"type": "ERROR"})).is_err());
    }
}
