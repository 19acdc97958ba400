//! The names on a simulated disk: directories with entries, each of which leads to a file or a directory, wherever
//! that directory is moved to. Until a directory is synced, any subset of what changed in it may reach the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::Random;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(usize),
    Dir(usize),
}

/// The directory in which all others lie.
const ROOT: usize = 0;

/// A directory, and a name in it.
type Slot = (usize, String);

/// What every name leads to.
#[derive(Clone, Debug, Default)]
struct Tree(BTreeMap<Slot, Node>);

impl Tree {
    fn dir(&self, path: &Path) -> io::Result<usize> {
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
        let mut dir = ROOT;
        for name in parts {
            dir = match self.0.get(&(dir, name)) {
                Some(Node::Dir(inner)) => *inner,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            };
        }
        Ok(dir)
    }

    fn slot(&self, path: &Path) -> io::Result<Slot> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.dir(path.parent().unwrap_or(Path::new("/")))?;
        Ok((dir, name.to_string_lossy().into_owned()))
    }

    fn node(&self, slot: &Slot) -> io::Result<Node> {
        self.0
            .get(slot)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn within(&self, dir: usize) -> impl Iterator<Item = (&String, Node)> {
        let from = self.0.range((dir, String::new())..);
        from.take_while(move |((of, _), _)| *of == dir)
            .map(|((_, name), node)| (name, *node))
    }

    fn files(&self, dir: usize, path: &Path, found: &mut Vec<PathBuf>) {
        for (name, node) in self.within(dir) {
            match node {
                Node::File(_) => found.push(path.join(name)),
                Node::Dir(inner) => self.files(inner, &path.join(name), found),
            }
        }
    }
}

/// A change of names, which happens whole or not at all.
#[derive(Clone, Debug)]
enum Naming {
    Add(Slot, Node),
    Remove(Slot),
    Rename(Slot, Slot, Node),
    Exchange([(Slot, Node); 2]),
}

impl Naming {
    fn apply(&self, tree: &mut Tree) {
        let names = &mut tree.0;
        match self {
            Self::Add(slot, node) => {
                names.insert(slot.clone(), *node);
            }
            Self::Remove(slot) => {
                names.remove(slot);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
            Self::Exchange([(one, its), (other, others)]) => {
                names.insert(one.clone(), *others);
                names.insert(other.clone(), *its);
            }
        }
    }

    fn is_in(&self, dir: usize) -> bool {
        match self {
            Self::Add(slot, _) | Self::Remove(slot) | Self::Rename(_, slot, _) => slot.0 == dir,
            Self::Exchange([(one, _), (other, _)]) => one.0 == dir && other.0 == dir,
        }
    }
}

/// The names as they are, and which of them a power cut leaves for certain.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    current: Tree,
    durable: Tree,
    pending: Vec<Naming>,
    /// How many directories were made: the root is not.
    dirs: usize,
}

impl Names {
    fn change(&mut self, naming: Naming) {
        naming.apply(&mut self.current);
        self.pending.push(naming);
    }

    fn new_dir(&mut self) -> Node {
        self.dirs += 1;
        Node::Dir(self.dirs)
    }

    pub(super) fn node(&self, path: &Path) -> io::Result<Node> {
        match path.file_name() {
            None => Ok(Node::Dir(ROOT)),
            Some(_) => self.current.node(&self.current.slot(path)?),
        }
    }

    /// Makes a directory, and durably what is missing of those above it.
    pub(super) fn add_dir(&mut self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.mount(parent)?;
        }
        let slot = self.current.slot(path)?;
        let dir = self.new_dir();
        self.change(Naming::Add(slot, dir));
        Ok(())
    }

    /// Has a directory be there as if it had always been.
    pub(super) fn mount(&mut self, path: &Path) -> io::Result<()> {
        if self.current.dir(path).is_ok() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.mount(parent)?;
        }
        let naming = Naming::Add(self.current.slot(path)?, self.new_dir());
        naming.apply(&mut self.current);
        naming.apply(&mut self.durable);
        Ok(())
    }

    pub(super) fn add_file(&mut self, path: &Path, file: usize) -> io::Result<()> {
        let slot = self.current.slot(path)?;
        self.change(Naming::Add(slot, Node::File(file)));
        Ok(())
    }

    /// Removes a file, or a directory that is empty.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let slot = self.current.slot(path)?;
        self.must_be_empty(self.current.node(&slot)?)?;
        self.change(Naming::Remove(slot));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.current.slot(from)?, self.current.slot(to)?);
        let node = self.current.node(&from)?;
        if let Ok(replaced) = self.current.node(&to) {
            self.must_be_empty(replaced)?;
        }
        self.change(Naming::Rename(from, to, node));
        Ok(())
    }

    pub(super) fn exchange(&mut self, one: &Path, other: &Path) -> io::Result<()> {
        let slots = [self.current.slot(one)?, self.current.slot(other)?];
        let [one, other] = slots.map(|slot| self.current.node(&slot).map(|node| (slot, node)));
        self.change(Naming::Exchange([one?, other?]));
        Ok(())
    }

    fn must_be_empty(&self, node: Node) -> io::Result<()> {
        match node {
            Node::Dir(dir) if self.current.within(dir).next().is_some() => {
                Err(io::ErrorKind::DirectoryNotEmpty.into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = self.current.dir(dir)?;
        let names = self.current.within(dir);
        Ok(names.map(|(name, _)| name.clone()).collect())
    }

    /// The paths of all files.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        self.current.files(ROOT, Path::new("/"), &mut found);
        found
    }

    /// Makes what changed in a directory durable.
    pub(super) fn sync(&mut self, dir: &Path) -> io::Result<()> {
        let dir = self.current.dir(dir)?;
        for naming in std::mem::take(&mut self.pending) {
            if naming.is_in(dir) {
                naming.apply(&mut self.durable);
            } else {
                self.pending.push(naming);
            }
        }
        Ok(())
    }

    /// What a power cut leaves. With a directory goes what is in it.
    pub(super) fn remains(&self, random: &mut Random) -> Self {
        let mut left = self.durable.clone();
        for naming in &self.pending {
            if random.coin() {
                naming.apply(&mut left);
            }
        }
        Self {
            current: left.clone(),
            durable: left,
            pending: Vec::new(),
            dirs: self.dirs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_in_a_directory_goes_with_it_wherever_it_is_moved() {
        let path = Path::new;
        let mut names = Names::default();
        for dir in ["/v/one", "/v/other"] {
            names.mount(path(dir)).unwrap();
        }
        names.add_file(path("/v/one/a"), 1).unwrap();
        names.exchange(path("/v/one"), path("/v/other")).unwrap();
        names.add_file(path("/v/other/b"), 2).unwrap();
        assert_eq!(
            names.files(),
            [path("/v/other/a"), path("/v/other/b")].map(Path::to_owned)
        );
        names.sync(path("/v/other")).unwrap();
        let mut seen = [false; 2];
        for seed in 0..20 {
            let mut left = names.remains(&mut Random(seed)).files();
            let is_moved = left[0].starts_with("/v/other");
            seen[usize::from(is_moved)] = true;
            left.retain(|file| file.starts_with("/v/other") == is_moved);
            assert_eq!(left.len(), 2, "both are in one of them");
        }
        assert_eq!(seen, [true; 2], "moved or not, until the parent is synced");
        names.sync(path("/v")).unwrap();
        let left = names.remains(&mut Random(1)).files();
        assert!(left[0].starts_with("/v/other"));

        let refused = names.remove(path("/v/other")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::DirectoryNotEmpty);
        let refused = names.rename(path("/v/one"), path("/v/other")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::DirectoryNotEmpty);
        names.rename(path("/v/one"), path("/v/third")).unwrap();
        assert_eq!(
            names.list(path("/v/one")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
