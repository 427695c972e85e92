//! What an error says about the request that it answers, in the stores whose errors say no more.

use spilo_core::dcs::DcsErrorKind;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was not done.
    NotDone,
    /// It may have been done.
    Unknown,
    /// It was not done, and asking again does not help.
    Refused,
}

/// Whether a request changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Read,
    Write,
}

impl Verdict {
    /// Returns what the caller of a request of this effect may conclude.
    pub(crate) fn kind(self, effect: Effect) -> DcsErrorKind {
        match (self, effect) {
            (Self::Refused, _) => DcsErrorKind::Refused,
            (Self::NotDone, _) | (Self::Unknown, Effect::Read) => DcsErrorKind::Unavailable,
            (Self::Unknown, Effect::Write) => DcsErrorKind::Indeterminate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_is_indeterminate_only_where_something_may_have_changed() {
        for (verdict, effect, kind) in [
            (Verdict::Unknown, Effect::Write, DcsErrorKind::Indeterminate),
            (Verdict::Unknown, Effect::Read, DcsErrorKind::Unavailable),
            (Verdict::NotDone, Effect::Write, DcsErrorKind::Unavailable),
            (Verdict::Refused, Effect::Write, DcsErrorKind::Refused),
        ] {
            assert_eq!(verdict.kind(effect), kind);
        }
    }
}
