//! The service `Sessions`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use raftserve_model::SessionKey;
use raftserve_store::state::Service;
use tonic::{Request, Response, Status};

use super::errors::{self, Reason};
use super::gate::admitted;
use super::pages;
use super::shared::{Shared, find};
use super::v1::get_session_request::Session as Which;
use super::v1::{self, sessions_server::Sessions};
use super::view;

/// See the module.
pub(super) struct SessionsApi(pub(super) Arc<Shared>);

/// A key in hexadecimal.
#[derive(Debug, PartialEq, Eq)]
struct Hex(SessionKey);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Hex {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).map_err(|_| ())?;
        match digits {
            true => Ok(Self(SessionKey(number.to_be_bytes()))),
            false => Err(()),
        }
    }
}

fn require_affinity(service: &Service) -> Result<(), Status> {
    match service.spec().affinity {
        Some(_) => Ok(()),
        None => Err(Reason::NoAffinity.status_with(
            format!(
                "service {} binds no sessions; give it `session_affinity` under `_metadata.raftserve`",
                service.name
            ),
            [("service", service.name.to_string())],
        )),
    }
}

#[tonic::async_trait]
impl Sessions for SessionsApi {
    async fn list(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let (asked, _held) = admitted(request);
        let after: Option<Hex> = pages::after(&asked.page_token)?;
        let (state, index) = self
            .0
            .read(asked.stale, "the sessions cannot be told")
            .await?;
        let service = find(&state, "service_name", &asked.service_name)?;
        require_affinity(service)?;
        let sessions = state.sessions_of(service.id, after.map(|after| after.0));
        let (page, next_page_token) = pages::take(asked.page_size, sessions, |(key, _)| **key)?;
        Ok(Response::new(v1::ListSessionsResponse {
            sessions: page
                .into_iter()
                .map(|(key, session)| view::session(&state, key, session))
                .collect(),
            next_page_token,
            total: state.session_count(service.id) as u64,
            log_index: index.0,
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::GetSessionResponse>, Status> {
        let (asked, _held) = admitted(request);
        let (state, index) = self
            .0
            .read(asked.stale, "the session cannot be told")
            .await?;
        let service = find(&state, "service_name", &asked.service_name)?;
        require_affinity(service)?;
        let key = match asked.session {
            Some(Which::Value(value)) => SessionKey::of(service.id, value.as_bytes()),
            Some(Which::Key(key)) => {
                let parsed: Result<Hex, ()> = key.parse();
                let problem = "must be 32 hexadecimal digits";
                parsed
                    .map_err(|()| errors::invalid_request("key", problem))?
                    .0
            }
            None => return Err(errors::invalid_request("session", "give a key or a value")),
        };
        let session = state.session(service.id, &key).ok_or_else(|| {
            Reason::NoSuchSession.status_with(
                format!("service {} has no session {key}", service.name),
                [
                    ("service", service.name.to_string()),
                    ("key", key.to_string()),
                ],
            )
        })?;
        Ok(Response::new(v1::GetSessionResponse {
            session: Some(view::session(&state, &key, session)),
            log_index: index.0,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text() {
        let key = Hex(SessionKey([0x0f; 16]));
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in [
            "",
            "0f",
            "+f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
            &"zz".repeat(16),
        ] {
            assert_eq!(bad.parse::<Hex>(), Err(()), "{bad}");
        }
    }
}
