//! How many files this process may have open. Each connection is one, and a process that has none left can neither
//! accept a client nor reach a replica.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a peer has open beside its clients and the connections made for them: its log, its listeners, the other
/// peers, probes and connections that are kept unused.
const RESERVED: u64 = 256;

/// The limit of open files of this process (`RLIMIT_NOFILE`, see `getrlimit(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// What it was when the process began: what programs that it starts expect. `None` is no limit.
    pub begun_with: Option<u64>,
    /// What it is now. `None` is no limit.
    pub now: Option<u64>,
}

impl OpenFiles {
    /// Raises the soft limit to the hard one, which needs no privilege.
    ///
    /// # Errors
    /// The system refuses it. The limit is then what it was.
    pub fn raise() -> io::Result<Self> {
        let before = getrlimit(Resource::Nofile);
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: before.maximum,
                maximum: before.maximum,
            },
        )?;
        Ok(Self {
            begun_with: before.current,
            now: before.maximum,
        })
    }

    /// Sets the soft limit to `soft`, as far as the hard one goes: for a program that counts on the usual one, as
    /// those do that call `select(2)`.
    ///
    /// # Errors
    /// The system refuses it. The limit is then what it was.
    pub fn lower(soft: u64) -> io::Result<()> {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let current = Some(maximum.map_or(soft, |most| soft.min(most)));
        Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
    }

    /// The most client connections for which there are files, at most `wanted`: each may need one to a replica as
    /// well. Never none, as a proxy without any would be of no use.
    #[must_use]
    pub fn connections(self, wanted: usize) -> usize {
        let Some(files) = self.now else {
            return wanted;
        };
        let room = (files / 2).saturating_sub(RESERVED).max(1);
        wanted.min(usize::try_from(room).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_no_more_than_half_of_the_files() {
        for (files, connections) in [
            (Some(1 << 20), 20_000),
            (Some(40_512), 20_000),
            (Some(20_000), 9_744),
            (Some(1_024), 256),
            (Some(256), 1),
            (None, 20_000),
        ] {
            let limit = OpenFiles {
                begun_with: Some(1_024),
                now: files,
            };
            assert_eq!(limit.connections(20_000), connections, "{files:?}");
        }
    }
}
