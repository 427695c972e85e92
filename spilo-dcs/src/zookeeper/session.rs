//! Sessions that nothing keeps alive but us.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use spilo_core::Epoch;
use spilo_core::dcs::LeaseSecret;
use zookeeper_client::SessionInfo;

use super::held;

/// What [`LeaseSecret`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secret {
    /// The session that the leader node hangs on.
    pub(super) session: i64,
    /// The transaction that made the leader node.
    pub(super) epoch: Epoch,
    /// The version that this transaction gave the `epoch` node, which each holding raises.
    pub(super) holding: i32,
}

/// A session without a connection: it ends when nobody has attached to it for its time.
#[derive(Clone, Debug)]
pub(super) struct Quiet {
    pub(super) info: SessionInfo,
    pub(super) ttl: Duration,
}

/// The sessions of this handle by their ids.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<BTreeMap<i64, Quiet>>);

impl Sessions {
    pub(super) fn remember(&self, session: Quiet) {
        held(&self.0).insert(session.info.id().0, session);
    }

    pub(super) fn forget(&self, id: i64) -> Option<Quiet> {
        held(&self.0).remove(&id)
    }

    pub(super) fn get(&self, id: i64) -> Option<Quiet> {
        held(&self.0).get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Quiet> {
        held(&self.0).values().cloned().collect()
    }
}

impl Secret {
    /// Reads a secret; `None` if it is not one of ZooKeeper's.
    pub(super) fn parse(secret: &LeaseSecret) -> Option<Self> {
        let mut parts = secret.0.split('@');
        let session = u64::from_str_radix(parts.next()?.strip_prefix("0x")?, 16).ok()?;
        let session = session.cast_signed();
        let epoch = Epoch(parts.next()?.parse().ok()?);
        let holding = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self {
            session,
            epoch,
            holding,
        })
    }

    pub(super) fn write(self) -> LeaseSecret {
        let Self {
            session,
            epoch,
            holding,
        } = self;
        // Those of servers with a great number are negative.
        let session = session.cast_unsigned();
        LeaseSecret(format!("0x{session:x}@{epoch}@{holding}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_as_it_was_written() {
        for session in [0x0100_05d4_e4ab_0003, -3] {
            let secret = Secret {
                session,
                epoch: Epoch(4_294_967_301),
                holding: 0,
            };
            assert_eq!(Secret::parse(&secret.write()), Some(secret));
        }
        for text in [
            "",
            "0x1",
            "0x1@2",
            "1@2@3",
            "0x1@2@3@4",
            "0x1@-2@3",
            "0xg@2@3",
        ] {
            assert_eq!(Secret::parse(&LeaseSecret(text.to_owned())), None, "{text}");
        }
    }
}
