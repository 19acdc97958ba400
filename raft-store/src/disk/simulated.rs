//! A disk in memory that forgets what was not synced, and fails where it is told to.
//!
//! What a power cut leaves of a file: what was synced, and of every later change nothing, all, a part, or any
//! subset of sectors; beyond the synced length also zeros. Of names: any subset of the changes since their
//! directory was synced. Sectors are written whole or not at all.

mod names;
pub(crate) mod seeds;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use self::names::{Names, Node};
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

/// What happens from the operation that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power goes: the operation may have happened in part, and nothing works afterwards.
    PowerCut,
    /// The operation fails, and so does every later one.
    Error,
    /// The disk is full: nothing grows any more. A write that fails may have been done in part.
    Full,
    /// The next sync fails once. What it should have written is lost, or any part of it, while it can still
    /// be read; later syncs succeed and do not write it either (Rebello et al., USENIX ATC 2020).
    LostSync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Needs room.
    Grow,
    Sync,
    Other,
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
    fn settled(bytes: Vec<u8>) -> Self {
        Self {
            durable: bytes.clone(),
            current: bytes,
            pending: Vec::new(),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    fn sync_lost(&mut self, random: &mut Random) {
        self.durable = self.remains(random);
        self.pending.clear();
    }

    /// What a power cut leaves.
    fn remains(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        match random.below(5) {
            0 => {}
            1 => self.pending.iter().for_each(|it| it.apply(&mut bytes)),
            2 => {
                // The length reached the disk, the new blocks did not.
                for change in &self.pending {
                    if let Change::Write(offset, data) = change {
                        let end = *offset as usize + data.len();
                        let length = bytes.len().max(end);
                        bytes.resize(length, 0);
                    }
                }
            }
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

/// Everything on the disk, and what of it is not durable. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    files: Vec<Arc<Contents>>,
    names: Names,
}

impl Image {
    /// The disk as it may be after a power cut now.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> SimulatedDisk {
        let names = self.names.remains(random);
        let files = self.files.iter().map(|file| match file.pending.is_empty() {
            true if file.durable == file.current => Arc::clone(file),
            _ => Arc::new(Contents::settled(file.remains(random))),
        });
        let image = Self {
            files: files.collect(),
            names,
        };
        image.after_kill()
    }

    /// The most bytes of one file that were written and not synced.
    pub(crate) fn unsynced(&self) -> usize {
        let written = |change: &Change| match change {
            Change::Write(_, data) => data.len(),
            Change::SetSize(_) => 0,
        };
        let of_file = |file: &Arc<Contents>| file.pending.iter().map(written).sum();
        self.files.iter().map(of_file).max().unwrap_or(0)
    }

    /// The disk after the process was killed and the power stayed: nothing is lost yet.
    pub(crate) fn after_kill(&self) -> SimulatedDisk {
        SimulatedDisk(Arc::new(Mutex::new(Inner {
            image: self.clone(),
            ..Inner::default()
        })))
    }
}

/// Called in the middle of every operation that changes something.
type Hook = Box<dyn FnMut(Image) + Send>;

#[derive(Default)]
struct Inner {
    image: Image,
    operations: u64,
    fault: Option<(u64, Fault)>,
    faulted: bool,
    off: bool,
    file_syncs: u64,
    /// How many reads there are before one that fails, once; and of which file or directory that was.
    read_fault: Option<u64>,
    unread: Option<PathBuf>,
    hook: Option<Hook>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

/// How an operation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Done,
    /// In part, and then an error.
    Cut,
    Lost,
}

impl Course {
    fn end(self) -> io::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Cut => Err(io::Error::other("the power went, or the disk is full")),
            Self::Lost => Err(io::Error::other("injected error of a sync")),
        }
    }
}

impl Inner {
    /// Counts an operation, and says how it goes on.
    fn begin(&mut self, operation: Operation) -> io::Result<Course> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        let course = match self.fault {
            Some((at, Fault::PowerCut)) if at == self.operations => {
                self.off = true;
                Course::Cut
            }
            Some((at, Fault::Error)) if at <= self.operations => {
                self.faulted = true;
                return Err(io::Error::other("injected error"));
            }
            Some((at, Fault::Full)) if at <= self.operations && operation == Operation::Grow => {
                Course::Cut
            }
            Some((at, Fault::LostSync))
                if at <= self.operations && operation == Operation::Sync =>
            {
                self.fault = None;
                Course::Lost
            }
            _ => Course::Done,
        };
        self.faulted |= course != Course::Done;
        Ok(course)
    }

    /// Counts a read of a file's bytes or length, or of a directory.
    fn read(&mut self, path: &Path) -> io::Result<()> {
        match self.read_fault {
            Some(0) => {
                (self.read_fault, self.unread) = (None, Some(path.to_owned()));
                Err(io::Error::other("injected error of a read"))
            }
            ref left => {
                self.read_fault = left.map(|left| left - 1);
                Ok(())
            }
        }
    }

    /// Lets whoever looks on see the disk as it is now.
    fn look(&mut self) {
        if let Some(hook) = &mut self.hook {
            hook(self.image.clone());
        }
    }

    /// Changes names, if the operation can be.
    fn rename(
        &mut self,
        operation: Operation,
        change: impl FnOnce(&mut Names) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut names = self.image.names.clone();
        change(&mut names)?;
        let course = self.begin(operation)?;
        self.image.names = names;
        self.look();
        course.end()
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.image.names.node(path)? {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn contents(&mut self, file: usize) -> &mut Contents {
        Arc::make_mut(&mut self.image.files[file])
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

    /// Fails one read after `reads` more, once.
    pub(crate) fn fail_read_after(&self, reads: u64) {
        self.inner().read_fault = Some(reads);
    }

    /// The file or directory of which a read failed.
    pub(crate) fn unread(&self) -> Option<PathBuf> {
        self.inner().unread.clone()
    }

    /// Calls `hook` in the middle of every operation that changes something: when a change is made and not
    /// durable, and before a sync has had its effect.
    pub(crate) fn on_operation(&self, hook: impl FnMut(Image) + Send + 'static) {
        self.inner().hook = Some(Box::new(hook));
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

    /// Whether the fault that was chosen has shown.
    pub(crate) fn has_faulted(&self) -> bool {
        self.inner().faulted
    }

    /// The disk as it is.
    pub(crate) fn image(&self) -> Image {
        self.inner().image.clone()
    }

    /// The disk as it may be after a power cut now.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Self {
        self.image().after_power_cut(random)
    }

    /// Changes a file's bytes behind everyone's back, durably.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let file = inner.file(path).unwrap();
        let contents = inner.contents(file);
        change(&mut contents.current);
        *contents = Contents::settled(std::mem::take(&mut contents.current));
    }

    /// A file's bytes.
    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        let inner = self.inner();
        inner.image.files[inner.file(path).unwrap()].current.clone()
    }

    /// All files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.inner().image.names.files()
    }

    /// Has a directory be there as if it had always been: nothing else is, to begin with.
    pub(crate) fn mount(&self, dir: &Path) {
        self.inner().image.names.mount(dir).unwrap();
    }

    fn handle(&self, file: usize, path: &Path) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile {
            disk: self.clone(),
            file,
            path: path.to_owned(),
        })
    }
}

impl Disk for SimulatedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        match inner.image.names.node(path) {
            Ok(Node::Dir(_)) => Ok(()),
            Ok(Node::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => inner.rename(Operation::Grow, |names| names.add_dir(path)),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        inner.read(dir)?;
        inner.image.names.list(dir)
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        let mut inner = self.inner();
        inner.read(path)?;
        match inner.image.names.node(path) {
            Ok(node) => Ok(matches!(node, Node::Dir(_))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        if inner.image.names.node(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = inner.image.files.len();
        inner.image.files.push(Arc::default());
        inner.rename(Operation::Grow, |names| names.add_file(path, file))?;
        Ok(self.handle(file, path))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        let file = inner.file(path)?;
        inner.read(path)?;
        drop(inner);
        Ok(self.handle(file, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner()
            .rename(Operation::Other, |names| names.rename(from, to))
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.inner()
            .rename(Operation::Other, |names| names.exchange(one, other))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.file(path)?;
        inner.rename(Operation::Other, |names| names.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        match inner.image.names.node(path)? {
            Node::Dir(_) => inner.rename(Operation::Other, |names| names.remove(path)),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let course = inner.begin(Operation::Other)?;
        inner.look();
        if course == Course::Done {
            inner.image.names.sync(dir)?;
        }
        course.end()
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
    /// Its name when it was opened.
    path: PathBuf,
}

impl DiskFile for SimulatedFile {
    fn size(&self) -> io::Result<u64> {
        let mut inner = self.disk.inner();
        inner.read(&self.path)?;
        Ok(inner.image.files[self.file].current.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.read(&self.path)?;
        let bytes = &inner.image.files[self.file].current;
        let start = offset as usize;
        let found = bytes.get(start..start + buffer.len());
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let course = inner.begin(Operation::Grow)?;
        let done = match inner.off || course == Course::Done {
            true => bytes,
            false => &bytes[..bytes.len() / 2],
        };
        let change = Change::Write(offset, done.to_vec());
        inner.contents(self.file).change(change);
        inner.look();
        course.end()
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let course = inner.begin(Operation::Other)?;
        inner.contents(self.file).change(Change::SetSize(size));
        inner.look();
        course.end()
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let course = inner.begin(Operation::Sync)?;
        inner.look();
        match course {
            Course::Done => {
                inner.file_syncs += 1;
                inner.contents(self.file).sync();
            }
            Course::Lost => {
                let mut random = Random(inner.operations);
                inner.contents(self.file).sync_lost(&mut random);
            }
            Course::Cut => {}
        }
        course.end()
    }
}
