//! The client: writes a row every 10 ms to whichever node says that it is the primary.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::http;
use crate::node::Node;

/// Where a node is, as a client knows it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) node: String,
    pub(crate) postgres_port: u16,
    pub(crate) api_port: u16,
}

/// A client that writes until it is stopped.
#[derive(Debug)]
pub(crate) struct Writer {
    ledger: Arc<Mutex<Ledger>>,
    tasks: JoinSet<()>,
}

/// What became of the rows, as the client knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// Rows whose insertion was acknowledged.
    pub(crate) acknowledged: BTreeSet<i64>,
    /// Rows that were sent and neither acknowledged nor refused: they may be there or not.
    pub(crate) in_doubt: BTreeSet<i64>,
    /// When the last was acknowledged, and by whom.
    pub(crate) last: Option<(Instant, String)>,
    /// The longest time between two acknowledged rows, and when it ended.
    pub(crate) longest: Option<(Duration, Instant)>,
}

/// What the primary has in the end.
#[derive(Clone, Debug)]
pub(crate) struct Survivors {
    pub(crate) rows: BTreeSet<i64>,
    pub(crate) node: String,
}

impl Writer {
    /// Starts to write.
    pub(crate) fn start(targets: Vec<Target>, password: String) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(write(targets, password, Arc::clone(&ledger)));
        Self { ledger, tasks }
    }

    /// Returns what is known of the rows so far.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        held(&self.ledger)
    }

    /// Stops, and returns what is known of the rows.
    pub(crate) async fn stop(mut self) -> Ledger {
        self.tasks.shutdown().await;
        held(&self.ledger).clone()
    }
}

impl Target {
    /// Returns where a node is.
    pub(crate) fn of(node: &Node) -> Self {
        Self {
            node: node.name.to_string(),
            postgres_port: node.postgres_port(),
            api_port: node.api_port(),
        }
    }
}

/// Lets a server do a statement, and returns the first column of the last row.
pub(crate) async fn ask(target: &Target, password: &str, statement: &str) -> Result<String> {
    let connection = connect(target, password).await?;
    let done = connection.client.simple_query(statement).await;
    let done = done.with_context(|| format!("{}: {statement}", target.node))?;
    let column = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(done.iter().rev().find_map(column).unwrap_or_default())
}

/// Reads back what is on the primary.
pub(crate) async fn survivors(targets: &[Target], password: &str) -> Result<Survivors> {
    let Some(target) = primary(targets).await else {
        bail!("no node answers as the primary")
    };
    let connection = connect(target, password).await?;
    let rows = connection.client.query("SELECT id FROM demo", &[]).await;
    let rows = rows.with_context(|| format!("cannot read the rows on {}", target.node))?;
    let rows = rows.iter().map(|row| row.get(0)).collect();
    Ok(Survivors {
        rows,
        node: target.node.clone(),
    })
}

async fn write(targets: Vec<Target>, password: String, ledger: Arc<Mutex<Ledger>>) {
    let mut next = 1;
    loop {
        if let Some(target) = primary(&targets).await
            && let Ok(connection) = connect(target, &password).await
        {
            write_to(&connection.client, &target.node, &mut next, &ledger).await;
        }
        // Any failure ends the connection, and begins a new search.
        sleep(PACE).await;
    }
}

/// Writes until something fails.
async fn write_to(client: &Client, node: &str, next: &mut i64, ledger: &Mutex<Ledger>) {
    let created = client.batch_execute("CREATE TABLE IF NOT EXISTS demo (id bigint PRIMARY KEY)");
    if !matches!(timeout(ANSWER, created).await, Ok(Ok(()))) {
        return;
    }
    let prepared = timeout(ANSWER, client.prepare("INSERT INTO demo VALUES ($1)")).await;
    let Ok(Ok(insert)) = prepared else { return };
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let id = *next;
        *next += 1;
        // Before it leaves: what is not acknowledged is in doubt, also if we are stopped here.
        held(ledger).in_doubt.insert(id);
        let answer = timeout(ANSWER, client.execute(&insert, &[&id])).await;
        match answer {
            Ok(Ok(_)) => held(ledger).acknowledge(id, node),
            Ok(Err(error)) => {
                if error
                    .as_db_error()
                    .is_some_and(|error| !may_be_done(error.code().code()))
                {
                    held(ledger).in_doubt.remove(&id);
                }
                return;
            }
            Err(_) => return,
        }
    }
}

/// Returns whether a statement that failed so may have been done all the same: the server says
/// that it shuts down (class 57), or that the connection failed (class 08).
fn may_be_done(code: &str) -> bool {
    code.starts_with("57") || code.starts_with("08")
}

impl Ledger {
    fn acknowledge(&mut self, id: i64, node: &str) {
        let now = Instant::now();
        self.in_doubt.remove(&id);
        self.acknowledged.insert(id);
        if let Some((last, _)) = self.last.replace((now, node.to_owned())) {
            let gap = now - last;
            if self
                .longest
                .as_ref()
                .is_none_or(|(longest, _)| gap > *longest)
            {
                self.longest = Some((gap, now));
            }
        }
    }
}

/// Asks all nodes at once which is the primary, as a load balancer does.
async fn primary(targets: &[Target]) -> Option<&Target> {
    let mut questions = JoinSet::new();
    for (index, target) in targets.iter().enumerate() {
        let port = target.api_port;
        questions.spawn(async move {
            let answer = timeout(ASK, http::ask(port, "HEAD", "/primary")).await;
            matches!(answer, Ok(Ok((200, _)))).then_some(index)
        });
    }
    while let Some(answer) = questions.join_next().await {
        if let Ok(Some(index)) = answer {
            return targets.get(index);
        }
    }
    None
}

/// A connection, and the task that carries it.
struct Connection {
    client: Client,
    _carrier: JoinSet<()>,
}

async fn connect(target: &Target, password: &str) -> Result<Connection> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(target.postgres_port)
        .user("postgres")
        .dbname("postgres");
    config
        .password(password)
        .application_name("quickstart")
        .connect_timeout(ANSWER);
    let (client, connection) = timeout(ANSWER, config.connect(NoTls)).await??;
    let mut carrier = JoinSet::new();
    carrier.spawn(async move {
        // The client hears of the same failure.
        connection.await.unwrap_or_default();
    });
    Ok(Connection {
        client,
        _carrier: carrier,
    })
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const PACE: Duration = Duration::from_millis(10);

/// How long a server may take over a statement before the client looks for another one.
const ANSWER: Duration = Duration::from_secs(1);

const ASK: Duration = Duration::from_millis(300);
