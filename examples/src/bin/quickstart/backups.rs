//! What happens with `--backup`: log and a base backup go to S3, replicas are made in the way that
//! is better, and a cluster is brought back as it was before an accident.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use spilo_core::Scope;
use spilo_core::backup::RecoveryTarget;
use spilo_core::pg::Progress;
use spilo_pg::Recovery;

use crate::archive::Archive;
use crate::node::Node;
use crate::plot;
use crate::stage::Stage;
use crate::writer::{self, Target, Writer};

/// Plays it all; with `--hold` it does not end by itself.
pub(crate) async fn play(stage: &mut Stage<'_>) -> Result<()> {
    if stage.nodes.len() < 3 {
        bail!("--backup shows two replicas: give it three nodes");
    }
    begin(stage).await?;
    let name = back_up(stage).await?;
    stage.tell("node-2 starts: little log was written since the backup");
    join(stage, 1).await?;
    pass_threshold(stage).await?;
    stage.tell("node-3 starts: to replay all of that would take longer than a copy");
    join(stage, 2).await?;
    rescue(stage, &name).await?;
    if stage.arguments.hold {
        plot::hold(stage).await
    } else {
        Ok(())
    }
}

/// Starts the store and one node, and a client that writes.
async fn begin(stage: &mut Stage<'_>) -> Result<()> {
    let (owner, password) = (stage.common.owner, stage.common.password.clone());
    let archive = Archive::new(stage.dir, owner, &password).await?;
    stage.tell(&format!(
        "a store of the protocol of S3 is up, and takes log and backups: {}. The nodes are in {}; \
         PostgreSQL is that of {}",
        archive.described(),
        stage.dir.display(),
        stage.common.bin_dir.display()
    ));
    stage.common.archive = Some(Arc::new(archive));
    stage.start(0).await?;
    let limit = plot::limit(stage, START);
    stage
        .until("a primary", limit, |stage| stage.primary() == Some(0))
        .await?;
    stage.writer = Some(Writer::start(stage.targets(), password));
    stage.watch(seconds(stage)).await
}

/// Makes a base backup, and waits until the log is archived.
async fn back_up(stage: &mut Stage<'_>) -> Result<String> {
    let archive = archive(stage)?;
    let node = &stage.nodes[0];
    let (data_dir, conninfo) = (node.data_dir(), node.conninfo(&stage.common));
    stage.tell("a base backup of node-1 is made, while the client writes");
    let name = archive
        .back_up(&data_dir, &conninfo, Progress::default())
        .await?;
    stage.tell(&format!(
        "the backup {name} is whole, with all log that it needs"
    ));
    ask(stage, "SELECT pg_switch_wal()").await?;
    level(stage).await?;
    let count = "SELECT archived_count || ' files of the log are archived, the last is ' || \
                 last_archived_wal FROM pg_stat_archiver";
    let told = ask(stage, count).await?;
    stage.tell(&format!("{told}; none waits"));
    Ok(name)
}

/// Starts a node, which becomes a replica in the way that it says.
async fn join(stage: &mut Stage<'_>, index: usize) -> Result<()> {
    stage.start(index).await?;
    let limit = plot::limit(stage, START);
    stage
        .until("a replica that streams", limit, |stage| {
            stage.is_streaming(index)
        })
        .await?;
    stage.watch(seconds(stage)).await
}

/// Writes so much that the log since the backup is no longer little.
async fn pass_threshold(stage: &mut Stage<'_>) -> Result<()> {
    let bulk = "CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 4) AS m \
                FROM generate_series(1, 100000) n";
    ask(stage, bulk).await?;
    let size = "SELECT pg_size_pretty(pg_table_size('bulk'))";
    let size = ask(stage, size).await?;
    stage.tell(&format!("a table of {size} was written, and the log of it"));
    stage.watch(seconds(stage)).await
}

/// Loses the rows to an accident, and brings them back in a cluster of its own.
async fn rescue(stage: &mut Stage<'_>, name: &str) -> Result<()> {
    let ledger = match stage.writer.take() {
        Some(writer) => writer.stop().await,
        None => bail!("nobody has written"),
    };
    let rows = ask(stage, "SELECT count(*) FROM demo").await?;
    ask(stage, &format!("SELECT pg_create_restore_point('{POINT}')")).await?;
    ask(stage, "DELETE FROM demo").await?;
    let left = ask(stage, "SELECT count(*) FROM demo").await?;
    stage.tell(&format!(
        "ACCIDENT: of {rows} rows {left} are left. Before it, the point {POINT:?} was named"
    ));
    ask(stage, "SELECT pg_switch_wal()").await?;
    level(stage).await?;
    let mut recovery = Recovery::new(Arc::new(archive(stage)?.store(None)));
    recovery.target = RecoveryTarget::Name(POINT.to_owned());
    let common = stage.common.of_scope(Scope::new("rescued")?);
    let number = u8::try_from(stage.nodes.len() + 1)?;
    let mut rescued = Node::new(number, stage.dir, &common)?;
    rescued.recovery = Some(recovery);
    stage.tell(&format!(
        "a cluster of its own begins with {name}, and recovers to that point"
    ));
    rescued.start(&common, &stage.store).await?;
    let came = wait(stage, &mut rescued).await;
    let target = Target::of(&rescued);
    let there = match came {
        Ok(()) => writer::ask(&target, &common.password, "SELECT count(*) FROM demo").await,
        Err(error) => Err(error),
    };
    rescued.drop_agent().await;
    let there = there?;
    stage.tell(&format!("it takes writes, and has {there} rows"));
    stage.screen.leave();
    stage.screen.say(&format!(
        "done: {} rows acknowledged before the accident, {there} of {rows} recovered to the point \
         {POINT:?}",
        ledger.acknowledged.len()
    ));
    if there != rows {
        bail!("{rows} rows were there, and {there} came back");
    }
    Ok(())
}

async fn wait(stage: &mut Stage<'_>, rescued: &mut Node) -> Result<()> {
    let limit = plot::limit(stage, START);
    let begun = std::time::Instant::now();
    while !rescued.is_writable() {
        if let Some(why) = rescued.exit() {
            bail!("its agent has ended: {why}");
        }
        if begun.elapsed() > limit {
            bail!("the recovery has not ended within {limit:?}");
        }
        stage.watch(Duration::from_millis(200)).await?;
    }
    Ok(())
}

/// Waits until no file of the log waits to be archived.
async fn level(stage: &mut Stage<'_>) -> Result<()> {
    for _ in 0..300 {
        let waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
        if ask(stage, waiting).await? == "0" {
            return Ok(());
        }
        stage.watch(Duration::from_millis(200)).await?;
    }
    bail!("the log is not archived within a minute")
}

/// Asks the first node, which is the primary here, and returns the first column of the last row.
async fn ask(stage: &Stage<'_>, statement: &str) -> Result<String> {
    let target = Target::of(&stage.nodes[0]);
    writer::ask(&target, &stage.common.password, statement).await
}

fn archive(stage: &Stage<'_>) -> Result<Arc<Archive>> {
    stage.common.archive.clone().context("there is no archive")
}

fn seconds(stage: &Stage<'_>) -> Duration {
    Duration::from_secs(stage.arguments.seconds.into())
}

/// What the moment before the accident is called.
const POINT: &str = "before the accident";

/// Several times what it takes on a small machine with a slow disk.
const START: Duration = Duration::from_secs(90);
