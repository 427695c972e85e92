//! The endpoints of etcd, as they were named or as DNS names them now.

use std::sync::Arc;
#[cfg(feature = "srv")]
use std::sync::Mutex;

#[cfg(feature = "srv")]
use tokio::sync::Notify;
#[cfg(feature = "srv")]
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::addresses::Addresses;
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
    /// How many of them are named now. What follows was named before, and none of those that are
    /// named now has answered yet.
    pub(super) named: usize,
    /// Whether those that are named now come first, whatever answered last.
    pub(super) probing: bool,
}

#[cfg(feature = "srv")]
struct Found {
    options: EtcdOptions,
    addresses: Arc<Addresses>,
    now: Mutex<Now>,
    asked: Notify,
}

#[cfg(feature = "srv")]
struct Now {
    known: Known,
    /// When DNS is asked again.
    due: Instant,
    /// When it was asked last.
    asked: Option<Instant>,
    task: Option<JoinHandle<()>>,
    /// The last endpoint that answered.
    answered: Option<String>,
    /// An endpoint failed since DNS was asked.
    failed: bool,
    /// When those that are named now were sent somebody who may probe.
    probed: Option<Instant>,
    problem: Option<String>,
}

impl Endpoints {
    /// Takes endpoints as URLs, which count until DNS has named others if it is to be asked.
    pub(super) fn new(
        urls: Vec<String>,
        options: &EtcdOptions,
        addresses: &Arc<Addresses>,
    ) -> Self {
        let named = Known {
            named: urls.len(),
            urls: urls.into(),
            probing: false,
        };
        #[cfg(not(feature = "srv"))]
        let _ = (options, addresses);
        Self {
            #[cfg(feature = "srv")]
            found: options
                .srv
                .is_some()
                .then(|| Found::new(options.clone(), named.clone(), Arc::clone(addresses)))
                .map(Arc::new),
            named,
        }
    }

    /// Returns the endpoints; never none. Whoever may probe is sent to those that are named now, once
    /// when they were changed and once in a while, and everybody else to what answered last.
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
    pub(super) async fn known(&self, deadline: Instant, may_probe: bool) -> Result<Known, String> {
        #[cfg(feature = "srv")]
        if let Some(found) = &self.found {
            let mut known = found.known(deadline).await?;
            known.probing = may_probe && held(&found.now).probe(Instant::now());
            return Ok(known);
        }
        let _ = (deadline, may_probe);
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
    fn new(options: EtcdOptions, named: Known, addresses: Arc<Addresses>) -> Self {
        Self {
            options,
            addresses,
            now: Mutex::new(Now::new(named)),
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
                now.failed = false;
                // Should the task end without an answer.
                now.due = at + srv::ALL;
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
        let mut answer = srv::ask(&self.options).await;
        if let Ok(records) = &mut answer {
            for (host, addresses) in std::mem::take(&mut records.addresses) {
                self.addresses.tell(host, addresses);
            }
        }
        held(&self.now).take(answer, Instant::now());
        self.asked.notify_waiters();
    }
}

#[cfg(feature = "srv")]
impl Now {
    fn new(known: Known) -> Self {
        Self {
            known,
            due: Instant::now(),
            asked: None,
            task: None,
            answered: None,
            failed: false,
            probed: None,
            problem: None,
        }
    }

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
        let latest = if self.failed {
            srv::SHORTEST
        } else {
            srv::LONGEST
        };
        self.due = records.expire.clamp(at + srv::SHORTEST, at + latest);
        let (named, _) = self.known.urls.split_at(self.known.named);
        if named != records.urls {
            let urls = records.urls.join(", ");
            tracing::info!(urls, "DNS names other endpoints of etcd");
            let mut before = self.known.urls.to_vec();
            // The one that is sure to be good is the last to be forgotten.
            before.sort_by_key(|url| Some(url) != self.answered.as_ref());
            self.known = Known::new(records.urls, &before);
            self.probed = None;
        }
    }

    fn answered(&mut self, url: &str) {
        if self.answered.as_deref() != Some(url) {
            self.answered = Some(url.to_owned());
        }
        let (named, last) = self.known.urls.split_at(self.known.named);
        if !last.is_empty() && named.iter().any(|named| named == url) {
            self.known = Known::new(named.to_vec(), &[]);
        }
    }

    /// Returns whether it is time to try those that are named now.
    fn probe(&mut self, at: Instant) -> bool {
        let is_time = self.probed.is_none_or(|probed| at >= probed + srv::LONGEST);
        if is_time {
            self.probed = Some(at);
        }
        is_time
    }

    fn failed(&mut self) {
        self.failed = true;
        let again = self
            .asked
            .map_or_else(Instant::now, |at| at + srv::SHORTEST);
        self.due = self.due.min(again);
    }
}

impl Known {
    /// Returns the endpoints in the order in which they are asked.
    pub(super) fn in_order<'a>(
        &'a self,
        preferred: Option<&str>,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let first = self
            .urls
            .iter()
            .position(|url| Some(url.as_str()) == preferred);
        let first = first.filter(|first| !self.probing || *first < self.named);
        let (before, from) = self.urls.split_at(first.unwrap_or(0));
        from.iter().chain(before).map(String::as_str)
    }

    /// Returns the endpoint that is asked after one that failed.
    pub(super) fn after(&self, url: &str) -> &str {
        let at = self.urls.iter().position(|known| known == url);
        let next = at.map_or(0, |at| at + 1) % self.urls.len().max(1);
        self.urls.get(next).map_or("", String::as_str)
    }

    /// Takes the endpoints that are named now, and those that were before.
    #[cfg(feature = "srv")]
    fn new(mut urls: Vec<String>, before: &[String]) -> Self {
        let named = urls.len();
        for url in before.iter().take(MOST_BEFORE) {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        Self {
            urls: urls.into(),
            named,
            probing: false,
        }
    }
}

/// How many endpoints that were named before are kept, at most.
#[cfg(feature = "srv")]
const MOST_BEFORE: usize = 16;

#[cfg(all(test, feature = "srv"))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn known(urls: &[&str], named: usize) -> Known {
        Known {
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            named,
            probing: false,
        }
    }

    fn records(urls: &[&str], expire: Instant) -> Result<Records, String> {
        Ok(Records {
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            addresses: Vec::new(),
            expire,
        })
    }

    fn now() -> Now {
        Now::new(Known::default())
    }

    #[test]
    fn what_was_named_before_is_kept_until_one_of_the_new_ones_has_answered() {
        let (at, mut now) = (Instant::now(), now());
        now.take(records(&["a", "b"], at), at);
        assert_eq!(now.known, known(&["a", "b"], 2));
        now.answered("b");
        now.take(records(&["c", "d"], at), at);
        assert_eq!(now.known, known(&["c", "d", "b", "a"], 2));
        now.answered("a");
        now.take(records(&["e", "b"], at), at);
        assert_eq!(now.known, known(&["e", "b", "a", "c", "d"], 2));
        now.answered("e");
        assert_eq!(now.known, known(&["e", "b"], 2));
    }

    #[test]
    fn what_answered_last_is_asked_first_but_for_a_probe_of_what_is_named_now() {
        let order = |known: &Known, preferred| known.in_order(preferred).collect::<String>();
        let mut known = known(&["a", "b", "c", "d"], 2);
        assert_eq!(order(&known, None), "abcd");
        assert_eq!(order(&known, Some("b")), "bcda");
        assert_eq!(order(&known, Some("d")), "dabc");
        assert_eq!(order(&known, Some("gone")), "abcd");
        known.probing = true;
        assert_eq!(order(&known, Some("d")), "abcd");
        assert_eq!(order(&known, Some("b")), "bcda");
    }

    #[test]
    fn new_names_are_probed_once_and_again_after_a_while() {
        let (at, mut now) = (Instant::now(), now());
        now.take(records(&["a"], at), at);
        assert!(now.probe(at));
        now.take(records(&["a"], at), at);
        assert!(!now.probe(at + srv::SHORTEST));
        assert!(now.probe(at + srv::LONGEST));
        now.take(records(&["b"], at), at);
        assert!(now.probe(at + srv::LONGEST));
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
        // Also where one fails while DNS is asked.
        now.take(records(&["a"], at + srv::LONGEST), at);
        assert_eq!(now.due, at + srv::SHORTEST);
    }
}
