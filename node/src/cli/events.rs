//! `raftserve events`. A stream that breaks is resumed on the next peer, after the last index seen.

use tonic::{Response, Status, Streaming};

use super::args::{EventsArgs, Format};
use super::connect::{Link, Servers};
use super::failure::{Exit, Failure};
use super::paint::{Paint, Tone, status_tone};
use super::resume::Breaks;
use super::{fetch, output, shape};
use crate::admin::v1;
use crate::admin::v1::events_client::EventsClient;

/// Runs the verb.
pub(super) async fn run(args: EventsArgs) -> Result<(), Failure> {
    let watched = follow(args).await;
    watched
        .map_err(|failure| failure.if_compacted("`raftserve status -v` shows what there is by now"))
}

async fn follow(args: EventsArgs) -> Result<(), Failure> {
    let mut servers = Servers::new(&args.target)?;
    let mut request = v1::WatchEventsRequest {
        from_index: Some(args.from.unwrap_or(0)),
        service_name: args.name.clone().unwrap_or_default(),
    };
    let mut breaks = Breaks::default();
    let mut unseen = args.name.as_deref();
    loop {
        let mut stream = servers
            .ask(|channel| watch(channel, request.clone()))
            .await?;
        let ended = loop {
            match stream.message().await {
                Ok(Some(batch)) => {
                    breaks.mended();
                    request.from_index = Some(batch.log_index + 1);
                    // The first message without events says that all that is kept has been sent.
                    if let Some(name) = unseen.take()
                        && batch.events.is_empty()
                    {
                        check_exists(&mut servers, name, args.no_follow).await?;
                    }
                    if batch.events.is_empty() && args.no_follow {
                        return Ok(());
                    }
                    print(&batch, args.output.output)?;
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        breaks.broken(ended.as_ref(), &mut servers)?;
    }
}

/// Says that a service of which nothing is kept does not exist, if so: it may yet come.
///
/// # Errors
/// The same, where nobody waits for it.
async fn check_exists(servers: &mut Servers, name: &str, no_follow: bool) -> Result<(), Failure> {
    match fetch::service(servers, name).await {
        Err(missing) if missing.exit == Exit::NotFound && !no_follow => {
            eprintln!("{}; waiting for it to come", missing.message);
            Ok(())
        }
        found => found.map(drop),
    }
}

async fn watch(
    channel: Link,
    request: v1::WatchEventsRequest,
) -> Result<Response<Streaming<v1::WatchEventsResponse>>, Status> {
    EventsClient::new(channel).watch(request).await
}

fn print(batch: &v1::WatchEventsResponse, format: Format) -> Result<(), Failure> {
    let paint = Paint::of(&std::io::stdout());
    for event in &batch.events {
        let value = shape::event(batch.log_index, event);
        output::print_one(format, &value, || line(batch.log_index, event, paint))?;
    }
    Ok(())
}

fn line(index: u64, event: &v1::Event, paint: Paint) -> String {
    let time = event.time.map(|time| time.to_string()).unwrap_or_default();
    let mut words = vec![paint.tone(Tone::Faint, &time), format!("{index:>6}")];
    if !event.service_name.is_empty() {
        words.push(event.service_name.clone());
    }
    if event.replica_id > 0 {
        words.push(format!("replica {}", event.replica_id));
    }
    if event.node_id > 0 {
        words.push(format!("peer {}", event.node_id));
    }
    let tone = match event.replica_status() {
        v1::ReplicaStatus::Unspecified => Tone::Strong,
        _ => status_tone(&event.kind),
    };
    words.push(paint.tone(tone, &event.kind));
    if event.version > 0 {
        words.push(format!("version {}", event.version));
    }
    let mut line = words.join("  ");
    if !event.reason.is_empty() {
        line.push_str(": ");
        line.push_str(&event.reason.replace(char::is_control, " "));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = v1::Event {
            time: Some(prost_types::Timestamp {
                seconds: 0,
                nanos: 5_000_000,
            }),
            service_name: "web".into(),
            replica_id: 2,
            kind: "FAILED".into(),
            replica_status: v1::ReplicaStatus::Failed.into(),
            reason: "run exited\nwith 1".into(),
            ..v1::Event::default()
        };
        assert_eq!(
            line(12, &event, Paint::fixed(false)),
            "1970-01-01T00:00:00.005Z      12  web  replica 2  FAILED: run exited with 1\n"
        );
    }
}
