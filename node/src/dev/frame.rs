//! The live view: what was seen, as the lines of a frame. Pure.

use super::fleet::PeerPhase;
use super::observation::{Observation, PeerSeen, replica_status, service_status};
use super::ports::Block;
use super::screen::Line;
use super::tally::{Requests, Tally};
use crate::admin::v1;
use crate::cli::paint::{Tone, status_tone};

/// How many replicas are shown; the rest is counted.
const REPLICAS_MAX: usize = 20;

/// How many services are shown; the rest is counted.
const SERVICES_MAX: usize = 10;

/// What lies between two columns.
const GAP: usize = 2;

/// The frame for what was seen of the peers at `blocks`.
pub(super) fn frame(
    seen: &Observation,
    blocks: &[Block],
    tally: Option<&Tally>,
    stopping: bool,
) -> Vec<Line> {
    let mut lines = vec![Line::default(), headline(seen, stopping), Line::default()];
    lines.extend(peers(seen, blocks));
    lines.push(Line::default());
    lines.extend(services(seen, blocks));
    if !seen.replicas.is_empty() {
        lines.push(Line::default());
        lines.extend(replicas(seen));
    }
    if let Some(tally) = tally {
        lines.push(Line::default());
        lines.extend(traffic(tally));
    }
    lines
}

fn headline(seen: &Observation, stopping: bool) -> Line {
    let leader = match seen.leader() {
        Some(leader) => (Tone::Good, format!("peer {leader} leads")),
        None => (Tone::Bad, "no peer leads".to_owned()),
    };
    let hint = match stopping {
        true => "stopping; Ctrl-C again stops at once",
        false => "Ctrl-C stops everything",
    };
    Line(vec![
        (Tone::Strong, "raftserve dev".to_owned()),
        (Tone::Plain, " · ".to_owned()),
        leader,
        (Tone::Plain, " · ".to_owned()),
        (Tone::Faint, hint.to_owned()),
    ])
}

type Cell = (Tone, String);

fn cell(tone: Tone, text: impl ToString) -> Cell {
    (tone, text.to_string())
}

fn peers(seen: &Observation, blocks: &[Block]) -> Vec<Line> {
    let heads = [
        "PEER",
        "PROCESS",
        "STATE",
        "ROLE",
        "TERM",
        "APPLIED",
        "EVERY SERVICE",
        "ADMIN",
    ];
    let leader = seen.leader();
    let rows = seen.peers.iter().zip(blocks).map(|(peer, block)| {
        let (tone, state) = peer_state(peer);
        let pid = match peer.phase {
            PeerPhase::Running { pid } => pid.to_string(),
            PeerPhase::Killed | PeerPhase::Ended | PeerPhase::Stopped | PeerPhase::Removed => {
                "-".to_owned()
            }
        };
        let role = match (leader == Some(peer.number), &peer.answer) {
            (true, _) => "leader",
            (false, Some(_)) => "follower",
            (false, None) => "-",
        };
        let number = |value: fn(&PeerSeen) -> Option<u64>| {
            value(peer).map_or("-".to_owned(), |value| value.to_string())
        };
        vec![
            cell(Tone::Plain, peer.number),
            cell(Tone::Faint, pid),
            cell(tone, state),
            cell(Tone::Plain, role),
            cell(Tone::Plain, number(|peer| Some(peer.answer.as_ref()?.term))),
            cell(
                Tone::Plain,
                number(|peer| Some(peer.answer.as_ref()?.applied)),
            ),
            cell(Tone::Plain, format!("http://{}", block.proxy())),
            cell(Tone::Faint, block.admin()),
        ]
    });
    table(&heads, rows.collect())
}

fn peer_state(peer: &PeerSeen) -> (Tone, &'static str) {
    match (peer.phase, &peer.answer) {
        (PeerPhase::Killed, _) => (Tone::Bad, "killed"),
        (PeerPhase::Ended, _) => (Tone::Bad, "ended"),
        (PeerPhase::Stopped, _) => (Tone::Faint, "stopped"),
        (PeerPhase::Removed, _) => (Tone::Faint, "removed"),
        (PeerPhase::Running { .. }, None) => (Tone::Busy, "starting"),
        (PeerPhase::Running { .. }, Some(answer)) => match (answer.ready, answer.quorum) {
            (false, _) => (Tone::Busy, "catching up"),
            (true, true) => (Tone::Good, "ready"),
            (true, false) => (Tone::Busy, "ready, no quorum"),
        },
    }
}

fn services(seen: &Observation, blocks: &[Block]) -> Vec<Line> {
    if seen.services.is_empty() {
        return vec![Line::of(Tone::Faint, "no service yet")];
    }
    let heads = [
        "SERVICE",
        "VERSION",
        "STATUS",
        "REPLICAS",
        "POLICY",
        "ENDPOINTS",
    ];
    let rows = seen.services.iter().take(SERVICES_MAX).map(|service| {
        let status = service_status(service);
        vec![
            cell(Tone::Strong, &service.name),
            cell(Tone::Plain, service.version),
            cell(status_tone(status), status),
            cell(
                Tone::Plain,
                format!("{}/{}", service.ready_replicas, service.live_replicas),
            ),
            cell(Tone::Plain, &service.load_balancing_policy),
            cell(Tone::Plain, endpoints(seen, service, blocks)),
        ]
    });
    let mut lines = table(&heads, rows.collect());
    lines.extend(more(seen.services.len(), SERVICES_MAX));
    lines
}

/// The first URL in full, of the others only the port.
fn endpoints(seen: &Observation, service: &v1::Service, blocks: &[Block]) -> String {
    let Some(urls) = seen.endpoints(service, blocks) else {
        return format!("/{}/ on each peer", service.name);
    };
    let ports = urls.iter().filter_map(|url| url.rsplit_once(':'));
    let others: String = ports.skip(1).map(|(_, port)| format!(" :{port}")).collect();
    format!("{}{others}", urls.first().map_or("-", String::as_str))
}

fn replicas(seen: &Observation) -> Vec<Line> {
    let heads = ["REPLICA", "VERSION", "STATUS", "ENDPOINT", ""];
    let rows = seen.replicas.iter().take(REPLICAS_MAX).map(|replica| {
        let status = replica_status(replica);
        vec![
            cell(Tone::Plain, replica_name(replica)),
            cell(Tone::Plain, replica.version),
            cell(status_tone(status), status),
            cell(Tone::Plain, &replica.endpoint),
            cell(Tone::Faint, one_line(&replica.reason)),
        ]
    });
    let mut lines = table(&heads, rows.collect());
    lines.extend(more(seen.replicas.len(), REPLICAS_MAX));
    lines
}

fn replica_name(replica: &v1::Replica) -> String {
    format!("{} {}", replica.service_name, replica.id)
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

fn more(all: usize, shown: usize) -> Option<Line> {
    let rest = all.checked_sub(shown).filter(|rest| *rest > 0)?;
    Some(Line::of(Tone::Faint, format!("and {rest} more")))
}

fn traffic(tally: &Tally) -> Vec<Line> {
    if tally.kill_every.is_zero() {
        let text = "chaos     begins once the service is up";
        return vec![Line::of(Tone::Faint, text)];
    }
    let mut lines = vec![Line::of(
        Tone::Plain,
        format!(
            "chaos     a random peer is killed every {:?}; {} killed so far",
            tally.kill_every, tally.kills
        ),
    )];
    let requests = |name: &str, requests: &Requests| {
        Line::of(zero_is_good(requests.failed), format!("{name}{requests}"))
    };
    lines.push(requests("requests  ", &tally.plain));
    match &tally.sessions {
        Some(sessions) => {
            lines.push(requests("  with session  ", &tally.in_session));
            let text = format!("sessions  {sessions}");
            lines.push(Line::of(zero_is_good(sessions.moved), text));
        }
        None => lines.push(Line::of(
            Tone::Faint,
            "sessions  the service has no session affinity (_metadata.raftserve.session_affinity)",
        )),
    }
    if let Some(why) = &tally.last_failure {
        let text = format!("last failure: {}", one_line(why));
        lines.push(Line::of(Tone::Bad, text));
    }
    lines
}

fn zero_is_good(count: u64) -> Tone {
    match count {
        0 => Tone::Good,
        _ => Tone::Bad,
    }
}

/// Heads and rows in columns that are as wide as their widest cell.
fn table(heads: &[&str], rows: Vec<Vec<Cell>>) -> Vec<Line> {
    let head = heads.iter().map(|head| cell(Tone::Faint, head)).collect();
    let rows: Vec<Vec<Cell>> = std::iter::once(head).chain(rows).collect();
    let length = |(_, text): &Cell| text.chars().count();
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| {
            rows.iter()
                .map(|row| length(&row[column]))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let pad = |row: Vec<Cell>| {
        let cells = row.into_iter().zip(&widths).map(|((tone, text), width)| {
            let width = width + GAP;
            (tone, format!("{text:width$}"))
        });
        Line(cells.collect())
    };
    rows.into_iter().map(pad).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::observation::PeerAnswer;
    use super::super::tally::SessionTally;
    use super::*;

    fn seen() -> Observation {
        let peer = |number: u16, phase, answers: bool| PeerSeen {
            number,
            phase,
            answer: answers.then_some(PeerAnswer {
                node_id: u64::from(number),
                term: 2,
                leader_id: 2,
                quorum: true,
                ready: true,
                applied: 41,
            }),
        };
        Observation {
            peers: vec![
                peer(1, PeerPhase::Killed, false),
                peer(2, PeerPhase::Running { pid: 77 }, true),
                peer(3, PeerPhase::Running { pid: 78 }, true),
            ],
            services: vec![v1::Service {
                name: "web".to_owned(),
                version: 3,
                status: v1::ServiceStatus::Ready.into(),
                ready_replicas: 1,
                live_replicas: 2,
                endpoint: "http://127.0.0.1:30101".to_owned(),
                ..Default::default()
            }],
            replicas: (1..=22)
                .map(|id| v1::Replica {
                    service_name: "web".to_owned(),
                    id,
                    status: v1::ReplicaStatus::Starting.into(),
                    reason: "a\x1b[31mb".to_owned(),
                    ..Default::default()
                })
                .collect(),
            told_by: 2,
        }
    }

    fn text(lines: &[Line]) -> String {
        let lines = lines.iter().map(|line| line.render(200, false));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn frame_tells_who_leads_who_is_down_and_what_serves() {
        let blocks = [1, 2, 3].map(Block::default_of);
        let text = text(&frame(&seen(), &blocks, None, false));
        assert!(text.contains("peer 2 leads"), "{text}");
        let row = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(row("1 ").contains("killed"), "{text}");
        assert!(
            row("2 ").contains("77") && row("2 ").contains("leader"),
            "{text}"
        );
        assert!(
            row("3 ").contains("follower") && row("3 ").contains("8280"),
            "{text}"
        );
        assert!(
            row("web  ").contains("READY") && row("web  ").contains("1/2"),
            "{text}"
        );
        assert!(
            row("web  ").contains("http://127.0.0.1:30001 :30101 :30201"),
            "{text}"
        );
        assert!(text.contains("and 2 more"), "{text}");
        assert!(
            !text.contains('\x1b'),
            "a reason may not command the terminal: {text:?}"
        );
    }

    #[test]
    fn counts_are_green_only_while_they_are_zero() {
        let mut tally = Tally {
            kill_every: Duration::from_secs(10),
            sessions: Some(SessionTally::default()),
            ..Default::default()
        };
        let tones = |tally: &Tally| -> Vec<Tone> {
            traffic(tally).iter().map(|line| line.0[0].0).collect()
        };
        assert!(!tones(&tally).contains(&Tone::Bad));
        tally.plain.failed = 1;
        tally.sessions = Some(SessionTally {
            moved: 1,
            ..Default::default()
        });
        let bad = tones(&tally)
            .iter()
            .filter(|tone| **tone == Tone::Bad)
            .count();
        assert_eq!(bad, 2);
        assert!(text(&traffic(&tally)).contains("1 moved"));
    }
}
