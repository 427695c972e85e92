//! The member record, on a lease of its own.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::Txn;
use spilo_core::dcs::DcsErrorKind;
use spilo_core::{DcsError, MemberName, Revision};

use super::Etcd;
use super::documents::{revision, transact};
use super::lane::{Effect, Request, held};
use super::lease::lease_put;

/// What this handle announced last.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    name: MemberName,
    ttl: Duration,
    lease_id: i64,
    /// What was written on that lease and when; `None` when that is not known.
    written: Option<(Bytes, Revision)>,
}

impl Etcd {
    /// Renews the member's lease and writes the record, if it is not there as it is to be.
    pub(super) async fn announce_member(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        let request = self.request("announce the member", Effect::Once);
        let known = held(&self.announced).clone();
        let known = known.filter(|known| known.name == *me && known.ttl == ttl);
        let mut announced = match known {
            Some(known) if self.is_renewed(&request, known.lease_id).await? => known,
            _ => {
                let grant = request.then("get a lease for the member", Effect::Repeatable);
                let lease_id = self
                    .write_lane
                    .grant(&grant, ttl, || self.ids.next())
                    .await?;
                Announced {
                    name: me.clone(),
                    ttl,
                    lease_id,
                    written: None,
                }
            }
        };
        if announced
            .written
            .as_ref()
            .is_some_and(|(bytes, _)| *bytes == record)
        {
            return Ok(());
        }
        // Until the answer is here, what stands at the key is not known.
        announced.written = None;
        *held(&self.announced) = Some(announced.clone());
        let key = self.keys.member(me.as_str());
        let put = lease_put(key, Vec::from(record.clone()), announced.lease_id);
        let txn = Txn::new().and_then([put]);
        let answer = transact(&self.write_lane, &request, txn)
            .await
            .map_err(|error| {
                match error.kind() {
                    // The lease ended in this moment; the next announcement gets another.
                    DcsErrorKind::Conflict => request
                        .error(DcsErrorKind::Unavailable, "its lease ended")
                        .because(error),
                    _ => error,
                }
            })?;
        let written = revision(answer.header().map_or(0, |header| header.revision()));
        announced.written = Some((record, written));
        *held(&self.announced) = Some(announced);
        Ok(())
    }

    /// Returns whose record this handle keeps.
    pub(super) fn announced_as(&self) -> Option<String> {
        held(&self.announced)
            .as_ref()
            .map(|known| known.name.to_string())
    }

    /// Takes note of what a snapshot shows at our own member key: a record that somebody deleted,
    /// or wrote over on another lease, is written again by the next announcement.
    pub(super) fn noticed_own_record(&self, read: Revision, lease_id: Option<i64>) {
        if let Some(known) = held(&self.announced).as_mut() {
            let lost = lease_id != Some(known.lease_id);
            if lost
                && known
                    .written
                    .as_ref()
                    .is_some_and(|(_, written)| *written <= read)
            {
                known.written = None;
            }
        }
    }

    async fn is_renewed(&self, request: &Request, lease_id: i64) -> Result<bool, DcsError> {
        let request = request.then("renew the member's lease", Effect::Repeatable);
        self.write_lane.renewed(&request, lease_id).await
    }
}
