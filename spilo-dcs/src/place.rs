//! What stands where below a cluster's own keys.

use spilo_core::dcs::Key;

/// What stands at a key below the cluster's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Leader,
    Member(String),
    Document(Key),
}

/// Returns what stands at a path below a cluster's own.
pub(crate) fn place(path: &str) -> Option<Place> {
    if path == "leader" {
        return Some(Place::Leader);
    }
    if let Some(name) = path.strip_prefix("members/") {
        let valid = !name.is_empty() && !name.contains('/');
        return valid.then(|| Place::Member(name.to_owned()));
    }
    Key::ALL
        .into_iter()
        .find(|key| key.path() == path)
        .map(Place::Document)
}
