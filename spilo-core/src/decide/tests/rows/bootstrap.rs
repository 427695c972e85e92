//! The rows of a node that has no data.

use super::*;

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn rows() -> Vec<Row> {
    let empty = || node().pg(DataDir::Empty, Server::Down);
    let new = || {
        empty()
            .cluster(|c| c.initialize = Initialize::Absent)
            .with(|f| {
                f.predecessor.as_mut().unwrap().proof = Some(Proof::NewCluster);
            })
    };
    let clone = PgOp::Clone {
        from: upstream_b(),
        replace: None,
    };
    let make = PgOp::Bootstrap {
        config: Arc::new(seed()),
    };
    let claimed = |f: &mut Facts| f.claimed = Some(Epoch(20));
    let half = |kind| node().pg(DataDir::Unfinished(kind), Server::Down);
    let absent = |c: &mut Cluster| c.initialize = Initialize::Absent;
    let settings = |mut node: Node| {
        node.me.bootstrap = Some(Arc::new(config(json!({"pause": true}))));
        node
    };
    let incapable = |mut node: Node| {
        node.me.bootstrap = None;
        node
    };
    vec![
        (Rule::ReleaseEmpty, released(20, None), empty().holder()),
        // Somebody removed the data under the running server.
        (
            Rule::FenceBlind,
            Action::Fence,
            node()
                .primary()
                .holder()
                .with(|f| f.pg.as_mut().expect("seen").value.data = DataDir::Empty),
        ),
        (
            Rule::ClaimInitialize,
            Action::Lease(LeaseRequest::Claim(lease(20))),
            new().holder(),
        ),
        run(Rule::Bootstrap, make, new().holder().with(claimed)),
        wait(
            Rule::AwaitGuard,
            new().holder().with(claimed).with(|f| f.armed = None),
        ),
        wait(
            Rule::BootstrapFailed,
            new().failed(PgOpKind::Bootstrap, 1, 500),
        ),
        run(Rule::Clone, clone.clone(), empty().led_by_b()),
        run(Rule::Clone, clone, half(PgOpKind::Clone).led_by_b()),
        wait(
            Rule::CloneFailed,
            empty().led_by_b().failed(PgOpKind::Clone, 1, 500),
        ),
        wait(Rule::AwaitSource, empty().leader("b", 20)),
        wait(Rule::AwaitSource, empty().led_by_b().cluster(absent)),
        wait(
            Rule::AwaitSource,
            empty()
                .led_by_b()
                .cluster(|c| c.initialize = Initialize::Claimed),
        ),
        wait(Rule::AwaitSource, empty()),
        wait(Rule::AwaitSource, new().member("c", |_| {})),
        wait(Rule::AwaitSource, half(PgOpKind::Clone).cluster(absent)),
        wait(Rule::AwaitSource, half(PgOpKind::Rewind).cluster(absent)),
        wait(
            Rule::AwaitBootstrap,
            new().cluster(|c| c.initialize = Initialize::Claimed),
        ),
        (
            Rule::BootstrapRace,
            Action::Lease(LeaseRequest::Acquire(Duration::from_secs(10))),
            new(),
        ),
        wait(Rule::NoBootstrap, incapable(new())),
        wait(Rule::Unsupported, settings(new())),
    ]
}
