//! The service `Logs`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use raftserve_model::ReplicaId;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status};

use super::errors::{self, Reason};
use super::gate::admitted;
use super::shared::{Shared, find};
use super::v1::{self, logs_server::Logs};
use crate::provider::{LogQuery, LogStream, ProviderError, ReplicaKey};

/// The most lines before the end that may be asked for: the kept output rarely has more, and finding
/// the place means reading back that far.
const TAIL_LINES_MAX: u32 = 1_000_000;

/// The most bytes in one message, so that a large piece does not exceed a client's limit.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// See the module.
pub(super) struct LogsApi(pub(super) Arc<Shared>);

type Pieces = BoxStream<'static, Result<v1::StreamLogsResponse, Status>>;

#[tonic::async_trait]
impl Logs for LogsApi {
    type StreamStream = Pieces;

    async fn stream(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<Pieces>, Status> {
        let (asked, _held) = admitted(request);
        if asked.tail_lines.is_some_and(|lines| lines > TAIL_LINES_MAX) {
            let problem = format!("must be at most {TAIL_LINES_MAX}");
            return Err(errors::invalid_request("tail_lines", problem));
        }
        let permit = self.0.admit_stream()?;
        // Stale: a replica that this peer has heard of has its logs, and logs are wanted most when
        // there is no quorum.
        let state = self.0.parts.consensus.state();
        let service = find(&state, "service_name", &asked.service_name)?;
        let id = ReplicaId {
            service: service.id,
            number: asked.replica_id,
        };
        let replica = ReplicaKey {
            name: service.name.clone(),
            id,
        };
        let query = LogQuery {
            follow: asked.follow,
            tail: asked.tail_lines,
        };
        let provider = &self.0.parts.provider;
        // The output of a replica that is gone may still be there; so look before refusing.
        let output =
            provider
                .logs(&replica, query)
                .await
                .map_err(|error| match state.replica(id) {
                    None => errors::no_such_replica(&service.name, asked.replica_id),
                    Some(found)
                        if !service.spec_of(found.launched_as).provider.makes_replicas() =>
                    {
                        nobodys(&replica)
                    }
                    Some(_) => no_output(&replica, &error),
                })?;
        let closing = self.0.closing.clone().cancelled_owned();
        Ok(Response::new(
            pieces(output, permit).take_until(closing).boxed(),
        ))
    }
}

/// Of a replica that is there without us.
fn nobodys(replica: &ReplicaKey) -> Status {
    let (number, name) = (replica.id.number, &replica.name);
    Reason::NoOutput.status_with(
        format!(
            "replica {number} of service {name} is static: nobody here runs it, and its output is where it runs"
        ),
        [
            ("service", name.to_string()),
            ("replica", number.to_string()),
        ],
    )
}

fn no_output(replica: &ReplicaKey, error: &ProviderError) -> Status {
    let (number, name) = (replica.id.number, &replica.name);
    let metadata = [
        ("service", name.to_string()),
        ("replica", number.to_string()),
    ];
    match error {
        ProviderError::Unknown(_) => Reason::NoOutput.status_with(
            format!("replica {number} of service {name} has written nothing yet"),
            metadata,
        ),
        ProviderError::Tombstoned(_)
        | ProviderError::TakenOver { .. }
        | ProviderError::Create { .. }
        | ProviderError::Stop { .. }
        | ProviderError::Unavailable { .. }
        | ProviderError::Io { .. } => Reason::NoOutput.status_with(
            format!("the output of replica {number} of service {name} cannot be read: {error}"),
            metadata,
        ),
    }
}

/// The output in messages. The reader is polled only as fast as the client reads, so nothing piles up.
fn pieces(output: LogStream, permit: OwnedSemaphorePermit) -> Pieces {
    output
        .flat_map(move |read| {
            let _held = &permit;
            futures_util::stream::iter(split(read))
        })
        .boxed()
}

fn split(read: io::Result<Bytes>) -> Vec<Result<v1::StreamLogsResponse, Status>> {
    let mut bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => {
            let message = format!("the output could not be read on: {error}");
            return vec![Err(Reason::Internal.status(message))];
        }
    };
    let mut messages = Vec::with_capacity(bytes.len().div_ceil(PIECE_BYTES_MAX));
    while !bytes.is_empty() {
        let data = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
        messages.push(Ok(v1::StreamLogsResponse { data }));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_are_split_and_nothing_is_lost() {
        let bytes = Bytes::from((0..200_000_u32).map(|n| n as u8).collect::<Vec<_>>());
        let messages = split(Ok(bytes.clone()));
        assert_eq!(messages.len(), 4);
        let joined: Vec<u8> = messages
            .into_iter()
            .flat_map(|one| one.unwrap().data)
            .collect();
        assert_eq!(joined, bytes);
        assert!(split(Err(io::Error::other("x")))[0].is_err());
    }
}
