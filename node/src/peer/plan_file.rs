//! The plan of a bootstrap that is under way, on the disk of the peer that leads it.

use std::io;
use std::path::{Path, PathBuf};

use raftserve_store::disk::{Disk, RealDisk, read_file, remove_durably, write_atomically};

use super::wire::{self, Plan};

/// Beside the identity, until Raft is initialised.
const NAME: &str = "BOOTSTRAP";

/// The file.
pub(crate) struct PlanFile {
    folder: PathBuf,
}

impl PlanFile {
    /// The file of this data directory.
    pub(crate) fn within(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// The plan, if a bootstrap is under way.
    pub(crate) fn load(&self) -> io::Result<Option<Plan>> {
        let Some(bytes) = read_file(&RealDisk, &self.path())? else {
            return Ok(None);
        };
        wire::decode(&bytes).map(Some).map_err(|error| {
            let text = format!("{} is damaged: {error}", self.path().display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    /// Writes the plan so that after a crash there is the old one or the new one.
    pub(crate) fn save(&self, plan: &Plan) -> io::Result<()> {
        RealDisk.create_dir(&self.folder)?;
        write_atomically(&RealDisk, &self.path(), &wire::encode(plan))
    }

    /// Removes the plan: the bootstrap is complete.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_durably(&RealDisk, &self.path())
    }
}
