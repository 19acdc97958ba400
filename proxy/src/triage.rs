//! What one worker knows of the replicas of one service together: by which settings they are judged, and
//! whether any of them is at present not as good as any other. Carried over from view to view.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::spec::{Ejection, Traffic};
use tokio::time::Instant;

use crate::health::{self, Fitness, Health};
use crate::metrics::{Counters, count};
use crate::pool::Member;
use crate::upstream::Upstream;

/// For how long a survey holds: it looks at every replica, so it must not be made for every request.
const SURVEY_EVERY: Duration = Duration::from_millis(10);

/// The judging of one service's replicas.
#[derive(Debug)]
pub(crate) struct Triage {
    settings: RefCell<Ejection>,
    slow_start: Cell<Duration>,
    counters: Arc<Counters>,
    /// All are fit and have their full share: a pick looks at none of them.
    calm: Cell<bool>,
    panic: Cell<bool>,
    surveyed: Cell<Option<Instant>>,
}

/// What is so at the moment of one pick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survey {
    now: Instant,
    /// So many are out that ejections for errors are ignored.
    panic: bool,
}

impl Triage {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            settings: RefCell::default(),
            slow_start: Cell::default(),
            counters,
            calm: Cell::new(false),
            panic: Cell::new(false),
            surveyed: Cell::new(None),
        }
    }

    /// Judges by these settings from now on.
    pub(crate) fn adopt(&self, traffic: &Traffic) {
        self.settings.borrow_mut().clone_from(&traffic.ejection);
        self.slow_start.set(traffic.slow_start);
        self.alarm();
    }

    /// Something changed: the next pick looks.
    fn alarm(&self) {
        self.calm.set(false);
        self.surveyed.set(None);
    }

    /// A replica has become ready: it begins as a new one.
    pub(crate) fn readied(&self, health: &RefCell<Health>) {
        *health.borrow_mut() = Health::new(Instant::now());
        self.alarm();
    }

    /// A request failed. True if its replica is ejected by that.
    pub(crate) fn failed(&self, health: &RefCell<Health>) -> bool {
        let ejected = health
            .borrow_mut()
            .failed(Instant::now(), &self.settings.borrow());
        self.note(ejected)
    }

    /// A connection was refused. True if the replica is left out by that.
    pub(crate) fn refused(&self, health: &RefCell<Health>) -> bool {
        let ejected = health
            .borrow_mut()
            .refused(Instant::now(), &self.settings.borrow());
        self.note(ejected)
    }

    fn note(&self, ejected: bool) -> bool {
        if ejected {
            count(&self.counters.ejections);
            self.alarm();
        }
        ejected
    }

    /// Looks at the replicas that may be picked; `None` if none of them is to be set apart.
    pub(crate) fn survey(&self, ready: &[Member]) -> Option<Survey> {
        if self.calm.get() {
            return None;
        }
        let now = Instant::now();
        if self
            .surveyed
            .get()
            .is_none_or(|at| now >= at + SURVEY_EVERY)
        {
            let (mut out, mut calm) = (0, true);
            for member in ready {
                let mut health = member.upstream.health.borrow_mut();
                health.share(now, self.slow_start.get());
                calm &= health.is_plain();
                out += usize::from(health.fitness(now) != Fitness::Fit);
            }
            let panic = health::is_panic(out, ready.len(), &self.settings.borrow());
            self.panic.set(panic);
            self.calm.set(calm);
            self.surveyed.set(Some(now));
        }
        let panic = self.panic.get();
        Some(Survey { now, panic })
    }

    /// A replica was picked at a time that is not calm.
    pub(crate) fn picked(&self, upstream: &Upstream, survey: Survey) {
        let mut health = upstream.health.borrow_mut();
        health.picked(survey.now, &self.settings.borrow());
    }

    /// What a replica gets of its share, in thousandths.
    pub(crate) fn share(&self, upstream: &Upstream, survey: Survey) -> u32 {
        let mut health = upstream.health.borrow_mut();
        health.share(survey.now, self.slow_start.get())
    }
}

impl Survey {
    /// Whether a replica is picked like any other.
    pub(crate) fn admits(self, upstream: &Upstream) -> bool {
        match upstream.health.borrow().fitness(self.now) {
            Fitness::Fit => true,
            Fitness::Ejected => self.panic,
            Fitness::Unreachable => false,
        }
    }

    /// Whether a replica is believed to accept connections.
    pub(crate) fn reaches(self, upstream: &Upstream) -> bool {
        upstream.health.borrow().fitness(self.now) != Fitness::Unreachable
    }
}
