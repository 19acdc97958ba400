//! The directory of replicas as a memory of which cluster is here. Every peer makes a directory in it that bears its cluster's
//! id, which stays when all founders were replaced and their data directories are empty.

use std::io;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use raftserve_model::ClusterId;

use super::blocking;
use crate::peer::{Claim, Founding};

/// The directory that all peers of a host share.
#[derive(Debug)]
pub(crate) struct ReplicaRoot(PathBuf);

impl ReplicaRoot {
    /// The one at `path`, which need not be there yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

/// A cluster that has, or had, a peer with this directory of replicas.
fn known(root: &Path) -> io::Result<Option<ClusterId>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(cluster) = name.to_str().and_then(|name| name.parse().ok()) {
            return Ok(Some(cluster));
        }
    }
    Ok(None)
}

impl Founding for ReplicaRoot {
    fn claim(&self, _nonce: u64, cluster: ClusterId) -> BoxFuture<'_, Claim> {
        let root = self.0.clone();
        Box::pin(async move {
            let looked = {
                let root = root.clone();
                blocking(move || known(&root)).await
            };
            let shown = root.display();
            match looked {
                Ok(None) => Claim::Granted(cluster),
                Ok(Some(known)) => Claim::Refused(format!(
                    "--replica-root {shown} belongs to cluster {known}, whose replicas may run. To join that cluster, start this \
                     peer with --join and the address of a present peer of it, as `raftserve cluster members` shows them. To \
                     found another one beside it, give that one a --replica-root of its own. If {known} is gone for good, end \
                     what runs of it and remove {shown}/{known} first"
                )),
                Err(error) => Claim::NotYet(format!("cannot read --replica-root {shown}: {error}")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: ClusterId = ClusterId([1; 16]);

    async fn claim(root: &Path) -> Claim {
        ReplicaRoot::new(root.to_owned()).claim(7, NEW).await
    }

    #[tokio::test]
    async fn no_cluster_is_founded_where_the_replicas_are_of_another() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        assert_eq!(claim(&path.join("missing")).await, Claim::Granted(NEW));
        std::fs::create_dir(path.join("lost+found")).unwrap();
        assert_eq!(claim(path).await, Claim::Granted(NEW));
        let old = ClusterId([9; 16]).to_string();
        std::fs::create_dir(path.join(&old)).unwrap();
        let Claim::Refused(reason) = claim(path).await else {
            panic!("it was founded");
        };
        for told in [
            &old,
            "--join",
            "--replica-root",
            &path.display().to_string(),
        ] {
            assert!(reason.contains(told), "{told}: {reason}");
        }
        let Claim::NotYet(reason) = claim(Path::new("/dev/null")).await else {
            panic!("who cannot look must not found");
        };
        assert!(reason.contains("/dev/null"), "{reason}");
    }
}
