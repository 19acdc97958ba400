//! What is logged, and how.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, Targets, dynamic_filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::node_args::{LogFormat, LogLevel};

/// Whether this process ends as it was told to.
static STOPS: AtomicBool = AtomicBool::new(false);

/// What of openraft says, at error, that Raft has stopped, to who asks it for something then. Who asked is told the same by
/// what comes back.
const CALLERS: [&str; 3] = [
    "openraft::raft",
    "openraft::core::heartbeat",
    "openraft::core::sm::handle",
];

/// Logs to standard error from now on.
pub(crate) fn init(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Libraries tell at `info` what only their authors want to know.
    let libraries = level.min(LevelFilter::WARN);
    // openraft warns of each heartbeat to a peer that is away; the exchange says that once.
    let targets = Targets::new()
        .with_default(libraries)
        .with_target("openraft", level.min(LevelFilter::ERROR))
        .with_target("raftserve", level);
    let news =
        dynamic_filter_fn(|metadata, _| is_news(metadata.target(), STOPS.load(Ordering::Relaxed)))
            // Else every finer event would be looked at, only to be dropped.
            .with_max_level_hint(level);
    let filter = targets.and(news);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => registry.with(lines.with_filter(filter)).init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).init(),
    }
}

/// Says that this process was told to end: that Raft stops is no news from here on. What goes wrong with the log or the
/// state still is.
pub(crate) fn raft_will_stop() {
    STOPS.store(true, Ordering::Relaxed);
}

fn is_news(target: &str, stops: bool) -> bool {
    !stops || !CALLERS.iter().any(|caller| target.starts_with(caller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_raft_stops_is_no_news_at_a_clean_stop_and_what_fails_is() {
        for target in [
            "openraft::raft::raft_inner",
            "openraft::core::heartbeat::worker",
        ] {
            assert!(is_news(target, false), "{target}");
            assert!(!is_news(target, true), "{target}");
        }
        for target in [
            "openraft::core::raft_core",
            "openraft::storage::callback",
            "openraft::core::sm::worker",
            "raftserve_node::node",
        ] {
            assert!(is_news(target, true), "{target}");
        }
    }
}
