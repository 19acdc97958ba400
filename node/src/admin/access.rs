//! The service `Access`.

use std::sync::Arc;

use raftserve_store::command::Request as Asked;
use raftserve_store::state::KvCondition;
use tonic::{Request, Response, Status};

use super::door::{Door, SECRET_KEY, unknown};
use super::errors::{self, Reason};
use super::gate::admitted;
use super::shared::Shared;
use super::v1::{self, access_server::Access};
use crate::access::{LoginSecret, Realm, Role, SECRET_BYTES, Subject};
use crate::clock;

/// How much is logged of a name that could not log in, in characters.
const SHOWN_MAX: usize = 64;

/// The longest password that is looked at. bcrypt looks at 72 bytes.
const PASSWORD_BYTES_MAX: usize = 1_024;

/// See the module.
pub(super) struct AccessApi {
    shared: Arc<Shared>,
    door: Option<Arc<Door>>,
}

impl AccessApi {
    pub(super) fn new(shared: Arc<Shared>, door: Option<Arc<Door>>) -> Self {
        Self { shared, door }
    }
}

/// Where tokens are good. Sees to it that the cluster has a secret: whoever needs it first draws it, and what the log
/// took first is everybody's.
///
/// # Errors
/// `UNAVAILABLE` if the cluster cannot agree now.
pub(super) async fn realm(shared: &Shared, door: &Door) -> Result<Realm, Status> {
    if let Some(realm) = door.realm() {
        return Ok(realm);
    }
    let drawn: [u8; SECRET_BYTES] = rand::random();
    let put = Asked::PutKey {
        key: SECRET_KEY.parse().expect("a legal key"),
        value: Arc::from(drawn),
        condition: KvCondition::Absent,
    };
    match shared.proposer.execute_at_most_once(put).await {
        Ok(_) => {}
        // Another peer was first.
        Err(status) if Reason::of(&status) == Some(Reason::KeyConflict) => {}
        Err(status) => return Err(status),
    }
    // Whatever the log took first, and not what was drawn here.
    let (state, _) = shared
        .read(
            false,
            "the login secret cannot be read, so nobody was logged in",
        )
        .await?;
    let secret = state
        .key(SECRET_KEY)
        .map(|entry| LoginSecret::read(&entry.value));
    match secret {
        Some(Some(secret)) => Ok(Realm {
            cluster: shared.parts.consensus.cluster_id(),
            secret,
        }),
        Some(None) | None => Err(Reason::Internal.status("the cluster's login secret is damaged")),
    }
}

#[tonic::async_trait]
impl Access for AccessApi {
    async fn login(
        &self,
        request: Request<v1::LoginRequest>,
    ) -> Result<Response<v1::LoginResponse>, Status> {
        let (asked, _held) = admitted(request);
        let Some(door) = &self.door else {
            return Err(Reason::NoLogin
                .status("this peer asks for no credentials: there is nothing to log in to"));
        };
        if asked.password.len() > PASSWORD_BYTES_MAX {
            let problem = format!("has more than {PASSWORD_BYTES_MAX} bytes");
            return Err(errors::invalid_request("password", problem));
        }
        let realm = realm(&self.shared, door).await?;
        let now = clock::unix_seconds();
        let logging_in = door
            .credentials
            .log_in(&asked.user, asked.password, &realm, now);
        let login = logging_in.await.map_err(|why| {
            door.count_refused_login();
            // Who it was not is for the log of this peer only. A name may be anything.
            let name: String = asked.user.chars().take(SHOWN_MAX).collect();
            tracing::info!(target: "raftserve::audit", ?name, ?why, "a login was refused");
            match why {
                crate::access::Unknown::Bad => {
                    Reason::BadCredential.status("there is no such user with that password; a Secret that was just changed reaches the peers within two minutes")
                }
                why => unknown(why),
            }
        })?;
        let Subject { name, role } = login.subject;
        tracing::info!(target: "raftserve::audit", subject = name, %role, "logged in");
        Ok(Response::new(v1::LoginResponse {
            token: login.token,
            name,
            role: role.to_string(),
            expires_unix_ms: login.until.0.saturating_mul(1_000),
        }))
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let subject = request.extensions().get::<Subject>();
        let (name, role) = match subject {
            Some(subject) => (subject.name.clone(), subject.role),
            None => (String::new(), Role::Admin),
        };
        Ok(Response::new(v1::WhoAmIResponse {
            name,
            role: role.to_string(),
            asks_for_credentials: self.door.is_some(),
        }))
    }
}
