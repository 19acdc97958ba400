//! `raftserve cluster snapshot`: files that hold the whole state.

mod file;
mod save;

use std::path::Path;

use raftserve_model::ClusterId;
use raftserve_store::identity::{EmptyDir, IdentityError};
use raftserve_store::restore::{Beginning, Begun, Parent, RestoreError, begin};
use raftserve_store::snapshot::{SNAPSHOT_FORMAT, SnapshotError, SnapshotFile};
use raftserve_store::state::Claim;
use raftserve_store::store::OpenError;
use serde_json::{Value, json};

use super::args::Format;
use super::failure::{Exit, Failure};
use super::output;
use super::presence::Presence;
use super::snapshot_args::{FileArgs, RestoreArgs, SnapshotArgs, SnapshotVerb, VerifyArgs};
use crate::clock;

/// Runs the verb.
pub(super) async fn run(args: SnapshotArgs) -> Result<(), Failure> {
    match args.verb {
        SnapshotVerb::Save(args) => save::run(args).await,
        SnapshotVerb::Inspect(args) => away(move || inspect(&args)).await,
        SnapshotVerb::Verify(args) => away(move || verify(&args)).await,
        SnapshotVerb::Restore(args) => restore(args).await,
    }
}

/// Does what blocks on the disk where that holds up nothing, so that Ctrl-C still ends it.
pub(super) async fn away<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn inspect(args: &FileArgs) -> Result<(), Failure> {
    let parent = Parent::in_file(&args.file).map_err(|error| failure(&error))?;
    let size = size_of(&args.file)?;
    let value = described(&parent, &args.file, size);
    output::print(args.output.output, &value, || table(&value))
}

fn size_of(path: &Path) -> Result<u64, Failure> {
    let size = SnapshotFile::open(path).map(|file| file.size());
    match size {
        Ok(Ok(size)) => Ok(size),
        Ok(Err(error)) => Err(Failure::failed(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
        Err(error) => Err(failure(&error.into())),
    }
}

/// What a snapshot holds, for people and programs.
fn described(parent: &Parent, path: &Path, size: u64) -> Value {
    let state = &parent.state;
    let sessions: usize = state
        .services()
        .map(|service| state.session_count(service.id))
        .sum();
    let lineage = state.lineage();
    json!({
        "file": path.display().to_string(),
        "format": SNAPSHOT_FORMAT,
        "size": size,
        "cluster_id": parent.cluster.to_string(),
        "index": parent.last.index.0,
        "term": parent.last.term,
        "time": crate::cli::shape::time_text(state.wall_at(state.now())),
        "members": parent.membership.nodes.keys().map(|id| id.0).collect::<Vec<_>>(),
        "services": state.services().count(),
        "replicas": state.replicas().count(),
        "sessions": sessions,
        "keys": state.key_count(),
        "clients": state.client_count(),
        "parent_cluster_id": lineage.map(|it| it.parent.to_string()),
    })
}

/// A field's name as people say it.
fn label(key: &str) -> String {
    let words = key.split('_').map(|word| match word {
        "id" => "ID",
        word => word,
    });
    let mut label = words.collect::<Vec<_>>().join(" ");
    if let Some(first) = label.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    label
}

/// Fields and values for people, one a line.
pub(super) fn table(value: &Value) -> String {
    let lines = value.as_object().into_iter().flatten();
    let shown = lines.filter(|(_, value)| !value.is_null());
    shown
        .map(|(key, value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Array(items) => {
                    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
                    items.join(", ")
                }
                other => other.to_string(),
            };
            let key = label(key);
            format!("{key:<20} {text}\n")
        })
        .collect()
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let parent = Parent::in_file(&args.file).map_err(|error| failure(&error))?;
    let (size, sha256) = file::sha256(&args.file)?;
    if let Some(wanted) = &args.sha256
        && *wanted != sha256
    {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "{} is a whole snapshot, but not that one: its SHA-256 is {sha256}",
                args.file.display()
            ),
        )
        .remedy("look for the file that the sum belongs to; `inspect` shows what this one is"));
    }
    let value = json!({
        "file": args.file.display().to_string(),
        "valid": true,
        "size": size,
        "sha256": sha256,
        "cluster_id": parent.cluster.to_string(),
        "index": parent.last.index.0,
    });
    output::print(args.output.output, &value, || {
        format!(
            "{} is whole: {size} bytes, cluster {} as of entry {}\nsha256 {sha256}\n",
            args.file.display(),
            parent.cluster,
            parent.last.index,
        )
    })
}

async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let claim = match args.fork {
        true => Claim::Fork,
        false => Claim::TakeOver,
    };
    // What is wrong with the file is told before a directory is made.
    let file = args.file.clone();
    let parent = away(move || {
        let parent = Parent::in_file(&file);
        let parent = parent.and_then(|it| it.check_version().map(|()| it));
        parent.map_err(|error| failure(&error))
    })
    .await?;
    if claim == Claim::TakeOver {
        must_be_gone(&parent, &args).await?;
    }
    away(move || {
        let begun = begin_in(&parent, claim, &args.data_dir, args.peer_addr.clone())?;
        tell(begun, &args.data_dir, None, args.output.output)
    })
    .await
}

/// That the cluster which is to be taken over from does not run, nor what it may have become.
///
/// # Errors
/// Who answers.
async fn must_be_gone(parent: &Parent, args: &RestoreArgs) -> Result<(), Failure> {
    let present = Presence::of(parent, args.cert_dir.as_deref(), &args.unrelated_address).await?;
    if !present.own.is_empty() {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "cluster {} still runs: {} answers. Two clusters must never drive the same replicas",
                parent.cluster,
                present.own.join(", ")
            ),
        )
        .remedy("stop all of its peers for good; or make a copy beside it with --fork"));
    }
    present.must_not_be_succeeded(parent.cluster, &args.unrelated_cluster)
}

/// Fills an empty directory with the beginning of a new cluster.
pub(super) fn begin_in(
    parent: &Parent,
    claim: Claim,
    dir: &Path,
    address: String,
) -> Result<Begun, Failure> {
    let target = EmptyDir::take(dir).map_err(|error| failure(&error.into()))?;
    begin(parent, &beginning(claim, address), target).map_err(|error| failure(&error))
}

/// A new cluster, now.
pub(super) fn beginning(claim: Claim, address: String) -> Beginning {
    Beginning {
        cluster: ClusterId(rand::random()),
        claim,
        unix_ms: clock::unix_ms(),
        address,
    }
}

/// Says what was begun, and what comes next.
pub(super) fn tell(
    begun: Begun,
    dir: &Path,
    aside: Option<&Path>,
    format: Format,
) -> Result<(), Failure> {
    let lineage = begun.lineage;
    let claimed = match lineage.claim {
        Claim::TakeOver => "take-over",
        Claim::Fork => "fork",
    };
    let value = json!({
        "cluster_id": begun.cluster.to_string(),
        "node_id": begun.node.0,
        "first_index": lineage.began.0,
        "data_dir": dir.display().to_string(),
        "former_data_dir": aside.map(|dir| dir.display().to_string()),
        "parent_cluster_id": lineage.parent.to_string(),
        "parent_index": lineage.parent_index.0,
        "claim": claimed,
    });
    output::print(format, &value, || {
        let replicas = match lineage.claim {
            Claim::TakeOver => format!(
                "with the --replica-root that the peers of {} had: its replicas are adopted. That\n   cluster must never run again",
                lineage.parent
            ),
            Claim::Fork => format!(
                "with a --replica-root, ports and --peers of its own: the replicas of cluster\n   {} are left alone",
                lineage.parent
            ),
        };
        let former = aside.map_or_else(String::new, |aside| {
            format!(
                "The peer's former data directory is {}; remove it once all is well.\n",
                aside.display()
            )
        });
        format!(
            "{} is the first peer of a new cluster, {}, with all of cluster {} up to entry {}.\n{former}Next:\n\
             1. start it: raftserve node --data-dir {} …\n   {replicas}.\n\
             2. start the other peers with empty data directories: they join it.\n\
             3. raftserve cluster members\n",
            dir.display(),
            begun.cluster,
            lineage.parent,
            lineage.parent_index,
            dir.display(),
        )
    })
}

/// An error of the store, with its whole chain, and what to do about it.
pub(super) fn failure(error: &RestoreError) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let (exit, remedy) = match error {
        RestoreError::Snapshot(SnapshotError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            (
                Exit::NotFound,
                Some("name a file that `snapshot save` wrote"),
            )
        }
        RestoreError::Snapshot(SnapshotError::Format { .. }) => (
            Exit::Refused,
            Some("use the release that wrote it, or a later one"),
        ),
        RestoreError::Snapshot(
            SnapshotError::Corrupt { .. }
            | SnapshotError::Codec { .. }
            | SnapshotError::State { .. },
        ) => (
            Exit::Refused,
            Some(
                "it was cut short or damaged, or never was a snapshot: take another copy of it, or an earlier one",
            ),
        ),
        // These say themselves what to do.
        RestoreError::Directory(
            IdentityError::NotEmpty { .. }
            | IdentityError::Locked { .. }
            | IdentityError::Foreign { .. }
            | IdentityError::Format { .. }
            | IdentityError::Corrupt { .. },
        ) => (Exit::Refused, None),
        RestoreError::Occupied { .. } => (
            Exit::Refused,
            Some("it was put aside by an earlier recovery: move it elsewhere"),
        ),
        RestoreError::GoneOn { .. }
        | RestoreError::Unsupported(_)
        | RestoreError::Open(OpenError::Unsupported(_) | OpenError::OnlySaved { .. }) => {
            (Exit::Refused, None)
        }
        RestoreError::NoMember { .. } => (
            Exit::Refused,
            Some("name the directory that the peer was started with as --data-dir"),
        ),
        RestoreError::Empty { .. } => (Exit::Refused, Some("there is nothing in it to begin with")),
        RestoreError::Open(_) => (
            Exit::Failed,
            Some("recover another peer that is left, or restore the newest snapshot file"),
        ),
        _ => (Exit::Failed, None),
    };
    let failure = Failure::new(exit, text);
    match remedy {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_words_and_not_names_of_fields() {
        let value = json!({ "cluster_id": "ab", "last_term": 3, "leaving": null });
        assert_eq!(
            table(&value),
            "Cluster ID           ab\nLast term            3\n"
        );
    }

    #[test]
    fn a_state_of_a_later_version_is_refused_with_what_to_run() {
        let later = raftserve_model::Unsupported::TooOld {
            cluster: raftserve_model::ClusterVersion(9),
            supported: raftserve_store::formats::SUPPORTED,
        };
        for error in [
            RestoreError::Unsupported(later),
            RestoreError::Open(OpenError::Unsupported(later)),
        ] {
            let refused = failure(&error);
            let said = &refused.message;
            assert!(
                said.contains("run a release that supports version 9"),
                "{said}"
            );
            assert_eq!((refused.exit, refused.remedy), (Exit::Refused, None));
        }
    }
}
