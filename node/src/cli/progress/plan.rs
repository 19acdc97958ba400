//! When waiting is over, and what each replica waits for. Pure.

use super::super::shape::is_failed;
use crate::admin::v1::{self, ReplicaStatus};

/// How many replicas of a version may fail, none of it ever having been ready, before it is taken for
/// broken: one may be bad luck, three are not.
const FAILURES_MAX: usize = 3;

/// Where a service is to get.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Goal {
    /// So many replicas of a version ready, and none of an older one left.
    Ready {
        service_id: u64,
        version: u32,
        wanted: u32,
    },
    /// Nothing of it left.
    Gone { service_id: u64 },
}

impl Goal {
    pub(super) fn service_id(self) -> u64 {
        match self {
            Self::Ready { service_id, .. } | Self::Gone { service_id } => service_id,
        }
    }
}

/// Whether waiting is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Waiting,
    Reached,
    /// It will not get there: somebody has asked for something else.
    Lost(String),
    /// It will hardly get there by itself.
    Failing(String),
}

/// Judges what is seen; `now` is none if the service is not there. `before` says whether it was there.
pub(super) fn judge(
    goal: Goal,
    now: Option<&(v1::Service, Vec<v1::Replica>)>,
    before: bool,
) -> Verdict {
    match (goal, now) {
        (Goal::Gone { .. }, None) => Verdict::Reached,
        (Goal::Gone { .. }, Some((_, replicas))) => stuck(replicas),
        (Goal::Ready { .. }, None) if before => Verdict::Lost("it was taken down".to_owned()),
        // The peer asked may not have heard of it yet.
        (Goal::Ready { .. }, None) => Verdict::Waiting,
        (
            Goal::Ready {
                version, wanted, ..
            },
            Some((service, replicas)),
        ) => {
            if service.version > version {
                return Verdict::Lost(format!("version {} has taken its place", service.version));
            }
            if service.status() == v1::ServiceStatus::ShuttingDown {
                return Verdict::Lost("it is being taken down".to_owned());
            }
            coming_up(version, wanted, replicas)
        }
    }
}

fn coming_up(version: u32, wanted: u32, replicas: &[v1::Replica]) -> Verdict {
    let (mut ready, mut older, mut was_ready) = (0, false, false);
    let mut failures = Vec::new();
    for replica in replicas {
        let status = replica.status();
        if is_failed(status) {
            // That its place was taken says nothing of the version.
            if replica.version == version && status != ReplicaStatus::Preempted {
                failures.push(replica);
            }
        } else if replica.version == version {
            ready += u32::from(status == ReplicaStatus::Ready);
        } else {
            older = true;
        }
        was_ready |= replica.version == version && replica.first_ready_at.is_some();
    }
    if ready >= wanted && !older {
        return Verdict::Reached;
    }
    match failures.last() {
        Some(last) if failures.len() >= FAILURES_MAX && !was_ready => Verdict::Failing(format!(
            "{} replicas of version {version} have failed and none was ever ready; the last: {}",
            failures.len(),
            last.reason
        )),
        _ => Verdict::Waiting,
    }
}

fn stuck(replicas: &[v1::Replica]) -> Verdict {
    let cannot_stop = |replica: &&v1::Replica| replica.status() == ReplicaStatus::FailedCleanup;
    let all_else_gone = replicas.iter().all(|replica| is_failed(replica.status()));
    match replicas.iter().find(cannot_stop) {
        Some(replica) if all_else_gone => Verdict::Failing(format!(
            "replica {} could not be stopped: {}",
            replica.id, replica.reason
        )),
        _ => Verdict::Waiting,
    }
}

/// Whether it was there already, as it is, before anything was asked for: nothing that is waited for.
pub(super) fn is_untouched(goal: Goal, replica: &v1::Replica) -> bool {
    let status = replica.status();
    let is_wanted = matches!(goal, Goal::Ready { version, .. } if replica.version == version);
    !is_wanted && (status == ReplicaStatus::Ready || is_failed(status))
}

/// What a replica waits for, with the reason if there is one; empty if for nothing.
pub(super) fn waiting_for(replica: &v1::Replica) -> String {
    let what = match replica.status() {
        ReplicaStatus::Pending => "waiting to be created",
        ReplicaStatus::Provisioning => "waiting until it is set up",
        ReplicaStatus::Starting => "waiting for its first good probe",
        ReplicaStatus::NotReady => "waiting for a good probe",
        ReplicaStatus::ShuttingDown => "waiting for its requests to end",
        _ => "",
    };
    let reason = replica.reason.replace(char::is_control, " ");
    match (what, reason.as_str()) {
        (what, "") => what.to_owned(),
        ("", reason) => reason.to_owned(),
        (what, reason) => format!("{what} ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Goal = Goal::Ready {
        service_id: 1,
        version: 2,
        wanted: 2,
    };

    fn seen(replicas: &[(u32, ReplicaStatus)]) -> (v1::Service, Vec<v1::Replica>) {
        let service = v1::Service {
            id: 1,
            version: 2,
            ..v1::Service::default()
        };
        let replica = |(at, (version, status)): (usize, &(u32, ReplicaStatus))| v1::Replica {
            id: u32::try_from(at).unwrap() + 1,
            version: *version,
            status: (*status).into(),
            reason: "why".into(),
            ..v1::Replica::default()
        };
        (service, replicas.iter().enumerate().map(replica).collect())
    }

    #[test]
    fn a_service_is_up_once_enough_of_its_version_are_ready_and_older_ones_gone() {
        use ReplicaStatus::{Failed, Ready, ShuttingDown};
        let verdict = |replicas: &[_]| judge(UP, Some(&seen(replicas)), true);
        assert_eq!(
            verdict(&[(2, Ready), (2, Ready), (1, Failed)]),
            Verdict::Reached
        );
        assert_eq!(verdict(&[(2, Ready)]), Verdict::Waiting);
        assert_eq!(
            verdict(&[(2, Ready), (2, Ready), (1, ShuttingDown)]),
            Verdict::Waiting
        );
        assert_eq!(verdict(&[(2, Ready), (1, Ready)]), Verdict::Waiting);
        assert_eq!(judge(UP, None, false), Verdict::Waiting);
        assert!(matches!(judge(UP, None, true), Verdict::Lost(_)));
    }

    #[test]
    fn a_version_whose_replicas_only_fail_is_given_up() {
        use ReplicaStatus::{Failed, Starting};
        let verdict = |replicas: &[_]| judge(UP, Some(&seen(replicas)), true);
        assert_eq!(
            verdict(&[(2, Failed), (2, Failed), (2, Starting)]),
            Verdict::Waiting
        );
        let Verdict::Failing(why) = verdict(&[(2, Failed), (2, Failed), (2, Failed)]) else {
            panic!("not given up");
        };
        assert!(why.contains("the last: why"), "{why}");
        let mut was_ready = seen(&[(2, Failed), (2, Failed), (2, Failed)]);
        was_ready.1[0].first_ready_at = Some(prost_types::Timestamp::default());
        assert_eq!(judge(UP, Some(&was_ready), true), Verdict::Waiting);
    }

    #[test]
    fn an_overtaken_or_withdrawn_service_is_not_waited_for() {
        let mut newer = seen(&[]);
        newer.0.version = 3;
        assert!(matches!(judge(UP, Some(&newer), true), Verdict::Lost(_)));
        let mut down = seen(&[]);
        down.0.set_status(v1::ServiceStatus::ShuttingDown);
        assert!(matches!(judge(UP, Some(&down), true), Verdict::Lost(_)));
    }

    #[test]
    fn a_service_is_gone_when_it_is_not_there_and_stuck_when_only_failures_are_left() {
        use ReplicaStatus::{FailedCleanup, ShuttingDown};
        let gone = Goal::Gone { service_id: 1 };
        assert_eq!(judge(gone, None, true), Verdict::Reached);
        let verdict = |replicas: &[_]| judge(gone, Some(&seen(replicas)), true);
        assert_eq!(
            verdict(&[(2, FailedCleanup), (2, ShuttingDown)]),
            Verdict::Waiting
        );
        assert!(matches!(
            verdict(&[(2, FailedCleanup)]),
            Verdict::Failing(_)
        ));
    }
}
