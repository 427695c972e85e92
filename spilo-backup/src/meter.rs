//! How far along something long is, for people.

use std::sync::atomic::{AtomicU64, Ordering};

use spilo_core::pg::Progress;

/// Counts bytes and says each hundredth of them.
#[derive(Debug)]
pub(crate) struct Meter {
    what: String,
    total: u64,
    done: AtomicU64,
    progress: Progress,
}

impl Meter {
    pub(crate) fn new(what: String, total: u64, progress: Progress) -> Self {
        Self {
            what,
            total,
            done: AtomicU64::new(0),
            progress,
        }
    }

    pub(crate) fn add(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let (before, now) = (self.percent(before), self.percent(before + bytes));
        if before != now {
            let mebibytes = self.total >> 20;
            self.progress
                .say(&format!("{}: {now} % of {mebibytes} MiB", self.what));
        }
    }

    fn percent(&self, done: u64) -> u128 {
        // Files that grow meanwhile are not more than all.
        (u128::from(done) * 100 / u128::from(self.total.max(1))).min(100)
    }
}
