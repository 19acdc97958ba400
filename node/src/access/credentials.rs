//! Who calls, by the credential that is shown: a token of the file `tokens`, or one that a user got for a password.
//!
//! The files are those of a mounted Secret, and read again when they change. What cannot be used changes nothing, is
//! told and counted. No credential is ever told.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raftserve_proxy::reload::{Reloaded, Source};
use tokio::sync::Semaphore;

use super::accounts::{Accounts, BadLine, Subject};
use super::login::{Claim, PREFIX, Realm, Signer, UnixSeconds};
use super::password::PasswordHash;
use super::role::Role;

/// The largest file: thousands of users.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Passwords that are checked at once. Each keeps a processor busy, and traffic and Raft need them more.
const CHECKS_MAX: usize = 2;

/// Logins that wait for their turn. With a tenth of a second for each, the last waits for a second or two.
const WAITING_MAX: usize = 32;

/// How long a token is good that a user gets for a password: a working day.
pub const LOGIN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// What stands before a token in the header `authorization`.
const BEARER: &str = "bearer";

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line cannot be used.
    #[error("cannot use the credentials in {directory}")]
    Line {
        /// Where they are.
        directory: PathBuf,
        /// Which line, and why.
        source: BadLine,
    },
    /// There are none.
    #[error(
        "{0} holds no credential: put lines USER:HASH into its file htpasswd, or NAME:ROLE:SHA256 into its file tokens"
    )]
    None(PathBuf),
}

/// Why somebody is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No credential was shown.
    NoCredential,
    /// It is no bearer token.
    NoBearer,
    /// It is nobody's, or not any more.
    Bad,
    /// It was good until some time ago.
    Expired,
    /// Too many others are logging in.
    Busy,
    /// This peer cannot tell yet.
    NotCaughtUp,
}

/// What a user gets for a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Who that is.
    pub subject: Subject,
    /// The token.
    pub token: String,
    /// Until when it is good.
    pub until: UnixSeconds,
}

/// See the module.
#[derive(Debug)]
pub struct Credentials {
    accounts: Reloaded<Files>,
    lifetime: Duration,
    /// Places for logins: those that are checked, and those that wait.
    places: Arc<Semaphore>,
    checks: Arc<Semaphore>,
}

impl Credentials {
    /// Reads the files of a directory for the first time. Tokens that users get are good for `lifetime`.
    ///
    /// # Errors
    /// [`CredentialsError`] if they cannot be used.
    pub fn read(directory: PathBuf, lifetime: Duration) -> Result<Self, CredentialsError> {
        Ok(Self {
            accounts: Reloaded::read(Files { directory })?,
            lifetime,
            places: Arc::new(Semaphore::new(CHECKS_MAX + WAITING_MAX)),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
        })
    }

    /// Reads the files again if any of them changed.
    pub fn refresh(&self) {
        self.accounts.refresh();
    }

    /// Who shows this `authorization`. `realm` is asked only for the token of a login; there is none before the
    /// cluster's secret has arrived here.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn identify(
        &self,
        authorization: Option<&str>,
        realm: impl FnOnce() -> Option<Realm>,
        now: UnixSeconds,
    ) -> Result<Subject, Unknown> {
        let shown = authorization.ok_or(Unknown::NoCredential)?;
        let (scheme, token) = shown.split_once(' ').ok_or(Unknown::NoBearer)?;
        if !scheme.eq_ignore_ascii_case(BEARER) {
            return Err(Unknown::NoBearer);
        }
        let token = token.trim();
        let accounts = self.accounts.load();
        if !token.starts_with(PREFIX) {
            return accounts.of_token(token).cloned().ok_or(Unknown::Bad);
        }
        let claim = Claim::read(token).ok_or(Unknown::Bad)?;
        let user = accounts.user(&claim.user).ok_or(Unknown::Bad)?;
        let realm = realm().ok_or(Unknown::NotCaughtUp)?;
        if !Signer::new(&realm, user.hash.as_str()).has_signed(&claim) {
            return Err(Unknown::Bad);
        }
        // Only after the signature: what nobody has signed is bad, not old.
        if claim.until <= now {
            return Err(Unknown::Expired);
        }
        Ok(Subject {
            name: claim.user,
            role: user.role,
        })
    }

    /// Exchanges a password for a token. The password is checked on a thread where nothing else runs, and at most so
    /// many are at once; an answer takes equally long for users that do not exist.
    ///
    /// # Errors
    /// [`Unknown::Bad`] or [`Unknown::Busy`].
    pub async fn log_in(
        &self,
        user: &str,
        password: String,
        realm: &Realm,
        now: UnixSeconds,
    ) -> Result<Login, Unknown> {
        let _place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Unknown::Busy)?;
        let check = Arc::clone(&self.checks).acquire_owned().await;
        let check = check.map_err(|_| Unknown::Busy)?;
        let (hash, role) = self.to_check(user, realm);
        let checked = tokio::task::spawn_blocking(move || {
            // Held for as long as this runs, even if whoever asked is gone.
            let _check = check;
            let fits = hash.is_of(&password);
            (fits, hash)
        });
        let (fits, hash) = checked.await.map_err(|_| Unknown::Bad)?;
        let role = role.filter(|_| fits).ok_or(Unknown::Bad)?;
        let until = now.plus(self.lifetime);
        let token = Signer::new(realm, hash.as_str()).sign(user, until);
        Ok(Login {
            subject: Subject {
                name: user.to_owned(),
                role,
            },
            token,
            until,
        })
    }

    /// What a password is checked against, and the role if that is the user's own. For a name that is nobody's it is
    /// some user's hash, for one name always the same: so answers take as long as for users.
    fn to_check(&self, name: &str, realm: &Realm) -> (PasswordHash, Option<Role>) {
        let accounts = self.accounts.load();
        if let Some(user) = accounts.user(name) {
            return (user.hash.clone(), Some(user.role));
        }
        let stand_in = accounts.stand_in(realm.draw(name));
        let hash = stand_in.map_or_else(PasswordHash::nobodys, |user| user.hash.clone());
        (hash, None)
    }

    /// The counters in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.accounts.render("raftserve_credentials_reloads_total")
    }
}

/// The files of a directory.
struct Files {
    directory: PathBuf,
}

impl Source for Files {
    type Value = Accounts;
    type Error = CredentialsError;

    const NAME: &'static str = "the credentials";

    fn files(&self) -> Vec<PathBuf> {
        paths(&self.directory).into()
    }

    fn read(&self) -> Result<Accounts, CredentialsError> {
        read(&self.directory)
    }
}

fn paths(directory: &Path) -> [PathBuf; 3] {
    ["htpasswd", "tokens", "roles"].map(|name| directory.join(name))
}

fn read(directory: &Path) -> Result<Accounts, CredentialsError> {
    let texts = paths(directory).map(|path| read_file(&path));
    let [htpasswd, tokens, roles] = texts;
    let accounts = Accounts::parse(&htpasswd?, &tokens?, &roles?);
    let accounts = accounts.map_err(|source| CredentialsError::Line {
        directory: directory.to_owned(),
        source,
    })?;
    if accounts.is_empty() {
        return Err(CredentialsError::None(directory.to_owned()));
    }
    for user in accounts.weakly_hashed() {
        tracing::warn!(
            user,
            "this user's password is hashed so that it is quickly broken if it gets out: make a new line with \
             `htpasswd -nB -C 10 {user}`"
        );
    }
    for user in accounts.strangers() {
        tracing::warn!(
            user,
            "the file roles names a user who has no line in htpasswd"
        );
    }
    Ok(accounts)
}

/// The text of a file; none if there is no such file.
fn read_file(path: &Path) -> Result<String, CredentialsError> {
    let failed = |source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
