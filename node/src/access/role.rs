//! What each role may do. One table: a call that is not in it is refused to everybody.

use std::fmt;
use std::str::FromStr;

use Need::{Anybody, Role as Of};
use Role::{Admin, Operator, Viewer};

/// How much somebody may do. Each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look: at services, replicas, their logs, events, keys and members.
    Viewer,
    /// Run services: bring them up, change them, take them down, and set keys.
    Operator,
    /// Run the cluster: members, leadership, versions, and snapshots, which hold every secret.
    Admin,
}

impl Role {
    /// Every role, from the least.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name in files and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no such role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is viewer, operator or admin")]
pub struct NoSuchRole;

impl FromStr for Role {
    type Err = NoSuchRole;

    fn from_str(text: &str) -> Result<Self, NoSuchRole> {
        let named = Self::ALL.into_iter().find(|role| role.as_str() == text);
        named.ok_or(NoSuchRole)
    }
}

/// What a call asks of who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing, since it is how one gets a credential.
    Anybody,
    /// At least this role.
    Role(Role),
}

/// The calls of package `raftserve.v1`. Health and reflection ask for nothing, and tell nothing.
const TABLE: &[(&str, &[(&str, Need)])] = &[
    ("Access", &[("Login", Anybody), ("WhoAmI", Of(Viewer))]),
    (
        "Cluster",
        &[
            ("Members", Of(Viewer)),
            ("Status", Of(Viewer)),
            ("Health", Of(Viewer)),
            ("OpenClient", Of(Operator)),
            ("CompareStates", Of(Operator)),
            ("TransferLeader", Of(Admin)),
            ("RemoveMember", Of(Admin)),
            ("PromoteMember", Of(Admin)),
            ("Finalize", Of(Admin)),
        ],
    ),
    ("Events", &[("Watch", Of(Viewer))]),
    (
        "KeyValue",
        &[
            ("Get", Of(Viewer)),
            ("List", Of(Viewer)),
            ("Watch", Of(Viewer)),
            ("Put", Of(Operator)),
            ("Delete", Of(Operator)),
        ],
    ),
    ("Logs", &[("Stream", Of(Viewer))]),
    (
        "Replicas",
        &[("List", Of(Viewer)), ("Terminate", Of(Operator))],
    ),
    (
        "Services",
        &[
            ("Get", Of(Viewer)),
            ("List", Of(Viewer)),
            ("Apply", Of(Operator)),
            ("Update", Of(Operator)),
            ("Delete", Of(Operator)),
        ],
    ),
    ("Sessions", &[("Get", Of(Viewer)), ("List", Of(Viewer))]),
    ("Snapshots", &[("Save", Of(Admin))]),
];

/// What the call at `path`, such as `/raftserve.v1.Services/Apply`, asks for; none if there is no such call.
#[must_use]
pub fn needed(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix("/raftserve.v1.")?.split_once('/')?;
    let (_, methods) = TABLE.iter().find(|(name, _)| *name == service)?;
    let found = methods.iter().find(|(name, _)| *name == method);
    found.map(|(_, need)| *need)
}

/// The calls that are answered by a stream, which may last longer than the right to it.
const STREAMS: &[&str] = &[
    "/raftserve.v1.Events/Watch",
    "/raftserve.v1.KeyValue/Watch",
    "/raftserve.v1.Logs/Stream",
    "/raftserve.v1.Snapshots/Save",
];

/// Whether the call at `path` is answered by a stream.
#[must_use]
pub fn is_stream(path: &str) -> bool {
    STREAMS.contains(&path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_table_has_every_call_of_the_api_and_no_other() {
        let all = FileDescriptorSet::decode(crate::admin::v1::DESCRIPTORS).unwrap();
        let ours = all
            .file
            .iter()
            .filter(|file| file.package() == "raftserve.v1");
        let services = ours.flat_map(|file| &file.service);
        let offered: BTreeSet<String> = services
            .flat_map(|service| {
                let calls = service.method.iter();
                calls.map(|call| format!("/raftserve.v1.{}/{}", service.name(), call.name()))
            })
            .collect();
        let known: BTreeSet<String> = TABLE
            .iter()
            .flat_map(|(service, calls)| {
                let calls = calls.iter();
                calls.map(move |(call, _)| format!("/raftserve.v1.{service}/{call}"))
            })
            .collect();
        assert_eq!(offered, known);
        assert!(known.iter().all(|path| needed(path).is_some()));
        let ours = all.file.iter().filter(|it| it.package() == "raftserve.v1");
        let streams: BTreeSet<String> = ours
            .flat_map(|file| &file.service)
            .flat_map(|service| {
                let calls = service.method.iter().filter(|it| it.server_streaming());
                calls.map(|call| format!("/raftserve.v1.{}/{}", service.name(), call.name()))
            })
            .collect();
        let listed = STREAMS.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(streams, listed);
        for other in [
            "/raftserve.v1.Services/Applyx",
            "/raftserve.v1.Services",
            "/x/Apply",
            "",
        ] {
            assert_eq!(needed(other), None, "{other}");
        }
    }

    #[test]
    fn roles_are_in_order_and_read_back() {
        assert!(Viewer < Operator && Operator < Admin);
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!("root".parse::<Role>(), Err(NoSuchRole));
    }
}
