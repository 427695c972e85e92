//! Data directories: how they are made, and what is never thrown away.

use std::time::Duration;

use super::super::waiting::{all, either};
use super::{
    Laboratory, STEP, arm, attempt, bootstrap, committed, configure, control, joined, look, name,
    pair, primary, refused, run, running, slots, standby_of, until, until_it_has, until_streaming,
};
use crate::ids::SystemId;
use crate::pg::{DataDir, PgErrorKind, PgOp, PgOpKind, PgStatus, Role, Server};
use crate::wal::Timeline;

/// No server that takes writes is made unless the guard is armed; nothing is left of the attempt.
pub async fn a_bootstrap_is_refused_without_an_armed_guard(laboratory: &dyn Laboratory) {
    let a = laboratory.node("a").await;
    let nothing = look(&*a).await;
    assert_eq!(
        (nothing.data, nothing.server),
        (DataDir::Empty, Server::Down)
    );
    let kind = refused(&*a, bootstrap(&*a)).await;
    assert_eq!(kind, PgErrorKind::NotGuarded);
    let after = look(&*a).await;
    assert!(after.control().is_none(), "{after:?}");
    assert_eq!(after.server, Server::Down);
}

/// A new cluster runs as a primary under the guard on timeline 1, and is provisional until the
/// store knows of it.
pub async fn a_bootstrap_is_provisional_until_it_is_confirmed(laboratory: &dyn Laboratory) {
    let a = laboratory.node("a").await;
    arm(&*a, 1).await;
    run(&*a, bootstrap(&*a)).await;
    let primary = running(&*a).await;
    assert!(primary.is_primary() && primary.guarded, "{primary:?}");
    assert_eq!(primary.timeline, Timeline(1));
    let made = control(&*a).await;
    assert!(made.provisional && !made.standby, "{made:?}");
    run(&*a, PgOp::Confirm).await;
    let confirmed = control(&*a).await;
    assert!(!confirmed.provisional, "{confirmed:?}");
    assert_eq!(confirmed.system_id, made.system_id);
    let history = a.postgres().history().await.expect("its history is read");
    assert_eq!(history.timeline(), Timeline(1));
    committed(&*a, 1).await;
    assert!(a.rows().await.contains(&1));
}

/// A copy has what was committed before it, starts as a standby of the server it was made of, is
/// seen there by its name, and gets what is committed later.
pub async fn a_clone_streams(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    committed(&*a, 1).await;
    let b = joined(laboratory, "b", &*a).await;
    let copy = control(&*b).await;
    assert!(copy.standby && !copy.provisional, "{copy:?}");
    assert_eq!(copy.system_id, control(&*a).await.system_id);
    let standby = running(&*b).await;
    assert!(standby.guarded && !standby.is_primary(), "{standby:?}");
    assert_eq!(standby.timeline, Timeline(1));
    let me = name(&*b);
    let seen = |status: &PgStatus| {
        let streams =
            |w: &crate::pg::Walsender| w.application == me.as_str() && w.state == "streaming";
        status
            .running()
            .is_some_and(|r| r.walsenders.iter().any(streams))
    };
    let status = until(laboratory, &*a, "its standby is seen", seen).await;
    let slots = status.running().map(|r| r.slots.clone());
    let slots = slots.expect("it runs").into_iter().map(|(slot, _)| slot);
    assert_eq!(slots.collect::<Vec<_>>(), [me.slot()]);
    until_it_has(laboratory, &*b, 1).await;
    committed(&*a, 2).await;
    until_it_has(laboratory, &*b, 2).await;
    assert!(!b.write(3).await, "a standby takes no write");
}

/// A directory that has a database cluster is replaced only when its own identifier was named, and
/// never under a server that runs.
pub async fn a_clone_replaces_only_what_it_was_told(laboratory: &dyn Laboratory) {
    let (a, b) = pair(laboratory).await;
    let from = a.upstream();
    let id = control(&*b).await.system_id;
    let clone = |replace| PgOp::Clone {
        from: from.clone(),
        replace,
    };
    assert_eq!(refused(&*b, clone(Some(id))).await, PgErrorKind::Retry);
    run(&*b, PgOp::Stop).await;
    assert_eq!(refused(&*b, clone(None)).await, PgErrorKind::Refused);
    let another = Some(SystemId(id.0 + 1));
    assert_eq!(refused(&*b, clone(another)).await, PgErrorKind::Refused);
    assert_eq!(control(&*b).await.system_id, id);
    run(&*b, clone(Some(id))).await;
    let role = standby_of(&*a);
    run(&*b, PgOp::Start { role }).await;
    until_streaming(laboratory, &*b).await;
}

/// Dropping the future of an operation ends it; the directory that it leaves half made carries its
/// marker, and the operation can be done again there without being told what to replace.
pub async fn an_abandoned_clone_leaves_its_marker_and_is_gone_on_with(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    let b = laboratory.node("b").await;
    slots(&*a, &[&*b]).await;
    configure(&*b).await;
    let clone = || PgOp::Clone {
        from: a.upstream(),
        replace: None,
    };
    let is_half_made = |status: &PgStatus| status.data == DataDir::Unfinished(PgOpKind::Clone);
    let begun = async {
        until(laboratory, &*b, "its marker is there", is_half_made).await;
    };
    let ended = either(Box::pin(attempt(&*b, clone())), Box::pin(begun)).await;
    assert!(ended.is_none(), "the marker is seen before the clone ends");
    let left = until(laboratory, &*b, "its marker stays", is_half_made).await;
    assert_eq!(left.server, Server::Down);
    run(&*b, clone()).await;
    let role = standby_of(&*a);
    run(&*b, PgOp::Start { role }).await;
    until_streaming(laboratory, &*b).await;
    assert!(matches!(running(&*b).await.role, Role::Standby { .. }));
}

/// Looking does not wait for an operation, nor the other way round.
pub async fn a_look_is_answered_while_an_operation_runs(laboratory: &dyn Laboratory) {
    let a = laboratory.node("a").await;
    arm(&*a, 1).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    let work = async {
        run(&*a, bootstrap(&*a)).await;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        0
    };
    let looks = async {
        let mut half_made = 0;
        while !is_done() {
            let asked = a.now();
            let seen = look(&*a).await;
            let took = a.now().since(asked);
            assert!(took <= LOOK_LIMIT, "a look takes {took:?}");
            if !is_done() && seen.data == DataDir::Unfinished(PgOpKind::Bootstrap) {
                half_made += 1;
            }
            laboratory.sleep(STEP).await;
        }
        half_made
    };
    let answers: Vec<u32> = all(vec![Box::pin(work), Box::pin(looks)]).await;
    assert!(answers[1] > 0, "the marker is seen while it runs");
}

/// What a look may take, on a machine that is busy.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
