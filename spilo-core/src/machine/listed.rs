//! Whom this node may have put into the failsafe list without having read that since. They count on
//! being asked for consent, whether or not a snapshot shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Ticket;
use crate::dcs::DcsErrorKind;
use crate::ids::MemberName;

/// Members of failsafe lists that were sent under the present holding, with their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listed {
    /// Those of lists that were sent, and may not have been in the store when it was read last.
    sent: BTreeMap<MemberName, String>,
    /// Those of lists whose writes had no answer: they may arrive for as long as the holding lasts.
    doubted: BTreeMap<MemberName, String>,
    /// The last ticket that was given out before the answer to the last list.
    answered: Option<Ticket>,
}

impl Listed {
    /// A list leaves.
    pub(super) fn sends(&mut self, list: BTreeMap<MemberName, String>) {
        self.sent.extend(list);
        self.answered = None;
    }

    /// The list that left last was answered when `last` was the last ticket.
    pub(super) fn answered(&mut self, last: Ticket, failure: Option<DcsErrorKind>) {
        if failure == Some(DcsErrorKind::Indeterminate) {
            let sent = self.sent.iter();
            let sent = sent.map(|(name, url)| (name.clone(), url.clone()));
            self.doubted.extend(sent);
        }
        self.answered = Some(last);
    }

    /// The store was read, as asked for with this ticket: what was answered before shows.
    pub(super) fn read(&mut self, ticket: Ticket) {
        if self.answered.is_some_and(|last| last < ticket) {
            self.sent.clear();
        }
    }

    /// Returns them all.
    pub(super) fn members(&self) -> impl Iterator<Item = (&MemberName, &String)> {
        self.doubted.iter().chain(&self.sent)
    }
}
