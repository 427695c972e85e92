//! Connections, and what is asked on them.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use zookeeper_client::{
    Acls, Client, Connector, CreateMode, Error, MultiReadResult, MultiWriteError, MultiWriteResult,
    SessionInfo, SessionState, Stat,
};

use super::failure::{Failure, Verdict};
use super::options::ZooKeeperOptions;

/// The way to the servers.
pub(super) struct Link {
    options: ZooKeeperOptions,
    hosts: String,
    /// For reads and documents: a session that nothing hangs on, kept alive by the client.
    kept: Mutex<Option<Client>>,
}

/// A part of a transaction.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The node is of this version; of any, with -1.
    Check(String, i32),
    /// The node is made.
    Create(String, Bytes, CreateMode),
    /// The node is of this version, and is written.
    Set(String, Bytes, Option<i32>),
    /// The node is of this version, and is deleted.
    Delete(String, Option<i32>),
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All of it was done; with the states of the nodes that were written, in their order.
    Done(Vec<Stat>),
    /// Nothing of it, because of the part at this place.
    Refused(usize, Error),
}

/// A node that exists.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Bytes,
    pub(super) stat: Stat,
}

impl Link {
    pub(super) fn new(options: ZooKeeperOptions) -> Self {
        Self {
            hosts: options.hosts.join(","),
            options,
            kept: Mutex::default(),
        }
    }

    pub(super) fn options(&self) -> &ZooKeeperOptions {
        &self.options
    }

    /// Returns when a call that begins now must be over.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options.request_timeout
    }

    /// Returns the client for reads and documents.
    pub(super) async fn client(&self, until: Instant) -> Result<Client, Failure> {
        let late = |_| Failure::new(Verdict::NotDone, self.no_answer());
        let mut kept = timeout_at(until, self.kept.lock()).await.map_err(late)?;
        if let Some(client) = kept.as_ref().filter(|client| !is_over(client.state())) {
            return Ok(client.clone());
        }
        let tick = self.options.tick_time;
        let connector = self
            .connector()
            .with_session_timeout(self.options.request_timeout.max(tick * 2));
        let client = self.connect(connector, until).await?;
        Ok(kept.insert(client).clone())
    }

    /// Makes a session, or attaches to one, and nothing keeps it alive when the connection is
    /// dropped, nor ends it.
    pub(super) async fn attach(
        &self,
        session: Option<SessionInfo>,
        ttl: Duration,
        until: Instant,
    ) -> Result<Client, Failure> {
        let mut connector = self.connector().with_session_timeout(ttl).with_detached();
        if let Some(session) = session {
            connector = connector.with_session(session);
        }
        self.connect(connector, until).await
    }

    /// Ends a session with all that hangs on it; one that has ended is as good.
    pub(super) async fn end(
        &self,
        session: SessionInfo,
        ttl: Duration,
        until: Instant,
    ) -> Result<(), Failure> {
        let mut expired = false;
        loop {
            let connector = self.connector().with_session_timeout(ttl);
            let attached = self.connect(connector.with_session(session.clone()), until);
            let problem = match attached.await {
                Ok(client) => match self.closed(client, until).await? {
                    true => return Ok(()),
                    false => Failure::new(Verdict::Unknown, "its connection was lost"),
                },
                // A leader that has been deposed, and has not noticed, may take a session for ended
                // that its successor has begun anew. It does notice within a tick of hearing of that.
                Err(failure) if failure.is_expired() && expired => return Ok(()),
                Err(failure) if failure.is_expired() => {
                    expired = true;
                    let client = self.client(until).await?;
                    self.catch_up(&client, "/", until).await?;
                    failure
                }
                Err(failure) if failure.verdict == Verdict::Refused => return Err(failure),
                // An abandoned request's connection is made anew once when this one takes its
                // place, and takes it back.
                Err(failure) => failure,
            };
            if Instant::now() + PAUSE >= until {
                return Err(problem);
            }
            sleep(PAUSE).await;
        }
    }

    /// Closes the session of a client, the last one of it; returns whether the server said so.
    async fn closed(&self, client: Client, until: Instant) -> Result<bool, Failure> {
        let mut states = client.state_watcher();
        // The last client that goes closes the session, and tells when the server has answered.
        drop(client);
        loop {
            match timeout_at(until, states.changed()).await {
                Ok(SessionState::Closed) => return Ok(true),
                // Which the client also says by its own clock.
                Ok(state) if is_over(state) => return Ok(false),
                Ok(_) => {}
                Err(_) => return Err(Failure::new(Verdict::Unknown, self.no_answer())),
            }
        }
    }

    fn connector(&self) -> Connector {
        let connector = Client::connector()
            // Time for a second server when the first one hangs, and for a third.
            .with_connection_timeout(self.options.request_timeout / 3)
            .with_fail_eagerly();
        match &self.options.digest {
            Some(digest) => connector.with_auth("digest", digest.as_bytes()),
            None => connector,
        }
    }

    async fn connect(&self, connector: Connector, until: Instant) -> Result<Client, Failure> {
        match timeout_at(until, connector.connect(&self.hosts)).await {
            Ok(client) => client.map_err(|error| Failure::of_connection(error, &self.hosts)),
            Err(_) => Err(Failure::new(Verdict::NotDone, self.no_answer())),
        }
    }

    /// Does all of it or nothing.
    pub(super) async fn transact(
        &self,
        client: &Client,
        ops: &[Op],
        until: Instant,
    ) -> Result<Outcome, Failure> {
        let acls = self.acls();
        let mut writer = client.new_multi_writer();
        for op in ops {
            let added = match op {
                Op::Check(path, version) => writer.add_check_version(path, *version),
                Op::Create(path, value, mode) => {
                    writer.add_create(path, value, &mode.with_acls(acls))
                }
                Op::Set(path, value, version) => writer.add_set_data(path, value, *version),
                Op::Delete(path, version) => writer.add_delete(path, *version),
            };
            added.map_err(Failure::of_request)?;
        }
        let done = timeout_at(until, writer.commit()).await;
        match done.map_err(|_| Failure::new(Verdict::Unknown, self.no_answer()))? {
            Ok(results) => {
                let written = results.into_iter().filter_map(|result| match result {
                    MultiWriteResult::SetData { stat } => Some(stat),
                    _ => None,
                });
                Ok(Outcome::Done(written.collect()))
            }
            Err(MultiWriteError::OperationFailed { index, source }) => match source {
                Error::NoNode | Error::BadVersion | Error::NodeExists | Error::NotEmpty => {
                    Ok(Outcome::Refused(index, source))
                }
                source => Err(Failure::of_request(source)),
            },
            Err(MultiWriteError::RequestFailed { source }) => Err(Failure::of_request(source)),
        }
    }

    /// Returns after everything that was acknowledged before this began has reached the server that
    /// this client is connected to.
    ///
    /// A transaction, since only those need a quorum: `sync` is answered by a leader that has been
    /// deposed as well. One that fails for want of the node goes the same way.
    pub(super) async fn catch_up(
        &self,
        client: &Client,
        base: &str,
        until: Instant,
    ) -> Result<(), Failure> {
        let any = [Op::Check(base.to_owned(), -1)];
        self.transact(client, &any, until).await.map(drop)
    }

    /// Lets the next one connect anew.
    pub(super) async fn abandon(&self, client: &Client) {
        let mut kept = self.kept.lock().await;
        kept.take_if(|kept| kept.session_id() == client.session_id());
    }

    /// Reads nodes as they are at one moment, and the children of one more. Of the first `lenient`,
    /// those that may not be read count as missing.
    pub(super) async fn nodes(
        &self,
        client: &Client,
        paths: &[String],
        lenient: usize,
        children_of: Option<&str>,
        until: Instant,
    ) -> Result<(Vec<Option<Node>>, Vec<String>), Failure> {
        let mut reader = client.new_multi_reader();
        for path in paths {
            reader.add_get_data(path).map_err(Failure::of_request)?;
        }
        if let Some(path) = children_of {
            reader.add_get_children(path).map_err(Failure::of_request)?;
        }
        let results = self.answer(reader.commit(), until).await?;
        let mut nodes = Vec::with_capacity(paths.len());
        let mut names = Vec::new();
        for result in results {
            match result {
                MultiReadResult::Data { data, stat } => nodes.push(Some(Node {
                    value: Bytes::from(data),
                    stat,
                })),
                MultiReadResult::Children { children } => names = children,
                MultiReadResult::Error { err: Error::NoNode } => nodes.push(None),
                MultiReadResult::Error { err: Error::NoAuth } if nodes.len() < lenient => {
                    nodes.push(None);
                }
                MultiReadResult::Error { err } => return Err(Failure::of_request(err)),
                _ => return Err(Failure::new(Verdict::Unknown, "an answer of no known kind")),
            }
        }
        // Where the last one has no children, it stands among the nodes as one that is missing.
        nodes.truncate(paths.len());
        if nodes.len() < paths.len() {
            let problem = format!("{} answers to {} questions", nodes.len(), paths.len());
            return Err(Failure::new(Verdict::Unknown, problem));
        }
        Ok((nodes, names))
    }

    /// Returns the names of a node's children; none if there is no such node.
    pub(super) async fn children(
        &self,
        client: &Client,
        path: &str,
        until: Instant,
    ) -> Result<Vec<String>, Failure> {
        let listed = timeout_at(until, client.list_children(path)).await;
        match listed.map_err(|_| Failure::new(Verdict::Unknown, self.no_answer()))? {
            Err(Error::NoNode) => Ok(Vec::new()),
            names => names.map_err(Failure::of_request),
        }
    }

    /// Makes a node and all above it.
    pub(super) async fn make_directory(
        &self,
        client: &Client,
        path: &str,
        acls: Acls<'_>,
        until: Instant,
    ) -> Result<(), Failure> {
        let options = CreateMode::Persistent.with_acls(acls);
        self.answer(client.mkdir(path, &options), until).await
    }

    async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, Error>>,
        until: Instant,
    ) -> Result<T, Failure> {
        match timeout_at(until, answer).await {
            Ok(answer) => answer.map_err(Failure::of_request),
            Err(_) => Err(Failure::new(Verdict::Unknown, self.no_answer())),
        }
    }

    /// Returns for whom what is made here is.
    pub(super) fn acls(&self) -> Acls<'static> {
        match self.options.digest {
            Some(_) => Acls::creator_all(),
            None => Acls::anyone_all(),
        }
    }

    fn no_answer(&self) -> String {
        let limit = self.options.request_timeout;
        format!("{} did not answer within {limit:?}", self.hosts)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

fn is_over(state: SessionState) -> bool {
    matches!(
        state,
        SessionState::AuthFailed | SessionState::Expired | SessionState::Closed
    )
}

/// Between two connections, so that servers that refuse are not flooded.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
