//! Patroni's keys.

use spilo_core::Scope;
use spilo_core::dcs::Key;

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    base: String,
}

/// What stands at a key below the cluster's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Leader,
    Member(String),
    Document(Key),
}

impl Keys {
    pub(super) fn new(namespace: &str, scope: &Scope) -> Self {
        let parts = namespace
            .split('/')
            .chain([scope.as_str()])
            .filter(|part| !part.is_empty());
        let mut base = String::new();
        for part in parts {
            base.push('/');
            base.push_str(part);
        }
        base.push('/');
        Self { base }
    }

    /// Returns what all keys of the cluster begin with, and no key of another.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn leader(&self) -> String {
        format!("{}leader", self.base)
    }

    pub(super) fn member(&self, name: &str) -> String {
        format!("{}members/{name}", self.base)
    }

    pub(super) fn document(&self, key: Key) -> String {
        format!("{}{}", self.base, key.path())
    }

    /// Returns what stands at `key`; `None` for a key that is not ours, deeper ones among them
    /// (Citus keeps its groups there).
    pub(super) fn place(&self, key: &[u8]) -> Option<Place> {
        let path = std::str::from_utf8(key).ok()?.strip_prefix(&self.base)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(namespace: &str) -> Keys {
        Keys::new(namespace, &Scope::new("demo").unwrap())
    }

    #[test]
    fn repeated_slashes_collapse() {
        for namespace in ["foo", "/foo", "foo/", "//foo//"] {
            assert_eq!(keys(namespace).leader(), "/foo/demo/leader");
        }
        assert_eq!(keys("/").leader(), "/demo/leader");
        assert_eq!(keys("a//b").member("pg-0"), "/a/b/demo/members/pg-0");
        assert_eq!(
            keys("a").document(Key::LegacyOptime),
            "/a/demo/optime/leader"
        );
    }

    #[test]
    fn only_our_own_keys_have_a_place() {
        let keys = keys("service");
        for (key, place) in [
            ("/service/demo/leader", Some(Place::Leader)),
            (
                "/service/demo/members/a b",
                Some(Place::Member("a b".to_owned())),
            ),
            (
                "/service/demo/optime/leader",
                Some(Place::Document(Key::LegacyOptime)),
            ),
            ("/service/demo/config", Some(Place::Document(Key::Config))),
            ("/service/demo/members/", None),
            ("/service/demo/members/a/b", None),
            ("/service/demo/0/leader", None),
            ("/service/demo/unheard-of", None),
            ("/service/demo2/leader", None),
        ] {
            assert_eq!(keys.place(key.as_bytes()), place, "{key}");
        }
        assert_eq!(keys.place(b"/service/demo/members/\xff"), None);
    }
}
