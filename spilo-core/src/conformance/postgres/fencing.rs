//! The end of writes: fences, and deadlines that the guard keeps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::waiting::{all, either};
use super::{
    LONG, Laboratory, Node, STEP, arm, committed, deadline, look, pair, primary, refused, run,
    running, until,
};
use crate::guard::{GuardErrorKind, GuardStatus};
use crate::ids::Epoch;
use crate::pg::{PgErrorKind, PgOp, PgStatus, Server, StartRole};

/// Once a fence has returned nothing is committed, by clients that go on trying nor by what was
/// under way; what was acknowledged before is kept.
pub async fn no_commit_comes_after_a_fence(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    let ended = AtomicBool::new(false);
    let has_ended = || ended.load(Ordering::Relaxed);
    let fence = async {
        laboratory.sleep(Duration::from_millis(500)).await;
        a.postgres().fence().await.expect("it is ended");
        ended.store(true, Ordering::Relaxed);
        (BTreeSet::new(), BTreeSet::new())
    };
    let client = async {
        let (mut tried, mut acknowledged) = (BTreeSet::new(), BTreeSet::new());
        for row in 1.. {
            // The answer to what was begun before may be read after.
            if has_ended() {
                break;
            }
            tried.insert(row);
            if a.write(row).await {
                acknowledged.insert(row);
            }
            laboratory.sleep(Duration::from_millis(1)).await;
        }
        (tried, acknowledged)
    };
    let mut outcomes = all(vec![Box::pin(fence), Box::pin(client)]).await;
    let (tried, acknowledged) = outcomes.pop().expect("the client is the second");
    assert!(!acknowledged.is_empty(), "rows were committed before");
    assert_eq!(look(&*a).await.server, Server::Down);
    assert!(!status(&*a).await.alive);
    for row in LATE {
        assert!(
            !a.write(row).await,
            "row {row} is committed after the fence"
        );
    }
    // It may be called again, on a server that is down.
    a.postgres().fence().await.expect("nothing is left to end");

    let role = StartRole::Primary;
    run(&*a, PgOp::Start { role }).await;
    let rows = a.rows().await;
    assert!(
        rows.is_superset(&acknowledged),
        "what was acknowledged is kept"
    );
    assert!(rows.is_subset(&tried), "nothing came later");
}

/// A server whose deadline nobody moves is stopped at the soft time, and no process of it is left
/// after the hard time; it takes another deadline to start it.
pub async fn a_server_is_gone_when_its_deadline_has_passed(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    let short = deadline(&*a, 2, Duration::from_secs(2), Duration::from_secs(1));
    let hard = short.hard;
    let fences = status(&*a).await.fences;
    a.guard().arm(short).await.expect("it lies ahead");
    let hint = async { a.guard().changed().await.is_ok() };
    let patience = laboratory.sleep(Duration::from_secs(10));
    let told = either(Box::pin(hint), patience).await;
    assert_eq!(told, Some(true), "the end of a server is told of");
    let is_down = |status: &PgStatus| status.server == Server::Down;
    until(laboratory, &*a, "its server is down", is_down).await;
    let late = a.now().since(hard);
    assert!(late <= Duration::from_secs(1), "{late:?} late");
    assert!(!a.write(1).await, "it takes no writes");
    while a.now() <= hard {
        laboratory.sleep(STEP).await;
    }
    laboratory.sleep(Duration::from_millis(200)).await;
    let after = status(&*a).await;
    assert!(!after.alive && after.deadline.is_none(), "{after:?}");
    assert!(
        after.fences > fences && after.last_fence.is_some(),
        "{after:?}"
    );
    let role = StartRole::Primary;
    let kind = refused(&*a, PgOp::Start { role: role.clone() }).await;
    assert_eq!(kind, PgErrorKind::NotGuarded);
    arm(&*a, 3).await;
    run(&*a, PgOp::Start { role }).await;
    committed(&*a, 2).await;
}

/// A deadline that is moved in time ends nothing.
pub async fn a_deadline_that_is_moved_keeps_the_server_writing(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    let fences = status(&*a).await.fences;
    let (ends, soft_before) = (Duration::from_millis(1500), Duration::from_millis(500));
    for row in 1..=12 {
        let next = deadline(&*a, 2, ends, soft_before);
        a.guard().arm(next).await.expect("it lies ahead");
        committed(&*a, row).await;
        laboratory.sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(status(&*a).await.fences, fences);
    assert!(running(&*a).await.is_primary());
}

/// A standby whose guard was disarmed is not ended; a guard takes no deadline away from a primary.
pub async fn a_disarmed_standby_outlives_the_deadline(laboratory: &dyn Laboratory) {
    let (a, b) = pair(laboratory).await;
    let (ends, soft_before) = (Duration::from_secs(2), Duration::from_secs(1));
    let short = deadline(&*b, 2, ends, soft_before);
    let hard = short.hard;
    b.guard().arm(short).await.expect("it lies ahead");
    let disarmed = b.guard().disarm().await.expect("it is a standby");
    assert_eq!(disarmed.deadline, None);
    while b.now().since(hard) < Duration::from_millis(300) {
        laboratory.sleep(STEP).await;
    }
    assert!(!running(&*b).await.is_primary());
    assert_eq!(status(&*b).await.fences, 0);
    // Nor is it promoted by what was taken away.
    let kind = refused(&*b, PgOp::Promote).await;
    assert_eq!(kind, PgErrorKind::NotGuarded);

    let kept = status(&*a).await.deadline;
    let error = a.guard().disarm().await.map_err(|error| error.kind());
    assert_eq!(error, Err(GuardErrorKind::Refused), "it is a primary");
    assert_eq!(status(&*a).await.deadline, kept);
}

/// The deadline in force moves on, and never to an earlier epoch, to an earlier time of its own
/// epoch, or to a time that has passed.
pub async fn the_epoch_of_a_deadline_never_goes_back(laboratory: &dyn Laboratory) {
    let a = primary(laboratory).await;
    arm(&*a, 5).await;
    let in_force = status(&*a).await.deadline;
    let later = deadline(&*a, 4, 2 * LONG, Duration::from_secs(1));
    let error = a.guard().arm(later).await.map_err(|error| error.kind());
    assert_eq!(error, Err(GuardErrorKind::Refused), "an earlier epoch");
    assert_eq!(status(&*a).await.deadline, in_force);

    let mut passed = deadline(&*a, 6, Duration::ZERO, Duration::from_secs(1));
    passed.hard = passed.hard.before(Duration::from_millis(10));
    let error = a.guard().arm(passed).await.map_err(|error| error.kind());
    assert_eq!(
        error,
        Err(GuardErrorKind::Refused),
        "a time that has passed"
    );
    assert_eq!(status(&*a).await.deadline, in_force);

    // One that was overtaken by a later one of its epoch.
    let overtaken = deadline(&*a, 5, LONG / 4, Duration::from_secs(1));
    a.guard().arm(overtaken).await.expect("it is of the epoch");
    assert_eq!(status(&*a).await.deadline, in_force);

    // A later epoch brings its own times, earlier ones too.
    let next = deadline(&*a, 6, LONG / 2, Duration::from_secs(1));
    let armed = a.guard().arm(next.clone()).await.expect("it is later");
    assert_eq!(armed.deadline, Some(next));
    let epoch = |status: &GuardStatus| status.deadline.as_ref().map(|d| d.epoch);
    assert_eq!(epoch(&status(&*a).await), Some(Epoch(6)));
    assert!(running(&*a).await.is_primary());
}

/// Rows that are tried after a fence.
const LATE: std::ops::Range<u64> = 1_000_000..1_000_010;

async fn status(node: &dyn Node) -> GuardStatus {
    node.guard()
        .status()
        .await
        .expect("a guard that lives answers")
}
