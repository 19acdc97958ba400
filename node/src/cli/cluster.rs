//! `raftserve cluster`.

use serde_json::{Value, json};

use super::args::{ClusterArgs, ClusterVerb, Format, Target};
use super::confirm::confirm;
use super::connect::Servers;
use super::counted::counted;
use super::failure::{Exit, Failure};
use super::paint::{Paint, Tone};
use super::table::Table;
use super::{output, recover, shape, snapshot};
use crate::admin::v1;
use crate::admin::v1::cluster_client::ClusterClient;
use crate::peer::TRAILING_MAX;

mod add;
mod release;

/// Runs the verb.
pub(super) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    match args.verb {
        ClusterVerb::Status { output, target } => status(output.output, &target).await,
        ClusterVerb::Members { output, target } => members(output.output, &target).await,
        ClusterVerb::Snapshot(args) => snapshot::run(args).await,
        ClusterVerb::Recover(args) => recover::run(args).await,
        ClusterVerb::Finalize {
            yes,
            output,
            target,
        } => release::finalize(yes, output.output, &target).await,
        ClusterVerb::Compare { output, target } => release::compare(output.output, &target).await,
        ClusterVerb::Health { output, target } => health(output.output, &target).await,
        ClusterVerb::Add(args) => add::run(args).await,
        ClusterVerb::Remove {
            node,
            yes,
            output,
            target,
        } => remove(node, yes, output.output, &target).await,
        ClusterVerb::Promote {
            node,
            output,
            target,
        } => promote(node, output.output, &target).await,
        ClusterVerb::TransferLeader {
            node,
            output,
            target,
        } => transfer(node, output.output, &target).await,
    }
}

async fn status(format: Format, target: &Target) -> Result<(), Failure> {
    let status = Servers::new(target)?
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .status(v1::StatusRequest {})
                .await
        })
        .await?;
    let value = json!({
        "cluster_id": status.cluster_id,
        "node_id": status.node_id,
        "version": status.version,
        "term": status.term,
        "leader_id": (status.leader_id > 0).then_some(status.leader_id),
        "quorum": status.quorum,
        "quorum_reason": (!status.quorum).then_some(&status.quorum_reason),
        "applied_index": status.applied_index,
        "cluster_version": status.cluster_version,
        "releases": release::releases(&status),
        "compared_index": status.compared_index,
        "differs_index": (status.differs_index > 0).then_some(status.differs_index),
        "differs_peer": (status.differs_index > 0).then_some(status.differs_peer),
        "ready": status.ready,
        "endpoints_hindrance": (!status.endpoints_hindrance.is_empty()).then_some(&status.endpoints_hindrance),
        "services": status.services,
        "replicas": status.replicas,
        "sessions": status.sessions,
    });
    output::print(format, &value, || {
        status_text(&status, Paint::of(&std::io::stdout()))
    })
}

fn status_text(status: &v1::StatusResponse, paint: Paint) -> String {
    let leader = match status.leader_id {
        0 => paint.tone(Tone::Bad, "none"),
        leader if leader == status.node_id => format!("peer {leader} (this one)"),
        leader => format!("peer {leader}"),
    };
    let quorum = match status.quorum {
        true => paint.tone(Tone::Good, "yes"),
        false => format!("{}: {}", paint.tone(Tone::Bad, "no"), status.quorum_reason),
    };
    let ready = match status.ready {
        true => paint.tone(Tone::Good, "yes"),
        false => paint.tone(Tone::Busy, "no"),
    };
    let endpoints = match status.endpoints_hindrance.as_str() {
        "" => String::new(),
        hindrance => format!("Endpoints  {}: {hindrance}\n", paint.tone(Tone::Bad, "no")),
    };
    format!(
        "Cluster    {}\nVersion    {}\nPeer       {} (version {})\nLeader     {leader}, term {}\nQuorum     {quorum}\n\
         Ready      {ready}\n{endpoints}Applied    {}\nCompared   {}\nServices   {}\nReplicas   {}\nSessions   {}\n",
        status.cluster_id,
        release::version_text(status),
        status.node_id,
        status.version,
        status.term,
        status.applied_index,
        release::compared_text(status, paint),
        status.services,
        status.replicas,
        status.sessions,
    )
}

async fn members(format: Format, target: &Target) -> Result<(), Failure> {
    let found = Servers::new(target)?
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .members(v1::MembersRequest {})
                .await
        })
        .await?;
    let members: Vec<_> = found.members.iter().map(shape::member).collect();
    let value = json!({ "cluster_id": found.cluster_id, "members": members });
    output::print(format, &value, || {
        members_text(&found.members, Paint::of(&std::io::stdout()))
    })
}

fn members_text(members: &[v1::Member], paint: Paint) -> String {
    let headings = [
        "ID",
        "ROLE",
        "UP",
        "PEER_ADDRESS",
        "ADMIN_ADDRESS",
        "MATCHED",
        "LAST_CONTACT",
    ];
    let mut table = Table::new(headings);
    for member in members {
        let plain = |text: String| (text, Tone::Plain);
        let contact = match (member.asked, shape::last_contact_ms(member)) {
            (true, _) => "this peer".to_owned(),
            (false, Some(ms)) => format!("{ms} ms ago"),
            (false, None) => "never".to_owned(),
        };
        let tone = match member.leader {
            true => Tone::Good,
            false => Tone::Plain,
        };
        let matched = member.matched_index.map(|index| index.to_string());
        table.row([
            plain(member.id.to_string()),
            (shape::role(member).to_owned(), tone),
            up(member.up),
            plain(member.peer_address.clone()),
            plain(member.admin_address.clone()),
            plain(matched.unwrap_or_default()),
            plain(contact),
        ]);
    }
    table.render(paint)
}

fn up(up: bool) -> (String, Tone) {
    match up {
        true => ("up".to_owned(), Tone::Good),
        false => ("down".to_owned(), Tone::Bad),
    }
}

/// Whether a member votes, or how it may come to, in the API's words.
fn vote(member: &v1::MemberHealth) -> String {
    let name = member.vote().as_str_name();
    name.strip_prefix("VOTE_").unwrap_or(name).to_lowercase()
}

async fn health(format: Format, target: &Target) -> Result<(), Failure> {
    let found = Servers::new(target)?
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .health(v1::HealthRequest {})
                .await
        })
        .await?;
    let ms = |at: Option<prost_types::Duration>| {
        at.map(|at| at.seconds.saturating_mul(1_000) + i64::from(at.nanos) / 1_000_000)
    };
    let member = |member: &v1::MemberHealth| {
        json!({
            "id": member.id,
            "voter": member.voter,
            "up": member.up,
            "lag": member.lag,
            "healthy_for_ms": ms(member.healthy_for),
            "last_contact_ms": ms(member.last_contact),
            "version": member.version,
            "peer_address": member.peer_address,
            "vote": vote(member),
            "successor_id": member.successor_id,
            "disk_stalled_for_ms": ms(member.disk_stalled_for),
            "disk_free_bytes": member.disk_room.map(|room| room.free_bytes),
            "disk_total_bytes": member.disk_room.map(|room| room.total_bytes),
            "disk_short_of_room": member.disk_room.map(|room| room.short),
            "foreign_cluster_id": member.foreigner.as_ref().map(|met| &met.cluster_id),
            "foreign_node_id": member.foreigner.as_ref().map(|met| met.node_id),
        })
    };
    let members: Vec<_> = found.members.iter().map(member).collect();
    let value = json!({
        "healthy": found.healthy,
        "failure_tolerance": found.failure_tolerance,
        "leader_id": found.leader_id,
        "members": members,
    });
    output::print(format, &value, || {
        health_text(&found, Paint::of(&std::io::stdout()))
    })?;
    is_healthy(&found)
}

/// What `health` ends with once it has shown why.
///
/// # Errors
/// That the cluster is not healthy.
fn is_healthy(found: &v1::HealthResponse) -> Result<(), Failure> {
    match found.healthy {
        true => Ok(()),
        false => {
            let ailing: Vec<String> = found.members.iter().filter_map(ailment).collect();
            let message = match ailing.is_empty() {
                true => "the cluster is not healthy".to_owned(),
                false => format!("the cluster is not healthy: {}", ailing.join("; ")),
            };
            Err(Failure::new(Exit::Unhealthy, message))
        }
    }
}

/// What is wrong with a member, if anything is: the worst of it.
fn ailment(member: &v1::MemberHealth) -> Option<String> {
    let what = match member {
        cut if cut.vote() == v1::Vote::LogCut => {
            "lost log entries that it had acknowledged".to_owned()
        }
        silent if !silent.up => "is down".to_owned(),
        stalled if stalled.disk_stalled_for.is_some() => {
            "has a disk that does not answer".to_owned()
        }
        v1::MemberHealth {
            healthy_for: None,
            lag: Some(0),
            ..
        } => "has not answered and been caught up for long enough yet".to_owned(),
        v1::MemberHealth {
            healthy_for: None,
            lag: Some(lag),
            ..
        } => format!("trails, by {}", counted(*lag, "entry", "entries")),
        v1::MemberHealth {
            healthy_for: None, ..
        } => "cannot follow the log yet".to_owned(),
        v1::MemberHealth {
            foreigner: Some(met),
            ..
        } => format!("has met a peer of another cluster, {}", met.cluster_id),
        _ => return None,
    };
    Some(format!("peer {} {what}", member.id))
}

fn health_text(found: &v1::HealthResponse, paint: Paint) -> String {
    let healthy = match found.healthy {
        true => paint.tone(Tone::Good, "yes"),
        false => paint.tone(Tone::Bad, "no"),
    };
    let headings = [
        "ID",
        "ROLE",
        "UP",
        "LAG",
        "HEALTHY_FOR",
        "LAST_CONTACT",
        "VERSION",
        "PEER_ADDRESS",
    ];
    let mut table = Table::new(headings);
    for member in &found.members {
        let plain = |text: String| (text, Tone::Plain);
        let role = match (member.id == found.leader_id, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let seconds = member.healthy_for.map(|it| format!("{} s", it.seconds));
        let contact = member.last_contact.map(|it| {
            let ms = it.seconds.saturating_mul(1_000) + i64::from(it.nanos) / 1_000_000;
            format!("{ms} ms ago")
        });
        table.row([
            plain(member.id.to_string()),
            plain(role.to_owned()),
            up(member.up),
            plain(member.lag.map(|lag| lag.to_string()).unwrap_or_default()),
            plain(seconds.unwrap_or_default()),
            plain(contact.unwrap_or_else(|| "never".to_owned())),
            plain(member.version.clone()),
            plain(member.peer_address.clone()),
        ]);
    }
    let cut = found
        .members
        .iter()
        .filter(|it| it.vote() == v1::Vote::LogCut);
    let cut: String = cut
        .map(|member| {
            format!(
                "\nPeer {} lost log entries that it had acknowledged, and does not count. Remove its data directory and \
                 start it again: it joins under a new id.\n",
                member.id
            )
        })
        .collect();
    let stalled = found.members.iter().filter_map(|member| {
        let seconds = member.disk_stalled_for.as_ref()?.seconds;
        Some(format!(
            "\nThe disk of peer {} has not answered for {seconds} s: it acknowledges nothing until it does.\n",
            member.id
        ))
    });
    let stalled: String = stalled.collect();
    format!(
        "Healthy            {healthy}\nFailure tolerance  {}\n\n{}{cut}{}{stalled}{}{}{}",
        found.failure_tolerance,
        table.render(paint),
        without_log_text(&found.members),
        short_of_room_text(&found.members),
        foreign_text(&found.members),
        waiting_text(&found.members)
    )
}

/// Who answers, and cannot follow the log yet.
fn without_log_text(members: &[v1::MemberHealth]) -> String {
    let without = members
        .iter()
        .filter(|it| it.up && it.lag.is_none() && it.vote() != v1::Vote::LogCut);
    let texts = without.map(|member| {
        format!(
            "\nPeer {} has to be sent a snapshot before it can follow the log, or the leader does not know yet how far \
             it is.\n",
            member.id
        )
    });
    texts.collect()
}

/// Whose disks are nearly full.
fn short_of_room_text(members: &[v1::MemberHealth]) -> String {
    let short = members.iter().filter_map(|member| {
        let room = member.disk_room.filter(|room| room.short)?;
        Some(format!("\n{} {ROOM_REMEDY}\n", room_left(member.id, room)))
    });
    short.collect()
}

/// How much room a peer has left.
pub(super) fn room_left(node: u64, room: v1::DiskRoom) -> String {
    format!(
        "Peer {node} has {} MiB of {} MiB left on the disk of its data directory.",
        room.free_bytes >> 20,
        room.total_bytes >> 20
    )
}

/// What to do about a disk that is nearly full.
pub(super) const ROOM_REMEDY: &str =
    "It ends when there is none: make room there, as docs/runbooks/full-disk.md says.";

/// Who has met peers of another cluster.
fn foreign_text(members: &[v1::MemberHealth]) -> String {
    let met = members.iter().filter_map(|member| {
        let met = member.foreigner.as_ref()?;
        Some(format!(
            "\n{} {FOREIGN_REMEDY}\n",
            foreigner_met(member.id, met)
        ))
    });
    met.collect()
}

/// Whom a peer has met.
pub(super) fn foreigner_met(node: u64, met: &v1::Foreigner) -> String {
    format!(
        "Peer {node} has met peer {} of another cluster, {}, where peers of this one are looked for.",
        met.node_id, met.cluster_id
    )
}

/// What to do about another cluster.
pub(super) const FOREIGN_REMEDY: &str = "Its log says where. One of the two may have been founded by mistake: see docs/runbooks/two-clusters.md.";

/// What those wait for whose votes others are to take over.
fn waiting_text(members: &[v1::MemberHealth]) -> String {
    let waiting = members.iter().filter_map(|it| Some((it, it.successor_id?)));
    let text = |(old, new): (&v1::MemberHealth, u64)| match members
        .iter()
        .any(|it| it.id == new && it.up)
    {
        true => format!(
            "\nPeer {} is to go, and peer {new} takes its vote over once it has caught up.\n",
            old.id
        ),
        false => format!(
            "\nPeer {} is to go once peer {new} has taken its vote over, which does not answer. Start that one. If its data \
             is lost too, start it with an empty data directory at the same address; or run `raftserve cluster remove \
             {new}`, and peer {} stays a voter.\n",
            old.id, old.id
        ),
    };
    waiting.map(text).collect()
}

/// How many more peers may be lost once one is removed; none if no quorum would be left.
fn tolerance_without(node_id: u64, health: &v1::HealthResponse) -> Option<usize> {
    let others = health.members.iter().filter(|it| it.id != node_id);
    let voters = others.filter(|it| it.voter);
    // As the leader counts them.
    let counts = |it: &&v1::MemberHealth| it.up && it.lag.is_some_and(|lag| lag < TRAILING_MAX);
    let counting = voters.clone().filter(counts).count();
    counting.checked_sub(voters.count() / 2 + 1)
}

fn removal(node_id: u64, health: &v1::HealthResponse) -> String {
    let now = health.failure_tolerance;
    if !health.members.iter().any(|it| it.id == node_id) {
        // Only the cluster knows whether it was let in.
        return format!("Remove peer {node_id} for good, which is no member yet?");
    }
    let left = match tolerance_without(node_id, health) {
        Some(left) => format!("{now} more may be lost now, and {left} then"),
        None => "no quorum would be left".to_owned(),
    };
    format!("Remove peer {node_id} for good? {left}.")
}

/// The health by which a removal is judged; none where it cannot be had and nobody is asked to confirm.
///
/// # Errors
/// If somebody is, and it cannot be had.
fn judged_by(
    node_id: u64,
    yes: bool,
    answer: Result<v1::HealthResponse, Failure>,
) -> Result<Option<v1::HealthResponse>, Failure> {
    match answer {
        Ok(health) => Ok(Some(health)),
        Err(_) if yes => Ok(None),
        Err(failure) => Err(failure.after(&format!("peer {node_id} is not removed"))),
    }
}

/// What a removal did. How many may be lost is as of just before it, and null where that cannot be told.
fn removed_value(node_id: u64, before: Option<&v1::HealthResponse>) -> Value {
    json!({
        "removed": node_id,
        "failure_tolerance_before": before.map(|it| it.failure_tolerance),
        "failure_tolerance": before.and_then(|it| tolerance_without(node_id, it)),
    })
}

fn removed_text(node_id: u64, before: Option<&v1::HealthResponse>) -> String {
    let left = before.map(|it| (it.failure_tolerance, tolerance_without(node_id, it)));
    let left = match left {
        Some((before, Some(left))) => {
            format!("{before} more could be lost before, and {left} now.")
        }
        // The leader counts again, and may have seen more of them by then.
        Some((_, None)) => {
            "`raftserve cluster health` shows how many more may be lost now.".to_owned()
        }
        None => "How many more could be lost before, and may be now, cannot be told.".to_owned(),
    };
    format!(
        "Peer {node_id} is removed. {left} Empty its data directory before it is started again.\n"
    )
}

async fn remove(node_id: u64, yes: bool, format: Format, target: &Target) -> Result<(), Failure> {
    let mut servers = Servers::new(target)?;
    let answer = servers
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .health(v1::HealthRequest {})
                .await
        })
        .await;
    let before = judged_by(node_id, yes, answer)?;
    if let Some(before) = &before {
        confirm(yes, &removal(node_id, before), false)?;
    }
    let asked = servers.in_time(v1::RemoveMemberRequest { node_id });
    let remove = |channel| {
        let asked = asked();
        async move { ClusterClient::new(channel).remove_member(asked).await }
    };
    servers.ask(remove).await?;
    let before = before.as_ref();
    output::print(format, &removed_value(node_id, before), || {
        removed_text(node_id, before)
    })
}

async fn promote(node_id: u64, format: Format, target: &Target) -> Result<(), Failure> {
    let mut servers = Servers::new(target)?;
    let asked = servers.in_time(v1::PromoteMemberRequest { node_id });
    let promote = |channel| {
        let asked = asked();
        async move { ClusterClient::new(channel).promote_member(asked).await }
    };
    servers.ask(promote).await?;
    output::print(format, &json!({ "promoted": node_id }), || {
        format!("Peer {node_id} votes now.\n")
    })
}

async fn transfer(target: Option<u64>, format: Format, to: &Target) -> Result<(), Failure> {
    let done = Servers::new(to)?
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .transfer_leader(v1::TransferLeaderRequest { target })
                .await
        })
        .await?;
    let value = json!({ "leader_id": done.leader_id });
    output::print(format, &value, || {
        format!("Peer {} leads now.\n", done.leader_id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_names_what_may_be_lost_then() {
        let member = |id, up| v1::MemberHealth {
            id,
            up,
            voter: id < 4,
            lag: Some(0),
            ..v1::MemberHealth::default()
        };
        let health = |ups: [bool; 4], failure_tolerance| v1::HealthResponse {
            members: (1..).zip(ups).map(|(id, up)| member(id, up)).collect(),
            failure_tolerance,
            ..v1::HealthResponse::default()
        };
        let well = health([true; 4], 1);
        let asked = "Remove peer 3 for good? 1 more may be lost now, and 0 then.";
        assert_eq!(removal(3, &well), asked);
        let done = removed_value(3, Some(&well));
        assert_eq!(done["failure_tolerance_before"], 1, "{done}");
        assert_eq!(done["failure_tolerance"], 0, "{done}");
        let said = removed_text(3, Some(&well));
        assert!(said.contains("1 more could be lost before, and 0 now."));
        assert_eq!(tolerance_without(4, &well), Some(1), "a learner");
        let ill = health([true, false, true, true], 0);
        assert_eq!(tolerance_without(2, &ill), Some(0), "the silent one");
        assert!(removal(3, &ill).ends_with("no quorum would be left."));
        assert!(removed_text(3, Some(&ill)).contains("cluster health"));
        let mut behind = well;
        behind.members[1].lag = Some(TRAILING_MAX);
        assert_eq!(tolerance_without(3, &behind), None, "one is far behind");
    }

    #[test]
    fn whoever_waits_for_a_successor_is_told_with_what_it_waits_for() {
        let member = |id, up, successor_id| v1::MemberHealth {
            id,
            up,
            successor_id,
            ..v1::MemberHealth::default()
        };
        let mut members = vec![member(3, false, Some(10)), member(10, true, None)];
        assert!(waiting_text(&members[1..]).is_empty());
        let well = waiting_text(&members);
        assert!(
            well.contains("peer 10 takes its vote over once it has caught up"),
            "{well}"
        );
        members[1].up = false;
        let silent = waiting_text(&members);
        assert!(silent.contains(
            "Peer 3 is to go once peer 10 has taken its vote over, which does not answer."
        ));
        assert!(
            silent.contains("`raftserve cluster remove 10`, and peer 3 stays"),
            "{silent}"
        );
        // One that was admitted, and is no member yet.
        members.pop();
        assert_eq!(waiting_text(&members), silent);
    }

    #[test]
    fn a_removal_that_needs_no_confirmation_needs_no_health() {
        let unanswered = || Err(Failure::failed("that answer cannot be read"));
        let refused = judged_by(3, false, unanswered()).unwrap_err();
        assert!(refused.message.starts_with("peer 3 is not removed: that"));
        assert_eq!(judged_by(3, true, unanswered()).unwrap(), None);
        let of = |id| v1::HealthResponse {
            members: vec![v1::MemberHealth {
                id,
                ..v1::MemberHealth::default()
            }],
            ..v1::HealthResponse::default()
        };
        let judged = judged_by(3, false, Ok(of(3))).unwrap();
        assert_eq!(judged, Some(of(3)));
        // One that was let in and lost is to be removed too.
        assert!(removal(3, &of(2)).contains("no member yet"));
        assert!(!removal(3, &of(3)).contains("no member yet"));
        let done = removed_value(3, None);
        assert_eq!(done["removed"], 3, "{done}");
        assert!(done["failure_tolerance_before"].is_null(), "{done}");
        assert!(done["failure_tolerance"].is_null(), "{done}");
        assert!(removed_text(3, None).contains("cannot be told"));
    }

    #[test]
    fn a_disk_that_is_nearly_full_and_another_cluster_are_told_with_what_to_do() {
        let mut member = v1::MemberHealth {
            id: 2,
            disk_room: Some(v1::DiskRoom {
                free_bytes: 255 << 20,
                total_bytes: 1 << 30,
                short: false,
            }),
            ..v1::MemberHealth::default()
        };
        let told = |member: &v1::MemberHealth| {
            let found = v1::HealthResponse {
                members: vec![member.clone()],
                ..v1::HealthResponse::default()
            };
            health_text(&found, Paint::fixed(false))
        };
        let fine = told(&member);
        assert!(!fine.contains("MiB") && !fine.contains("cluster"), "{fine}");
        member.disk_room.as_mut().unwrap().short = true;
        member.foreigner = Some(v1::Foreigner {
            cluster_id: "ab".to_owned(),
            node_id: 7,
        });
        let told = told(&member);
        for part in [
            "Peer 2 has 255 MiB of 1024 MiB left",
            "docs/runbooks/full-disk.md",
            "Peer 2 has met peer 7 of another cluster, ab",
            "docs/runbooks/two-clusters.md",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn a_cluster_that_is_not_healthy_has_an_exit_code_of_its_own() {
        let found = |healthy| v1::HealthResponse {
            healthy,
            ..v1::HealthResponse::default()
        };
        assert!(is_healthy(&found(true)).is_ok());
        let ends = is_healthy(&found(false)).unwrap_err();
        let value = ends.value();
        assert_eq!(value["error"]["exit_code"], 7, "{value}");
        assert_eq!(value["error"]["kind"], "unhealthy", "{value}");
        assert!(value["error"]["reason"].is_null(), "{value}");
    }

    #[test]
    fn a_cluster_that_is_not_healthy_is_told_with_what_is_wrong() {
        let well = |id| v1::MemberHealth {
            id,
            up: true,
            lag: Some(0),
            healthy_for: Some(prost_types::Duration::default()),
            ..v1::MemberHealth::default()
        };
        let mut members = [1, 2, 3, 4, 5, 6, 7].map(well);
        members[1].up = false;
        (members[2].healthy_for, members[2].lag) = (None, Some(900));
        members[3].vote = v1::Vote::LogCut.into();
        members[4].disk_stalled_for = Some(prost_types::Duration::default());
        (members[5].healthy_for, members[5].lag) = (None, None);
        members[6].foreigner = Some(v1::Foreigner {
            cluster_id: "ab".to_owned(),
            node_id: 1,
        });
        let found = v1::HealthResponse {
            members: members.to_vec(),
            ..v1::HealthResponse::default()
        };
        let said = is_healthy(&found).unwrap_err().message;
        assert_eq!(
            said,
            "the cluster is not healthy: peer 2 is down; peer 3 trails, by 900 entries; peer 4 lost log entries that it \
             had acknowledged; peer 5 has a disk that does not answer; peer 6 cannot follow the log yet; peer 7 has met \
             a peer of another cluster, ab"
        );
    }

    #[test]
    fn members_are_told_apart() {
        let member = |id, leader, asked| v1::Member {
            id,
            leader,
            asked,
            up: asked,
            voter: true,
            peer_address: format!("127.0.0.1:{}", 7_000 + id),
            last_contact: (!asked).then_some(prost_types::Duration {
                seconds: 1,
                nanos: 20_000_000,
            }),
            ..v1::Member::default()
        };
        assert_eq!(
            members_text(
                &[member(1, true, false), member(2, false, true)],
                Paint::fixed(false)
            ),
            "ID  ROLE    UP    PEER_ADDRESS    ADMIN_ADDRESS  MATCHED  LAST_CONTACT\n\
             1   leader  down  127.0.0.1:7001  -              -        1020 ms ago\n\
             2   voter   up    127.0.0.1:7002  -              -        this peer\n"
        );
    }

    #[test]
    fn a_lost_quorum_is_told_with_its_reason() {
        let status = v1::StatusResponse {
            quorum_reason: "no leader".into(),
            ..v1::StatusResponse::default()
        };
        let text = status_text(&status, Paint::fixed(false));
        assert!(text.contains("Quorum     no: no leader\n"), "{text}");
        assert!(text.contains("Leader     none, term 0\n"), "{text}");
    }
}
