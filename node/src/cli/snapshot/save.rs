//! `raftserve cluster snapshot save`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use raftserve_store::restore::Parent;
use serde_json::json;
use tokio::time::timeout;
use tonic::Streaming;

use super::file::{Draft, hex};
use super::{away, failure};
use crate::admin::v1;
use crate::admin::v1::save_snapshot_response::Part;
use crate::admin::v1::snapshots_client::SnapshotsClient;
use crate::cli::connect::Servers;
use crate::cli::counted::counted;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output;
use crate::cli::snapshot_args::SaveArgs;

/// A peer that says nothing for so long is given up. Before its first word it writes the whole state down.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Runs the verb.
pub(super) async fn run(args: SaveArgs) -> Result<(), Failure> {
    refuse_stdout(&args.file)?;
    refuse_existing(&args.file, args.force)?;
    let draft = Draft::begin(&args.file).map_err(|error| unwritable(&args.file, &error))?;
    let parts = Servers::new(&args.target)?
        .ask(|channel| async move {
            SnapshotsClient::new(channel)
                .save(v1::SaveSnapshotRequest {})
                .await
        })
        .await?;
    let (header, draft) = receive(parts, draft, &args.file).await?;
    let sha256 = draft.sha256();
    let (file, force) = (args.file.clone(), args.force);
    let parent = away(move || finish(draft, &file, force)).await?;
    let value = json!({
        "file": args.file.display().to_string(),
        "size": header.size,
        "sha256": sha256,
        "cluster_id": header.cluster_id,
        "index": header.index,
        "term": header.term,
    });
    output::print(args.output.output, &value, || {
        format!(
            "Saved cluster {} as of entry {} to {}: {}, {}\nsha256 {sha256}\n",
            header.cluster_id,
            header.index,
            args.file.display(),
            counted(header.size, "byte", "bytes"),
            counted(
                parent.state.services().count() as u64,
                "service",
                "services"
            ),
        )
    })
}

/// What is written to standard output is gone before it is known to be whole.
fn refuse_stdout(path: &Path) -> Result<(), Failure> {
    if path != Path::new("-") {
        return Ok(());
    }
    Err(
        Failure::usage("a snapshot is not written to standard output: it has to be verified before anybody uses it")
            .remedy("name a file, and send that on once this has succeeded; ./- is a file of that name"),
    )
}

fn refuse_existing(path: &Path, force: bool) -> Result<(), Failure> {
    if force || !path.exists() {
        return Ok(());
    }
    Err(
        Failure::new(Exit::Refused, format!("{} exists", path.display()))
            .remedy("name another file, or replace it with --force"),
    )
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
        .remedy("name a file in a directory that exists, is writable and has room")
}

/// Verifies what was received, and gives it its name.
fn finish(draft: Draft, path: &Path, force: bool) -> Result<Parent, Failure> {
    let parent = Parent::in_file(draft.path()).map_err(|error| failure(&error))?;
    refuse_existing(path, force)?;
    draft.finish().map_err(|error| unwritable(path, &error))?;
    Ok(parent)
}

/// Receives the file to its last byte.
async fn receive(
    mut parts: Streaming<v1::SaveSnapshotResponse>,
    mut draft: Draft,
    path: &Path,
) -> Result<(v1::SnapshotHeader, Draft), Failure> {
    let Some(Part::Header(header)) = next(&mut parts).await? else {
        return Err(broken("it did not begin with a header"));
    };
    let mut bar = Bar::new(header.size);
    let trailer = loop {
        match next(&mut parts).await? {
            Some(Part::Data(piece)) => {
                draft
                    .append(&piece)
                    .map_err(|error| unwritable(path, &error))?;
                bar.show(draft.written());
            }
            Some(Part::Trailer(trailer)) => break trailer,
            Some(Part::Header(_)) => return Err(broken("it has two headers")),
            None => {
                let (got, of) = (draft.written(), header.size);
                return Err(broken(&format!("it ended after {got} of {of} bytes")));
            }
        }
    };
    bar.end();
    if draft.written() != header.size || draft.sha256() != hex(&trailer.sha256) {
        return Err(broken("its length or its sum is not the one announced"));
    }
    Ok((header, draft))
}

fn broken(why: &str) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("the snapshot did not arrive whole: {why}; nothing was kept"),
    )
    .remedy("try again, or ask another peer with --server")
}

async fn next(parts: &mut Streaming<v1::SaveSnapshotResponse>) -> Result<Option<Part>, Failure> {
    match timeout(SILENCE_MAX, parts.message()).await {
        Ok(Ok(Some(message))) => Ok(message.part),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(status)) if crate::admin::errors::Reason::of(&status).is_some() => {
            Err(Failure::of(&status))
        }
        Ok(Err(status)) => Err(broken(status.message())),
        Err(_) => Err(broken("the peer has fallen silent")),
    }
}

/// A bar on the terminal, if there is one.
struct Bar {
    size: u64,
    shown: Option<u64>,
    visible: bool,
}

impl Bar {
    fn new(size: u64) -> Self {
        Self {
            size: size.max(1),
            shown: None,
            visible: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, done: u64) {
        let percent = done.saturating_mul(100) / self.size;
        if self.visible && self.shown != Some(percent) {
            self.shown = Some(percent);
            let filled = usize::try_from(percent / 4).unwrap_or(25).min(25);
            let bar = "#".repeat(filled);
            // A terminal that cannot be written to is no reason to stop.
            let _ = write!(
                std::io::stderr(),
                "\r[{bar:<25}] {percent:>3} % of {} bytes",
                self.size
            );
        }
    }

    fn end(&mut self) {
        if self.visible {
            let _ = writeln!(std::io::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_output_is_no_file() {
        let refused = refuse_stdout(Path::new("-")).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("standard output"), "{refused:?}");
        assert!(refuse_stdout(Path::new("./-")).is_ok());
    }
}
