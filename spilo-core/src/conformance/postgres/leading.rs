//! Who is the primary: how one becomes it, hands over, and returns.

use super::{
    Laboratory, arm, committed, control, joined, look, name, pair, primary, refused, run, running,
    slots, standby_of, until, until_it_has, until_streaming,
};
use crate::pg::{PgErrorKind, PgOp, PgStatus, Role, Server, StartRole};
use crate::wal::Timeline;

/// Neither a promotion nor a start makes a server that takes writes unless the guard is armed.
pub async fn nothing_becomes_a_primary_without_an_armed_guard(laboratory: &dyn Laboratory) {
    let (_a, b) = pair(laboratory).await;
    let kind = refused(&*b, PgOp::Promote).await;
    assert_eq!(kind, PgErrorKind::NotGuarded);
    let standby = running(&*b).await;
    assert!(!standby.is_primary(), "{standby:?}");
    run(&*b, PgOp::Stop).await;
    let role = StartRole::Primary;
    let kind = refused(&*b, PgOp::Start { role }).await;
    assert_eq!(kind, PgErrorKind::NotGuarded);
    let server = look(&*b).await.server;
    assert_eq!(server, Server::Down);
}

/// A hand-over ends with a server that is down and a candidate that has all of its log; the
/// candidate, promoted, is on a new timeline and has every row, and the other one follows it.
pub async fn a_hand_over_leaves_the_candidate_level_and_it_takes_over(laboratory: &dyn Laboratory) {
    let (a, b) = pair(laboratory).await;
    for row in 1..=3 {
        committed(&*a, row).await;
    }
    let candidate = Some(name(&*b));
    run(&*a, PgOp::HandOver { candidate }).await;
    let down = look(&*a).await;
    assert_eq!(down.server, Server::Down);
    let end = down.position().expect("its end is in the control file");
    assert_eq!(running(&*b).await.position(), end);

    arm(&*b, 2).await;
    run(&*b, PgOp::Promote).await;
    let promoted = running(&*b).await;
    assert!(promoted.is_primary() && promoted.guarded, "{promoted:?}");
    assert_eq!(promoted.timeline, Timeline(2));
    assert!(b.rows().await.is_superset(&[1, 2, 3].into()));
    let history = b.postgres().history().await.expect("its history is read");
    assert_eq!(history.timeline(), Timeline(2));
    assert!(history.contains(end), "{history:?} goes on from {end:?}");
    let told = a.postgres().history_of(&b.upstream()).await;
    let id = control(&*a).await.system_id;
    assert_eq!(told.expect("a primary tells its history"), (id, history));

    run(&*b, PgOp::Checkpoint).await;
    slots(&*b, &[&*a]).await;
    let role = standby_of(&*b);
    run(&*a, PgOp::Start { role }).await;
    until_streaming(laboratory, &*a).await;
    committed(&*b, 4).await;
    until_it_has(laboratory, &*a, 4).await;
    assert_eq!(running(&*a).await.timeline, Timeline(2));
    let in_recovery = b.postgres().history_of(&a.upstream()).await;
    let kind = in_recovery.map_err(|error| error.kind());
    assert_eq!(kind, Err(PgErrorKind::Retry), "a standby tells none");
}

/// A server that has nobody to hand over to is not stopped.
pub async fn a_hand_over_to_nobody_goes_on_serving(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    let kind = refused(&*a, PgOp::HandOver { candidate: None }).await;
    assert_eq!(kind, PgErrorKind::NotLevel);
    assert!(running(&*a).await.is_primary());
    committed(&*a, 1).await;
}

/// A running standby streams from whom it is pointed at, and from nobody when it is pointed at
/// none.
pub async fn a_standby_that_is_pointed_elsewhere_goes_on_there(laboratory: &dyn Laboratory) {
    let (a, b) = pair(laboratory).await;
    run(&*b, PgOp::Follow { upstream: None }).await;
    until(laboratory, &*b, "it streams no more", is_alone).await;
    committed(&*a, 1).await;
    let upstream = Some(a.upstream());
    run(&*b, PgOp::Follow { upstream }).await;
    until_streaming(laboratory, &*b).await;
    until_it_has(laboratory, &*b, 1).await;
}

/// A primary that has what its successor has not returns by a rewind, and has what the successor
/// has.
pub async fn a_rewind_brings_a_diverged_server_back(laboratory: &dyn Laboratory) {
    let (a, b) = pair(laboratory).await;
    committed(&*a, 1).await;
    until_it_has(laboratory, &*b, 1).await;
    run(&*b, PgOp::Follow { upstream: None }).await;
    until(laboratory, &*b, "it streams no more", is_alone).await;
    committed(&*a, 2).await;
    // It crashes, so that only its log knows how far it came.
    a.postgres().fence().await.expect("it is ended");

    arm(&*b, 2).await;
    run(&*b, PgOp::Promote).await;
    run(&*b, PgOp::Checkpoint).await;
    slots(&*b, &[&*a]).await;
    committed(&*b, 3).await;
    run(&*a, PgOp::Rewind { from: b.upstream() }).await;
    let returned = control(&*a).await;
    assert!(returned.standby, "{returned:?}");
    let role = standby_of(&*b);
    run(&*a, PgOp::Start { role }).await;
    until_streaming(laboratory, &*a).await;
    until_it_has(laboratory, &*a, 3).await;
    assert_eq!(a.rows().await, [1, 3].into());
    assert_eq!(running(&*a).await.timeline, Timeline(2));
    // A third one joins the new timeline.
    let c = joined(laboratory, "c", &*b).await;
    until_it_has(laboratory, &*c, 3).await;
}

fn is_alone(status: &PgStatus) -> bool {
    status.running().is_some_and(|r| {
        matches!(
            r.role,
            Role::Standby {
                streaming: false,
                ..
            }
        )
    })
}
