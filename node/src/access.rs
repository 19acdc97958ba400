//! Who may speak to a peer: the certificates by which peers know each other and clients know a peer, the credentials
//! that clients show, and what each role may do.
//!
//! What is read from files is read again when they change, without a restart. What cannot be used changes nothing, is
//! told and counted.

pub mod certificates;

mod accounts;
mod credentials;
mod digest;
mod login;
mod password;
mod role;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use accounts::{BadLine, Problem, Subject};
pub use certificates::{AccessError, Certificates};
pub use credentials::{Credentials, CredentialsError, LOGIN_LIFETIME, Login, Unknown};
pub use login::{LoginSecret, Realm, SECRET_BYTES, UnixSeconds};
pub use password::PasswordHashError;
pub use role::{Need, NoSuchRole, Role, is_stream, needed};
pub(crate) use stream::{ReadSide, Stream, WriteSide};

/// How often files are looked at. Kubernetes itself needs up to a minute to bring a changed Secret.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at the files of both until `shutdown`.
pub async fn watch(
    certificates: Option<Arc<Certificates>>,
    credentials: Option<Arc<Credentials>>,
    shutdown: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        let (certificates, credentials) = (certificates.clone(), credentials.clone());
        // It reads files. If it panics, what was read before stays.
        let _ = tokio::task::spawn_blocking(move || {
            certificates.iter().for_each(|it| it.refresh());
            credentials.iter().for_each(|it| it.refresh());
        })
        .await;
    }
}
