//! What is asked of the peers: do they answer, agree, and run the same release?

use std::collections::BTreeSet;

use super::super::cluster::{FOREIGN_REMEDY, ROOM_REMEDY, foreigner_met, room_left};
use super::super::connect::Servers;
use super::super::fetch;
use super::{CheckArgs, Line, kubernetes};
use crate::admin::v1::cluster_client::ClusterClient;
use crate::admin::v1::{self, HindranceKind};

/// The checks of a running cluster, as far as they can be made.
pub(super) async fn check(args: &CheckArgs) -> Vec<Line> {
    let servers = match Servers::new(&args.target) {
        Ok(servers) => servers,
        Err(failure) => return vec![unreached(failure.message, failure.remedy)],
    };
    let mut servers = servers;
    let asked =
        servers.ask(async |link| ClusterClient::new(link).status(v1::StatusRequest {}).await);
    let status = match asked.await {
        Ok(status) => status,
        Err(failure) => return vec![unreached(failure.message, failure.remedy)],
    };
    let mut lines = vec![Line::good(
        "peer",
        format!(
            "peer {} of cluster {} answers",
            status.node_id, status.cluster_id
        ),
    )];
    lines.push(quorum(&status));
    lines.extend(hindered(&status));
    // Who may not list them is told of the rest all the same.
    let services = fetch::services(&mut servers, true).await;
    let is_told = !status.hindrance.is_empty();
    lines.extend(hindrances(&services.unwrap_or_default(), is_told));
    let asked =
        servers.ask(async |link| ClusterClient::new(link).health(v1::HealthRequest {}).await);
    match asked.await {
        Ok(health) => {
            lines.push(members(&health));
            lines.push(tolerance(&health));
            lines.extend(rooms(&health));
            lines.extend(foreigners(&health));
            lines.push(releases(&health, env!("CARGO_PKG_VERSION")));
        }
        Err(failure) => lines.push(Line::failed(
            "members",
            failure.message,
            "`raftserve cluster members` shows what the peer that answers knows of the others",
        )),
    }
    match servers.release() {
        Some(release) => lines.extend(kubernetes::check_installed(release, &status)),
        None => lines.extend(kubernetes::hindered_endpoints(&status)),
    }
    lines
}

fn unreached(seen: String, remedy: Option<String>) -> Line {
    let remedy = remedy.unwrap_or_else(|| {
        "name a peer's admin port with --server; before an installation, say --before".to_owned()
    });
    Line::failed("peer", seen, remedy)
}

fn quorum(status: &v1::StatusResponse) -> Line {
    match (status.quorum, status.leader_id) {
        (true, leader) => Line::good(
            "quorum",
            format!("peer {leader} leads, in term {}", status.term),
        ),
        (false, _) => Line::failed(
            "quorum",
            "this peer sees no quorum: nothing can be changed",
            "start the peers that are down; if most are lost for good, see docs/runbooks/lost-majority.md",
        ),
    }
}

/// Only where it is so: a peer of an earlier release does not say.
fn hindered(status: &v1::StatusResponse) -> Option<Line> {
    (!status.hindrance.is_empty()).then(|| {
        Line::failed(
            "replicas",
            format!("cannot be made or seen: {}", status.hindrance),
            "until that is mended, what runs is left alone, and what ends is not replaced",
        )
    })
}

/// How a hindrance of all replicas begins, where a peer of an earlier release tells it of each service.
const OF_ALL_REPLICAS: &str = "replicas cannot be made: ";

/// One line for each hindrance of one service: not for what keeps the peer from all replicas, if that `is_told`.
fn hindrances(services: &[v1::Service], mut is_told: bool) -> Vec<Line> {
    let news = |service: &&v1::Service| {
        let of_all =
            service.hindrances.is_empty() && service.hindrance.starts_with(OF_ALL_REPLICAS);
        !of_all || !std::mem::replace(&mut is_told, true)
    };
    services.iter().filter(news).flat_map(of_service).collect()
}

fn of_service(service: &v1::Service) -> Vec<Line> {
    let untyped = v1::Hindrance {
        text: service.hindrance.clone(),
        ..v1::Hindrance::default()
    };
    let found = match (service.hindrances.as_slice(), service.hindrance.as_str()) {
        ([], "") => &[],
        // A peer of an earlier release.
        ([], _) => std::slice::from_ref(&untyped),
        (typed, _) => typed,
    };
    let lines = found.iter().filter_map(|it| hindrance(&service.name, it));
    lines.collect()
}

/// None for what is told once, for all services.
fn hindrance(service: &str, hindrance: &v1::Hindrance) -> Option<Line> {
    let (check, remedy) = match hindrance.kind() {
        HindranceKind::Replicas | HindranceKind::Endpoints => return None,
        HindranceKind::ServicePort => (
            "service port",
            "requests to that port may reach somebody else; the shared port serves the service all the same",
        ),
        HindranceKind::Addresses => (
            "static service",
            "mend the name, or what it names; it is looked for again and again",
        ),
        HindranceKind::Unspecified => (
            "service",
            "the peer that says so is of another release than this program, which cannot tell more",
        ),
    };
    Some(Line::warning(
        check,
        format!("{service}: {}", hindrance.text),
        remedy,
    ))
}

fn members(health: &v1::HealthResponse) -> Line {
    let down: Vec<String> = health
        .members
        .iter()
        .filter(|member| !member.up)
        .map(|member| format!("peer {} at {}", member.id, member.peer_address))
        .collect();
    match down.is_empty() {
        true => Line::good("members", format!("all {} answer", health.members.len())),
        false => Line::failed(
            "members",
            format!("no answer from {}", down.join(", ")),
            "start them, or remove those that will not come back: `raftserve cluster remove ID`",
        ),
    }
}

fn tolerance(health: &v1::HealthResponse) -> Line {
    match health.failure_tolerance {
        0 => Line::warning(
            "tolerance",
            "no peer may be lost",
            "run three peers, and see that all answer and are caught up: `raftserve cluster health`",
        ),
        count => Line::good("tolerance", format!("{count} may be lost")),
    }
}

/// Whose disks are nearly full. Only where it is so.
fn rooms(health: &v1::HealthResponse) -> Vec<Line> {
    let short = health.members.iter().filter_map(|member| {
        let room = member.disk_room.filter(|room| room.short)?;
        let seen = room_left(member.id, room);
        Some(Line::warning("disk", seen, ROOM_REMEDY))
    });
    short.collect()
}

/// Who has met peers of another cluster. Only where it is so.
fn foreigners(health: &v1::HealthResponse) -> Vec<Line> {
    let met = health.members.iter().filter_map(|member| {
        let seen = foreigner_met(member.id, member.foreigner.as_ref()?);
        Some(Line::failed("other cluster", seen, FOREIGN_REMEDY))
    });
    met.collect()
}

fn releases(health: &v1::HealthResponse, own: &str) -> Line {
    let known = health.members.iter().map(|member| member.version.as_str());
    let known: BTreeSet<&str> = known.filter(|version| !version.is_empty()).collect();
    let shown: Vec<&str> = known.iter().copied().collect();
    match shown[..] {
        [only] if only == own => {
            Line::good("releases", format!("all run {only}, as this program is"))
        }
        [only] => Line::warning(
            "releases",
            format!("all run {only}, and this program is {own}"),
            "use the program of the peers' release",
        ),
        _ => Line::warning(
            "releases",
            format!("peers run {}", shown.join(" and ")),
            "finish the upgrade, then `raftserve cluster finalize`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn health(members: &[(bool, &str)], failure_tolerance: u32) -> v1::HealthResponse {
        let member = |(id, (up, version)): (u64, &(bool, &str))| v1::MemberHealth {
            id,
            up: *up,
            version: (*version).to_owned(),
            peer_address: format!("h{id}:7001"),
            ..Default::default()
        };
        v1::HealthResponse {
            members: (1..).zip(members).map(member).collect(),
            failure_tolerance,
            ..Default::default()
        }
    }

    #[test]
    fn what_keeps_peers_from_replicas_is_told() {
        let mut status = v1::StatusResponse::default();
        assert_eq!(hindered(&status), None);
        status.hindrance = "peer 4 at h4:7001 has another".to_owned();
        let line = hindered(&status).unwrap();
        assert!(line.seen.contains("peer 4"), "{line:?}");
        assert_eq!(line.verdict, Verdict::Failed);
    }

    #[test]
    fn what_hinders_one_service_is_told_with_it() {
        let service = |name: &str, found: &[(HindranceKind, &str)]| {
            let hindrances = found.iter().map(|(kind, text)| v1::Hindrance {
                kind: (*kind).into(),
                text: (*text).to_owned(),
            });
            let texts: Vec<&str> = found.iter().map(|(_, text)| *text).collect();
            v1::Service {
                name: name.to_owned(),
                hindrance: texts.join("; "),
                hindrances: hindrances.collect(),
                ..v1::Service::default()
            }
        };
        let others = [
            service("a", &[]),
            service("b", &[(HindranceKind::Replicas, "all")]),
            service("c", &[(HindranceKind::Endpoints, "all")]),
        ];
        assert_eq!(hindrances(&others, false), []);
        let both = service(
            "web",
            &[
                (HindranceKind::Addresses, "one"),
                (HindranceKind::ServicePort, "two"),
            ],
        );
        let told = |lines: &[Line]| -> Vec<(&'static str, String)> {
            assert!(lines.iter().all(|it| it.verdict == Verdict::Warning));
            lines.iter().map(|it| (it.check, it.seen.clone())).collect()
        };
        assert_eq!(
            told(&hindrances(std::slice::from_ref(&both), true)),
            [
                ("static service", "web: one".to_owned()),
                ("service port", "web: two".to_owned())
            ]
        );
        let earlier = v1::Service {
            hindrances: Vec::new(),
            ..both
        };
        assert_eq!(
            told(&hindrances(&[earlier], true)),
            [("service", "web: one; two".to_owned())],
            "a peer that tells no kinds"
        );
    }

    #[test]
    fn what_keeps_an_earlier_peer_from_all_replicas_is_told_once() {
        let service = |name: &str| v1::Service {
            name: name.to_owned(),
            hindrance: "replicas cannot be made: no kubelet".to_owned(),
            ..v1::Service::default()
        };
        let services = [service("a"), service("b")];
        assert_eq!(hindrances(&services, true), [], "told of the peer");
        let once = hindrances(&services, false);
        assert_eq!(once.len(), 1, "{once:?}");
        assert_eq!(once[0].seen, "a: replicas cannot be made: no kubelet");
    }

    #[test]
    fn what_is_wrong_with_members_is_named() {
        let well = health(&[(true, "1"), (true, "1"), (true, "1")], 1);
        assert_eq!(members(&well), Line::good("members", "all 3 answer"));
        assert_eq!(tolerance(&well).verdict, Verdict::Good);
        assert_eq!(releases(&well, "1").verdict, Verdict::Good);
        let ill = health(&[(true, "1"), (false, "2"), (true, "")], 0);
        assert!(members(&ill).seen.contains("peer 2 at h2:7001"));
        assert_eq!(members(&ill).verdict, Verdict::Failed);
        assert_eq!(tolerance(&ill).verdict, Verdict::Warning);
        assert_eq!(releases(&ill, "1").seen, "peers run 1 and 2");
        assert!(ill.members.iter().all(|_| members(&ill).remedy.is_some()));
        assert_eq!((rooms(&ill), foreigners(&ill)), (vec![], vec![]));
        let mut full = ill;
        full.members[1].disk_room = Some(v1::DiskRoom {
            short: true,
            ..v1::DiskRoom::default()
        });
        full.members[2].foreigner = Some(v1::Foreigner::default());
        let (rooms, foreigners) = (rooms(&full), foreigners(&full));
        assert!(rooms[0].seen.contains("Peer 2"), "{rooms:?}");
        assert_eq!(rooms[0].verdict, Verdict::Warning);
        assert!(foreigners[0].seen.contains("Peer 3"), "{foreigners:?}");
        assert_eq!(foreigners[0].verdict, Verdict::Failed);
    }
}
