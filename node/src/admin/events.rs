//! The service `Events`.

use std::sync::Arc;

use raftserve_model::{LogIndex, ServiceName};
use raftserve_store::State;
use raftserve_store::state::Compacted;
use tonic::{Request, Response, Status};

use super::gate::admitted;
use super::shared::{Shared, service_name};
use super::v1::{self, events_server::Events};
use super::view;
use super::watch::{self, Batches, Page, Watched};

/// How many events are read from the trail in one go.
const EVENTS_READ_MAX: usize = 256;

/// See the module.
pub(super) struct EventsApi(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl Events for EventsApi {
    type WatchStream = Batches<v1::WatchEventsResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (asked, _held) = admitted(request);
        let service = match asked.service_name.as_str() {
            "" => None,
            name => Some(service_name("service_name", name)?),
        };
        watch::begin(&self.0, WatchedEvents { service }, asked.from_index)
    }
}

/// The events of one service, or all.
struct WatchedEvents {
    service: Option<ServiceName>,
}

impl Watched for WatchedEvents {
    type Batch = v1::WatchEventsResponse;

    const WAITING_MAX: usize = 16;

    fn read(&self, state: &State, after: LogIndex) -> Result<Page<Self::Batch>, Compacted> {
        let mut page: Page<Self::Batch> = Page {
            batches: Vec::new(),
            read_upto: None,
        };
        let mut last = None;
        for (count, event) in state.events_after(after)?.enumerate() {
            if count >= EVENTS_READ_MAX && last != Some(event.index) {
                page.read_upto = last;
                break;
            }
            last = Some(event.index);
            let wanted = self.service.as_ref();
            if wanted.is_some() && event.service.as_ref() != wanted {
                continue;
            }
            let shown = view::event(event);
            match page.batches.last_mut() {
                Some((index, batch)) if *index == event.index => batch.events.push(shown),
                _ => page.batches.push((
                    event.index,
                    v1::WatchEventsResponse {
                        log_index: event.index.0,
                        events: vec![shown],
                    },
                )),
            }
        }
        Ok(page)
    }

    fn bookmark(index: LogIndex) -> Self::Batch {
        v1::WatchEventsResponse {
            log_index: index.0,
            events: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
