//! Who reaches whom.

use std::collections::BTreeSet;

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum End {
    /// A node, by its number.
    Node(usize),
    /// The store.
    Store,
}

/// The links that are cut, each direction by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Network {
    cut: BTreeSet<(End, End)>,
}

impl Network {
    /// Returns whether what `from` sends arrives at `to`.
    pub(super) fn carries(&self, from: End, to: End) -> bool {
        self.cut.is_empty() || !self.cut.contains(&(from, to))
    }

    /// Returns whether both hear each other, as a connection needs.
    pub(super) fn joins(&self, a: End, b: End) -> bool {
        self.carries(a, b) && self.carries(b, a)
    }

    /// Cuts or mends one direction.
    pub(super) fn set(&mut self, from: End, to: End, open: bool) {
        if open {
            self.cut.remove(&(from, to));
        } else {
            self.cut.insert((from, to));
        }
    }

    /// Cuts or mends everything between one end and all others of so many nodes.
    pub(super) fn isolate(&mut self, end: End, nodes: usize, open: bool) {
        let others = (0..nodes).map(End::Node).chain([End::Store]);
        for other in others.filter(|other| *other != end) {
            self.set(end, other, open);
            self.set(other, end, open);
        }
    }

    /// Mends everything.
    pub(super) fn mend(&mut self) {
        self.cut.clear();
    }
}
