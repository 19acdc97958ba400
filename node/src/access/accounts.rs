//! Who has which credential, as the files of a mounted Secret say: `htpasswd`, `tokens` and `roles`. Pure.
//!
//! No error and no `Debug` shows what a line holds beyond its name.

use std::collections::BTreeMap;
use std::fmt;

use subtle::ConstantTimeEq;

use super::digest::Digest;
use super::password::{PasswordHash, PasswordHashError};
use super::role::{NoSuchRole, Role};

/// The most users, and the most tokens: far above what any cluster has, so that looking through them is nothing.
const ACCOUNTS_MAX: usize = 10_000;

/// The longest name.
const NAME_BYTES_MAX: usize = 128;

/// Somebody who has shown a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// As the files have it.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// A line that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {problem}")]
pub struct BadLine {
    /// Which file.
    pub file: &'static str,
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What may be wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It has another form.
    #[error("must be {0}")]
    Form(&'static str),
    /// It has no name, or one that cannot be shown.
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes of printable characters")]
    Name,
    /// A name occurs twice.
    #[error("{0} is there twice")]
    Twice(String),
    /// The role.
    #[error(transparent)]
    Role(#[from] NoSuchRole),
    /// The password's hash.
    #[error(transparent)]
    Hash(#[from] PasswordHashError),
    /// The token's hash.
    #[error("a token is told by its SHA-256, 64 hexadecimal digits: printf %s TOKEN | sha256sum")]
    Digest,
    /// There are very many.
    #[error("more than {ACCOUNTS_MAX} lines")]
    TooMany,
}

/// A user with a password.
pub(super) struct User {
    pub(super) hash: PasswordHash,
    pub(super) role: Role,
}

/// Everybody.
#[derive(Default)]
pub(super) struct Accounts {
    users: BTreeMap<String, User>,
    tokens: Vec<(Digest, Subject)>,
    /// Names with a role and without a password.
    strangers: Vec<String>,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts")
            .field("users", &self.users.len())
            .field("tokens", &self.tokens.len())
            .finish()
    }
}

/// A line that holds something.
struct Line<'t> {
    file: &'static str,
    /// From 1.
    number: usize,
    text: &'t str,
}

impl<'t> Line<'t> {
    fn bad(&self, problem: Problem) -> BadLine {
        BadLine {
            file: self.file,
            line: self.number,
            problem,
        }
    }

    fn all(file: &'static str, text: &'t str) -> Result<Vec<Self>, BadLine> {
        let numbered = (1..).zip(text.lines().map(str::trim));
        let told = numbered.filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
        let all: Vec<_> = told
            .map(|(number, text)| Self { file, number, text })
            .collect();
        match all.get(ACCOUNTS_MAX) {
            Some(line) => Err(line.bad(Problem::TooMany)),
            None => Ok(all),
        }
    }
}

fn checked_name(name: &str) -> Result<String, Problem> {
    let is_shown = !name.chars().any(|it| it.is_control() || it.is_whitespace());
    match name.len() {
        1..=NAME_BYTES_MAX if is_shown => Ok(name.to_owned()),
        _ => Err(Problem::Name),
    }
}

impl Accounts {
    /// Reads the three files; one that is not there is empty.
    ///
    /// # Errors
    /// [`BadLine`] for the first line that cannot be used.
    pub(super) fn parse(htpasswd: &str, tokens: &str, roles: &str) -> Result<Self, BadLine> {
        let mut accounts = Self::default();
        for line in Line::all("htpasswd", htpasswd)? {
            let added = accounts.add_user(line.text);
            added.map_err(|problem| line.bad(problem))?;
        }
        for line in Line::all("tokens", tokens)? {
            let added = accounts.add_token(line.text);
            added.map_err(|problem| line.bad(problem))?;
        }
        for line in Line::all("roles", roles)? {
            let added = accounts.add_role(line.text);
            added.map_err(|problem| line.bad(problem))?;
        }
        Ok(accounts)
    }

    fn add_user(&mut self, line: &str) -> Result<(), Problem> {
        let form = Problem::Form("USER:HASH, as `htpasswd -nB -C 10 USER` prints it");
        let (name, hash) = line.split_once(':').ok_or(form)?;
        let user = User {
            hash: hash.parse()?,
            role: Role::Viewer,
        };
        match self.users.insert(checked_name(name)?, user) {
            None => Ok(()),
            Some(_) => Err(Problem::Twice(name.to_owned())),
        }
    }

    fn add_token(&mut self, line: &str) -> Result<(), Problem> {
        let form = || Problem::Form("NAME:ROLE:SHA256");
        let (name, rest) = line.split_once(':').ok_or_else(form)?;
        let (role, digest) = rest.split_once(':').ok_or_else(form)?;
        let subject = Subject {
            name: checked_name(name)?,
            role: role.parse()?,
        };
        let digest = Digest::from_hex(digest).ok_or(Problem::Digest)?;
        self.tokens.push((digest, subject));
        Ok(())
    }

    fn add_role(&mut self, line: &str) -> Result<(), Problem> {
        let form = Problem::Form("USER:ROLE");
        let (name, role) = line.split_once(':').ok_or(form)?;
        let role = role.parse()?;
        match self.users.get_mut(name) {
            Some(user) => user.role = role,
            None => self.strangers.push(checked_name(name)?),
        }
        Ok(())
    }

    /// Whether nobody has a credential.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.tokens.is_empty()
    }

    /// Names that have a role and no password.
    pub(super) fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Users whose passwords are hashed as one no longer should.
    pub(super) fn weakly_hashed(&self) -> impl Iterator<Item = &str> {
        let weak = self.users.iter().filter(|(_, user)| user.hash.is_weak());
        weak.map(|(name, _)| name.as_str())
    }

    /// A user.
    pub(super) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// The user in whose place a name is checked that is nobody's, so that the time of the answer does not tell; none
    /// where nobody has a password. `draw` is always the same for the same name.
    pub(super) fn stand_in(&self, draw: u64) -> Option<&User> {
        let index = draw.checked_rem(self.users.len() as u64)?;
        self.users.values().nth(usize::try_from(index).ok()?)
    }

    /// Whose token this is. Takes equally long for all that are nobody's.
    pub(super) fn of_token(&self, token: &str) -> Option<&Subject> {
        let shown = Digest::of(token.as_bytes());
        let mut found = None;
        for (digest, subject) in &self.tokens {
            if bool::from(digest.bytes().ct_eq(shown.bytes())) {
                found = Some(subject);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the password "secret".
    const APR1: &str = "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0";
    const BCRYPT: &str = "$2y$05$bvIG6Nmid91Mu9RcmmWZfOSUJnPNP88kp.Eu9puakB65/9Xoyz6P.";

    fn tokens() -> String {
        let digest = Digest::of(b"t0ken");
        format!("# of the pipeline\nci:operator:{digest}\n\n")
    }

    #[test]
    fn users_without_a_role_are_viewers() {
        let users = format!("ann:{BCRYPT}\nben:{APR1}\r\n");
        let accounts = Accounts::parse(&users, "", "ann:admin\ncarl:operator\n").unwrap();
        assert_eq!(accounts.user("ann").unwrap().role, Role::Admin);
        assert_eq!(accounts.user("ben").unwrap().role, Role::Viewer);
        assert!(accounts.user("carl").is_none());
        assert_eq!(accounts.strangers(), ["carl"]);
        assert_eq!(accounts.weakly_hashed().collect::<Vec<_>>(), ["ann", "ben"]);
        assert!(!accounts.is_empty());
        assert!(Accounts::parse("\n# nobody\n", "", "").unwrap().is_empty());
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let accounts = Accounts::parse("", &tokens(), "").unwrap();
        let subject = accounts.of_token("t0ken").unwrap();
        assert_eq!(
            (subject.name.as_str(), subject.role),
            ("ci", Role::Operator)
        );
        for other in ["", "t0ke", "t0ken ", &Digest::of(b"t0ken").to_string()] {
            assert_eq!(accounts.of_token(other), None, "{other}");
        }
    }

    #[test]
    fn a_bad_line_is_named_and_what_it_holds_is_not_shown() {
        let digest = Digest::of(b"x").to_string();
        let cases = [
            ("no colon", "", "", "htpasswd, line 1: must be USER:HASH"),
            ("ann:{SHA}s3cret", "", "", "htpasswd, line 1: only bcrypt"),
            ("ann:s3cret", "", "", "htpasswd, line 1: only bcrypt"),
            (":$apr1$a$b", "", "", "htpasswd, line 1: "),
            (
                "",
                "\nci:root:s3cret",
                "",
                "tokens, line 2: a role is viewer, operator or admin",
            ),
            (
                "",
                "ci:admin:s3cret",
                "",
                "tokens, line 1: a token is told by its SHA-256",
            ),
            (
                "",
                "ci:s3cret",
                "",
                "tokens, line 1: must be NAME:ROLE:SHA256",
            ),
            ("", "", "ann", "roles, line 1: must be USER:ROLE"),
            ("", "", "ann:boss", "roles, line 1: a role is"),
        ];
        for (users, tokens, roles, says) in cases {
            let error = Accounts::parse(users, tokens, roles)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(says), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let twice = format!("ann:{BCRYPT}\nann:{BCRYPT}");
        let error = Accounts::parse(&twice, "", "").unwrap_err();
        assert_eq!(error.to_string(), "htpasswd, line 2: ann is there twice");
        let named = format!("a b:admin:{digest}");
        assert!(Accounts::parse("", &named, "").is_err());
        let whole = Accounts::parse(&format!("ann:{BCRYPT}"), &tokens(), "").unwrap();
        assert_eq!(format!("{whole:?}"), "Accounts { users: 1, tokens: 1 }");
    }
}
