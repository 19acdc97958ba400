//! Waits for a service to get where it was sent, and says for each replica what is being waited for:
//! as a block that is redrawn on a terminal, as a line per change elsewhere.

mod plan;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::connect::Servers;
use super::durations::brief;
use super::failure::{Exit, Failure};
use super::fetch;
use super::paint::{Paint, status_tone};
use super::shape::replica_status;
use crate::admin::v1;

pub(super) use plan::Goal;
use plan::{Verdict, is_untouched, judge, waiting_for};

/// How often the service is looked at. Reads are answered by the peer asked, from memory.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// The most replicas shown in the redrawn block, so that it fits a terminal.
const ROWS_MAX: usize = 15;

/// Does `work` towards `goal`, until Ctrl-C.
///
/// # Errors
/// Those of `work`; on Ctrl-C, one that says what becomes of the service.
pub(super) async fn until_interrupted<T>(
    name: &str,
    goal: Goal,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    unless(tokio::signal::ctrl_c(), name, goal, work).await
}

async fn unless<T>(
    interrupted: impl Future<Output = std::io::Result<()>>,
    name: &str,
    goal: Goal,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        Ok(()) = interrupted => {
            let message = format!("interrupted while waiting for service {name}");
            Err(Failure::new(Exit::Interrupted, message).remedy(goes_on(name, goal)))
        }
        done = work => done,
    }
}

/// What becomes of a service that nobody waits for any more.
fn goes_on(name: &str, goal: Goal) -> String {
    match goal {
        Goal::Ready { .. } => format!("the service stays, and goes on coming up: {}", next(name)),
        Goal::Gone { .. } => {
            format!("it goes on going down: `raftserve status {name} -v` shows how far it is")
        }
    }
}

/// What becomes of a service whose replicas failed.
fn tried_on(name: &str, goal: Goal) -> String {
    let fate = match goal {
        Goal::Ready { version: 1, .. } => "the service stays, and goes on being tried",
        Goal::Ready { .. } => {
            "the service stays: with the version before, if that was ever ready, and else this one goes on being tried"
        }
        Goal::Gone { .. } => {
            return format!(
                "the service stays, since its replica may still run: `raftserve down {name} --purge` forgets both"
            );
        }
    };
    let logs = format!("`raftserve logs {name} REPLICA_ID` shows what a replica said");
    format!("{fate}; {logs}, {}", next(name))
}

/// What can be done about a service, in words of the command line.
fn next(name: &str) -> String {
    format!(
        "`raftserve status {name} -v` shows how far it is, `raftserve update {name} YAML` gives it another version, \
         `raftserve down {name}` takes it down"
    )
}

/// Waits until the service `name` has reached `goal`.
///
/// # Errors
/// If it will not, as far as can be told; or it has not within `timeout`.
pub(super) async fn wait(
    servers: &mut Servers,
    name: &str,
    goal: Goal,
    timeout: Duration,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut display = Display::new(name, goal);
    let mut before = false;
    loop {
        let now = look(servers, name, goal)
            .await
            .map_err(|failure| unseen(failure, name, goal))?;
        display.show(&now, begun.elapsed());
        match judge(goal, now.as_ref(), before) {
            Verdict::Reached => return Ok(()),
            Verdict::Lost(why) => {
                let remedy = format!("`raftserve events {name}` shows what happened");
                return Err(Failure::failed(format!("service {name}: {why}")).remedy(remedy));
            }
            Verdict::Failing(why) => {
                let failure = Failure::failed(format!("service {name}: {why}"));
                return Err(failure.remedy(tried_on(name, goal)));
            }
            Verdict::Waiting => before |= now.is_some(),
        }
        if begun.elapsed() >= timeout {
            let message = format!("service {name} is not there after {}", brief(timeout));
            return Err(Failure::new(Exit::Timeout, message).remedy(goes_on(name, goal)));
        }
        sleep_until(Instant::now() + LOOK_EVERY).await;
    }
}

/// That nobody tells any more how far the service is.
fn unseen(failure: Failure, name: &str, goal: Goal) -> Failure {
    let on = goes_on(name, goal);
    let remedy = match &failure.remedy {
        Some(remedy) => format!("{remedy}; {on}"),
        None => on,
    };
    failure.remedy(remedy)
}

/// The service and its replicas as they are; none if it is not there.
async fn look(
    servers: &mut Servers,
    name: &str,
    goal: Goal,
) -> Result<Option<(v1::Service, Vec<v1::Replica>)>, Failure> {
    let service = match fetch::service(servers, name).await {
        Ok(found) => found,
        Err(failure) if failure.exit == Exit::NotFound => None,
        Err(failure) => return Err(failure),
    };
    let Some(service) = service.filter(|service| service.id == goal.service_id()) else {
        return Ok(None);
    };
    match fetch::replicas(servers, name, true).await {
        Ok(replicas) => Ok(Some((service, replicas))),
        Err(failure) if failure.exit == Exit::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "shows the age of times that a leader's wall clock gave"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// How long a replica has been there; nothing if clocks disagree.
fn age(replica: &v1::Replica, now: SystemTime) -> Duration {
    let launched = replica.launched_at.map(SystemTime::try_from);
    let ago = launched
        .and_then(Result::ok)
        .map(|at| now.duration_since(at));
    ago.and_then(Result::ok).unwrap_or_default()
}

/// What has been shown so far.
struct Display<'a> {
    name: &'a str,
    goal: Goal,
    /// Whether nothing was looked at yet.
    is_first: bool,
    paint: Paint,
    redraw: bool,
    /// The lines of the block on the terminal.
    drawn: usize,
    /// What was last said of each replica, where lines are printed.
    said: BTreeMap<u32, String>,
    /// What was last said to hinder the service, there.
    hindrance: String,
}

impl<'a> Display<'a> {
    fn new(name: &'a str, goal: Goal) -> Self {
        let stderr = std::io::stderr();
        Self {
            name,
            goal,
            is_first: true,
            paint: Paint::of(&stderr),
            redraw: stderr.is_terminal(),
            drawn: 0,
            said: BTreeMap::new(),
            hindrance: String::new(),
        }
    }

    fn show(&mut self, now: &Option<(v1::Service, Vec<v1::Replica>)>, elapsed: Duration) {
        let Some((service, replicas)) = now else {
            return;
        };
        let text = match self.redraw {
            true => self.block(service, replicas, elapsed, wall_clock()),
            false => self.changes(service, replicas, elapsed),
        };
        // Progress that cannot be shown is no reason to stop waiting.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn block(
        &mut self,
        service: &v1::Service,
        replicas: &[v1::Replica],
        elapsed: Duration,
        now: SystemTime,
    ) -> String {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\x1b[0J", self.drawn));
        }
        text.push_str(&format!(
            "Service {}: {} of {} replicas ready ({})\n",
            self.name,
            service.ready_replicas,
            service.wanted_replicas,
            brief(elapsed)
        ));
        let mut lines = 1;
        if !service.hindrance.is_empty() {
            text.push_str(&format!("  {}\n", on_one_line(&service.hindrance)));
            lines += 1;
        }
        for replica in replicas.iter().rev().take(ROWS_MAX).rev() {
            let status = replica_status(replica);
            let padded = format!("{status:<20}");
            let painted = self.paint.tone(status_tone(status), &padded);
            let age = brief(age(replica, now));
            let line = format!(
                "  {:>4}  {painted}  {age:>7}  {}",
                replica.id,
                waiting_for(replica)
            );
            text.push_str(line.trim_end());
            text.push('\n');
            lines += 1;
        }
        self.drawn = lines;
        text
    }

    fn changes(
        &mut self,
        service: &v1::Service,
        replicas: &[v1::Replica],
        elapsed: Duration,
    ) -> String {
        let mut text = String::new();
        if service.hindrance != self.hindrance {
            self.hindrance.clone_from(&service.hindrance);
            if !self.hindrance.is_empty() {
                let (name, said) = (self.name, on_one_line(&self.hindrance));
                text.push_str(&format!("[{}] {name}: {said}\n", brief(elapsed)));
            }
        }
        for replica in replicas {
            let mut now = replica_status(replica).to_owned();
            let waiting = waiting_for(replica);
            if !waiting.is_empty() {
                now.push_str(": ");
                now.push_str(&waiting);
            }
            if self.said.get(&replica.id) != Some(&now) {
                let (name, id) = (self.name, replica.id);
                if !(self.is_first && is_untouched(self.goal, replica)) {
                    text.push_str(&format!("[{}] {name} replica {id} {now}\n", brief(elapsed)));
                }
                self.said.insert(replica.id, now);
            }
        }
        self.is_first = false;
        text
    }
}

/// A text of a peer's on a line that is redrawn.
fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u32, status: v1::ReplicaStatus) -> v1::Replica {
        v1::Replica {
            id,
            status: status.into(),
            ..v1::Replica::default()
        }
    }

    fn display(redraw: bool) -> Display<'static> {
        Display {
            name: "web",
            goal: Goal::Ready {
                service_id: 1,
                version: 2,
                wanted: 1,
            },
            is_first: true,
            paint: Paint::fixed(false),
            redraw,
            drawn: 0,
            said: BTreeMap::new(),
            hindrance: String::new(),
        }
    }

    #[tokio::test]
    async fn who_stops_waiting_is_told_what_goes_on() {
        let goal = display(false).goal;
        let gone = Goal::Gone { service_id: 1 };
        for (goal, named) in [
            (goal, &["stays", "status web", "update web", "down web"][..]),
            (gone, &["going down", "status web"]),
        ] {
            let interrupt = std::future::ready(Ok(()));
            let work = std::future::pending::<Result<(), Failure>>();
            let failure = unless(interrupt, "web", goal, work).await.unwrap_err();
            assert_eq!(failure.exit, Exit::Interrupted);
            let remedy = failure.remedy.unwrap();
            assert!(named.iter().all(|it| remedy.contains(it)), "{remedy}");
        }
        let none = std::future::pending();
        let done = unless(none, "web", goal, async { Ok(7) }).await;
        assert_eq!(done.unwrap(), 7);
    }

    #[test]
    fn what_becomes_of_a_failing_service_depends_on_whether_it_has_another_version() {
        let of = |version| {
            let goal = Goal::Ready {
                service_id: 1,
                version,
                wanted: 1,
            };
            tried_on("web", goal)
        };
        assert!(of(1).starts_with("the service stays, and goes on being tried; "));
        assert!(of(2).contains("with the version before"), "{}", of(2));
        let silent = Failure::new(Exit::Unavailable, "x").remedy("y");
        let remedy = unseen(silent, "web", display(false).goal).remedy.unwrap();
        assert!(remedy.starts_with("y; the service stays"), "{remedy}");
    }

    #[test]
    fn without_a_terminal_only_changes_are_printed() {
        let mut display = display(false);
        let starting = [replica(1, v1::ReplicaStatus::Starting)];
        let service = v1::Service::default();
        let first = display.changes(&service, &starting, Duration::from_secs(2));
        assert_eq!(
            first,
            "[2s] web replica 1 STARTING: waiting for its first good probe\n"
        );
        assert_eq!(
            display.changes(&service, &starting, Duration::from_secs(3)),
            ""
        );
        let ready = [replica(1, v1::ReplicaStatus::Ready)];
        assert_eq!(
            display.changes(&service, &ready, Duration::from_secs(4)),
            "[4s] web replica 1 READY\n"
        );
        let hindered = v1::Service {
            hindrance: "x:80 cannot be resolved".to_owned(),
            ..service
        };
        assert_eq!(
            display.changes(&hindered, &ready, Duration::from_secs(5)),
            "[5s] web: x:80 cannot be resolved\n"
        );
        assert_eq!(
            display.changes(&hindered, &ready, Duration::from_secs(6)),
            ""
        );
    }

    #[test]
    fn what_was_there_before_is_printed_once_it_changes() {
        let mut display = display(false);
        let service = v1::Service::default();
        let old = |status| v1::Replica {
            version: 1,
            ..replica(1, status)
        };
        let new = v1::Replica {
            version: 2,
            ..replica(2, v1::ReplicaStatus::Pending)
        };
        let first = [old(v1::ReplicaStatus::Ready), new.clone()];
        assert_eq!(
            display.changes(&service, &first, Duration::ZERO),
            "[0s] web replica 2 PENDING: waiting to be created\n"
        );
        let then = [old(v1::ReplicaStatus::ShuttingDown), new];
        assert_eq!(
            display.changes(&service, &then, Duration::from_secs(1)),
            "[1s] web replica 1 SHUTTING_DOWN: waiting for its requests to end\n"
        );
    }

    #[test]
    fn a_terminal_gets_a_block_redrawn_in_place() {
        let mut display = display(true);
        let service = v1::Service {
            wanted_replicas: 2,
            ..v1::Service::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(65);
        let replicas: Vec<_> = (1..=20)
            .map(|id| v1::Replica {
                launched_at: Some(prost_types::Timestamp::default()),
                ..replica(id, v1::ReplicaStatus::Pending)
            })
            .collect();
        let first = display.block(&service, &replicas, Duration::ZERO, now);
        assert_eq!(first.lines().count(), 1 + ROWS_MAX);
        assert!(
            first.contains("PENDING                 1m 5s  waiting to be created"),
            "{first}"
        );
        assert!(first.starts_with("Service web: 0 of 2 replicas ready (0s)\n"));
        let second = display.block(&service, &replicas[..1], Duration::ZERO, now);
        assert!(second.starts_with(&format!("\x1b[{}A\x1b[0J", 1 + ROWS_MAX)));
        assert_eq!(display.drawn, 2);
    }
}
