//! The plan of a bootstrap that is under way, on the disk of the peer that leads it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
        let bytes = match fs::read(self.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        wire::decode(&bytes).map(Some).map_err(|error| {
            let text = format!("{} is damaged: {error}", self.path().display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    /// Writes the plan so that after a crash there is the old one or the new one.
    pub(crate) fn save(&self, plan: &Plan) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let draft = self.folder.join(format!("{NAME}.tmp"));
        let mut file = File::create(&draft)?;
        file.write_all(&wire::encode(plan))?;
        file.sync_all()?;
        fs::rename(&draft, self.path())?;
        self.sync_folder()
    }

    /// Removes the plan: the bootstrap is complete.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_folder(),
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}
