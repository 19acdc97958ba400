//! Identifiers. Each kind of number has a type of its own, so that two of them cannot be swapped.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            Encode, Decode, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(number: $inner) -> Self {
                Self(number)
            }
        }
    };
}

number_id! {
    /// A Raft peer. Minted once per data directory, never reused: 1..=N at bootstrap, later the
    /// log index of the entry that admitted the peer.
    NodeId(u64)
}
number_id! {
    /// The position of an entry in the replicated log. Starts at 1; 0 stands for "before the log".
    LogIndex(u64)
}
number_id! {
    /// What fences a leader's controller: the log index of the entry that started its control.
    /// Written once per process and election, so even two reigns in one term differ.
    Generation(u64)
}
number_id! {
    /// A service for its whole life: the log index of the entry that created it. A service that is
    /// deleted and made again under the same name has another id.
    ServiceId(u64)
}
number_id! {
    /// The version of a service's specification: 1 at creation, one more with each update.
    ServiceVersion(u32)
}
number_id! {
    /// One life of a peer process, drawn at random at its start: a restarted peer holds no lease
    /// of its former self.
    Incarnation(u64)
}

/// A replica for its whole life. Numbers count up from 1 within a service and are never reused.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
pub struct ReplicaId {
    /// The service that the replica belongs to.
    pub service: ServiceId,
    /// Its number within the service, as users see it.
    pub number: u32,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.service, self.number)
    }
}

/// A text that does not name what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 32 hexadecimal digits.
    #[error("a cluster id is 32 hexadecimal digits, not {0:?}")]
    ClusterId(String),
    /// Not a name that SkyServe would accept for a service.
    #[error(
        "service name {0:?} is not allowed: 1 to 63 characters, a letter first, a letter or digit last, \
         and between them letters, digits, '-', '_' and '.'"
    )]
    ServiceName(String),
}

/// A cluster: 128 random bits drawn at bootstrap, or at a restore into a new cluster.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || IdError::ClusterId(text.to_owned());
        if text.len() != 32 || !text.is_ascii() {
            return Err(refuse());
        }
        let mut bytes = [0; 16];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for ClusterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A service's name, checked against SkyServe's rule `[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?`, and at
/// most 63 characters so that it can be the first label of a host name.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let legal = matches!(bytes.first(), Some(first) if first.is_ascii_alphabetic())
            && matches!(bytes.last(), Some(last) if last.is_ascii_alphanumeric())
            && bytes.len() <= 63
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::ServiceName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_survives_its_text() {
        let id = ClusterId([0x0f; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("0f".parse::<ClusterId>().is_err());
        assert!("zz".repeat(16).parse::<ClusterId>().is_err());
    }

    #[test]
    fn service_names_follow_skyserve() {
        for good in ["a", "http", "my-svc_2.x", "A9"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "9a", "-a", "a-", "a b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
