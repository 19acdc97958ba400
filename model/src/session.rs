//! Session affinity: what both the log and the proxy must compute alike.

use std::fmt;

use bincode::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::id::ServiceId;

/// Marks one binding of a session: the log index of the entry that made it. Two bindings of one key
/// never share an epoch, and a later binding has the greater one.
pub type SessionEpoch = crate::id::LogIndex;

/// The key of a session: the first 128 bits of SHA-256 over the service's id and the value of the
/// header or cookie. Clients choose the value, so the hash must withstand chosen collisions, and
/// values may be secrets, so only the hash is ever stored.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct SessionKey(pub [u8; 16]);

impl SessionKey {
    /// Hashes the `value` that a client of `service` sent.
    #[must_use]
    pub fn of(service: ServiceId, value: &[u8]) -> Self {
        let digest = Sha256::new()
            .chain_update(service.0.to_be_bytes())
            .chain_update(value)
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_key_is_frozen() {
        // Stored in logs and snapshots: a change here moves every session.
        assert_eq!(
            SessionKey::of(ServiceId(7), b"alice").to_string(),
            "efcfdf92046bdbfe72f4bbebabbbe807"
        );
    }

    #[test]
    fn same_value_differs_between_services() {
        assert_ne!(
            SessionKey::of(ServiceId(1), b"alice"),
            SessionKey::of(ServiceId(2), b"alice")
        );
    }
}
