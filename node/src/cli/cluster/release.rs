//! The cluster's version, the releases of its peers, and whether their states are equal.

use serde_json::{Value, json};

use crate::admin::v1;
use crate::admin::v1::cluster_client::ClusterClient;
use crate::cli::args::{Format, Target};
use crate::cli::confirm::confirm;
use crate::cli::connect::Servers;
use crate::cli::failure::Failure;
use crate::cli::output;
use crate::cli::paint::{Paint, Tone};

/// The releases as JSON has them.
pub(super) fn releases(status: &v1::StatusResponse) -> Vec<Value> {
    let shown = |release: &v1::Release| {
        json!({
            "node_id": release.node_id,
            "version": (!release.version.is_empty()).then_some(&release.version),
            "oldest": (release.oldest > 0).then_some(release.oldest),
            "newest": (release.newest > 0).then_some(release.newest),
            "heard": release.heard,
        })
    };
    status.releases.iter().map(shown).collect()
}

/// The cluster's version, and who keeps it from being raised, or that nobody does.
pub(super) fn version_text(status: &v1::StatusResponse) -> String {
    let version = status.cluster_version;
    let newest = status.releases.iter().map(|release| release.newest).max();
    let newest = newest.unwrap_or(version);
    if newest <= version {
        return version.to_string();
    }
    let behind: Vec<_> = status
        .releases
        .iter()
        .filter(|release| release.newest < newest)
        .map(|release| match release.version.as_str() {
            "" => format!("peer {} (not heard)", release.node_id),
            name => format!("peer {} (release {name})", release.node_id),
        })
        .collect();
    if behind.is_empty() {
        format!(
            "{version}, and every peer supports {newest}: `raftserve cluster finalize` raises it"
        )
    } else {
        format!(
            "{version}, and {newest} once it is supported by {}",
            behind.join(", ")
        )
    }
}

/// How far states were compared.
pub(super) fn compared_text(status: &v1::StatusResponse, paint: Paint) -> String {
    let equal = match status.compared_index {
        0 => "not yet".to_owned(),
        index => format!("equal after entry {index}"),
    };
    if status.differs_index == 0 {
        return equal;
    }
    let differs = format!(
        "peer {} differs after entry {}",
        status.differs_peer, status.differs_index
    );
    format!("{equal}; {}", paint.tone(Tone::Bad, &differs))
}

/// What is asked before the version is raised.
fn raising(status: &v1::StatusResponse) -> String {
    format!(
        "Raise the cluster's version, which is {}? No peer can go back to an older release afterwards.",
        status.cluster_version
    )
}

/// `raftserve cluster finalize`.
pub(super) async fn finalize(yes: bool, format: Format, target: &Target) -> Result<(), Failure> {
    let mut servers = Servers::new(target)?;
    if !yes {
        let status = servers
            .ask(|channel| async move {
                ClusterClient::new(channel)
                    .status(v1::StatusRequest {})
                    .await
            })
            .await?;
        confirm(yes, &raising(&status), false)?;
    }
    let done = servers
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .finalize(v1::FinalizeRequest {})
                .await
        })
        .await?;
    let value = json!({ "cluster_version": done.cluster_version, "raised": done.raised });
    output::print(format, &value, || match done.raised {
        true => format!("The cluster is at version {} now.\n", done.cluster_version),
        false => format!(
            "The cluster is at version {}, the newest that its peers support.\n",
            done.cluster_version
        ),
    })
}

/// `raftserve cluster compare`.
pub(super) async fn compare(format: Format, target: &Target) -> Result<(), Failure> {
    let compared = Servers::new(target)?
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .compare_states(v1::CompareStatesRequest {})
                .await
        })
        .await?;
    let peer = |peer: &v1::PeerState| json!({ "node_id": peer.node_id, "equal": peer.equal });
    let value = json!({
        "log_index": compared.log_index,
        "peers": compared.peers.iter().map(peer).collect::<Vec<_>>(),
    });
    output::print(format, &value, || compare_text(&compared))?;
    let named = |wanted: Option<bool>| {
        let peers = compared.peers.iter().filter(|peer| peer.equal == wanted);
        let ids: Vec<_> = peers.map(|peer| peer.node_id.to_string()).collect();
        (!ids.is_empty()).then(|| ids.join(", "))
    };
    if let Some(ids) = named(Some(false)) {
        let failure = Failure::failed(format!("the state of peer {ids} differs"));
        return Err(failure
            .remedy("its log says more; a peer that a majority differs from stops by itself"));
    }
    match named(None) {
        Some(ids) => Err(Failure::failed(format!("peer {ids} was not heard in time"))
            .remedy("`raftserve cluster members` shows which peers answer")),
        None => Ok(()),
    }
}

fn compare_text(compared: &v1::CompareStatesResponse) -> String {
    let lines = compared.peers.iter().map(|peer| {
        let how = match peer.equal {
            Some(true) => "equal",
            Some(false) => "differs",
            None => "not heard",
        };
        format!("Peer {:<6} {how}\n", peer.node_id)
    });
    format!(
        "After entry {}:\n{}",
        compared.log_index,
        lines.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(newest: [u32; 2]) -> v1::StatusResponse {
        let release = |(node_id, newest): (u64, u32)| v1::Release {
            node_id,
            newest,
            oldest: newest.min(1),
            version: if newest == 0 {
                String::new()
            } else {
                format!("0.{newest}.0")
            },
            heard: newest > 0,
        };
        v1::StatusResponse {
            cluster_version: 1,
            releases: (1..).zip(newest).map(release).collect(),
            ..v1::StatusResponse::default()
        }
    }

    #[test]
    fn who_keeps_the_version_down_is_named() {
        assert_eq!(version_text(&status([1, 1])), "1");
        let half = version_text(&status([2, 1]));
        assert_eq!(
            half,
            "1, and 2 once it is supported by peer 2 (release 0.1.0)"
        );
        let unheard = version_text(&status([2, 0]));
        assert!(unheard.ends_with("peer 2 (not heard)"), "{unheard}");
        assert!(version_text(&status([2, 2])).contains("cluster finalize"));
        assert!(raising(&status([2, 2])).contains("version, which is 1?"));
    }

    #[test]
    fn a_difference_is_told_beside_what_is_equal() {
        let mut differs = status([1, 1]);
        assert_eq!(compared_text(&differs, Paint::fixed(false)), "not yet");
        differs.compared_index = 4_096;
        differs.differs_index = 8_192;
        differs.differs_peer = 3;
        let text = compared_text(&differs, Paint::fixed(false));
        assert_eq!(
            text,
            "equal after entry 4096; peer 3 differs after entry 8192"
        );
    }
}
