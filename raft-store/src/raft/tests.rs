//! openraft's conformance suite over the real store, and what it does not look at.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::*;
use crate::identity::DataDir;
use crate::store::Store;

/// A real store in a directory of its own.
struct RealStore;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for RealStore {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let mut data = DataDir::open(&dir.path().join("data")).unwrap();
        let opened = Store::default().open(&mut data).unwrap();
        Ok((dir, opened.log, opened.machine))
    }
}

#[tokio::test]
async fn the_store_conforms_to_openrafts_suite() {
    Suite::test_all(RealStore).await.unwrap();
}
