//! Passwords as `htpasswd` hashes them: with bcrypt, or with Apache's variant of MD5 crypt, which is what it does when it
//! is not told. Others are refused. Checking takes processor time by design; where and how often is the caller's.

use std::str::FromStr;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// The lowest cost that bcrypt has.
const COST_MIN: u32 = 4;

/// The highest cost of bcrypt that is taken: each step doubles the time, and this is some two seconds.
const COST_MAX: u32 = 15;

/// Bcrypt's costs below this try thousands of passwords a second.
const COST_STRONG: u32 = 10;

/// The longest salt of `$apr1$`, in bytes.
const APR1_SALT_MAX: usize = 8;

/// How often `$apr1$` hashes.
const APR1_ROUNDS: usize = 1_000;

/// A bcrypt hash that nobody has (its password is empty), to be checked where no user exists.
const NOBODY: &str = "$2a$10$k1wbIrmNyFAPwPVPSVa/zecw2BCEnBwVS2GbrmgzxFUOqW9dk4TCW";

/// Why a hash cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordHashError {
    /// It is of another kind, or none.
    #[error("only bcrypt (`htpasswd -nB -C 10 USER`) and $apr1$ are taken")]
    Kind,
    /// There is none such, or it would keep a processor busy for seconds.
    #[error("bcrypt's cost is {0}; {COST_MIN} to {COST_MAX} are taken")]
    Cost(u32),
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum PasswordHash {
    Bcrypt(String),
    Apr1 { salt: String, whole: String },
}

impl FromStr for PasswordHash {
    type Err = PasswordHashError;

    fn from_str(text: &str) -> Result<Self, PasswordHashError> {
        if let Some(rest) = text.strip_prefix("$apr1$") {
            let (salt, hash) = rest.split_once('$').ok_or(PasswordHashError::Kind)?;
            return match (salt.len(), hash.len()) {
                (1..=APR1_SALT_MAX, 22) => Ok(Self::Apr1 {
                    salt: salt.to_owned(),
                    whole: text.to_owned(),
                }),
                _ => Err(PasswordHashError::Kind),
            };
        }
        let parts: bcrypt::HashParts = text.parse().map_err(|_| PasswordHashError::Kind)?;
        match parts.get_cost() {
            COST_MIN..=COST_MAX => Ok(Self::Bcrypt(text.to_owned())),
            cost => Err(PasswordHashError::Cost(cost)),
        }
    }
}

impl PasswordHash {
    /// What is checked where no user exists.
    pub(super) fn nobodys() -> Self {
        Self::Bcrypt(NOBODY.to_owned())
    }

    /// Whether a stolen one is quickly broken.
    pub(super) fn is_weak(&self) -> bool {
        match self {
            Self::Apr1 { .. } => true,
            Self::Bcrypt(hash) => {
                let parts: Result<bcrypt::HashParts, _> = hash.parse();
                parts.is_ok_and(|parts| parts.get_cost() < COST_STRONG)
            }
        }
    }

    /// The text that it was read from.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Bcrypt(whole) | Self::Apr1 { whole, .. } => whole,
        }
    }

    /// Whether this is the password. Takes up to seconds of a processor's time.
    pub(super) fn is_of(&self, password: &str) -> bool {
        match self {
            // An error is a hash that was damaged since it was read, which it cannot be.
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Apr1 { salt, whole } => {
                let computed = apr1(password.as_bytes(), salt);
                computed.as_bytes().ct_eq(whole.as_bytes()).into()
            }
        }
    }
}

/// Apache's `$apr1$`: MD5 crypt (Kamp, FreeBSD) under another name.
fn apr1(password: &[u8], salt: &str) -> String {
    let salt = salt.as_bytes();
    let mixed = Md5::new()
        .chain_update(password)
        .chain_update(salt)
        .chain_update(password)
        .finalize();
    let mut hash = Md5::new()
        .chain_update(password)
        .chain_update(b"$apr1$")
        .chain_update(salt);
    for piece in password.chunks(16) {
        hash.update(&mixed[..piece.len()]);
    }
    let mut length = password.len();
    while length > 0 {
        match length % 2 {
            1 => hash.update([0]),
            _ => hash.update(&password[..1]),
        }
        length /= 2;
    }
    let mut result = hash.finalize();
    for round in 0..APR1_ROUNDS {
        let mut hash = Md5::new();
        match round % 2 {
            1 => hash.update(password),
            _ => hash.update(result),
        }
        if round % 3 != 0 {
            hash.update(salt);
        }
        if round % 7 != 0 {
            hash.update(password);
        }
        match round % 2 {
            1 => hash.update(result),
            _ => hash.update(password),
        }
        result = hash.finalize();
    }
    let salt = String::from_utf8_lossy(salt);
    format!("$apr1${salt}${}", crypt_digits(&result))
}

/// Sixteen bytes in the digits and the order of crypt.
fn crypt_digits(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::new();
    let mut push = |mut value: u32, digits: usize| {
        for _ in 0..digits {
            text.push(char::from(DIGITS[(value & 63) as usize]));
            value >>= 6;
        }
    };
    for at in 0..5 {
        let last = if at == 4 { 5 } else { at + 12 };
        let byte = |at: usize| u32::from(bytes[at]);
        push(byte(at) << 16 | byte(at + 6) << 8 | byte(last), 4);
    }
    push(u32::from(bytes[11]), 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> PasswordHash {
        text.parse().unwrap()
    }

    #[test]
    fn passwords_fit_the_hashes_that_other_programs_made() {
        // By openssl passwd -apr1, by libcrypt, and by bcrypt's authors.
        let known = [
            ("secret", "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0"),
            ("", "$apr1$saltsalt$a8ml/vK5HEjiZ5oypDWA7/"),
            ("a", "$apr1$saltsalt$OEnK0QmmvoDzFw9W2yFYT/"),
            (
                "a much longer password of thirty-some",
                "$apr1$saltsalt$j1CXz.BVR13zuC7vT5ReZ1",
            ),
            ("päss", "$apr1$saltsalt$f74.33Z0f34Aak2NYQJTa0"),
            (
                "secret",
                "$2b$05$bvIG6Nmid91Mu9RcmmWZfOSUJnPNP88kp.Eu9puakB65/9Xoyz6P.",
            ),
            (
                "secret",
                "$2y$05$bvIG6Nmid91Mu9RcmmWZfOSUJnPNP88kp.Eu9puakB65/9Xoyz6P.",
            ),
            ("", NOBODY),
            (
                "U*U",
                "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            ),
        ];
        for (password, text) in known {
            assert!(hash(text).is_of(password), "{password}");
            for other in ["Secret", "secret ", "U*U*"] {
                assert!(!hash(text).is_of(other), "{other}");
            }
        }
    }

    #[test]
    fn other_hashes_are_refused() {
        for text in [
            "",
            "plain",
            "{SHA}x",
            "$1$a$b",
            "$apr1$$x",
            "$apr1$a$b",
            "$2y$05$short",
        ] {
            let refused = text.parse::<PasswordHash>().err();
            assert_eq!(refused, Some(PasswordHashError::Kind), "{text}");
        }
        let slow = NOBODY.replace("$10$", "$16$");
        let refused = slow.parse::<PasswordHash>().err();
        assert_eq!(refused, Some(PasswordHashError::Cost(16)));
    }
}
