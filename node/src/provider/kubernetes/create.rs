//! Making a replica's pod, behind its gate, and opening the gate.

use http::Request;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{Site, files, labels, pod, remedy, status};
use crate::provider::{Hold, Launched, ProviderError, ReplicaLaunch};

/// How often a name that is taken and free again in turn is tried, before the caller has to try anew.
const TRIES: u32 = 5;

/// Creates the pod, or adopts the one that has its name.
pub(super) async fn ensure(site: &Site, launch: ReplicaLaunch) -> Result<Launched, ProviderError> {
    let name = site.name_of(&launch.replica);
    // The pod says what it was, so that nobody has to look at Secrets to tell whose one is.
    let secret = format!("{name}-{:016x}", rand::random::<u64>());
    for _ in 0..TRIES {
        let document = pod::pod(&name, &secret, site.cluster, &launch, &site.default_image);
        let pod = match post::<Pod>(site, "pods", &document).await {
            Ok(pod) => pod,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let found = site.pods().get_opt(&name).await;
                match found.map_err(|error| site.unavailable("look at a pod", &error))? {
                    Some(pod) => pod,
                    None => continue,
                }
            }
            Err(error) => return Err(refused(site, &launch, "create a pod", &error)),
        };
        return adopt(site, &name, pod, &launch).await;
    }
    Err(ProviderError::Create {
        replica: launch.replica,
        reason: format!("pod {name} comes and goes: something else makes and deletes it"),
    })
}

async fn adopt(
    site: &Site,
    name: &str,
    pod: Pod,
    launch: &ReplicaLaunch,
) -> Result<Launched, ProviderError> {
    let ours = labels::is_of(&pod, site.cluster)
        && labels::replica_of(&pod).is_some_and(|replica| replica.id == launch.replica.id);
    if !ours {
        return Err(ProviderError::Create {
            replica: launch.replica.clone(),
            reason: format!(
                "there is a pod {name} in namespace {} that is not its own; delete it or rename the service",
                site.namespace
            ),
        });
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.as_ref();
    let secret = annotations.and_then(|all| all.get(labels::SECRET)).cloned();
    // One that a release made which named them otherwise.
    let secret = secret.unwrap_or_else(|| format!("{name}-env"));
    let (gated, leaving) = (
        status::gated(&pod),
        pod.metadata.deletion_timestamp.is_some(),
    );
    site.cache.note(pod);
    if leaving {
        return Err(ProviderError::Tombstoned(launch.replica.clone()));
    }
    if !gated {
        return Ok(Launched::Started);
    }
    if !launch.secrets.is_empty() {
        let document = pod::secret(&secret, (name, &uid), site.cluster, launch);
        put_secret(site, &document, launch).await?;
    }
    if !launch.file_mounts.is_empty() {
        let document = files::secret(&secret, (name, &uid), site.cluster, &launch.file_mounts);
        put_secret(site, &document, launch).await?;
    }
    Ok(Launched::Held(Hold {
        replica: launch.replica.clone(),
        name: name.to_owned(),
        uid,
    }))
}

/// Its name was drawn for this very pod: if there is one, whoever else adopts the pod has made it. A conflict that is about
/// something else, such as a quota that others count against at the same time, has made none.
async fn put_secret(
    site: &Site,
    document: &Value,
    launch: &ReplicaLaunch,
) -> Result<(), ProviderError> {
    match post::<Secret>(site, "secrets", document).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(refused(site, launch, "create a secret", &error)),
    }
}

/// Opens the gate of one pod, and of no other that has come to its name.
pub(super) async fn admit(site: &Site, hold: Hold) -> Result<(), ProviderError> {
    // By its name, which is the key of this list; and with the uid, which a merge cannot change.
    let open = json!({
        "metadata": { "uid": hold.uid },
        "spec": { "schedulingGates": [{ "name": labels::GATE, "$patch": "delete" }] },
    });
    let opened = site
        .pods()
        .patch(&hold.name, &PatchParams::default(), &Patch::Strategic(open))
        .await;
    match opened {
        Ok(pod) => {
            site.cache.note(pod);
            Ok(())
        }
        Err(error) if remedy::is_gone(&error) => Err(ProviderError::Tombstoned(hold.replica)),
        Err(error) => Err(site.unavailable("let a pod start", &error)),
    }
}

/// By POST, so that nothing that exists is ever changed; strictly, so that a misspelt field is refused.
async fn post<K>(site: &Site, what: &str, document: &Value) -> Result<K, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let path = format!(
        "/api/v1/namespaces/{}/{what}?fieldValidation=Strict",
        site.namespace
    );
    let request = Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(document.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    site.client.request(request).await
}

fn refused(
    site: &Site,
    launch: &ReplicaLaunch,
    doing: &'static str,
    error: &kube::Error,
) -> ProviderError {
    match remedy::is_final(error) {
        true => ProviderError::Create {
            replica: launch.replica.clone(),
            reason: remedy::of_api(error, &site.namespace),
        },
        false => site.unavailable(doing, error),
    }
}
