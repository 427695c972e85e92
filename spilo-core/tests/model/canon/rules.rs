//! Which parts of a state make it behave differently, and for how long an age does.

use spilo_core::NodeTime;
use spilo_core::machine::Facts;

/// What is to be done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// It matters as it is; ages in it, up to the longest time that anything waits for.
    Whole,
    /// It matters, and ages in it are all the same beyond so many milliseconds.
    Capped(u64),
    /// It matters whether it is there.
    Presence,
    /// The numbers in it are lease ids.
    LeaseId,
    /// It changes nothing.
    LeaveOut,
}

/// What is known of a node from elsewhere, so that an age in its facts changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// What it knows of its guard is so: another look would bring no news.
    pub(crate) guard: bool,
    /// The store has its member record: writing it again would change nothing.
    pub(crate) announced: bool,
    /// For how long it matters when the rest of the holder's lease was asked for.
    pub(crate) left_ms: u64,
    /// For how long it matters when a peer answered, or did not.
    pub(crate) peers_ms: u64,
    /// For how long it is waited after the operation that failed most often.
    pub(crate) failed_ms: u64,
}

impl Known {
    /// Returns what is known of a node that knows this.
    pub(crate) fn of(facts: &Facts) -> Self {
        let since = |at: NodeTime| facts.now.since(at).as_millis();
        // A lease has at most a ttl left, and one that was to end more than three seconds before
        // its key was gone was renewed since. A ttl after that nobody asks.
        let gone = facts.predecessor.as_ref().map(|before| before.gone);
        let left_ms = match gone {
            None => 0,
            Some(None) => 6_000,
            Some(Some(gone)) if since(gone) < u128::from(TTL) => 9_000,
            Some(Some(_)) => 0,
        };
        let silent = facts.peers.values().any(|seen| seen.value.is_none());
        let times = facts
            .failures
            .values()
            .map(|failure| failure.times.min(10))
            .max();
        Self {
            guard: false,
            announced: false,
            left_ms,
            peers_ms: if silent { 6_000 } else { 3_000 },
            failed_ms: u64::from(times.unwrap_or_default()) * 1_000,
        }
    }
}

/// Returns what is to be done with a field of a type, `within` a field of the facts, the lanes, or
/// the store, and in the entry of this `document`.
pub(super) fn rule(of: &str, name: &str, within: &str, known: Known, document: &str) -> Rule {
    match of {
        "Machine" => machine(name),
        "Facts" => facts(name),
        "Lanes" => lanes(name),
        "Store" => store(name),
        "Seen" | "Written" => seen(of, name, within, known),
        "Predecessor" => predecessor(name, known),
        // A permission ends with the ttl, which is three seconds, and margins are taken off.
        "Holding" if name == "clear" => Rule::Capped(0),
        "Holding" | "Consent" => Rule::Capped(TTL),
        // It binds until then, and past is past.
        "Promise" => Rule::Capped(0),
        // The secret is all that is asked for of a deadline in an old answer of the guard.
        "Deadline" if within == "guard" && matches!(name, "soft" | "hard") => Rule::LeaveOut,
        "Deadline" => Rule::Capped(0),
        // Counters and texts for people.
        "GuardStatus" => match name {
            "deadline" | "postmaster" | "alive" => Rule::Whole,
            _ => Rule::LeaveOut,
        },
        "Failure" if name == "text" => Rule::LeaveOut,
        "OpFailure" if name == "text" => Rule::LeaveOut,
        "OpFailure" if name == "at" => Rule::Capped(known.failed_ms),
        // Only the text about it is made from this.
        "RunningOp" if name == "since" => Rule::LeaveOut,
        // A request that counts from longer ago than a ttl permits nothing.
        "Sent" if name == "at" => Rule::Capped(TTL),
        // It is asked again after half a second.
        "LeaderHistory" if name == "at" => Rule::Capped(750),
        // There is the configuration of a cluster without one, and the one that the model begins
        // with; these two differ.
        "DynamicConfig" if name != "ttl" => Rule::LeaveOut,
        // What it was parsed from, and when it was written, which is asked of Patroni's alone.
        "Member" if matches!(name, "raw" | "tags" | "revision") => Rule::LeaveOut,
        "Cluster" if name == "malformed" => Rule::LeaveOut,
        "ReleaseDocument" if name == "revision" => Rule::LeaveOut,
        "LeaderRecord" if name == "lease_id" => Rule::LeaseId,
        // Which revision of the configuration was applied is asked; of other documents, nothing
        // but the switchover's, which nobody asks for here.
        "Entry" if name == "revision" && document != "Config" => Rule::LeaveOut,
        _ => Rule::Whole,
    }
}

/// Who a node is does not change, and what was decided last is for the log.
fn machine(name: &str) -> Rule {
    match name {
        "facts" => Rule::Whole,
        _ => Rule::LeaveOut,
    }
}

fn facts(name: &str) -> Rule {
    match name {
        // When it was stepped last shows in what it has yet to do in this quantum. A look at the
        // server has always been answered when a node comes to rest, so that what it saw is
        // current; `looked` and `settled` are compared with nothing but each other.
        "now" | "settled" | "looked" | "fenced_at" => Rule::LeaveOut,
        // Servers here do not hang, and nobody asks an agent to end.
        "server_since" => Rule::LeaveOut,
        // Starts take no minutes here, and three take more incidents than there are.
        "outage" | "handing_over" => Rule::LeaveOut,
        // There are no slots here.
        "slot_seen" | "slots_at" => Rule::LeaveOut,
        "store_failing" | "pg_failing" | "refused_failover" => Rule::Presence,
        // A promise that was forgotten lasted for a ttl.
        "started" => Rule::Capped(TTL),
        // A standby that does not stream has a second's patience.
        "not_streaming_since" => Rule::Capped(1_500),
        "guard_failing" => Rule::Capped(1_500),
        "others_until" => Rule::Capped(0),
        _ => Rule::Whole,
    }
}

fn lanes(name: &str) -> Rule {
    match name {
        // Numbers are given out in order; which have been is not asked.
        "ticket" | "op" => Rule::LeaveOut,
        // What failed is tried again after a quarter of a second.
        "write_failed" | "lease_failed" | "consent_at" => Rule::Capped(750),
        // The rest of a lease is asked for every 700 ms.
        "left_at" => Rule::Capped(750),
        "history_failed" => Rule::Capped(1_500),
        // A follower reads every 1.8 s.
        "read_at" => Rule::Capped(2_250),
        _ => Rule::Whole,
    }
}

fn store(name: &str) -> Rule {
    match name {
        // `noticed` is for watchers, and no lease id is given out twice. Ids that were revoked are
        // taken in where there is a request that still names one.
        "noticed" | "last_lease_id" | "revoked" => Rule::LeaveOut,
        "leases" => Rule::LeaseId,
        _ => Rule::Whole,
    }
}

fn seen(of: &str, name: &str, within: &str, known: Known) -> Rule {
    match (of, name, within) {
        // When the cluster was seen is for the status, and the server is seen at every step.
        ("Seen", "at", "cluster" | "pg") => Rule::LeaveOut,
        ("Seen", "at", "guard") if known.guard => Rule::LeaveOut,
        // Silence lasts for six seconds, an answer for three.
        ("Seen", "at", "peers") => Rule::Capped(known.peers_ms),
        ("Written", ..) if known.announced => Rule::Capped(0),
        // What is missing in the store is written again after a second.
        ("Written", ..) => Rule::Capped(1_500),
        _ => Rule::Whole,
    }
}

fn predecessor(name: &str, known: Known) -> Rule {
    match name {
        // Only a record of Patroni's is compared with it.
        "gone_revision" => Rule::LeaveOut,
        // After a ttl a former holder cannot write, and what a peer said before that is too old.
        "gone" => Rule::Capped(TTL),
        "left" => Rule::Capped(known.left_ms),
        "older_until" => Rule::Capped(0),
        _ => Rule::Whole,
    }
}

const TTL: u64 = 3_000;
