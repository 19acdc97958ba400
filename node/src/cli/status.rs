//! `raftserve status`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::args::{Format, StatusArgs};
use super::connect::Servers;
use super::durations::brief;
use super::failure::{Exit, Failure};
use super::kubectl::Release;
use super::paint::{Paint, Tone, status_tone};
use super::table::Table;
use super::{fetch, output, shape};
use crate::admin::v1;

/// How many replicas are shown without -v, as `sky serve status` does.
const REPLICAS_SHOWN: usize = 10;

/// Runs the verb.
#[expect(
    clippy::disallowed_methods,
    reason = "shows the age of times that a leader's wall clock gave"
)]
pub(super) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let mut servers = Servers::new(&args.target)?;
    let all = fetch::services(&mut servers, args.stale).await?;
    let mut services = fetch::select(all, &args.names)?;
    let release = servers.release();
    let entrance = release.and_then(Release::entrance);
    for service in &mut services {
        let outside = entrance
            .as_ref()
            .and_then(|entrance| entrance.url(&service.name, &service.endpoint));
        service.endpoint = outside.unwrap_or_else(|| std::mem::take(&mut service.endpoint));
    }
    if args.endpoint {
        if let (Some(release), Some(entrance)) = (release, &entrance)
            && entrance.inside_only
        {
            eprintln!(
                "Only pods come in there; from here: {} PORT",
                release.forwarding()
            );
        }
        return print_endpoint(&services, args.output.output);
    }
    let name = match services.as_slice() {
        [only] if !args.names.is_empty() => only.name.as_str(),
        _ => "",
    };
    let replicas = match services.is_empty() {
        true => Vec::new(),
        false => fetch::replicas(&mut servers, name, args.stale).await?,
    };
    let of = |service: &v1::Service| -> Vec<&v1::Replica> {
        let mine = |replica: &&v1::Replica| replica.service_id == service.id;
        replicas.iter().filter(mine).collect()
    };
    let shown: Vec<_> = services
        .iter()
        .map(|service| shape::service(service, &of(service)))
        .collect();
    output::print(args.output.output, &json!({ "services": shown }), || {
        let rows: Vec<&v1::Replica> = services.iter().flat_map(of).collect();
        let view = View {
            paint: Paint::of(&std::io::stdout()),
            now: SystemTime::now(),
            verbose: args.verbose,
        };
        view.text(&services, &rows)
    })
}

fn print_endpoint(services: &[v1::Service], format: Format) -> Result<(), Failure> {
    let [service] = services else {
        return Err(
            Failure::usage("--endpoint needs exactly one service").remedy(match services {
                [] => "there is none yet: `raftserve up YAML` brings one up".to_owned(),
                some => {
                    let names: Vec<_> = some.iter().map(|one| one.name.as_str()).collect();
                    format!("name one of {}", names.join(", "))
                }
            }),
        );
    };
    if service.endpoint.is_empty() {
        let message = format!("service {} has no port of its own", service.name);
        return Err(Failure::new(Exit::NotFound, message).remedy(format!(
            "reach it at the proxy port of any peer, by host name or under /{}/",
            service.name
        )));
    }
    let value = json!({ "name": service.name, "endpoint": service.endpoint });
    output::print(format, &value, || format!("{}\n", service.endpoint))
}

/// How statuses are shown to people.
struct View {
    paint: Paint,
    now: SystemTime,
    verbose: bool,
}

impl View {
    fn text(&self, services: &[v1::Service], replicas: &[&v1::Replica]) -> String {
        let title = |text: &str| self.paint.tone(Tone::Strong, text);
        if services.is_empty() {
            return "No services. `raftserve up YAML` brings one up.\n".to_owned();
        }
        let mut text = format!(
            "{}\n{}",
            title("Services"),
            self.services(services, replicas)
        );
        let mut hindered: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for service in services.iter().filter(|it| !it.hindrance.is_empty()) {
            let names = hindered.entry(&service.hindrance).or_default();
            names.push(&service.name);
        }
        for (hindrance, names) in hindered {
            text.push_str(&format!("\n{}: {hindrance}\n", names.join(", ")));
        }
        text.push_str(&format!("\n{}\n", title("Service Replicas")));
        if replicas.is_empty() {
            text.push_str("No replicas.\n");
            return text;
        }
        let shown = match self.verbose {
            true => replicas.len(),
            false => replicas.len().min(REPLICAS_SHOWN),
        };
        text.push_str(&self.replicas(&replicas[..shown]));
        let hidden = replicas.len() - shown;
        if hidden > 0 {
            text.push_str(&format!(
                "... and {hidden} more (use --verbose to show all)\n"
            ));
        }
        text
    }

    fn services(&self, services: &[v1::Service], replicas: &[&v1::Replica]) -> String {
        let mut headings = vec![
            "NAME", "VERSION", "UPTIME", "STATUS", "REPLICAS", "ENDPOINT",
        ];
        if self.verbose {
            headings.extend([
                "AUTOSCALING_POLICY",
                "LOAD_BALANCING_POLICY",
                "REQUESTED_RESOURCES",
                "SESSION_AFFINITY",
            ]);
        }
        let mut table = Table::new(headings);
        for service in services {
            table.row(self.service_row(service, replicas));
        }
        table.render(self.paint)
    }

    fn service_row(&self, service: &v1::Service, replicas: &[&v1::Replica]) -> Vec<(String, Tone)> {
        let plain = |text: String| (text, Tone::Plain);
        let status = shape::service_status(service);
        let uptime = self.since(service.first_ready_at.as_ref());
        let mut row = vec![
            plain(service.name.clone()),
            plain(versions(service, replicas)),
            plain(uptime.map(brief).unwrap_or_default()),
            (status.to_owned(), status_tone(status)),
            plain(format!(
                "{}/{}",
                service.ready_replicas, service.live_replicas
            )),
            plain(service.endpoint.clone()),
        ];
        if self.verbose {
            let fixed = match service.wanted_replicas {
                1 => "Fixed 1 replica".to_owned(),
                many => format!("Fixed {many} replicas"),
            };
            row.extend([
                plain(fixed),
                plain(service.load_balancing_policy.clone()),
                plain(service.requested_resources.clone()),
                plain(service.session_affinity.clone()),
            ]);
        }
        row
    }

    fn replicas(&self, replicas: &[&v1::Replica]) -> String {
        let mut headings = vec![
            "SERVICE_NAME",
            "ID",
            "VERSION",
            "ENDPOINT",
            "LAUNCHED",
            "INFRA",
            "RESOURCES",
            "STATUS",
        ];
        if self.verbose {
            headings.push("REASON");
        }
        let mut table = Table::new(headings);
        for replica in replicas {
            let plain = |text: String| (text, Tone::Plain);
            let status = shape::replica_status(replica);
            let launched = self.since(replica.launched_at.as_ref());
            let mut row = vec![
                plain(replica.service_name.clone()),
                plain(replica.id.to_string()),
                plain(replica.version.to_string()),
                plain(replica.endpoint.clone()),
                plain(
                    launched
                        .map(|ago| format!("{} ago", brief(ago)))
                        .unwrap_or_default(),
                ),
                plain(replica.infra.clone()),
                plain(replica.resources.clone()),
                (status.to_owned(), status_tone(status)),
            ];
            if self.verbose {
                row.push(plain(replica.reason.clone()));
            }
            table.row(row);
        }
        table.render(self.paint)
    }

    /// How long ago `time` was; zero if clocks disagree.
    fn since(&self, time: Option<&prost_types::Timestamp>) -> Option<Duration> {
        let time = SystemTime::try_from(*time?).ok()?;
        Some(self.now.duration_since(time).unwrap_or_default())
    }
}

/// Each version with a ready replica, and the newest if it is not among them: it is on its way, or has failed.
fn versions(service: &v1::Service, replicas: &[&v1::Replica]) -> String {
    let active = &service.active_versions;
    let active: Vec<String> = active.iter().map(ToString::to_string).collect();
    let text = active.join(",");
    let newest = service.version;
    if active.is_empty() || service.active_versions.contains(&newest) {
        return text;
    }
    let mine = |it: &&&v1::Replica| it.service_id == service.id && it.version == newest;
    let mut of_newest = replicas.iter().filter(mine).peekable();
    let is_failed = of_newest.peek().is_some() && of_newest.all(|it| shape::is_failed(it.status()));
    match is_failed {
        true => format!("{text} ({newest} failed)"),
        false => format!("{text} ({newest} coming)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn web() -> v1::Service {
        v1::Service {
            name: "web".into(),
            id: 7,
            version: 2,
            active_versions: vec![1, 2],
            status: v1::ServiceStatus::Ready.into(),
            ready_replicas: 2,
            live_replicas: 3,
            wanted_replicas: 3,
            first_ready_at: at(1_000),
            endpoint: "http://127.0.0.1:30001".into(),
            load_balancing_policy: "least_load".into(),
            ..v1::Service::default()
        }
    }

    fn replica(id: u32) -> v1::Replica {
        v1::Replica {
            service_name: "web".into(),
            service_id: 7,
            id,
            version: 2,
            status: v1::ReplicaStatus::Starting.into(),
            launched_at: at(1_030),
            infra: "process".into(),
            reason: "because".into(),
            ..v1::Replica::default()
        }
    }

    fn view(verbose: bool) -> View {
        View {
            paint: Paint::fixed(false),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_065),
            verbose,
        }
    }

    #[test]
    fn columns_are_those_of_sky_serve() {
        assert_eq!(
            view(false).text(&[web()], &[&replica(1)]),
            "Services\n\
             NAME  VERSION  UPTIME  STATUS  REPLICAS  ENDPOINT\n\
             web   1,2      1m 5s   READY   2/3       http://127.0.0.1:30001\n\
             \n\
             Service Replicas\n\
             SERVICE_NAME  ID  VERSION  ENDPOINT  LAUNCHED  INFRA    RESOURCES  STATUS\n\
             web           1   2        -         35s ago   process  -          STARTING\n"
        );
    }

    #[test]
    fn a_newest_version_that_does_not_serve_is_told() {
        let shown = |replicas: &[(u32, v1::ReplicaStatus)]| {
            let updated = v1::Service {
                version: 3,
                active_versions: vec![2],
                ..web()
            };
            let replica = |(version, status): &(u32, v1::ReplicaStatus)| v1::Replica {
                version: *version,
                status: (*status).into(),
                ..replica(1)
            };
            let replicas: Vec<_> = replicas.iter().map(replica).collect();
            versions(&updated, &replicas.iter().collect::<Vec<_>>())
        };
        use v1::ReplicaStatus::{Failed, Ready, Starting};
        assert_eq!(shown(&[(2, Ready), (3, Failed)]), "2 (3 failed)");
        assert_eq!(
            shown(&[(2, Ready), (3, Failed), (3, Starting)]),
            "2 (3 coming)"
        );
        assert_eq!(shown(&[(2, Ready)]), "2 (3 coming)");
        assert_eq!(versions(&web(), &[]), "1,2");
    }

    #[test]
    fn what_hinders_all_services_is_told_once() {
        let hindered = v1::Service {
            hindrance: "replicas cannot be made: no answer".into(),
            ..web()
        };
        let text = view(false).text(&[hindered.clone(), hindered], &[]);
        let told = "\nweb, web: replicas cannot be made: no answer\n";
        assert_eq!(text.matches(told).count(), 1, "{text}");
        assert!(!view(false).text(&[web()], &[]).contains("cannot be made"));
    }

    #[test]
    fn ten_replicas_are_shown_unless_all_are_asked_for() {
        let replicas: Vec<_> = (1..=12).map(replica).collect();
        let refs: Vec<_> = replicas.iter().collect();
        let brief = view(false).text(&[web()], &refs);
        assert!(
            brief.ends_with("... and 2 more (use --verbose to show all)\n"),
            "{brief}"
        );
        assert!(!brief.contains("because"));
        let whole = view(true).text(&[web()], &refs);
        assert!(whole.contains("web           12  "), "{whole}");
        assert!(whole.contains("because") && whole.contains("least_load"));
    }
}
