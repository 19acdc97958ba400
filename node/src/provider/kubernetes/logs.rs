//! A replica's output, by way of the API server.

use bytes::Bytes;
use futures_util::{AsyncReadExt, StreamExt, stream};
use kube::api::LogParams;

use super::{Site, labels};
use crate::provider::{LogQuery, LogStream, ProviderError, ReplicaKey};

/// The most bytes of one piece.
const PIECE_BYTES: usize = 16 << 10;

/// Of `setup` and `run` alike. There is none of a pod that is gone.
pub(super) async fn logs(
    site: &Site,
    replica: &ReplicaKey,
    query: LogQuery,
) -> Result<LogStream, ProviderError> {
    let params = LogParams {
        container: Some(labels::CONTAINER.to_owned()),
        follow: query.follow,
        tail_lines: query.tail.map(i64::from),
        ..LogParams::default()
    };
    let opened = site
        .pods()
        .log_stream(&site.name_of(replica), &params)
        .await;
    let output = match opened {
        Ok(output) => output,
        // Of a pod that is gone, or whose container was not started yet.
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404) => {
            return Err(ProviderError::Unknown(replica.clone()));
        }
        Err(error) => return Err(site.unavailable("read a pod's output", &error)),
    };
    let pieces = stream::unfold(Box::pin(output), |mut output| async move {
        let mut piece = vec![0; PIECE_BYTES];
        match output.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Bytes::from(piece)), output))
            }
            Err(error) => Some((Err(error), output)),
        }
    });
    // A reader stops at the first error; so does this.
    let mut failed = false;
    Ok(pieces
        .take_while(move |piece| {
            let go_on = !failed;
            failed = piece.is_err();
            std::future::ready(go_on)
        })
        .boxed())
}
