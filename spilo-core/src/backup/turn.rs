//! Whose turn it is to make a base backup.

use crate::cluster::{Cluster, Member, MemberRole};
use crate::config::boolean;
use crate::ids::MemberName;

/// The tag of a member that base backups are not made of.
pub const NO_BACKUP: &str = "nobackup";

/// Which members base backups are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MadeFrom {
    /// A replica that streams, so that the primary has nothing to do with it; the primary where
    /// there is none.
    #[default]
    Replica,
    /// The primary.
    Primary,
}

/// Returns the member whose turn it is to make a base backup of the cluster, if there is one that
/// can: the same for all who see the same cluster.
///
/// Of several replicas it is the first by name. A member with the tag [`NO_BACKUP`] makes none.
pub fn turn(cluster: &Cluster, from: MadeFrom) -> Option<&MemberName> {
    let leader = cluster.leader.as_ref()?.name.as_ref()?;
    let makes = |member: &Member| {
        let tag = member.tags.get(NO_BACKUP);
        tag.and_then(boolean) != Some(true)
    };
    let streams = |member: &&Member| {
        member.name != *leader
            && member.role == MemberRole::Replica
            && member.replication_state.as_deref() == Some("streaming")
            && makes(member)
    };
    let replica = match from {
        MadeFrom::Replica => cluster.members.values().find(streams),
        MadeFrom::Primary => None,
    };
    let primary = || cluster.members.get(leader).filter(|member| makes(member));
    replica.or_else(primary).map(|member| &member.name)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dcs::{Entry, LeaderRecord, RawSnapshot};
    use crate::ids::{Epoch, Revision};

    /// A cluster led by `b`, with members as pairs of a name and the record.
    fn cluster(members: &[(&str, &str)]) -> Cluster {
        let mut raw = RawSnapshot {
            revision: Revision(9),
            leader: Some(LeaderRecord {
                name: Bytes::from_static(b"b"),
                epoch: Epoch(5),
                lease_id: Some(7),
            }),
            ..RawSnapshot::default()
        };
        for (name, record) in members {
            let entry = Entry {
                value: Bytes::copy_from_slice(record.as_bytes()),
                revision: Revision(6),
            };
            raw.members.insert((*name).to_owned(), entry);
        }
        Cluster::read(&raw, None)
    }

    const PRIMARY: &str = r#"{"role":"primary","state":"running"}"#;
    const STREAMS: &str = r#"{"role":"replica","state":"running","replication_state":"streaming"}"#;
    const CATCHES_UP: &str =
        r#"{"role":"replica","state":"running","replication_state":"in archive recovery"}"#;
    const EXCUSED: &str = r#"{"role":"replica","state":"running",
        "replication_state":"streaming","tags":{"nobackup":true}}"#;

    #[test]
    fn it_is_the_first_replica_that_streams_and_else_the_primary() {
        for (members, replica, primary) in [
            (&[("b", PRIMARY)][..], Some("b"), Some("b")),
            (
                &[("a", STREAMS), ("b", PRIMARY), ("c", STREAMS)],
                Some("a"),
                Some("b"),
            ),
            (
                &[("a", CATCHES_UP), ("b", PRIMARY), ("c", STREAMS)],
                Some("c"),
                Some("b"),
            ),
            (
                &[("a", EXCUSED), ("b", PRIMARY), ("c", STREAMS)],
                Some("c"),
                Some("b"),
            ),
            (&[("a", EXCUSED), ("b", PRIMARY)], Some("b"), Some("b")),
            (
                &[("a", STREAMS), ("b", r#"{"tags":{"nobackup":"yes"}}"#)],
                Some("a"),
                None,
            ),
            (&[("b", r#"{"tags":{"nobackup":"yes"}}"#)], None, None),
            // A leader without a record has no server that anybody knows of.
            (&[("a", CATCHES_UP)], None, None),
        ] {
            let cluster = cluster(members);
            let name = |from| turn(&cluster, from).map(MemberName::as_str);
            assert_eq!(name(MadeFrom::Replica), replica, "{members:?}");
            assert_eq!(name(MadeFrom::Primary), primary, "{members:?}");
        }
    }

    #[test]
    fn without_a_leader_it_is_nobodys() {
        let mut cluster = cluster(&[("a", STREAMS), ("b", PRIMARY)]);
        cluster.leader = None;
        assert_eq!(turn(&cluster, MadeFrom::Replica), None);
    }
}
