//! A recovery whose new data takes the place of the survivor's directory.
//!
//! The new data is made beside it, the two directories change places at one stroke, and the old one is then put aside
//! under another name, so that at each instant the place has the one or the other, whole. Each step is durable before
//! the next. Interrupted anywhere, the same recovery goes on: over the unused remains of the first step it begins
//! anew, and after the second only the third is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftserve_model::ClusterId;

use super::{Beginning, Begun, RestoreError, Survivor, begin};
use crate::disk::{Disk, RealDisk, parent_of};
use crate::identity::{DataDir, DirectoryLock, EmptyDir, FORMAT_FILE, Identity, IdentityError};
use crate::state::Claim;

/// What the new data is called until it has its place, behind the place's name.
const MADE: &str = "recovered";

/// Locks a directory.
type Lock = fn(&Path) -> Result<DirectoryLock, IdentityError>;

/// The three directories of a recovery in place, which lie in one.
#[derive(Clone, Debug)]
pub struct InPlace {
    disk: Arc<dyn Disk>,
    lock: Lock,
    cluster: ClusterId,
    place: PathBuf,
    made: PathBuf,
    aside: PathBuf,
}

impl InPlace {
    /// Of `cluster`, in `place`, which leads to the survivor's directory through no link.
    #[must_use]
    pub fn new(place: &Path, cluster: ClusterId) -> Self {
        Self::on(Arc::new(RealDisk), DirectoryLock::take, place, cluster)
    }

    pub(super) fn on(disk: Arc<dyn Disk>, lock: Lock, place: &Path, cluster: ClusterId) -> Self {
        let beside = |ending: &str| {
            let mut name = place.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{ending}"));
            place.with_file_name(name)
        };
        Self {
            disk,
            lock,
            cluster,
            place: place.to_owned(),
            made: beside(MADE),
            aside: beside(&format!("of-{cluster}")),
        }
    }

    /// Where the new data is made.
    #[must_use]
    pub fn made(&self) -> &Path {
        &self.made
    }

    /// Where the old data is put.
    #[must_use]
    pub fn aside(&self) -> &Path {
        &self.aside
    }

    /// Recovers. What an earlier try has left beside the place is removed, unless it is in use. Blocks; not to be called
    /// from within an asynchronous task.
    ///
    /// # Errors
    /// - [`RestoreError::Occupied`], [`RestoreError::GoneOn`], and what [`begin`] says: nothing was moved, and the
    ///   survivor's directory is as it was.
    /// - [`RestoreError::Place`], also where the survivor's directory is the root of a volume: likewise, and the new data is
    ///   whole.
    /// - [`RestoreError::Aside`]: the survivor's directory is where the new data was made, and must not be started.
    /// - [`RestoreError::Sync`]: nothing is amiss, unless the machine loses power before it has written it.
    ///
    /// # Panics
    /// In an asynchronous task.
    pub fn recover(
        &self,
        survivor: Survivor,
        beginning: &Beginning,
    ) -> Result<Begun, RestoreError> {
        if self.is_dir(&self.aside)? {
            return Err(RestoreError::Occupied {
                path: self.aside.clone(),
            });
        }
        self.undo(&survivor)?;
        let target = EmptyDir::take_on(Arc::clone(&self.disk), &self.made, self.lock)?;
        let begun = begin(&survivor.parent, beginning, target)?;
        self.take_place()?;
        // The old directory stays locked until it has its name.
        drop(survivor);
        Ok(begun)
    }

    /// Brings to its end an earlier try that had given the new data its place; `there` is what has it now. Says what was
    /// begun then, and nothing where there was no such try, or where a peer has run on what it began. Blocks.
    ///
    /// # Errors
    /// [`RestoreError::Aside`], [`RestoreError::Sync`], [`RestoreError::Directory`].
    pub fn finish(&self, there: &Survivor) -> Result<Option<Begun>, RestoreError> {
        let lineage = there.parent.state.lineage();
        let continues = |claim| claim == Claim::TakeOver;
        let Some(lineage) = lineage.filter(|it| it.parent == self.cluster && continues(it.claim))
        else {
            return Ok(None);
        };
        if self.is_dir(&self.made)? {
            let disk = Arc::clone(&self.disk);
            let old = DataDir::open_to_read(disk, &self.made, self.lock)?;
            match old.identity() {
                Identity::Member { cluster, .. } if cluster == self.cluster => self.put_aside()?,
                _ => return Ok(None),
            }
        } else if self.is_dir(&self.aside)? && lineage.began == there.parent.last.index {
            self.sync(|error| self.unsynced(error))?;
        } else {
            return Ok(None);
        }
        Ok(Some(Begun {
            cluster: there.parent.cluster,
            node: there.node,
            lineage,
        }))
    }

    fn is_dir(&self, path: &Path) -> Result<bool, RestoreError> {
        let found = self.disk.is_dir(path);
        found.map_err(|source| RestoreError::Beside {
            path: path.to_owned(),
            source,
        })
    }

    /// Has what an earlier try has made whole, and not moved, be taken for what is not whole, which is made anew.
    fn undo(&self, survivor: &Survivor) -> Result<(), RestoreError> {
        let there = self.disk.list(&self.made);
        if !there.is_ok_and(|names| names.iter().any(|name| name == FORMAT_FILE)) {
            return Ok(());
        }
        let made = Survivor::read_on(Arc::clone(&self.disk), &self.made, self.lock)?;
        let there = survivor.parent.state.lineage();
        if there.is_some_and(|it| it.parent == made.parent.cluster) {
            // The old data, which that recovery has exchanged and not put aside.
            return Err(self.not_aside(io::Error::other(format!(
                "the recovery of cluster {0} was interrupted here: run it again to its end, with --cluster-id {0}",
                made.parent.cluster
            ))));
        }
        self.must_be_unused(&made)?;
        Ok(made.dir.undo()?)
    }

    /// That no peer has ever run on what an earlier try has made of this cluster's state.
    fn must_be_unused(&self, made: &Survivor) -> Result<(), RestoreError> {
        let parent = &made.parent;
        match parent.state.lineage() {
            Some(it) if it.parent == self.cluster && it.began == parent.last.index => Ok(()),
            _ => Err(RestoreError::GoneOn {
                path: self.made.clone(),
                cluster: parent.cluster,
            }),
        }
    }

    fn take_place(&self) -> Result<(), RestoreError> {
        let exchanged = self.disk.exchange(&self.made, &self.place);
        exchanged.map_err(|source| RestoreError::Place {
            path: self.place.clone(),
            source,
        })?;
        self.put_aside()
    }

    fn put_aside(&self) -> Result<(), RestoreError> {
        // Else a power cut could leave the new data put aside: whoever exchanged the two may have been killed before this.
        self.sync(|error| self.not_aside(error))?;
        let renamed = self.disk.rename(&self.made, &self.aside);
        renamed.map_err(|error| self.not_aside(error))?;
        self.sync(|error| self.unsynced(error))
    }

    fn sync(&self, failed: impl FnOnce(io::Error) -> RestoreError) -> Result<(), RestoreError> {
        self.disk.sync_dir(parent_of(&self.place)).map_err(failed)
    }

    fn not_aside(&self, source: io::Error) -> RestoreError {
        RestoreError::Aside {
            left: self.made.clone(),
            aside: self.aside.clone(),
            source,
        }
    }

    fn unsynced(&self, source: io::Error) -> RestoreError {
        RestoreError::Sync {
            path: parent_of(&self.place).to_owned(),
            source,
        }
    }
}
