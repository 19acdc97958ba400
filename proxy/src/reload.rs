//! What is read from files, and read again when they change: certificates, credentials.
//!
//! What holds: everybody sees a set of files that was read and checked whole. A set that cannot be used changes
//! nothing; it is told and counted, and the one before stays.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

/// Where something is read from.
pub trait Source {
    /// What it is.
    type Value;
    /// Why it cannot be used.
    type Error: Error + 'static;

    /// What it is called in the log, in the plural.
    const NAME: &'static str;

    /// The files that it is made of. Some of them may not exist.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads and checks all of them.
    ///
    /// # Errors
    /// They cannot be used.
    fn read(&self) -> Result<Self::Value, Self::Error>;
}

/// What was last read and could be used.
pub struct Reloaded<S: Source> {
    source: S,
    value: ArcSwap<S::Value>,
    /// What was last read, good or bad.
    seen: Mutex<Fingerprint>,
    reloads: AtomicU64,
    failures: AtomicU64,
}

// What was read may be secret.
impl<S: Source> fmt::Debug for Reloaded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reloaded({})", S::NAME)
    }
}

impl<S: Source> Reloaded<S> {
    /// Reads for the first time.
    ///
    /// # Errors
    /// The files cannot be used.
    pub fn read(source: S) -> Result<Self, S::Error> {
        // Before the files: a change in between is then seen later.
        let seen = Fingerprint::of(source.files());
        let value = source.read()?;
        Ok(Self {
            source,
            value: ArcSwap::from_pointee(value),
            seen: Mutex::new(seen),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// What holds now, for a short look.
    pub fn load(&self) -> Guard<Arc<S::Value>> {
        self.value.load()
    }

    /// Reads the files again if any of them changed. It blocks while it reads.
    pub fn refresh(&self) {
        let now = Fingerprint::of(self.source.files());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return;
        }
        *seen = now;
        let what = S::NAME;
        match self.source.read() {
            Ok(value) => {
                self.value.store(Arc::new(value));
                self.reloads.fetch_add(1, Ordering::Relaxed);
                tracing::info!("{what} were read again");
            }
            // They change at this moment: the next look finds them whole.
            Err(_) if Fingerprint::of(self.source.files()) != *seen => {}
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                let error: &dyn Error = &error;
                tracing::error!(error, "new {what} are not used, the ones before stay");
            }
        }
    }

    /// The counter `metric` of changes, in Prometheus's text format.
    #[must_use]
    pub fn render(&self, metric: &str) -> String {
        let what = S::NAME;
        let mut text =
            format!("# HELP {metric} Changes of {what}' files.\n# TYPE {metric} counter\n");
        for (outcome, counter) in [("used", &self.reloads), ("refused", &self.failures)] {
            let value = counter.load(Ordering::Relaxed);
            let _ = writeln!(text, "{metric}{{outcome=\"{outcome}\"}} {value}");
        }
        text
    }
}

/// By what a change of files is noticed.
#[derive(PartialEq, Eq)]
struct Fingerprint(BTreeMap<PathBuf, Stat>);

/// Inode, size, and the time of the last change.
type Stat = (u64, u64, i64, i64);

impl Fingerprint {
    /// Of these files. Those that are not there have none.
    fn of(paths: Vec<PathBuf>) -> Self {
        let stats = paths.into_iter().filter_map(|path| {
            let stat = std::fs::metadata(&path).ok()?;
            let stat = (stat.ino(), stat.len(), stat.mtime(), stat.mtime_nsec());
            Some((path, stat))
        });
        Self(stats.collect())
    }
}
