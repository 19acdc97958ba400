//! Taking over the replicas of another cluster, while they run.
//!
//! ```text
//! ROOT/PARENT/.taken-over-by     the id of the cluster that has them now
//! ROOT/CHILD -> PARENT           so that both names lead to the same run directories
//! ```
//! Shims know their run directory by a path through the parent's id, and go on using it; so the directory
//! stays where it is, and the new name is a link to it. The label is written first: from then on no peer of the
//! parent starts here.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use raftserve_model::ClusterId;

use super::{Site, io_error};
use crate::provider::ProviderError;

const LABEL: &str = ".taken-over-by";

/// Other peers of this host may take over at the same moment, or make the directory anew.
const TRIES: usize = 20;

/// Whose the replicas in `directory` are, if another cluster took them over.
pub(super) fn owner(directory: &Path) -> Result<Option<ClusterId>, ProviderError> {
    let path = directory.join(LABEL);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let read = text.trim().parse().map(Some);
    read.map_err(|error| io_error("read", &path)(io::Error::other(format!("{error}"))))
}

/// Makes the replicas of `from` those of this cluster, once; all that is left of `from`'s peers is refused here
/// from then on. Blocks.
pub(super) fn take_over(site: &Site, from: ClusterId) -> Result<(), ProviderError> {
    let parent = site.directory.with_file_name(from.to_string());
    if !parent.exists() {
        return Ok(());
    }
    match owner(&parent)? {
        Some(owner) if owner == site.cluster => {}
        Some(owner) if owner != from => {
            return Err(ProviderError::TakenOver {
                cluster: from,
                by: owner,
            });
        }
        _ => write_label(&parent, site.cluster)?,
    }
    link(&site.directory, &parent).map_err(io_error("link", &site.directory))
}

fn write_label(parent: &Path, owner: ClusterId) -> Result<(), ProviderError> {
    let draft = parent.join(format!("{LABEL}.{}", std::process::id()));
    let label = parent.join(LABEL);
    let write = || {
        fs::write(&draft, format!("{owner}\n"))?;
        fs::rename(&draft, &label)
    };
    write().map_err(io_error("write", &label))
}

/// Puts a link in the place of the empty directory that every peer makes at its start.
fn link(place: &Path, parent: &Path) -> io::Result<()> {
    let target = PathBuf::from(parent.file_name().unwrap_or_default());
    let mut refused = None;
    for _ in 0..TRIES {
        if fs::read_link(place).is_ok_and(|found| found == target) {
            return Ok(());
        }
        match fs::remove_dir(place) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Err(error),
            _ => {}
        }
        refused = symlink(&target, place).err();
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: ClusterId = ClusterId([1; 16]);
    const NEW: ClusterId = ClusterId([2; 16]);
    const THIRD: ClusterId = ClusterId([3; 16]);

    fn site(root: &Path, cluster: ClusterId) -> Site {
        let directory = root.join(cluster.to_string());
        fs::create_dir_all(&directory).unwrap();
        Site {
            cluster,
            directory,
            executable: "none".into(),
            open_files: None,
            look_now: tokio::sync::Notify::new(),
        }
    }

    #[test]
    fn both_names_lead_to_the_replicas_and_the_parent_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let old = site(root.path(), OLD);
        fs::create_dir(old.directory.join("web-3-1")).unwrap();
        let new = site(root.path(), NEW);
        for _ in 0..2 {
            take_over(&new, OLD).unwrap();
            assert!(old.directory.join("web-3-1").is_dir());
            assert!(new.directory.join("web-3-1").is_dir());
            assert_eq!(owner(&old.directory).unwrap(), Some(NEW));
        }
        // And so on, from child to child.
        let third = site(root.path(), THIRD);
        take_over(&third, NEW).unwrap();
        assert!(third.directory.join("web-3-1").is_dir());
        assert_eq!(owner(&new.directory).unwrap(), Some(THIRD));
    }

    #[test]
    fn replicas_are_taken_over_by_one_cluster_only() {
        let root = tempfile::tempdir().unwrap();
        site(root.path(), OLD);
        take_over(&site(root.path(), NEW), OLD).unwrap();
        let refusal = take_over(&site(root.path(), THIRD), OLD).unwrap_err();
        assert!(
            matches!(refusal, ProviderError::TakenOver { by: NEW, .. }),
            "{refusal}"
        );
        assert!(!root.path().join(THIRD.to_string()).is_symlink());
    }

    #[test]
    fn a_host_without_the_parents_replicas_has_nothing_to_take_over() {
        let root = tempfile::tempdir().unwrap();
        let new = site(root.path(), NEW);
        take_over(&new, OLD).unwrap();
        assert!(!new.directory.is_symlink());
    }
}
