//! What a tool took: time, processors and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

/// What one run of one tool took.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Cost {
    /// From before the first command to after the last, in microseconds.
    pub wall_us: u64,
    /// User and system time of every process of the tool, those that outlived the last command
    /// too, in microseconds.
    pub cpu_us: u64,
    /// The most memory at a moment, in KiB: the resident memory of all processes of the tool that
    /// lived at that moment together, looked at every 50 ms, or what the greatest process had at
    /// its peak, if that is more.
    pub peak_kib: u64,
    /// The processor time of the store meanwhile, in microseconds.
    pub store_cpu_us: u64,
    /// How many commands were run.
    pub commands: u64,
}

/// A control group that all processes of a tool are in, however they leave their parents.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

/// Looks at the memory of a group until it is asked.
#[derive(Debug)]
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Group {
    /// Makes a group, where this machine and this user can: that needs root.
    pub(crate) fn create(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let mut fields = mounts.lines().map(|line| line.split_whitespace());
        let mount = fields.find_map(|mut fields| {
            let (place, kind) = (fields.nth(1)?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        })?;
        let path = mount.join(name);
        fs::create_dir(&path).ok()?;
        let group = Self { path };
        group.cpu_us().is_some().then_some(group)
    }

    /// Takes a process in, and whatever it will start.
    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, pid.to_string())
            .map_err(|error| anyhow!("cannot put {pid} into {}: {error}", self.path.display()))
    }

    /// Returns the processor time of all that were ever in it.
    pub(crate) fn cpu_us(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join("cpu.stat")).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        line?.trim().parse().ok()
    }

    /// Returns the processes that live in it.
    pub(crate) fn pids(&self) -> Vec<u32> {
        pids(&self.path)
    }

    /// Waits until nobody but `but` is left, and then kills who is.
    pub(crate) fn settle(&self, but: &[u32], limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let mut left = self.pids();
            left.retain(|pid| !but.contains(pid));
            if left.is_empty() {
                return;
            }
            if Instant::now() >= end {
                for pid in left {
                    kill(pid);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for pid in self.pids() {
            kill(pid);
        }
        for _ in 0..100 {
            // It can be removed once those that were killed are gone.
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Sampler {
    /// Begins to look at the processes of a group, without `but`, whose memory is not the tool's.
    pub(crate) fn begin(group: &Group, but: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, asked) = (group.path.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !asked.load(Ordering::Relaxed) {
                peak = peak.max(peak_kib(&path, but));
                std::thread::sleep(BETWEEN_SAMPLES);
            }
            peak
        });
        Self { stop, thread }
    }

    /// Returns the peak.
    pub(crate) fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let peak = self.thread.join();
        peak.map_err(|_| anyhow!("the thread that looks at memory failed"))
    }
}

/// Returns the processor time of one living process so far, in microseconds.
pub(crate) fn cpu_us_of(pid: u32) -> Option<u64> {
    use nix::time::clock_getcpuclockid;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let spent = Duration::from(clock_getcpuclockid(pid).ok()?.now().ok()?);
    u64::try_from(spent.as_micros()).ok()
}

fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        crate::procs::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

fn pids(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn peak_kib(group: &Path, but: u32) -> u64 {
    let (mut together, mut greatest) = (0, 0);
    for pid in pids(group).into_iter().filter(|pid| *pid != but) {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let kib = |field: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line?.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        together += kib("VmRSS:").unwrap_or(0);
        greatest = kib("VmHWM:").unwrap_or(0).max(greatest);
    }
    together.max(greatest)
}

/// Often enough to meet what lives for a tenth of a second, and too rare to be felt.
const BETWEEN_SAMPLES: Duration = Duration::from_millis(50);
