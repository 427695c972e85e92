//! Planted bugs. Each is a mistake that somebody made or could make, and something must notice it:
//! `cargo xtask mutants` plants one after the other and looks what does.
//!
//! Without `--cfg spilo_mutants` none is planted, and the compiler removes the places.

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $mutant:ident,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(spilo_mutants), expect(unreachable_pub, reason = "the tests of mutants use it"))]
        #[repr(u8)]
        pub enum Mutant {
            $($(#[doc = $doc])+ $mutant,)*
        }

        #[cfg(spilo_mutants)]
        impl Mutant {
            /// Every mistake, with what it is.
            pub const ALL: &[(Self, &str)] = &[$((Self::$mutant, concat!($($doc),+)),)*];
        }
    };
}

mutants! {
    /// A lease counts from when the answer came.
    LeaseFromAnswer,
    /// Writes end when the lease does.
    NoFenceMargin,
    /// A lease is trusted by its renewals alone.
    UnconfirmedRenewal,
    /// A promotion goes on when the lock is lost.
    PromotionNotCancelled,
    /// An epoch that was given up is held again.
    GivenUpEpochHeld,
    /// The result of an older operation is taken for the present one's.
    StaleOpResult,
    /// A request without an answer is taken for one that was refused.
    IndeterminateIsRefusal,
    /// Timelines are compared by their numbers.
    TimelineByNumber,
    /// A standby may be promoted however far behind it is.
    LagIgnored,
    /// A lock that vanished is taken for a lease that ended.
    VanishedIsEnded,
    /// A lease that was revoked early is taken for one that ended of age.
    RevokedIsAged,
    /// Nobody asks whether the holder had a longer lease before.
    OlderLeaseForgotten,
    /// A lock that was passed to a shorter lease is lived by as long as the older one lasts.
    SuccessionIgnored,
    /// Consent is given while an attempt to take the lock is under way.
    ConsentWhileAcquiring,
    /// The promise that goes with a consent is not kept.
    PromiseForgotten,
    /// A consent is lived by although the lock was released for a successor.
    ConsentOutlivesRelease,
    /// A deadline that the guard was left with is trusted after the lock was released.
    LeftDeadlineTrusted,
    /// A server that an earlier agent left and that cannot be looked at counts as no writer.
    UnseenTrusted,
    /// A release that was not answered is not asked for again.
    ReleaseForgotten,
    /// A standby is pointed at a new leader by where it was before there was one.
    OldLookFollowed,
    /// The consent of most members is enough.
    ConsentByMajority,
    /// Who was put into the failsafe list by a write without an answer is not asked for consent.
    UnreadListForgotten,
    /// Who was put into a failsafe list that was sent and not read since is not asked for consent,
    /// once its record has ended.
    SentListForgotten,
    /// Somebody is put into the failsafe list while the permission rests on the consent of others.
    ListedUnderConsent,
    /// The consent of another cluster's member counts.
    StrangersConsent,
    /// Whoever is not in the failsafe list may take the lock.
    UnlistedAcquires,
    /// The failsafe list that a node remembers counts although the store's was lost since.
    LostListTrusted,
    /// A configuration that the store lost is taken for one that turns the failsafe mode off.
    LostConfigTrusted,
    /// After a restart the lock is held by its name.
    AdoptByName,
    /// The guard's deadline moves when a renewal is asked for, not when it succeeded.
    DeadlineOnRequest,
    /// A promotion that failed is taken for one that was never ordered.
    PromotionOrderForgotten,
    /// What a server was seen to be before it was made a primary counts afterwards.
    OldLookTrusted,
    /// A look at the server that began in the millisecond in which an operation ended counts as one
    /// from after it.
    OldLookCounts,
    /// A standby whose guard keeps a permission counts as nobody who may begin to write.
    LeftOrderForgotten,
    /// A hand-over begins although no candidate may take the lock yet.
    CandidateNotAwaited,
    /// A snapshot from the past is taken.
    StaleSnapshot,
    /// Writes begin before the store has the record of the holding.
    RecordNotAwaited,
    /// Writes begin before those who held the lock before cannot write.
    OthersNotAwaited,
    /// A holder that has not written yet is taken for one that waited for those before it.
    EarlierForgotten,
    /// A store without the record of any holder is taken for one that never had a holder.
    WipeForgotten,
    /// A node that lost its data begins a new cluster when the store is wiped.
    LossTakenForNew,
    /// A cluster is copied, over data or not, before the store has its identifier.
    UnconfirmedCopied,
    /// A server whose data somebody removed counts as no writer.
    EmptyIsNoWriter,
    /// A peer on a later timeline is waited for although it may not lead.
    DeadBranchAwaited,
    /// A fence that failed is repeated without a pause.
    FenceHammered,
    /// A holder whose fences fail keeps the lock.
    UnfencedKeepsLock,
    /// What was tried on old data counts against new ones.
    OldDataRemembered,
    /// The number of a timeline is taken for the fork that it began at.
    ForkByNumber,
    /// A peer that is ahead is waited for although it says that it may not lead.
    BarredAwaited,
    /// The guard is told of a renewal only if it is worth a quarter of the time between two.
    LateArmed,
    /// The candidate of a switchover takes the lock of a leader that was lost on the way, however
    /// far behind it is.
    SwitchoverWaivesLag,
    /// A holder whose server does not stay up is started in place again and again.
    StartedForEver,
}

#[cfg(spilo_mutants)]
mod planting {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    const NONE: u8 = u8::MAX;

    fn now() -> &'static AtomicU8 {
        static NOW: OnceLock<AtomicU8> = OnceLock::new();
        NOW.get_or_init(|| {
            #[expect(
                clippy::disallowed_methods,
                reason = "tests of mutants alone come here"
            )]
            let name = std::env::var("SPILO_MUTANT").unwrap_or_default();
            let named = Mutant::ALL
                .iter()
                .find(|(mutant, _)| format!("{mutant:?}") == name);
            assert!(
                name.is_empty() || named.is_some(),
                "no mutant is named {name}"
            );
            AtomicU8::new(named.map_or(NONE, |(mutant, _)| *mutant as u8))
        })
    }

    /// Plants one mistake in this process, or none.
    pub fn plant(mutant: Option<Mutant>) {
        now().store(mutant.map_or(NONE, |m| m as u8), Ordering::Relaxed);
    }

    pub(crate) fn planted(mutant: Mutant) -> bool {
        now().load(Ordering::Relaxed) == mutant as u8
    }
}

#[cfg(spilo_mutants)]
pub use planting::plant;
#[cfg(spilo_mutants)]
pub(crate) use planting::planted;

#[cfg(not(spilo_mutants))]
pub(crate) const fn planted(_: Mutant) -> bool {
    false
}
