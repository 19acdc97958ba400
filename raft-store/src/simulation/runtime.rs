//! A runtime of one thread, on simulated time, in which one seed decides everything.
//!
//! Every task belongs to a process: the world (what is outside of all peers), or one life of a peer. A
//! process has a clock of its own rate, and dies as a whole. Which of the tasks that are ready runs next is
//! drawn at random from the *set* of them: so the order in which they were woken does not matter (tokio's
//! `watch` wakes in an order of its own), and every interleaving can occur. Time passes only when no task
//! is ready.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Add, AddAssign, ControlFlow, Sub, SubAssign};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use openraft::alias::AsyncRuntimeOf;
use openraft::{AsyncRuntime, OptionalSend};
use tokio::sync::oneshot;

use super::trace::Trace;
use crate::disk::simulated::Random;
use crate::raft::TypeConfig;

/// Without time passing, more polls than this mean that something turns in a circle.
const POLLS_AT_ONE_TIME_MAX: u64 = 1_000_000;

/// A process: what dies as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process(u64);

impl Process {
    /// What is outside of all peers; its clock is the true one.
    pub(super) const WORLD: Self = Self(0);
}

/// A process's clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// True time at which the process began, in nanoseconds.
    began: u64,
    /// How many of its seconds pass in a thousand true ones.
    rate_per_mille: u64,
}

impl Clock {
    const TRUE: Self = Self {
        began: 0,
        rate_per_mille: 1000,
    };

    fn local(self, now: u64) -> u64 {
        (now - self.began) * self.rate_per_mille / 1000
    }

    fn global(self, local: u64) -> u64 {
        let passed = u128::from(local) * 1000;
        let passed = passed.div_ceil(u128::from(self.rate_per_mille));
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        self.began.saturating_add(passed)
    }
}

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    process: Process,
    /// Away while it is polled.
    job: Option<Job>,
    waker: Waker,
}

type Ready = Arc<Mutex<BTreeSet<u64>>>;

struct TaskWake {
    id: u64,
    ready: Ready,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().insert(self.id);
    }
}

struct World {
    now: u64,
    random: Random,
    tasks: BTreeMap<u64, Task>,
    ready: Ready,
    timers: BTreeMap<(u64, u64), Waker>,
    clocks: BTreeMap<Process, Clock>,
    /// The longest that each process waits for its disk.
    disks: BTreeMap<Process, Duration>,
    /// Whether openraft draws the same number each time.
    loaded_dice: bool,
    current: Process,
    /// The next number for a task, timer or process.
    next: u64,
    polls: u64,
    polls_since_time_passed: u64,
    panics: Vec<String>,
    trace: Trace,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| act(world.as_mut().expect("a world was begun on this thread")))
}

/// Ends the world on this thread, if there is one.
pub(super) fn end() {
    drop(WORLD.take());
}

/// Begins a world on this thread, in place of a former one.
pub(super) fn begin(seed: u64) {
    end();
    let world = World {
        now: 0,
        random: Random(seed),
        tasks: BTreeMap::new(),
        ready: Ready::default(),
        timers: BTreeMap::new(),
        clocks: BTreeMap::from([(Process::WORLD, Clock::TRUE)]),
        disks: BTreeMap::new(),
        loaded_dice: false,
        current: Process::WORLD,
        next: 1,
        polls: 0,
        polls_since_time_passed: 0,
        panics: Vec::new(),
        trace: Trace::default(),
    };
    WORLD.set(Some(world));
}

/// What a world did, for comparing it with another of the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// Of everything that happened, in order.
    pub(super) trace_hash: u64,
    pub(super) polls: u64,
    pub(super) passed: Duration,
}

pub(super) fn summary() -> Summary {
    with(|world| Summary {
        trace_hash: world.trace.hash(),
        polls: world.polls,
        passed: Duration::from_nanos(world.now),
    })
}

/// Notes what happened, under its time and process.
pub(super) fn note(what: fmt::Arguments<'_>) {
    with(|world| {
        let (now, process) = (world.now, world.current.0);
        world.trace.line(now, process, what);
    });
}

/// The newest lines of the trace.
pub(super) fn newest_lines() -> String {
    with(|world| world.trace.newest())
}

/// What made tasks panic, so far.
pub(super) fn panics() -> Vec<String> {
    with(|world| world.panics.clone())
}

/// True time since the world began.
pub(super) fn now() -> Duration {
    with(|world| Duration::from_nanos(world.now))
}

/// Draws from the world's randomness.
pub(super) fn draw<T>(act: impl FnOnce(&mut Random) -> T) -> T {
    with(|world| act(&mut world.random))
}

/// A duration below `bound`, which is not zero.
pub(super) fn below(bound: Duration) -> Duration {
    let nanos = u64::try_from(bound.as_nanos()).unwrap();
    Duration::from_nanos(draw(|random| random.below(nanos)))
}

/// True in so many of a thousand cases.
pub(super) fn chance(per_mille: u64) -> bool {
    draw(|random| random.below(1000)) < per_mille
}

/// Has openraft draw the same number each time, or no longer.
pub(super) fn load_dice(loaded: bool) {
    with(|world| world.loaded_dice = loaded);
}

/// How long the present process's disk takes for something.
pub(super) fn disk_delay() -> Duration {
    let longest = with(|world| world.disks.get(&world.current).copied());
    longest.map_or(Duration::ZERO, below)
}

/// Sets the longest that a process waits for its disk.
pub(super) fn set_disk_delay(process: Process, longest: Duration) {
    with(|world| world.disks.insert(process, longest));
}

/// A new process, whose clock shows zero.
pub(super) fn new_process(rate_per_mille: u64) -> Process {
    with(|world| {
        let process = Process(world.number());
        let began = world.now;
        world.clocks.insert(
            process,
            Clock {
                began,
                rate_per_mille,
            },
        );
        process
    })
}

/// Ends all tasks of a process where they are.
pub(super) fn kill(process: Process) {
    let dead: Vec<Task> = with(|world| {
        let ids: Vec<u64> = world
            .tasks
            .iter()
            .filter(|(_, task)| task.process == process)
            .map(|(id, _)| *id)
            .collect();
        ids.iter().filter_map(|id| world.tasks.remove(id)).collect()
    });
    let former = with(|world| std::mem::replace(&mut world.current, process));
    drop(dead);
    with(|world| world.current = former);
}

impl World {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn clock(&self) -> Clock {
        self.clocks[&self.current]
    }

    /// A task to run now; lets time pass if there is none. None if nothing will ever happen again.
    fn choose(&mut self) -> Option<u64> {
        loop {
            let ready = Arc::clone(&self.ready);
            let mut ready = ready.lock().unwrap();
            ready.retain(|id| self.tasks.contains_key(id));
            if !ready.is_empty() {
                let at = self.random.below(ready.len() as u64) as usize;
                let id = *ready.iter().nth(at).expect("it is below the length");
                ready.remove(&id);
                return Some(id);
            }
            drop(ready);
            let (when, _) = *self.timers.first_key_value()?.0;
            if when > self.now {
                self.now = when;
                self.polls_since_time_passed = 0;
            }
            let later = self.timers.split_off(&(self.now + 1, 0));
            for waker in std::mem::replace(&mut self.timers, later).into_values() {
                waker.wake();
            }
        }
    }
}

/// Runs one task until it waits. Returns its process, or none if nothing will ever happen again.
fn step() -> Option<Process> {
    let (id, mut job, waker) = with(|world| {
        let id = world.choose()?;
        world.polls += 1;
        world.polls_since_time_passed += 1;
        assert!(
            world.polls_since_time_passed < POLLS_AT_ONE_TIME_MAX,
            "no time passes any more"
        );
        let now = world.now;
        world.trace.scheduled(now, id);
        let task = world.tasks.get_mut(&id)?;
        world.current = task.process;
        let job = task.job.take().expect("a task is polled once at a time");
        Some((id, job, task.waker.clone()))
    })?;
    let polled = job.as_mut().poll(&mut Context::from_waker(&waker));
    let (process, done) = with(|world| {
        let process = std::mem::replace(&mut world.current, Process::WORLD);
        let done = match (polled, world.tasks.get_mut(&id)) {
            (Poll::Pending, Some(task)) => {
                task.job = Some(job);
                None
            }
            // Done, or killed by itself.
            (_, _) => {
                world.tasks.remove(&id);
                Some(job)
            }
        };
        (process, done)
    });
    drop(done);
    Some(process)
}

/// Runs `main` in the world outside of all peers, and everything else as time passes, until `main` ends, or
/// `look`, which is told after each step whose it was, says so.
pub(super) fn run<F: Future>(
    main: F,
    mut look: impl FnMut(Process) -> ControlFlow<()>,
) -> Option<F::Output> {
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut main = pin!(main);
    loop {
        if flag.0.swap(false, Ordering::Relaxed) {
            if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(output);
            }
            if look(Process::WORLD).is_break() {
                return None;
            }
            continue;
        }
        let process = step().expect("something is left to happen while the main task waits");
        if look(process).is_break() {
            return None;
        }
    }
}

/// Starts a task of a process.
pub(super) fn spawn_in<F>(process: Process, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let job = async move {
        let outcome = AssertUnwindSafe(future).catch_unwind().await;
        let outcome = outcome.map_err(|panic| {
            let what = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()))
                .unwrap_or_default();
            with(|world| world.panics.push(what.clone()));
            JoinError::Panicked(what)
        });
        // Nobody may wait for it.
        let _ = sender.send(outcome);
    };
    with(|world| {
        let id = world.number();
        let ready = Arc::clone(&world.ready);
        ready.lock().unwrap().insert(id);
        let waker = Waker::from(Arc::new(TaskWake { id, ready }));
        let task = Task {
            process,
            job: Some(Box::pin(job)),
            waker,
        };
        world.tasks.insert(id, task);
    });
    JoinHandle(receiver)
}

/// What becomes of a task.
pub(super) struct JoinHandle<T>(oneshot::Receiver<Result<T, JoinError>>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.0.poll_unpin(context);
        polled.map(|outcome| outcome.unwrap_or(Err(JoinError::Killed)))
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("the process was killed")]
    Killed,
    #[error("panicked: {0}")]
    Panicked(String),
}

/// A reading of the clock of the process that reads it, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instant(u64);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl openraft::Instant for Instant {
    fn now() -> Self {
        with(|world| Self(world.clock().local(world.now)))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rhs)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(rhs)))
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, rhs: Duration) {
        *self = *self - rhs;
    }
}

impl Sub<Self> for Instant {
    type Output = Duration;
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(rhs.0))
    }
}

/// Waits for a time.
#[derive(Debug)]
pub(super) struct Sleep {
    /// True time.
    until: u64,
    timer: Option<(u64, u64)>,
}

impl Sleep {
    fn forget(&mut self) {
        if let Some(timer) = self.timer.take() {
            // The world may be gone already.
            WORLD.with(|world| {
                if let Ok(mut world) = world.try_borrow_mut()
                    && let Some(world) = world.as_mut()
                {
                    world.timers.remove(&timer);
                }
            });
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.forget();
        let until = self.until;
        let timer = with(|world| {
            (world.now < until).then(|| {
                let timer = (until, world.number());
                world.timers.insert(timer, context.waker().clone());
                timer
            })
        });
        self.timer = timer;
        if timer.is_none() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the time is over")]
pub(super) struct Elapsed;

/// A future with a deadline.
pub(super) struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        let slept = Pin::new(&mut self.sleep).poll(context);
        slept.map(|()| Err(Elapsed))
    }
}

/// The world's randomness, as openraft draws from it.
#[derive(Debug)]
pub(super) struct Dice;

impl Dice {
    fn throw() -> Result<u64, Infallible> {
        Ok(with(|world| {
            let thrown = world.random.next();
            if world.loaded_dice {
                u64::MAX / 2
            } else {
                thrown
            }
        }))
    }
}

impl rand::TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Self::throw().map(|thrown| thrown as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Self::throw()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            *byte = Self::throw()? as u8;
        }
        Ok(())
    }
}

/// The runtime, as openraft wants it.
#[derive(Debug)]
pub(super) struct SimulatedRuntime;

type Tokio = AsyncRuntimeOf<TypeConfig>;

impl AsyncRuntime for SimulatedRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = Dice;
    // Channels and locks of tokio need no runtime.
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn_in(with(|world| world.current), future)
    }

    fn sleep(duration: Duration) -> Sleep {
        Self::sleep_until(<Instant as openraft::Instant>::now() + duration)
    }

    fn sleep_until(deadline: Instant) -> Sleep {
        let until = with(|world| world.clock().global(deadline.0));
        Sleep { until, timer: None }
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<F> {
        Self::timeout_at(<Instant as openraft::Instant>::now() + duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Instant,
        future: F,
    ) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Self::sleep_until(deadline),
        }
    }

    fn is_panic(error: &JoinError) -> bool {
        matches!(error, JoinError::Panicked(_))
    }

    fn thread_rng() -> Dice {
        Dice
    }

    fn new(_threads: usize) -> Self {
        begin(0);
        Self
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        run(future, |_| ControlFlow::Continue(())).expect("nothing ends it early")
    }

    async fn spawn_blocking<F, T>(job: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Ok(job())
    }
}

/// Waits on the clock of the process that calls.
pub(super) async fn sleep(duration: Duration) {
    SimulatedRuntime::sleep(duration).await;
}

/// Waits for `future` no longer than `within`; none then.
pub(super) async fn within<F: Future + Send>(within: Duration, future: F) -> Option<F::Output> {
    SimulatedRuntime::timeout(within, future).await.ok()
}
