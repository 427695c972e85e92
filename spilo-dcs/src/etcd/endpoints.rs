//! The endpoints of etcd, as they were named or as DNS names them now.

use std::sync::Arc;
#[cfg(feature = "srv")]
use std::sync::Mutex;

#[cfg(feature = "srv")]
use tokio::sync::Notify;
#[cfg(feature = "srv")]
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[cfg(feature = "srv")]
use super::lane::held;
use super::options::EtcdOptions;
#[cfg(feature = "srv")]
use super::srv::{self, Records};

/// The endpoints of one etcd.
///
/// Where DNS names them, it is asked by a task of its own, when its records have expired and when
/// an endpoint failed. Only a request that knows no endpoint at all waits for the answer. What DNS
/// does not answer, or denies, changes nothing.
pub(super) struct Endpoints {
    #[cfg(feature = "srv")]
    found: Option<Arc<Found>>,
    named: Known,
}

/// Endpoints in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Each as a URL.
    pub(super) urls: Arc<[String]>,
    /// How many of them are named now. What follows is asked last: it answered once, and none of
    /// those that are named now has answered yet.
    pub(super) named: usize,
}

#[cfg(feature = "srv")]
struct Found {
    options: EtcdOptions,
    now: Mutex<Now>,
    asked: Notify,
}

#[cfg(feature = "srv")]
struct Now {
    known: Known,
    /// The last endpoint that answered.
    answered: Option<String>,
    /// When DNS is asked again.
    due: Instant,
    /// When it was asked last.
    asked: Option<Instant>,
    task: Option<JoinHandle<()>>,
    problem: Option<String>,
}

impl Endpoints {
    /// Takes endpoints as URLs, which count until DNS has named others if it is to be asked.
    pub(super) fn new(urls: Vec<String>, options: &EtcdOptions) -> Self {
        let named = Known {
            named: urls.len(),
            urls: urls.into(),
        };
        #[cfg(not(feature = "srv"))]
        let _ = options;
        Self {
            #[cfg(feature = "srv")]
            found: options
                .srv
                .is_some()
                .then(|| Arc::new(Found::new(options.clone(), named.clone()))),
            named,
        }
    }

    /// Returns the endpoints; never none.
    ///
    /// # Errors
    /// Why none is known, at the latest at the deadline.
    ///
    /// # Cancellation
    /// Safe.
    #[cfg_attr(
        not(feature = "srv"),
        expect(clippy::unused_async, reason = "waits only where DNS is asked")
    )]
    pub(super) async fn known(&self, deadline: Instant) -> Result<Known, String> {
        #[cfg(feature = "srv")]
        if let Some(found) = &self.found {
            return found.known(deadline).await;
        }
        let _ = deadline;
        Ok(self.named.clone())
    }

    /// Notes that one answered.
    pub(super) fn answered(&self, url: &str) {
        #[cfg(feature = "srv")]
        if let Some(found) = &self.found {
            held(&found.now).answered(url);
        }
        let _ = url;
    }

    /// Notes that one failed: others may be named by now.
    pub(super) fn failed(&self) {
        #[cfg(feature = "srv")]
        if let Some(found) = &self.found {
            held(&found.now).failed();
        }
    }

    /// Returns what names the endpoints, for people.
    pub(super) fn names(&self) -> Vec<String> {
        #[cfg(feature = "srv")]
        if let Some(found) = &self.found {
            return held(&found.now).known.urls.to_vec();
        }
        self.named.urls.to_vec()
    }
}

#[cfg(feature = "srv")]
impl Found {
    fn new(options: EtcdOptions, named: Known) -> Self {
        Self {
            options,
            now: Mutex::new(Now {
                known: named,
                answered: None,
                due: Instant::now(),
                asked: None,
                task: None,
                problem: None,
            }),
            asked: Notify::new(),
        }
    }

    async fn known(self: &Arc<Self>, deadline: Instant) -> Result<Known, String> {
        let mut asked = std::pin::pin!(self.asked.notified());
        // From now on: an answer that comes before the wait is not missed.
        asked.as_mut().enable();
        {
            let mut now = held(&self.now);
            let at = Instant::now();
            if at >= now.due && !now.is_asking() {
                now.asked = Some(at);
                now.due = at + srv::LONGEST;
                now.task = Some(tokio::spawn(Arc::clone(self).ask()));
            }
            if !now.known.urls.is_empty() {
                return Ok(now.known.clone());
            }
            if !now.is_asking() {
                return Err(now.why_none());
            }
        }
        // At the deadline there may be none yet, which is told below.
        tokio::time::timeout_at(deadline, asked).await.ok();
        let now = held(&self.now);
        if now.known.urls.is_empty() {
            return Err(now.why_none());
        }
        Ok(now.known.clone())
    }

    async fn ask(self: Arc<Self>) {
        let answer = srv::ask(&self.options).await;
        held(&self.now).take(answer, Instant::now());
        self.asked.notify_waiters();
    }
}

#[cfg(feature = "srv")]
impl Now {
    fn is_asking(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }

    fn why_none(&self) -> String {
        let why = self
            .problem
            .as_deref()
            .unwrap_or("DNS has not answered yet");
        format!("no endpoint is known: {why}")
    }

    fn take(&mut self, answer: Result<Records, String>, at: Instant) {
        let records = match answer {
            Ok(records) => records,
            Err(problem) => {
                self.due = at + srv::SHORTEST;
                if self.problem.as_ref() != Some(&problem) {
                    let kept = self.known.urls.join(", ");
                    tracing::warn!(problem, kept, "DNS names no endpoint of etcd");
                }
                self.problem = Some(problem);
                return;
            }
        };
        self.problem = None;
        self.due = records.expire.clamp(at + srv::SHORTEST, at + srv::LONGEST);
        let known = Known::new(records.urls, self.answered.as_deref());
        if known != self.known {
            let urls = known.urls.join(", ");
            tracing::info!(urls, "DNS names other endpoints of etcd");
            self.known = known;
        }
    }

    fn answered(&mut self, url: &str) {
        if self.answered.as_deref() != Some(url) {
            self.answered = Some(url.to_owned());
        }
        let (named, last) = self.known.urls.split_at(self.known.named);
        if !last.is_empty() && named.iter().any(|named| named == url) {
            self.known = Known::new(named.to_vec(), None);
        }
    }

    fn failed(&mut self) {
        let again = self
            .asked
            .map_or_else(Instant::now, |at| at + srv::SHORTEST);
        self.due = self.due.min(again);
    }
}

impl Known {
    /// Returns the endpoint that is asked after one that failed.
    pub(super) fn after(&self, url: &str) -> &str {
        let at = self.urls.iter().position(|known| known == url);
        let next = at.map_or(0, |at| at + 1) % self.named.max(1);
        self.urls.get(next).map_or("", String::as_str)
    }
}

#[cfg(feature = "srv")]
impl Known {
    /// Takes the endpoints that are named now, and the one that answered last.
    fn new(mut urls: Vec<String>, answered: Option<&str>) -> Self {
        let named = urls.len();
        urls.extend(
            answered
                .filter(|answered| urls.iter().all(|url| url != answered))
                .map(str::to_owned),
        );
        Self {
            urls: urls.into(),
            named,
        }
    }
}

#[cfg(all(test, feature = "srv"))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn known(urls: &[&str], named: usize) -> Known {
        Known {
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            named,
        }
    }

    fn records(urls: &[&str], expire: Instant) -> Result<Records, String> {
        Ok(Records {
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            expire,
        })
    }

    fn now() -> Now {
        Now {
            known: Known::default(),
            answered: None,
            due: Instant::now(),
            asked: None,
            task: None,
            problem: None,
        }
    }

    #[test]
    fn the_endpoint_that_answered_is_kept_until_one_of_the_new_ones_has() {
        let (at, mut now) = (Instant::now(), now());
        now.take(records(&["a", "b"], at), at);
        assert_eq!(now.known, known(&["a", "b"], 2));
        now.answered("b");
        now.take(records(&["c", "d"], at), at);
        assert_eq!(now.known, known(&["c", "d", "b"], 2));
        now.answered("b");
        assert_eq!(now.known, known(&["c", "d", "b"], 2));
        now.answered("d");
        assert_eq!(now.known, known(&["c", "d"], 2));
    }

    #[test]
    fn what_dns_denies_changes_nothing_and_is_asked_again_soon() {
        let (at, mut now) = (Instant::now(), now());
        now.take(records(&["a"], at), at);
        now.take(Err("NXDOMAIN".to_owned()), at);
        assert_eq!(now.known, known(&["a"], 1));
        assert_eq!(now.due, at + srv::SHORTEST);
    }

    #[test]
    fn records_are_asked_for_again_when_they_expire_and_when_an_endpoint_fails() {
        let (at, mut now) = (Instant::now(), now());
        now.asked = Some(at);
        for (lives, due) in [
            (Duration::ZERO, srv::SHORTEST),
            (Duration::from_secs(10), Duration::from_secs(10)),
            (Duration::from_secs(86_400), srv::LONGEST),
        ] {
            now.take(records(&["a"], at + lives), at);
            assert_eq!(now.due, at + due);
        }
        now.failed();
        assert_eq!(now.due, at + srv::SHORTEST);
    }
}
