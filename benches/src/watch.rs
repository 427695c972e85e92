//! Onlookers: what each node says of its lease, and which processes of a server are alive.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::clock::boot_ms;
use crate::cluster::Cluster;
use crate::http::Target;
use crate::node::Node;
use crate::procs;

/// What a node said of its permission to write at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseSeen {
    /// The node.
    pub node: String,
    /// When the question left.
    pub asked_ms: u64,
    /// The epoch of its permission.
    pub epoch: u64,
    /// When that ends, on the boot clock.
    pub until_ms: u64,
    /// `lease` or `consent`.
    pub by: String,
}

/// Asks every node's `GET /patroni` ten times a second, each on a thread of its own, from inside
/// the node's network.
#[derive(Debug)]
pub struct LeaseWatch {
    seen: Arc<Mutex<Vec<LeaseSeen>>>,
    worst_fence_ms: Arc<Mutex<u64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl LeaseWatch {
    /// Starts asking.
    pub fn start(cluster: &Cluster) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let worst_fence_ms = Arc::new(Mutex::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for node in cluster.nodes() {
            let (name, target) = (node.name().to_owned(), node.rest_from_within());
            let (seen, worst, stop) = (
                Arc::clone(&seen),
                Arc::clone(&worst_fence_ms),
                Arc::clone(&stop),
            );
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let asked_ms = boot_ms();
                    if let Some(own) = own_object(&target) {
                        let fence_ms = own["worst_fence_ms"].as_u64().unwrap_or(0);
                        let mut worst = worst.lock().unwrap_or_else(PoisonError::into_inner);
                        *worst = fence_ms.max(*worst);
                        drop(worst);
                        let lease = lease(&name, asked_ms, &own);
                        seen.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend(lease);
                    }
                    std::thread::sleep(LEASE_PACE);
                }
            }));
        }
        Self {
            seen,
            worst_fence_ms,
            stop,
            threads,
        }
    }

    /// Returns the last thing a node said of its permission.
    pub fn last(&self, node: &str) -> Option<LeaseSeen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().rev().find(|seen| seen.node == node).cloned()
    }

    /// Returns everything that was said.
    pub fn all(&self) -> Vec<LeaseSeen> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns the slowest fence that any guard has reported.
    pub fn worst_fence_ms(&self) -> u64 {
        *self
            .worst_fence_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LeaseWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Asks a node now what its permission is.
pub(crate) async fn lease_now(node: &Node) -> Option<LeaseSeen> {
    let asked_ms = boot_ms();
    let answer = node
        .rest_from_within()
        .get("/patroni", PATIENCE)
        .await
        .ok()?;
    lease(node.name(), asked_ms, &answer.json()["spilo"])
}

/// Follows the processes of one server, from a postmaster on, until the last of them is gone.
///
/// A server that is started later in the same directory is another one, and not followed.
#[derive(Debug)]
pub struct ServerWatch {
    gone_ms: Arc<Mutex<Option<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ServerWatch {
    /// Starts following the server that runs on a node now.
    pub fn start(node: &Node) -> Self {
        let gone_ms = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let (gone, stopped, data_dir) = (Arc::clone(&gone_ms), Arc::clone(&stop), node.data_dir());
        let mut known: BTreeSet<i32> = node.server_pids().into_iter().collect();
        let thread = std::thread::spawn(move || {
            hurry();
            while !stopped.load(Ordering::Relaxed) {
                if !any_alive(&data_dir, &mut known) {
                    *gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(boot_ms());
                    break;
                }
                std::thread::sleep(SERVER_PACE);
            }
        });
        Self {
            gone_ms,
            stop,
            thread: Some(thread),
        }
    }

    /// Returns when the last process was seen to be gone, if it was.
    pub fn gone_ms(&self) -> Option<u64> {
        *self.gone_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ServerWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Puts the calling thread ahead of the servers it looks at, where that is permitted: three hundred
/// busy backends would make it see their end late.
fn hurry() {
    let thread = nix::unistd::gettid().to_string();
    let mut renice = std::process::Command::new("renice");
    renice.args(["-n", "-15", "-p", &thread]);
    renice
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    // Without the permission the onlooker is late by what the machine makes it wait.
    renice.status().ok();
}

/// Looks whether any of the known processes lives, and learns their children.
fn any_alive(data_dir: &Path, known: &mut BTreeSet<i32>) -> bool {
    let here = procs::of_server_with_parents(data_dir);
    // A child is known by its parent; an orphan was known before it became one.
    for (pid, parent) in &here {
        if known.contains(parent) {
            known.insert(*pid);
        }
    }
    here.iter().any(|(pid, _)| known.contains(pid))
}

fn own_object(target: &Target) -> Option<Value> {
    let answer = target
        .request_blocking("GET", "/patroni", "", PATIENCE)
        .ok()?;
    Some(answer.json()["spilo"].take())
}

fn lease(node: &str, asked_ms: u64, own: &Value) -> Option<LeaseSeen> {
    let lease = &own["lease"];
    Some(LeaseSeen {
        node: node.to_owned(),
        asked_ms,
        epoch: lease["epoch"].as_u64()?,
        until_ms: lease["until_ms"].as_u64()?,
        by: lease["by"].as_str().unwrap_or_default().to_owned(),
    })
}

const LEASE_PACE: Duration = Duration::from_millis(100);
const SERVER_PACE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_millis(500);
