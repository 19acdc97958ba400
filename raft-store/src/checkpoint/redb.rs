//! redb as a state store: what takes sled's place should sled have to go. Tests run on both, so that the move stays
//! one line; no binary carries it until then.

use std::path::Path;

use ::redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::store::{Backend, StateStore, StateStoreError, Take, ValueEdit};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
const FILE: &str = "redb";

#[derive(Clone, Copy, Debug)]
pub(super) struct Redb;

struct RedbStore(Database);

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedbStore")
    }
}

impl Backend for Redb {
    fn open(&self, dir: &Path) -> Result<Box<dyn StateStore>, StateStoreError> {
        let db = Database::create(dir.join(FILE)).map_err(StateStoreError::backend)?;
        let mut store = RedbStore(db);
        // The table must exist to be read.
        store.write(Vec::new())?;
        Ok(Box::new(store))
    }
}

impl RedbStore {
    fn edit(&self, edits: Vec<ValueEdit>, durability: Durability) -> Result<(), ::redb::Error> {
        let mut transaction = self.0.begin_write()?;
        transaction
            .set_durability(durability)
            .expect("no savepoint was made");
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in edits {
                match value {
                    Some(value) => drop(table.insert(&key[..], &value[..])?),
                    None => drop(table.remove(&key[..])?),
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn visit(&self, take: Take<'_>) -> Result<(), ::redb::Error> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        for pair in table.iter()? {
            let (key, value) = pair?;
            if take(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl StateStore for RedbStore {
    fn write(&mut self, edits: Vec<ValueEdit>) -> Result<(), StateStoreError> {
        self.edit(edits, Durability::None)
            .map_err(StateStoreError::backend)
    }

    fn scan(&self, take: Take<'_>) -> Result<(), StateStoreError> {
        self.visit(take).map_err(StateStoreError::backend)
    }

    fn flush(&mut self) -> Result<(), StateStoreError> {
        self.edit(Vec::new(), Durability::Immediate)
            .map_err(StateStoreError::backend)
    }
}
