//! As much of an API server as the provider asks: pods and Secrets in memory, with uids, revisions, preconditions and
//! strategic merges of one list.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};
use tonic::codegen::Service;

/// What happens between a request's arrival and its answer: another client was faster.
type Meddler = Box<dyn FnMut(&Method, &mut Objects) + Send>;

/// By kind and name.
type Objects = BTreeMap<String, Value>;

#[derive(Default)]
struct State {
    objects: Objects,
    count: u64,
    meddler: Option<Meddler>,
    /// Methods and kinds that nobody may use.
    forbidden: BTreeSet<String>,
    /// How many patches come to nothing, as somebody else changes the object at the same time.
    conflicts: usize,
    /// What is not made, as a quota that others use at the same time cannot be counted.
    contended: BTreeSet<String>,
}

/// The server, which all its clients share.
#[derive(Clone, Default)]
pub(super) struct Api(Arc<Mutex<State>>);

impl Api {
    pub(super) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "ns")
    }

    /// A pod as it stands.
    pub(super) fn pod(&self, name: &str) -> Option<Value> {
        let state = self.0.lock().unwrap();
        state.objects.get(&format!("pods/{name}")).cloned()
    }

    /// How many objects there are.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().objects.len()
    }

    /// An object that has to be there.
    pub(super) fn object(&self, kind: &str, name: &str) -> Value {
        self.0.lock().unwrap().objects[&format!("{kind}/{name}")].clone()
    }

    /// The entries of a ConfigMap.
    pub(super) fn record(&self, name: &str) -> Value {
        self.object("configmaps", name)["data"].clone()
    }

    /// Takes all objects away.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap().objects.clear();
    }

    /// Takes a pod away.
    pub(super) fn remove(&self, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.objects.remove(&format!("pods/{name}"));
    }

    /// Puts another pod where one stands, or may come to stand.
    pub(super) fn replace(&self, name: &str, pod: Value) {
        let mut state = self.0.lock().unwrap();
        state.objects.insert(format!("pods/{name}"), pod);
    }

    /// Lets `meddler` at the objects before each request is seen to.
    pub(super) fn meddle(&self, meddler: impl FnMut(&Method, &mut Objects) + Send + 'static) {
        self.0.lock().unwrap().meddler = Some(Box::new(meddler));
    }

    /// Refuses all that has to do with a kind from now on.
    pub(super) fn forbid_kind(&self, kind: &str) {
        let mut state = self.0.lock().unwrap();
        state.forbidden.insert(kind.to_owned());
    }

    /// Lets everybody do again what [`Self::forbid_kind`] refused.
    pub(super) fn allow_kind(&self, kind: &str) {
        self.0.lock().unwrap().forbidden.remove(kind);
    }

    /// Lets so many patches come to nothing, as somebody else changes the object at the same time.
    pub(super) fn conflict(&self, patches: usize) {
        self.0.lock().unwrap().conflicts = patches;
    }

    /// Makes none of a kind, or makes them again, as somebody else changes its quota or not.
    pub(super) fn contend(&self, kind: &str, is_contended: bool) {
        let contended = &mut self.0.lock().unwrap().contended;
        match is_contended {
            true => contended.insert(kind.to_owned()),
            false => contended.remove(kind),
        };
    }

    /// Refuses from now on whatever concerns a kind, but for making one.
    pub(super) fn forbid_reading(&self, kind: &str) {
        for verb in ["GET", "PATCH", "DELETE"] {
            let mut state = self.0.lock().unwrap();
            state.forbidden.insert(format!("{verb} {kind}"));
        }
    }

    /// Refuses a method from now on.
    pub(super) fn forbid(&self, method: &Method) {
        let mut state = self.0.lock().unwrap();
        state.forbidden.insert(method.to_string());
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Value) {
        if let Some(mut meddler) = self.meddler.take() {
            meddler(method, &mut self.objects);
            self.meddler = Some(meddler);
        }
        // All namespaces are one.
        let path = path.trim_start_matches("/api/v1/namespaces/");
        let path = path.split_once('/').map_or(path, |(_, path)| path);
        let (kind, name) = path.split_once('/').unwrap_or((path, ""));
        let both = format!("{method} {kind}");
        let is_forbidden = |what: &&str| self.forbidden.contains(*what);
        if [method.as_str(), kind, &both].iter().any(is_forbidden) {
            return status(403, "is forbidden: User \"x\" cannot do that");
        }
        let own = body["metadata"]["name"].as_str().unwrap_or_default();
        let key = format!("{kind}/{}", if name.is_empty() { own } else { name });
        match (method.as_str(), name) {
            ("POST", "") if self.contended.contains(kind) => status(
                409,
                "Operation cannot be fulfilled on resourcequotas \"small\"",
            ),
            ("POST", "") if self.objects.contains_key(&key) => {
                let (code, mut status) = status(409, "already exists");
                status["reason"] = "AlreadyExists".into();
                (code, status)
            }
            ("POST", "") => (201, self.put(&key, body.clone(), true)),
            ("GET", "") => (200, self.list(kind, query)),
            (verb, _) => match self.objects.get(&key).cloned() {
                None => status(404, "not found"),
                Some(found) if verb == "GET" => (200, found),
                Some(found) if verb == "DELETE" => {
                    if differs(&found, &body["preconditions"]["uid"]) {
                        return status(409, "the UID in the precondition differs");
                    }
                    self.objects.remove(&key);
                    (200, found)
                }
                Some(_) if verb == "PATCH" && self.conflicts > 0 => {
                    self.conflicts -= 1;
                    status(409, "the object has been modified")
                }
                Some(found) if verb == "PATCH" => {
                    let revision = &body["metadata"]["resourceVersion"];
                    if !revision.is_null() && found["metadata"]["resourceVersion"] != *revision {
                        return status(409, "the object has been modified");
                    }
                    if differs(&found, &body["metadata"]["uid"]) {
                        let said = "is invalid: metadata.uid: Invalid value: field is immutable";
                        return status(422, said);
                    }
                    let mut changed = found;
                    merge(&mut changed, body);
                    (200, self.put(&key, changed, false))
                }
                Some(_) => status(405, "no such verb"),
            },
        }
    }

    fn put(&mut self, key: &str, mut object: Value, new: bool) -> Value {
        self.count += 1;
        object["metadata"]["resourceVersion"] = self.count.to_string().into();
        if new {
            object["metadata"]["uid"] = format!("uid-{}", self.count).into();
        }
        self.objects.insert(key.to_owned(), object.clone());
        object
    }

    fn list(&self, kind: &str, query: &str) -> Value {
        let selector = query
            .split('&')
            .find_map(|pair| pair.trim_start_matches('?').strip_prefix("labelSelector="));
        let selector = selector.unwrap_or_default().replace("%2F", "/");
        let selector = selector.replace("%3D", "=");
        let (label, value) = match selector.split_once('=') {
            Some((label, value)) => (label, Some(value)),
            None => (&selector[..], None),
        };
        let wanted = |object: &&Value| {
            let found = object["metadata"]["labels"][label].as_str();
            found.is_some() && value.is_none_or(|value| found == Some(value))
        };
        let of_kind = |(key, _): &(&String, &Value)| key.starts_with(&format!("{kind}/"));
        let all = self
            .objects
            .iter()
            .filter(of_kind)
            .map(|(_, object)| object);
        let items: Vec<&Value> = all.filter(wanted).collect();
        let version = self.count.to_string();
        json!({ "apiVersion": "v1", "kind": "PodList", "metadata": { "resourceVersion": version }, "items": items })
    }
}

fn differs(found: &Value, uid: &Value) -> bool {
    !uid.is_null() && found["metadata"]["uid"] != *uid
}

fn status(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        422 => "Invalid",
        _ => "Conflict",
    };
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, status)
}

/// Mappings key by key; of lists, only the deletion of items by name is known.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                    continue;
                }
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(items), Value::Array(over))
            if over.iter().all(|it| it["$patch"] == "delete") =>
        {
            items.retain(|item| over.iter().all(|gone| gone["name"] != item["name"]));
        }
        (base, over) => *base = over.clone(),
    }
}

impl Service<Request<Body>> for Api {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
            let mut state = api.0.lock().unwrap();
            let (code, value) = state.answer(&parts.method, path, query, &body);
            let answer = Response::builder().status(code);
            Ok(answer.body(Full::from(value.to_string())).unwrap())
        })
    }
}
