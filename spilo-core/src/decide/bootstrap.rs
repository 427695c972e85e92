//! A data directory that is empty or half made: make a new cluster, a copy of the leader, or go on
//! with the rewind that was interrupted.

use super::{Action, Decision, Rule, View, following, race, safety};
use crate::cluster::Initialize;
use crate::machine::LeaseRequest;
use crate::mutant::{Mutant, planted};
use crate::pg::{DataDir, PgOp, PgOpKind, StartRole};

pub(super) fn decide(view: &View<'_>) -> Option<Decision> {
    let not_whole = match &view.pg()?.data {
        DataDir::Empty | DataDir::Unfinished(_) => true,
        // Bootstrapped here, and then another cluster took the name: nobody saw this one.
        DataDir::Ready(control) => control.provisional && is_foreign(view),
        DataDir::Unreadable { .. } => false,
    };
    if !not_whole {
        return None;
    }
    Some(if view.is_holder() {
        holding(view)
    } else if view.leader_is_other() {
        copy(view)
    } else {
        race_to_bootstrap(view)
    })
}

fn holding(view: &View<'_>) -> Decision {
    // Whoever removes the data does not end the server, which writes on to what it has open.
    if view.may_write() && !view.is_down() && !planted(Mutant::EmptyIsNoWriter) {
        let why = "its data directory is not whole, and its server is alive";
        return Decision::new(Rule::FenceBlind, Action::Fence, why);
    }
    let initialize = view.cluster().map(|c| &c.initialize);
    let epoch = view.lease().map(|lease| lease.epoch);
    // What was claimed once is no right to begin anew when the data are lost.
    let lost = view.facts.existed && !planted(Mutant::LossTakenForNew);
    let claimed = epoch.is_some() && view.facts.claimed == epoch && !lost;
    match (initialize, view.lease(), &view.me.bootstrap) {
        (_, Some(_), Some(config)) if claimed => {
            if let Some(failure) = view.backing_off(PgOpKind::Bootstrap) {
                return safety::release(view, Rule::BootstrapFailed, &failure.text);
            }
            if !view.is_armed_for(view.lease().map(|l| l.ttl / 4).unwrap_or_default()) {
                return Decision::wait(Rule::AwaitGuard, "the guard is not armed yet");
            }
            let op = PgOp::Bootstrap {
                config: config.clone(),
            };
            Decision::run(Rule::Bootstrap, op, format!("{} is new", view.me.scope))
        }
        (Some(Initialize::Absent), Some(lease), Some(_)) => {
            let request = LeaseRequest::Claim(lease.clone());
            Decision::new(
                Rule::ClaimInitialize,
                Action::Lease(request),
                "nobody has bootstrapped",
            )
        }
        _ => safety::release(view, Rule::ReleaseEmpty, "there is no data to lead with"),
    }
}

fn copy(view: &View<'_>) -> Decision {
    let leader = view.leader_name();
    if view.is_down() && is_half_rewound(view) {
        return following::resume_rewind(view);
    }
    if let Some(failure) = view.backing_off(PgOpKind::Clone) {
        return Decision::wait(Rule::CloneFailed, failure.text.clone());
    }
    let Some(from) = view.upstream().filter(|_| view.leader_serves()) else {
        return Decision::wait(Rule::AwaitSource, format!("{leader} does not serve yet"));
    };
    if let Some(decision) = following::unconfirmed(view) {
        return decision;
    }
    let replace = view
        .control()
        .filter(|c| c.provisional)
        .map(|c| c.system_id);
    if !view.is_down() {
        return safety::stop(view, Rule::StopDiverged, "it is replaced by a copy");
    }
    Decision::run(
        Rule::Clone,
        PgOp::Clone { from, replace },
        format!("from {leader}"),
    )
}

fn race_to_bootstrap(view: &View<'_>) -> Decision {
    let Some(cluster) = view.cluster() else {
        return Decision::wait(Rule::StoreUnknown, "the store has not answered yet");
    };
    if !view.is_down() {
        return safety::stop(view, Rule::StopServer, "its data directory is not whole");
    }
    match cluster.initialize {
        Initialize::Absent => {}
        Initialize::Claimed => {
            return Decision::wait(
                Rule::AwaitBootstrap,
                "another node has claimed the bootstrap",
            );
        }
        Initialize::Known(_) | Initialize::Invalid => {
            return Decision::wait(Rule::AwaitSource, "there is no leader to copy");
        }
    }
    if let Some(DataDir::Unfinished(op @ (PgOpKind::Clone | PgOpKind::Rewind))) =
        view.pg().map(|pg| &pg.data)
    {
        let why = format!("the data directory was being made by {op}, so that there is a cluster");
        return Decision::wait(Rule::AwaitSource, why);
    }
    let Some(seed) = &view.me.bootstrap else {
        let why = "the cluster is new and this node has no bootstrap section";
        return Decision::wait(Rule::NoBootstrap, why);
    };
    if !seed.unsupported.is_empty() {
        let names = seed.unsupported.join(", ");
        let why =
            format!("bootstrap.dcs has {names}, which this version does not know how to honour");
        return Decision::wait(Rule::Unsupported, why);
    }
    if view.facts.existed && !planted(Mutant::LossTakenForNew) {
        let why = "the cluster had data, and the store was wiped: its members must come first. To \
                   begin a new cluster with nothing, restart the agent";
        return Decision::wait(Rule::AwaitSource, why);
    }
    // The keys of a store that was wiped say nothing; members with data do.
    if let Some(member) = cluster.members.values().find(|m| m.position().is_some()) {
        let why = format!("{} has data already", member.name);
        return Decision::wait(Rule::AwaitSource, why);
    }
    if let Some(failure) = view.backing_off(PgOpKind::Bootstrap) {
        return Decision::wait(Rule::BootstrapFailed, failure.text.clone());
    }
    race::forbidden(view).unwrap_or_else(|| {
        let request = LeaseRequest::Acquire(seed.ttl);
        Decision::new(
            Rule::BootstrapRace,
            Action::Lease(request),
            "the cluster is new",
        )
    })
}

fn is_half_rewound(view: &View<'_>) -> bool {
    let data = view.pg().map(|pg| &pg.data);
    matches!(data, Some(DataDir::Unfinished(PgOpKind::Rewind)))
}

fn is_foreign(view: &View<'_>) -> bool {
    match (view.cluster().map(|c| &c.initialize), view.control()) {
        (Some(Initialize::Known(theirs)), Some(control)) => *theirs != control.system_id,
        _ => false,
    }
}

/// As what a server without a leader to follow is started.
pub(super) fn alone() -> StartRole {
    StartRole::Standby { upstream: None }
}
