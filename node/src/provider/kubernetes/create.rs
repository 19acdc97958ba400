//! Making a replica's pod, behind its gate, and opening the gate.

use http::Request;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::{Site, labels, pod, remedy, status};
use crate::provider::{Hold, Launched, ProviderError, ReplicaLaunch};

/// How often a name that is taken and free again in turn is tried, before the caller has to try anew.
const TRIES: u32 = 5;

/// Creates the pod, or adopts the one that has its name.
pub(super) async fn ensure(site: &Site, launch: ReplicaLaunch) -> Result<Launched, ProviderError> {
    let name = site.name_of(&launch.replica);
    for _ in 0..TRIES {
        let document = pod::pod(&name, site.cluster, &launch, &site.default_image);
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
        put_secret(site, name, &uid, launch).await?;
    }
    Ok(Launched::Held(Hold {
        replica: launch.replica.clone(),
        name: name.to_owned(),
        uid,
    }))
}

/// The Secret belongs to this very pod; one that belongs to another of the same name is on its way out.
async fn put_secret(
    site: &Site,
    pod_name: &str,
    uid: &str,
    launch: &ReplicaLaunch,
) -> Result<(), ProviderError> {
    let document = pod::secret(pod_name, uid, site.cluster, launch);
    let name = pod::secret_name(pod_name);
    let secrets: Api<Secret> = Api::namespaced(site.client.clone(), &site.namespace);
    for _ in 0..TRIES {
        match post::<Secret>(site, "secrets", &document).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(refused(site, launch, "create a secret", &error)),
        }
        let found = secrets.get_opt(&name).await;
        let Some(found) = found.map_err(|error| site.unavailable("look at a secret", &error))?
        else {
            continue;
        };
        let owners = found.metadata.owner_references.unwrap_or_default();
        if owners.iter().any(|owner| owner.uid == uid) {
            return Ok(());
        }
        let this_one = DeleteParams::default().preconditions(Preconditions {
            uid: found.metadata.uid,
            resource_version: None,
        });
        match secrets.delete(&name, &this_one).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(site.unavailable("delete an old secret", &error)),
        }
    }
    Err(ProviderError::Create {
        replica: launch.replica.clone(),
        reason: format!("the secret {name} comes and goes: something else makes and deletes it"),
    })
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
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            Err(ProviderError::Tombstoned(hold.replica))
        }
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
