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

pub use accounts::{BadLine, Problem, Subject};
pub use certificates::{AccessError, Certificates};
pub use credentials::{Credentials, CredentialsError, LOGIN_LIFETIME, Login, Unknown};
pub use login::{LoginSecret, Realm, SECRET_BYTES, UnixSeconds};
pub use password::PasswordHashError;
pub use role::{Need, NoSuchRole, Role, needed};
pub(crate) use stream::{ReadSide, Stream, WriteSide};
