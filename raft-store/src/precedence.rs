//! Raft's threads before others: they need little time, but need it at once.
//!
//! A heartbeat that waits for its turn behind busy threads looks to the others like a dead leader.

use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// Before ordinary threads, and behind what an operator puts first. At -10 each message interrupted the thread that
/// was about to bring the next one, so that groups stayed small: a write took a third more processor time.
const NICE: i32 = -4;

/// Well behind ordinary threads: what has time.
const NICE_LEISURE: i32 = 10;

/// Puts the calling thread behind others: what it does, like writing a snapshot, can wait. Also undoes [`take`], which
/// a thread inherits.
pub fn give_way() {
    if let Err(refused) = setpriority_process(Some(gettid()), NICE_LEISURE) {
        tracing::debug!(%refused, "a thread that has time does not give way");
    }
}

/// Puts the calling thread before others of its process where the system allows it, as it does for
/// root and with `CAP_SYS_NICE`. Elsewhere nothing changes: fair scheduling then has to do. A process
/// that this thread starts inherits it, so none should be started there.
pub fn take() {
    if let Err(refused) = setpriority_process(Some(gettid()), NICE) {
        tracing::debug!(%refused, "Raft's threads get no precedence");
    }
}

/// Runs `job` on a thread of its own that gives way to all others, and waits for it.
///
/// # Errors
/// The system has no thread to give.
///
/// # Panics
/// As `job` does.
pub fn at_leisure<T: Send>(job: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let run = || {
            give_way();
            job()
        };
        let thread = std::thread::Builder::new().name("leisure".to_owned());
        match thread.spawn_scoped(scope, run)?.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
