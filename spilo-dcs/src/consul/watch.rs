//! The watch: a hint that something changed.

use std::time::Duration;

use spilo_core::Revision;
use spilo_core::dcs::Key;
use tokio::time::sleep;

use super::documents::{Ask, Listing, Print};
use super::{Consul, held};
use crate::place::Place;

impl Consul {
    /// Returns when something changed after `since`, or when nobody can tell any more.
    pub(super) async fn wait_for_change(&self, since: Revision) {
        if *held(&self.told) == Some(since) {
            // The caller was told before and has not seen it yet: its read is under way, or fails.
            // It is told again, but not in a circle without a pause.
            sleep(PAUSE).await;
        }
        let seen = held(&self.seen).clone();
        let known = (seen.revision == since.0).then(|| waited_for(&seen.print));
        let mut index = since.0;
        loop {
            // An index of 0 would be answered at once.
            let ask = Ask::After(index.max(1), PATIENCE);
            // Consul lets up to a sixteenth of the time pass on top of it.
            let until = self.http.deadline() + PATIENCE + PATIENCE / 16;
            let listing = match self.http.list(&self.keys, ask, until).await {
                Ok(listing) => listing,
                Err(failure) => {
                    let problem = failure.problem;
                    tracing::debug!(problem, "there is no watch");
                    return sleep(PAUSE).await;
                }
            };
            if differs(known.as_ref(), &listing, since) {
                *held(&self.told) = Some(since);
                return;
            }
            // It may have gone back, and is then waited for from there. Where there is no key yet,
            // it moves with those of others.
            index = listing.index;
            sleep(PAUSE).await;
        }
    }
}

/// Returns whether a listing shows something that a watcher is woken for, as far as can be told.
fn differs(known: Option<&Print>, listing: &Listing, since: Revision) -> bool {
    match known {
        Some(known) => *known != waited_for(&listing.print()),
        // What was deleted leaves only its mark on the index.
        None => listing.index > since.0,
    }
}

/// Leaves out the leader's position, which changes all the time, and which nobody waits for.
fn waited_for(print: &Print) -> Print {
    let mut print = print.clone();
    print.retain(|place, _| !matches!(place, Place::Document(Key::Status | Key::LegacyOptime)));
    print
}

/// How long one request waits for a change. Long enough to cost nothing, and short enough to
/// notice on the same day that nobody is there any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What keeps a watch that fails at once from turning into a storm of reads.
const PAUSE: Duration = Duration::from_millis(500);
