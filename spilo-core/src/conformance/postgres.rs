//! The conformance suite of a [`Postgres`] with its [`Guard`].
//!
//! A backend is described by a [`Laboratory`], which makes servers with empty data directories,
//! each with a guard of its own, that reach each other.
//! [`postgres_conformance!`](crate::postgres_conformance) makes the tests.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::config::DynamicConfig;
use crate::dcs::LeaseSecret;
use crate::guard::{Deadline, Guard};
use crate::ids::{Epoch, MemberName, Revision};
use crate::pg::{
    Control, DataDir, PgError, PgErrorKind, PgOp, PgStatus, Postgres, Progress, Role, Running,
    StartRole, Upstream,
};
use crate::time::NodeTime;

pub mod copying;
pub mod fencing;
pub mod leading;

/// Servers of one cluster, for one test.
#[async_trait]
pub trait Laboratory: Send + Sync + fmt::Debug {
    /// Makes a node whose data directory is empty; the suite names at most three, `a`, `b` and
    /// `c`, each once.
    async fn node(&self, name: &str) -> Box<dyn Node>;

    /// Lets time pass.
    async fn sleep(&self, span: Duration);

    /// Returns why a property cannot be shown here, which is then printed in place of its test.
    ///
    /// For what a fake has no notion of, and for nothing that is only not so.
    fn cannot_show(&self, _property: &str) -> Option<&'static str> {
        None
    }
}

/// One server with its guard, and what clients and other nodes do with it.
#[async_trait]
pub trait Node: Send + Sync + fmt::Debug {
    /// Returns the server.
    fn postgres(&self) -> &dyn Postgres;

    /// Returns its guard.
    fn guard(&self) -> &dyn Guard;

    /// Returns the time on the clock that the guard's deadline is measured on.
    fn now(&self) -> NodeTime;

    /// Returns how other nodes reach the server.
    fn upstream(&self) -> Upstream;

    /// Returns what a cluster starts with.
    fn config(&self) -> Arc<DynamicConfig>;

    /// Commits a row as a client would; returns whether that was acknowledged.
    async fn write(&self, row: u64) -> bool;

    /// Reads the rows as a client would; none from a server that does not answer.
    async fn rows(&self) -> BTreeSet<u64>;
}

/// Makes one `#[tokio::test]` of each property of
/// [`conformance::postgres`](crate::conformance::postgres).
///
/// The argument is an async expression of a
/// [`Box<dyn Laboratory>`](crate::conformance::postgres::Laboratory), or of an `Option` of one,
/// which is `None` where the programs are not there to test with; it is evaluated in each test.
///
/// # Examples
/// ```no_run
/// # use spilo_core::conformance::postgres::Laboratory;
/// async fn laboratory() -> Box<dyn Laboratory> {
///     unimplemented!("make a directory for servers")
/// }
/// # mod tests { use super::*;
/// spilo_core::postgres_conformance!(super::laboratory());
/// # }
/// ```
#[macro_export]
macro_rules! postgres_conformance {
    ($laboratory:expr) => {
        $crate::postgres_conformance!(@each $laboratory;
            copying: a_bootstrap_is_refused_without_an_armed_guard,
            copying: a_bootstrap_is_provisional_until_it_is_confirmed,
            copying: a_clone_streams,
            copying: a_clone_replaces_only_what_it_was_told,
            copying: an_abandoned_clone_leaves_its_marker_and_is_gone_on_with,
            copying: a_look_is_answered_while_an_operation_runs,
            leading: nothing_becomes_a_primary_without_an_armed_guard,
            leading: a_hand_over_leaves_the_candidate_level_and_it_takes_over,
            leading: a_hand_over_to_nobody_goes_on_serving,
            leading: a_standby_that_is_pointed_elsewhere_goes_on_there,
            leading: a_rewind_brings_a_diverged_server_back,
            fencing: no_commit_comes_after_a_fence,
            fencing: a_server_is_gone_when_its_deadline_has_passed,
            fencing: a_deadline_that_is_moved_keeps_the_server_writing,
            fencing: a_disarmed_standby_outlives_the_deadline,
            fencing: the_epoch_of_a_deadline_never_goes_back,
        );
    };
    (@each $laboratory:expr; $($noun:ident: $property:ident,)*) => {
        $(
            #[tokio::test]
            async fn $property() {
                let laboratory: ::std::option::Option<
                    ::std::boxed::Box<dyn $crate::conformance::postgres::Laboratory>,
                > = $laboratory.await.into();
                let Some(laboratory) = laboratory else { return };
                if let Some(reason) = laboratory.cannot_show(stringify!($property)) {
                    eprintln!("NOT RUN: {}: {reason}", stringify!($property));
                    return;
                }
                $crate::conformance::postgres::$noun::$property(&*laboratory).await;
            }
        )*
    };
}

// What the properties are told in.

async fn run(node: &dyn Node, op: PgOp) {
    let what = op.kind();
    let name = node.upstream().name;
    if let Err(error) = attempt(node, op).await {
        panic!("{name}: {what} is done, and did not fail with: {error}");
    }
}

async fn attempt(node: &dyn Node, op: PgOp) -> Result<(), PgError> {
    node.postgres().run(op, Progress::default()).await
}

/// Runs what must fail, and returns how.
async fn refused(node: &dyn Node, op: PgOp) -> PgErrorKind {
    let what = op.kind();
    match attempt(node, op).await {
        Ok(()) => panic!("{}: {what} fails", node.upstream().name),
        Err(error) => error.kind(),
    }
}

async fn look(node: &dyn Node) -> PgStatus {
    let status = node.postgres().observe().await;
    status.expect("a look at a server is answered")
}

async fn running(node: &dyn Node) -> Running {
    let status = look(node).await;
    match status.running() {
        Some(running) => running.clone(),
        None => panic!("{} runs: {status:?}", node.upstream().name),
    }
}

async fn control(node: &dyn Node) -> Control {
    let status = look(node).await;
    match status.data {
        DataDir::Ready(control) => control,
        other => panic!("{} has data: {other:?}", node.upstream().name),
    }
}

/// Looks until something is so, for half a minute at the most.
async fn until(
    laboratory: &dyn Laboratory,
    node: &dyn Node,
    what: &str,
    is_so: impl Fn(&PgStatus) -> bool + Send,
) -> PgStatus {
    let mut last = None;
    for _ in 0..LOOKS {
        let status = look(node).await;
        if is_so(&status) {
            return status;
        }
        last = Some(status);
        laboratory.sleep(STEP).await;
    }
    panic!("{}: {what}: {last:?}", node.upstream().name);
}

async fn until_streaming(laboratory: &dyn Laboratory, node: &dyn Node) {
    let streams = |status: &PgStatus| {
        status.running().is_some_and(|r| {
            matches!(
                r.role,
                Role::Standby {
                    streaming: true,
                    ..
                }
            )
        })
    };
    until(laboratory, node, "it streams", streams).await;
}

/// Waits until a server has a row.
async fn until_it_has(laboratory: &dyn Laboratory, node: &dyn Node, row: u64) {
    for _ in 0..LOOKS {
        if node.rows().await.contains(&row) {
            return;
        }
        laboratory.sleep(STEP).await;
    }
    panic!("{} has row {row}", node.upstream().name);
}

async fn committed(node: &dyn Node, row: u64) {
    let name = node.upstream().name;
    assert!(node.write(row).await, "{name} commits row {row}");
}

/// Returns a deadline that ends so long after now, its soft time so long before.
fn deadline(node: &dyn Node, epoch: u64, ends: Duration, soft_before: Duration) -> Deadline {
    let hard = node.now() + ends;
    Deadline {
        epoch: Epoch(epoch),
        secret: LeaseSecret(format!("{epoch}@conformance")),
        soft: hard.before(soft_before),
        hard,
    }
}

/// Arms the guard for longer than any property lasts.
async fn arm(node: &dyn Node, epoch: u64) {
    let deadline = deadline(node, epoch, LONG, Duration::from_secs(1));
    let armed = node.guard().arm(deadline.clone()).await;
    let status = armed.expect("a guard takes a deadline that lies ahead");
    assert_eq!(status.deadline, Some(deadline));
}

fn bootstrap(node: &dyn Node) -> PgOp {
    PgOp::Bootstrap {
        config: node.config(),
    }
}

fn standby_of(node: &dyn Node) -> StartRole {
    StartRole::Standby {
        upstream: Some(node.upstream()),
    }
}

/// Lets a primary know which members stream from it.
async fn slots(primary: &dyn Node, members: &[&dyn Node]) {
    let slot = |node: &&dyn Node| node.upstream().name.slot();
    let wanted = members.iter().map(slot).collect();
    run(primary, PgOp::Slots { wanted }).await;
}

/// Makes a cluster of one primary.
async fn primary(laboratory: &dyn Laboratory) -> Box<dyn Node> {
    let a = laboratory.node("a").await;
    arm(&*a, 1).await;
    run(&*a, bootstrap(&*a)).await;
    run(&*a, PgOp::Confirm).await;
    a
}

/// Copies a primary, and lets the copy stream.
async fn joined(laboratory: &dyn Laboratory, name: &str, primary: &dyn Node) -> Box<dyn Node> {
    let b = laboratory.node(name).await;
    slots(primary, &[&*b]).await;
    configure(&*b).await;
    let from = primary.upstream();
    run(
        &*b,
        PgOp::Clone {
            from,
            replace: None,
        },
    )
    .await;
    let role = standby_of(primary);
    run(&*b, PgOp::Start { role }).await;
    until_streaming(laboratory, &*b).await;
    b
}

async fn configure(node: &dyn Node) {
    let config = node.config();
    let revision = Revision(1);
    run(node, PgOp::Configure { revision, config }).await;
}

/// Makes a primary and a standby of it.
async fn pair(laboratory: &dyn Laboratory) -> (Box<dyn Node>, Box<dyn Node>) {
    let a = primary(laboratory).await;
    let b = joined(laboratory, "b", &*a).await;
    (a, b)
}

fn name(node: &dyn Node) -> MemberName {
    node.upstream().name
}

/// How often a property looks while it waits.
const STEP: Duration = Duration::from_millis(20);

/// Half a minute of looks.
const LOOKS: u32 = 1500;

/// Longer than any property lasts.
const LONG: Duration = Duration::from_secs(120);
