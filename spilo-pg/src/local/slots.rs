//! The slots of the members, and checkpoints.

use std::collections::BTreeSet;
use std::time::Duration;

use spilo_core::ids::SlotName;
use spilo_core::pg::PgError;

use super::observe::is_primary;
use super::query::slot_name;
use super::{LocalPostgres, failed_query};

impl LocalPostgres {
    /// Creates the slots that are missing and drops the inactive ones that are not wanted.
    pub(super) async fn slots(&self, wanted: &BTreeSet<SlotName>) -> Result<(), PgError> {
        let action = "set up the replication slots";
        let session = self.session(action).await?;
        let failed = |error| failed_query(action, error);
        let rows = session.rows(PRESENT, LIMIT).await.map_err(failed)?;
        let mut present = BTreeSet::new();
        for row in &rows {
            let (Some(name), Some(physical), Some(active), Some(lost)) =
                (row.get(0), row.get(1), row.get(2), row.get(3))
            else {
                continue;
            };
            let Some(slot) = slot_name(name).filter(|_| physical == "t") else {
                continue;
            };
            // What was removed under a slot that fell too far behind does not come back.
            if active == "f" && (lost == "t" || !wanted.contains(&slot)) {
                let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
                match session.rows(&drop, LIMIT).await {
                    Ok(_) => tracing::info!(%slot, lost, "dropped a replication slot"),
                    // It has become active, or is gone.
                    Err(error) => tracing::info!(%slot, %error, "a replication slot stays"),
                }
            } else {
                present.insert(slot);
            }
        }
        for slot in wanted.difference(&present) {
            let create = format!("SELECT pg_create_physical_replication_slot('{slot}', true)");
            session.rows(&create, LIMIT).await.map_err(failed)?;
            tracing::info!(%slot, "created a replication slot");
        }
        Ok(())
    }

    /// Checkpoints after a promotion, and brings the configuration files in line with it.
    pub(super) async fn checkpoint(&self) -> Result<(), PgError> {
        let action = "checkpoint";
        self.flush().await?;
        let session = self.session(action).await?;
        if is_primary(&session)
            .await
            .map_err(|error| failed_query(action, error))?
        {
            Box::pin(self.settle_as_primary()).await;
        }
        Ok(())
    }

    /// Checkpoints, however long it takes.
    pub(super) async fn flush(&self) -> Result<(), PgError> {
        let action = "checkpoint";
        let session = self.session(action).await?;
        let result = session.rows("CHECKPOINT", CHECKPOINT_LIMIT).await;
        result
            .map(drop)
            .map_err(|error| failed_query(action, error))
    }
}

const PRESENT: &str = "SELECT slot_name, slot_type = 'physical' AND NOT temporary, active, \
     coalesce(wal_status = 'lost', false) FROM pg_replication_slots";
const LIMIT: Duration = Duration::from_secs(10);
/// A checkpoint of a large server with a slow disk takes minutes.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3600);
