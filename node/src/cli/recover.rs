//! `raftserve cluster recover`: from one survivor to a new cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use raftserve_store::restore::{Survivor, take_place};
use raftserve_store::state::Claim;
use serde_json::json;

use super::confirm::confirm;
use super::failure::{Exit, Failure};
use super::output;
use super::snapshot::{away, begin_in, failure, table, tell};
use super::snapshot_args::RecoverArgs;
use crate::access::Certificates;
use crate::peer::{self, Met};

/// Runs the verb.
pub(super) async fn run(args: RecoverArgs) -> Result<(), Failure> {
    let dir = args.data_dir.clone();
    let read = move || Survivor::read(&dir).map_err(|error| failure(&error));
    let survivor = away(read).await?;
    let alive = answering(&survivor, args.cert_dir.as_deref()).await?;
    if args.dry_run {
        return show(&survivor, &alive, &args);
    }
    let cluster = survivor.parent.cluster;
    if args.cluster_id != Some(cluster) {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "{} is of cluster {cluster}, not of the one named by --cluster-id",
                args.data_dir.display()
            ),
        )
        .remedy("make sure that this is the peer that you mean, and name its cluster"));
    }
    if !alive.is_empty() {
        return Err(Failure::new(
            Exit::Refused,
            format!("not all other peers of cluster {cluster} are down: {} answers", alive.join(", ")),
        )
        .remedy(
            "if a majority can be started, start it: there is nothing to recover. Otherwise stop and empty those \
             that are left, but for the one whose last entry (--dry-run shows it) is the newest",
        ));
    }
    let question = format!(
        "Cluster {cluster} ends here, and a new one begins with what peer {} has, up to entry {}. What only its \
         other peers had is lost, and they must never run again. Go ahead?",
        survivor.node, survivor.parent.last.index,
    );
    confirm(args.yes, &question, false)?;
    away(move || recover(survivor, &args)).await
}

fn show(survivor: &Survivor, alive: &[String], args: &RecoverArgs) -> Result<(), Failure> {
    let state = &survivor.parent.state;
    let value = json!({
        "data_dir": survivor.path().display().to_string(),
        "cluster_id": survivor.parent.cluster.to_string(),
        "node_id": survivor.node.0,
        "last_term": survivor.parent.last.term,
        "last_index": survivor.parent.last.index.0,
        "members": members(survivor),
        "answering": alive,
        "services": state.services().count(),
        "replicas": state.replicas().count(),
    });
    output::print(args.output.output, &value, || table(&value))
}

fn members(survivor: &Survivor) -> Vec<String> {
    let nodes = survivor.parent.membership.nodes.iter();
    nodes
        .map(|(id, record)| format!("{id} at {}", record.address))
        .collect()
}

/// The other members of the survivor's cluster that answer where its log says they are.
///
/// # Errors
/// If that cannot be known.
async fn answering(survivor: &Survivor, cert_dir: Option<&Path>) -> Result<Vec<String>, Failure> {
    let read = |directory: &Path| Certificates::read(directory.to_owned()).map(Arc::new);
    let certificates = cert_dir
        .map(read)
        .transpose()
        .map_err(|error| Failure::usage(format!("--cert-dir: {:#}", anyhow::Error::from(error))))?;
    let cluster = survivor.parent.cluster;
    let others = survivor.parent.membership.nodes.iter();
    let others = others.filter(|(id, _)| **id != survivor.node);
    let asked = others.map(
        async |(_, record)| match peer::meet(&record.address, certificates.clone()).await {
            Met::Member {
                cluster: theirs,
                node,
            } if theirs == cluster => Ok(Some(format!("peer {node} at {}", record.address))),
            // A peer that was emptied, or one of another cluster, has nothing of this one.
            Met::Member { .. } | Met::Pristine | Met::Nobody => Ok(None),
            Met::Unreadable => Err(Failure::new(
                Exit::Refused,
                format!(
                    "somebody is at {}, where a peer of this cluster was, and does not answer without TLS",
                    record.address
                ),
            )
            .remedy("name the peers' certificates with --cert-dir")),
        },
    );
    let answers: Result<Vec<_>, Failure> = join_all(asked).await.into_iter().collect();
    Ok(answers?.into_iter().flatten().collect())
}

fn recover(survivor: Survivor, args: &RecoverArgs) -> Result<(), Failure> {
    let parent = survivor.parent.clone();
    let own = parent.membership.nodes.get(&survivor.node);
    let address = own.map_or_else(String::new, |record| record.address.clone());
    let format = args.output.output;
    if let Some(into) = &args.into {
        let begun = begin_in(&parent, Claim::TakeOver, into, address)?;
        return tell(&parent, begun, Claim::TakeOver, into, None, format);
    }
    let place = std::fs::canonicalize(survivor.path()).map_err(|error| {
        Failure::failed(format!(
            "cannot find {}: {error}",
            survivor.path().display()
        ))
    })?;
    let made = beside(&place, "recovered");
    let aside = beside(&place, &format!("of-{}", parent.cluster));
    if aside.exists() {
        return Err(
            Failure::new(Exit::Refused, format!("{} exists", aside.display()))
                .remedy("it was put aside by an earlier recovery: move it elsewhere"),
        );
    }
    let begun = begin_in(&parent, Claim::TakeOver, &made, address)?;
    take_place(survivor, &made, &aside).map_err(|error| {
        failure(&error).remedy(format!(
            "{} is the new cluster's data directory all the same: start the peer with it, or put it into its place by hand",
            made.display()
        ))
    })?;
    tell(
        &parent,
        begun,
        Claim::TakeOver,
        &args.data_dir,
        Some(aside),
        format,
    )
}

/// A path beside `place`, with an ending.
fn beside(place: &Path, ending: &str) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{ending}"));
    place.with_file_name(name)
}
