//! Patroni's keys.

use spilo_core::Scope;
use spilo_core::dcs::Key;

#[cfg(any(feature = "consul", feature = "etcd"))]
use crate::place::{Place, place};

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    base: String,
}

impl Keys {
    /// Returns the keys below `/<namespace>/<scope>/`.
    pub(crate) fn new(namespace: &str, scope: &Scope) -> Self {
        Self {
            base: format!("{}{scope}/", root(namespace)),
        }
    }

    /// Returns the same keys without the slash that they begin with, as Consul has them.
    #[cfg(feature = "consul")]
    pub(crate) fn without_root(mut self) -> Self {
        self.base.remove(0);
        self
    }

    /// Returns what all keys of the cluster begin with, and no key of another.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn leader(&self) -> String {
        format!("{}leader", self.base)
    }

    pub(crate) fn member(&self, name: &str) -> String {
        format!("{}members/{name}", self.base)
    }

    pub(crate) fn document(&self, key: Key) -> String {
        format!("{}{}", self.base, key.path())
    }

    /// Returns what stands at `key`; `None` for a key that is not ours, deeper ones among them
    /// (Citus keeps its groups there).
    #[cfg(any(feature = "consul", feature = "etcd"))]
    pub(crate) fn place(&self, key: &[u8]) -> Option<Place> {
        place(std::str::from_utf8(key).ok()?.strip_prefix(&self.base)?)
    }
}

/// Returns what all keys of a namespace begin with.
pub(crate) fn root(namespace: &str) -> String {
    let mut root = "/".to_owned();
    for part in namespace.split('/').filter(|part| !part.is_empty()) {
        root.push_str(part);
        root.push('/');
    }
    root
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

    #[cfg(feature = "consul")]
    #[test]
    fn consul_has_no_root() {
        let keys = keys("/foo/").without_root();
        assert_eq!(keys.leader(), "foo/demo/leader");
        assert_eq!(keys.place(b"foo/demo/leader"), Some(Place::Leader));
        assert_eq!(keys.place(b"/foo/demo/leader"), None);
    }

    #[cfg(any(feature = "consul", feature = "etcd"))]
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
