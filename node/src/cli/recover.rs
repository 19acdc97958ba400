//! `raftserve cluster recover`: from one survivor to a new cluster.

use std::path::{Path, PathBuf};

use raftserve_model::{ClusterId, NodeId};
use raftserve_store::restore::{InPlace, Parent, RestoreError, Survivor};
use raftserve_store::state::{Claim, PeerStanding};
use serde_json::json;

use super::confirm::confirm;
use super::failure::{Exit, Failure};
use super::output;
use super::presence::Presence;
use super::snapshot::{away, begin_in, beginning, failure, table, tell};
use super::snapshot_args::RecoverArgs;

/// Runs the verb.
pub(super) async fn run(args: RecoverArgs) -> Result<(), Failure> {
    let dir = args.data_dir.clone();
    let read = move || Survivor::read(&dir).map_err(|error| failure(&error));
    let survivor = away(read).await?;
    if args.dry_run {
        let present = present(&survivor, &args).await?;
        return show(&survivor, &present, &args);
    }
    let cluster = survivor.parent.cluster;
    let (survivor, args) = match away(move || finish(survivor, args)).await? {
        Finished::Before => return Ok(()),
        Finished::Not(survivor, args) => (*survivor, *args),
    };
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
    must_be_a_member(&survivor)?;
    must_not_be_put_aside(survivor.path(), cluster)?;
    if let Some(into) = &args.into {
        must_lie_outside(survivor.path(), into)?;
    }
    must_be_alone(&survivor, &args).await?;
    let leaving = match is_leaving(&survivor) {
        true => " It was to be removed, and may lack what came after that.",
        false => "",
    };
    if args.yes && !leaving.is_empty() {
        eprintln!("warning: peer {}:{leaving}", survivor.node);
    }
    let question = format!(
        "Cluster {cluster} ends here, and a new one begins with what peer {} has, up to entry {}.{leaving} What only its \
         other peers had is lost, and they must never run again. Go ahead?",
        survivor.node, survivor.parent.last.index,
    );
    confirm(args.yes, &question, false)?;
    if !args.yes {
        // Whoever is asked takes time, in which peers may have been started.
        must_be_alone(&survivor, &args).await?;
    }
    away(move || recover(survivor, &args)).await
}

async fn present(survivor: &Survivor, args: &RecoverArgs) -> Result<Presence, Failure> {
    let cert_dir = args.cert_dir.as_deref();
    Presence::of(&survivor.parent, cert_dir, &args.unrelated_address).await
}

/// That no other peer of the cluster runs, nor one of what it may have become.
///
/// # Errors
/// Who answers.
async fn must_be_alone(survivor: &Survivor, args: &RecoverArgs) -> Result<(), Failure> {
    let cluster = survivor.parent.cluster;
    let present = present(survivor, args).await?;
    if !present.own.is_empty() {
        return Err(Failure::new(
            Exit::Refused,
            format!("not all other peers of cluster {cluster} are down: {} answers", present.own.join(", ")),
        )
        .remedy(
            "if a majority can be started, start it: there is nothing to recover. Otherwise stop and empty those \
             that are left, but for the one whose last entry (--dry-run shows it) is the newest",
        ));
    }
    present.must_not_be_succeeded(cluster, &args.unrelated_cluster)
}

fn show(survivor: &Survivor, present: &Presence, args: &RecoverArgs) -> Result<(), Failure> {
    let state = &survivor.parent.state;
    let others = present.others.iter();
    let others: Vec<_> = others
        .map(|(cluster, named)| format!("{named}, of cluster {cluster}"))
        .collect();
    let value = json!({
        "data_dir": survivor.path().display().to_string(),
        "cluster_id": survivor.parent.cluster.to_string(),
        "node_id": survivor.node.0,
        "last_term": survivor.parent.last.term,
        "last_index": survivor.parent.last.index.0,
        "members": members(survivor),
        "leaving": is_leaving(survivor),
        "removed": is_removed(survivor),
        "answering": present.own,
        "answering_of_others": others,
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

/// That what is in the survivor's directory may go on as the cluster.
///
/// # Errors
/// It was no member any more, and lacks what came after.
fn must_be_a_member(survivor: &Survivor) -> Result<(), Failure> {
    let parent = &survivor.parent;
    if !is_removed(survivor) {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Refused,
        format!(
            "peer {} was removed from cluster {} before this: what is in {} is not all that the cluster had",
            survivor.node,
            parent.cluster,
            survivor.path().display()
        ),
    )
    .remedy(
        "recover a peer that was a member to the end. If none is left: `raftserve cluster snapshot restore` takes a saved \
         snapshot, or the newest in the directory's `snap`",
    ))
}

/// That the survivor's directory is not one that a recovery has put aside: what it became is beside it, and there would be
/// two of it.
///
/// # Errors
/// Its name says so.
fn must_not_be_put_aside(survivor: &Path, cluster: ClusterId) -> Result<(), Failure> {
    let path = survivor.canonicalize();
    let path = path.unwrap_or_else(|_| survivor.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(place) = name.strip_suffix(&format!(".of-{cluster}")) else {
        return Ok(());
    };
    Err(Failure::new(
        Exit::Refused,
        format!(
            "{} was put aside by a recovery: cluster {cluster} went on as the one in {}",
            path.display(),
            path.with_file_name(place).display()
        ),
    )
    .remedy("start the peer with that; if it was lost, give this directory another name, and run the command again"))
}

/// Whether it was no member any more, by its own log or as it was told.
fn is_removed(survivor: &Survivor) -> bool {
    survivor.was_told_of_removal() || was_removed(&survivor.parent, survivor.node)
}

fn was_removed(parent: &Parent, node: NodeId) -> bool {
    let entry = parent.state.peer(node);
    let is_removed = entry.is_some_and(|it| it.is_removed());
    is_removed || !parent.membership.nodes.contains_key(&node)
}

/// Whether it was on its way out as far as its log tells: how that ended, the log need not have been told.
fn is_leaving(survivor: &Survivor) -> bool {
    let entry = survivor.parent.state.peer(survivor.node);
    entry.is_some_and(|it| matches!(it.standing, PeerStanding::Leaving { .. }))
}

/// That `into` is no place within the survivor's own directory.
///
/// # Errors
/// It is.
fn must_lie_outside(survivor: &Path, into: &Path) -> Result<(), Failure> {
    let absolute = std::path::absolute(into).unwrap_or_else(|_| into.to_owned());
    // It need not be there yet.
    let mut there = absolute.ancestors().filter_map(|it| it.canonicalize().ok());
    let survivor_at = survivor.canonicalize();
    let (Some(there), Ok(survivor_at)) = (there.next(), survivor_at) else {
        return Ok(());
    };
    if !there.starts_with(&survivor_at) {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Refused,
        format!(
            "{} lies within the peer's own directory, {}",
            into.display(),
            survivor.display()
        ),
    )
    .remedy("name a directory elsewhere"))
}

fn recover(survivor: Survivor, args: &RecoverArgs) -> Result<(), Failure> {
    let parent = survivor.parent.clone();
    let own = parent.membership.nodes.get(&survivor.node);
    let address = own.map_or_else(String::new, |record| record.address.clone());
    let format = args.output.output;
    if let Some(into) = &args.into {
        let begun = begin_in(&parent, Claim::TakeOver, into, address)?;
        return tell(begun, into, None, format);
    }
    let place = place_of(&survivor)?;
    let recovery = InPlace::new(&place, parent.cluster);
    let recovered = recovery.recover(survivor, &beginning(Claim::TakeOver, address));
    let begun = recovered.map_err(|error| untaken(&error, &place, &recovery))?;
    tell(begun, &args.data_dir, Some(recovery.aside()), format)
}

fn place_of(survivor: &Survivor) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(survivor.path()).map_err(|error| {
        Failure::failed(format!(
            "cannot find {}: {error}",
            survivor.path().display()
        ))
    })
}

/// What came of looking for an earlier try.
enum Finished {
    /// It had given the new data its place, and its end was told.
    Before,
    /// There was none.
    Not(Box<Survivor>, Box<RecoverArgs>),
}

/// Brings to its end an earlier try of the same, if what is in the place is the new data already.
fn finish(survivor: Survivor, args: RecoverArgs) -> Result<Finished, Failure> {
    if let (Some(cluster), None) = (args.cluster_id, &args.into)
        && cluster != survivor.parent.cluster
    {
        let place = place_of(&survivor)?;
        let recovery = InPlace::new(&place, cluster);
        let finished = recovery.finish(&survivor);
        let finished = finished.map_err(|error| untaken(&error, &place, &recovery))?;
        if let Some(begun) = finished {
            let (aside, format) = (recovery.aside(), args.output.output);
            tell(begun, &args.data_dir, Some(aside), format)?;
            return Ok(Finished::Before);
        }
    }
    Ok(Finished::Not(Box::new(survivor), Box::new(args)))
}

fn untaken(error: &RestoreError, place: &Path, recovery: &InPlace) -> Failure {
    let failure = failure(error);
    match what_is_where(error, place, recovery.made()) {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}

/// Which directory is whose after `error`, and what to do.
fn what_is_where(error: &RestoreError, place: &Path, made: &Path) -> Option<String> {
    let (place, made) = (place.display(), made.display());
    Some(match error {
        RestoreError::Aside { aside, .. } => format!(
            "start the peer with {place}, which is the new cluster's. {made} is the old cluster's and must never be started: \
             run the command again, or move it to {} or elsewhere",
            aside.display()
        ),
        RestoreError::Sync { .. } => format!(
            "{place} is the new cluster's: start the peer with it once `sync` succeeds, and the disk can be trusted"
        ),
        RestoreError::Place { .. } => format!(
            "{made} is the new cluster's data directory all the same: start the peer with it, or put it into its place by \
             hand, and never start the peer with {place} as it is"
        ),
        RestoreError::GoneOn { .. } => format!(
            "if that cluster is to go on, start the peer with {made}, and never with {place}; if not, move it elsewhere"
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use raftserve_model::LogIndex;
    use raftserve_store::entry::{LogId, Membership, PeerRecord};
    use raftserve_store::identity::DataDir;
    use raftserve_store::state::State;

    use super::*;

    fn parent() -> Parent {
        let members = [1, 2].map(|node| (NodeId(node), PeerRecord::default()));
        Parent {
            cluster: ClusterId([1; 16]),
            last: LogId {
                term: 1,
                node: NodeId(1),
                index: LogIndex(312),
            },
            membership: Membership {
                nodes: members.into(),
                ..Membership::default()
            },
            state: State::default().into(),
        }
    }

    #[test]
    fn a_peer_that_its_own_log_has_not_among_the_members_was_removed() {
        let parent = parent();
        assert!(!was_removed(&parent, NodeId(2)));
        assert!(was_removed(&parent, NodeId(3)));
    }

    #[test]
    fn who_was_told_of_its_removal_was_removed_whatever_its_log_says() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("peer");
        begin_in(&parent(), Claim::TakeOver, &dir, "h:7001".to_owned()).unwrap();
        assert!(!is_removed(&Survivor::read(&dir).unwrap()));
        DataDir::open(&dir).unwrap().note_removed().unwrap();
        assert!(is_removed(&Survivor::read(&dir).unwrap()));
    }

    #[test]
    fn after_a_failure_the_peer_is_to_be_started_with_the_directory_that_is_the_new_clusters() {
        let [place, made, aside] = ["/v/peer", "/v/peer.recovered", "/v/peer.of-1"].map(Path::new);
        let source = || std::io::ErrorKind::StorageFull.into();
        let told = |error: RestoreError| what_is_where(&error, place, made).unwrap();
        let not_moved = told(RestoreError::Place {
            path: place.to_owned(),
            source: source(),
        });
        assert!(not_moved.starts_with("/v/peer.recovered is the new cluster's"));
        let left = told(RestoreError::Aside {
            left: made.to_owned(),
            aside: aside.to_owned(),
            source: source(),
        });
        assert!(left.starts_with("start the peer with /v/peer, which is the new cluster's."));
        assert!(left.contains("/v/peer.recovered is the old cluster's and must never be started"));
        let not_synced = told(RestoreError::Sync {
            path: "/v".into(),
            source: source(),
        });
        assert!(not_synced.starts_with("/v/peer is the new cluster's"));
    }

    #[test]
    fn a_directory_within_the_survivors_is_no_place_for_the_new_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let survivor = folder.path().join("peer");
        std::fs::create_dir(&survivor).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&survivor, &link).unwrap();
        for within in [
            survivor.clone(),
            survivor.join("new"),
            survivor.join("new/er"),
            link.join("new"),
            survivor.join("../peer/new"),
        ] {
            let refused = must_lie_outside(&survivor, &within);
            assert!(refused.is_err(), "{}", within.display());
        }
        for beside in [folder.path().join("new"), folder.path().join("peer.new/1")] {
            let allowed = must_lie_outside(&survivor, &beside);
            assert!(allowed.is_ok(), "{}", beside.display());
        }
    }
    #[test]
    fn what_a_recovery_has_put_aside_is_not_recovered_again() {
        let cluster = ClusterId([7; 16]);
        let aside = format!("/srv/one.of-{cluster}");
        let refused = must_not_be_put_aside(Path::new(&aside), cluster).unwrap_err();
        assert!(
            refused.message.contains("in /srv/one"),
            "{}",
            refused.message
        );
        for other in [
            "/srv/one".to_owned(),
            format!("/srv/one.of-{}", ClusterId([8; 16])),
        ] {
            assert!(must_not_be_put_aside(Path::new(&other), cluster).is_ok());
        }
    }
}
