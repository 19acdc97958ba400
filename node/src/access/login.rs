//! The short-lived tokens that users get for their passwords, so that bcrypt is not paid for with every call.
//!
//! A token says who it is for and until when, and is signed. Every peer signs with the same key, and needs to ask
//! nobody to check a token: the key is computed from a secret in the log, the cluster's id, and the user's line in
//! `htpasswd` (ADR 15). So a token ends with its time, with the user's password, and with the user; and neither a
//! backup nor the file of passwords is enough to forge one. What the user may do is not in it, and is looked up anew
//! with every call.

use std::fmt;
use std::time::Duration;

use raftserve_model::ClusterId;
use ring::hmac;

use super::digest::{from_hex, to_hex};

/// Begins every such token, and tells its format. Tokens of the file `tokens` begin otherwise.
pub(super) const PREFIX: &str = "rsl1.";

/// What the secret is for, so that no signature is good for anything else.
const KEY_PURPOSE: &[u8] = b"raftserve login key 1";
const DRAW_PURPOSE: &[u8] = b"raftserve login draw 1";
const TOKEN_PURPOSE: &[u8] = b"raftserve login token 1";

/// The longest token: the longest name twice over, and what is around it.
const TOKEN_BYTES_MAX: usize = 512;

/// Bytes of the secret.
pub const SECRET_BYTES: usize = 32;

/// What all peers of a cluster know and nobody else does.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginSecret([u8; SECRET_BYTES]);

impl LoginSecret {
    /// From the value in the log, if it has the right length.
    #[must_use]
    pub fn read(value: &[u8]) -> Option<Self> {
        Some(Self(value.try_into().ok()?))
    }
}

impl fmt::Debug for LoginSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginSecret")
    }
}

/// Where tokens are good: what all its peers compute a user's key from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its secret.
    pub secret: LoginSecret,
}

impl Realm {
    /// A number for a name that nobody can foretell who does not know the secret.
    pub(super) fn draw(&self, name: &str) -> u64 {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret.0);
        let mut context = hmac::Context::with_key(&key);
        context.update(DRAW_PURPOSE);
        context.update(name.as_bytes());
        let tag = context.sign();
        let (first, _) = tag.as_ref().split_first_chunk().expect("32 bytes");
        u64::from_be_bytes(*first)
    }
}

/// Seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// So much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_secs()))
    }
}

/// What a token says, which is true only once its signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) user: String,
    pub(super) until: UnixSeconds,
    signature: Vec<u8>,
}

/// Signs and checks the tokens of one user.
pub(super) struct Signer(hmac::Key);

impl Signer {
    /// `password_hash` is the user's, as `htpasswd` has it.
    pub(super) fn new(realm: &Realm, password_hash: &str) -> Self {
        let of_cluster = hmac::Key::new(hmac::HMAC_SHA256, &realm.secret.0);
        let mut context = hmac::Context::with_key(&of_cluster);
        for part in [KEY_PURPOSE, &realm.cluster.0, password_hash.as_bytes()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self(hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref()))
    }

    /// A token for `user` that is good until then.
    pub(super) fn sign(&self, user: &str, until: UnixSeconds) -> String {
        let signature = hmac::sign(&self.0, &signed_bytes(user, until));
        let (user, signature) = (to_hex(user.as_bytes()), to_hex(signature.as_ref()));
        format!("{PREFIX}{}.{user}.{signature}", until.0)
    }

    /// Whether this user's key signed the claim.
    pub(super) fn has_signed(&self, claim: &Claim) -> bool {
        let signed = signed_bytes(&claim.user, claim.until);
        hmac::verify(&self.0, &signed, &claim.signature).is_ok()
    }
}

fn signed_bytes(user: &str, until: UnixSeconds) -> Vec<u8> {
    [TOKEN_PURPOSE, &until.0.to_be_bytes(), user.as_bytes()].concat()
}

impl Claim {
    /// Reads a token; none if it is no such token.
    pub(super) fn read(token: &str) -> Option<Self> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut parts = token.strip_prefix(PREFIX)?.split('.');
        let (until, user, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            user: String::from_utf8(from_hex(user)?).ok()?,
            until: UnixSeconds(until.parse().ok()?),
            signature: from_hex(signature)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn signer(secret: u8, cluster: ClusterId, hash: &str) -> Signer {
        let secret = LoginSecret([secret; SECRET_BYTES]);
        Signer::new(&Realm { cluster, secret }, hash)
    }

    #[test]
    fn a_token_is_believed_by_who_has_the_same_secret_cluster_and_password() {
        let until = UnixSeconds(1_000);
        let token = signer(1, CLUSTER, "$2y$x").sign("ann", until);
        let claim = Claim::read(&token).unwrap();
        assert_eq!((claim.user.as_str(), claim.until), ("ann", until));
        assert!(signer(1, CLUSTER, "$2y$x").has_signed(&claim));
        for other in [
            signer(2, CLUSTER, "$2y$x"),
            signer(1, ClusterId([8; 16]), "$2y$x"),
            signer(1, CLUSTER, "$2y$y"),
        ] {
            assert!(!other.has_signed(&claim));
        }
    }

    #[test]
    fn a_token_that_was_changed_is_not_believed() {
        let signer = signer(1, CLUSTER, "$2y$x");
        let token = signer.sign("ann", UnixSeconds(1_000));
        let later = token.replace(".1000.", ".9000.");
        let other = token.replace(&to_hex(b"ann"), &to_hex(b"bob"));
        let shorter = token[..token.len() - 2].to_owned();
        for changed in [later, other, shorter] {
            let claim = Claim::read(&changed).unwrap();
            assert!(!signer.has_signed(&claim), "{changed}");
        }
        for none in [
            "",
            "rsl1.",
            "rsl1.1.2",
            "rsl1.x.61.61",
            "rsl1.1.6.61",
            "rsl1.1.61.6x",
        ] {
            assert_eq!(Claim::read(none), None, "{none}");
        }
        assert_eq!(Claim::read(&format!("{token}.x")), None);
        assert_eq!(
            Claim::read(&format!("rsl1.1.{}.61", "61".repeat(300))),
            None
        );
    }

    #[test]
    fn the_secret_is_not_shown() {
        let secret = LoginSecret::read(&[9; SECRET_BYTES]).unwrap();
        assert_eq!(format!("{secret:?}"), "LoginSecret");
        assert_eq!(LoginSecret::read(&[9; SECRET_BYTES - 1]), None);
    }
}
