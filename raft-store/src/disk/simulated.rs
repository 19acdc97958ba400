//! A disk in memory that forgets what was not synced, and fails where it is told to.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile};

/// A small generator of random numbers (splitmix64): one seed decides everything.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What happens at the operation that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power goes: the operation may have happened in part, and nothing works afterwards.
    PowerCut,
    /// The operation fails, and so does every later one of its kind.
    Error,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetSize(u64),
}

#[derive(Clone, Debug, Default)]
struct Contents {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::SetSize(size) => bytes.resize(*size as usize, 0),
            Self::Write(offset, data) => {
                let end = *offset as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset as usize..end].copy_from_slice(data);
            }
        }
    }
}

impl Contents {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.pending.clear();
    }

    /// What a power cut leaves.
    fn remains(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        match random.below(5) {
            0 => {}
            1 => bytes.clone_from(&self.current),
            2 => self.pending.iter().for_each(|it| {
                if let Change::Write(offset, data) = it {
                    Change::Write(*offset, vec![0; data.len()]).apply(&mut bytes);
                }
            }),
            3 => {
                let kept = random.below(self.pending.len() as u64 + 1) as usize;
                for (at, change) in self.pending.iter().take(kept).enumerate() {
                    match change {
                        Change::Write(offset, data) if at + 1 == kept => {
                            let length = random.below(data.len() as u64 + 1) as usize;
                            Change::Write(*offset, data[..length].to_vec()).apply(&mut bytes);
                        }
                        change => change.apply(&mut bytes),
                    }
                }
            }
            _ => self.scattered(random, &mut bytes),
        }
        bytes
    }

    /// Any subset of sectors reaches the disk.
    fn scattered(&self, random: &mut Random, bytes: &mut Vec<u8>) {
        let sector = [16, 64, 512][random.below(3) as usize];
        for change in &self.pending {
            match change {
                Change::SetSize(_) => {
                    if random.coin() {
                        change.apply(bytes);
                    }
                }
                Change::Write(offset, data) => {
                    for (at, piece) in data.chunks(sector).enumerate() {
                        if random.coin() {
                            let offset = offset + (at * sector) as u64;
                            Change::Write(offset, piece.to_vec()).apply(bytes);
                        }
                    }
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Naming {
    Add(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Add(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => {
                path.parent() == Some(dir)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<Naming>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    off: bool,
    file_syncs: u64,
}

impl Inner {
    /// Counts an operation. True if it happens, false if the power goes while it does.
    fn begin(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        match self.fault {
            Some((at, Fault::PowerCut)) if at == self.operations => {
                self.off = true;
                Ok(false)
            }
            Some((at, Fault::Error)) if at <= self.operations => {
                Err(io::Error::other("injected error"))
            }
            _ => Ok(true),
        }
    }

    fn end(happened: bool) -> io::Result<()> {
        match happened {
            true => Ok(()),
            false => Err(io::Error::other("the power went")),
        }
    }

    fn note(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.pending_names.push(naming);
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        let file = self.names.get(path).copied();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Inner>>);

impl SimulatedDisk {
    /// An empty disk that fails at the operation numbered `at`, from 1.
    pub(crate) fn failing_at(at: u64, fault: Fault) -> Self {
        let disk = Self::default();
        disk.fail_at(at, fault);
        disk
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Fails at the operation numbered `at`, from 1 since the disk was made.
    pub(crate) fn fail_at(&self, at: u64, fault: Fault) {
        self.inner().fault = Some((at, fault));
    }

    /// How many operations that change something there were.
    pub(crate) fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// How many files were synced.
    pub(crate) fn file_syncs(&self) -> u64 {
        self.inner().file_syncs
    }

    /// Whether the power is off.
    pub(crate) fn is_off(&self) -> bool {
        self.inner().off
    }

    /// The disk as it may be after a power cut now.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Self {
        let inner = self.inner();
        let mut names = inner.durable_names.clone();
        for naming in &inner.pending_names {
            if random.coin() {
                naming.apply(&mut names);
            }
        }
        let files = inner.files.iter().map(|file| {
            let bytes = file.remains(random);
            Contents {
                durable: bytes.clone(),
                current: bytes,
                pending: Vec::new(),
            }
        });
        let files = files.collect();
        Self(Arc::new(Mutex::new(Inner {
            files,
            names: names.clone(),
            durable_names: names,
            ..Inner::default()
        })))
    }

    /// The disk after the process was killed and the power stayed: nothing is lost yet.
    pub(crate) fn after_kill(&self) -> Self {
        let inner = self.inner();
        Self(Arc::new(Mutex::new(Inner {
            files: inner.files.clone(),
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            pending_names: inner.pending_names.clone(),
            ..Inner::default()
        })))
    }

    /// Changes a file's bytes behind everyone's back, durably.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let file = inner.file(path).unwrap();
        let contents = &mut inner.files[file];
        change(&mut contents.current);
        contents.sync();
    }

    /// A file's bytes.
    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        let inner = self.inner();
        inner.files[inner.file(path).unwrap()].current.clone()
    }
}

impl Disk for SimulatedDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let names = inner.names.keys().filter(|it| it.parent() == Some(dir));
        let names = names.filter_map(|it| it.file_name());
        Ok(names.map(|it| it.to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        let happened = inner.begin()?;
        if inner.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = inner.files.len();
        inner.files.push(Contents::default());
        inner.note(Naming::Add(path.to_owned(), file));
        Inner::end(happened)?;
        Ok(Arc::new(SimulatedFile {
            disk: self.clone(),
            file,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.inner().file(path)?;
        Ok(Arc::new(SimulatedFile {
            disk: self.clone(),
            file,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let happened = inner.begin()?;
        let file = inner.file(from)?;
        inner.note(Naming::Rename(from.to_owned(), to.to_owned(), file));
        Inner::end(happened)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.file(path)?;
        let happened = inner.begin()?;
        inner.note(Naming::Remove(path.to_owned()));
        Inner::end(happened)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let happened = inner.begin()?;
        if happened {
            let pending = std::mem::take(&mut inner.pending_names);
            for naming in pending {
                if naming.is_in(dir) {
                    naming.apply(&mut inner.durable_names);
                } else {
                    inner.pending_names.push(naming);
                }
            }
        }
        Inner::end(happened)
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
}

impl DiskFile for SimulatedFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.inner().files[self.file].current.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.inner();
        let bytes = &inner.files[self.file].current;
        let start = offset as usize;
        let found = bytes.get(start..start + buffer.len());
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let happened = inner.begin()?;
        inner.files[self.file].change(Change::Write(offset, bytes.to_vec()));
        Inner::end(happened)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let happened = inner.begin()?;
        inner.files[self.file].change(Change::SetSize(size));
        Inner::end(happened)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let happened = inner.begin()?;
        if happened {
            inner.file_syncs += 1;
            inner.files[self.file].sync();
        }
        Inner::end(happened)
    }
}
