//! The clock of a node.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use spilo_core::{Clock, NodeTime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

/// `CLOCK_BOOTTIME`, which the guard measures its deadline on: never goes back, and goes on while
/// the machine is suspended.
#[derive(Debug, Default)]
pub struct BootClock {
    /// Kept from one wait to the next.
    timer: Mutex<Option<Timer>>,
}

type Timer = AsyncFd<OwnedFd>;

#[async_trait]
impl Clock for BootClock {
    fn now(&self) -> NodeTime {
        crate::guard::boot_time()
    }

    /// Wakes once, at the time, on this clock: tokio's timers wake up to three times on the way to
    /// a time that is seconds away, and stand still with a machine that is suspended.
    ///
    /// # Panics
    /// Outside of a tokio runtime whose IO and time are enabled.
    async fn sleep_until(&self, at: NodeTime) {
        let pause = at.since(self.now());
        if pause.is_zero() {
            return;
        }
        let waited = match self.timer.try_lock() {
            Ok(mut kept) => wait_on(&mut kept, at).await,
            // Somebody else waits by it.
            Err(_) => wait_on(&mut None, at).await,
        };
        if waited.is_err() {
            // No file descriptor is left, and time goes on.
            tokio::time::sleep(pause.min(Duration::from_millis(100))).await;
        }
    }
}

/// Waits by a timer, which is created if there is none, and gone if it does not work.
async fn wait_on(kept: &mut Option<Timer>, at: NodeTime) -> io::Result<()> {
    let timer = match kept.take() {
        Some(timer) => kept.insert(timer),
        None => kept.insert(create()?),
    };
    let waited = wait(timer, at).await;
    if waited.is_err() {
        *kept = None;
    }
    waited
}

async fn wait(timer: &Timer, at: NodeTime) -> io::Result<()> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let once = Itimerspec {
        it_interval: zero,
        it_value: Timespec {
            tv_sec: i64::try_from(at.0 / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at.0 % 1000 * 1_000_000).unwrap_or(0),
        },
    };
    rustix::time::timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once)?;
    let expired = |timer: &OwnedFd| {
        rustix::io::read(timer, &mut [0; 8])?;
        Ok(())
    };
    timer.async_io(Interest::READABLE, expired).await
}

fn create() -> io::Result<Timer> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe for the sake of files that close behind its back, \
                  which an owned one does not, and nothing here is unsafe"
    )]
    AsyncFd::with_interest(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_wakes_at_the_time_and_not_before() {
        let clock = BootClock::default();
        for span in [0, 1, 30, 250] {
            let at = clock.now() + Duration::from_millis(span);
            clock.sleep_until(at).await;
            assert!(clock.now() >= at, "{span}");
        }
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_end_the_next_one() {
        let clock = BootClock::default();
        let short = clock.now() + Duration::from_millis(20);
        tokio::select! {
            biased;
            () = clock.sleep_until(short) => panic!("it ended before its time"),
            () = tokio::task::yield_now() => {}
        }
        // It expires meanwhile, and nobody looks.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let at = clock.now() + Duration::from_millis(100);
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
    }

    #[tokio::test]
    async fn two_can_wait_at_once() {
        let clock = BootClock::default();
        let begun = clock.now();
        let (early, late) = (
            begun + Duration::from_millis(50),
            begun + Duration::from_millis(150),
        );
        let ended = async |at| {
            clock.sleep_until(at).await;
            clock.now()
        };
        let (late_end, early_end) = tokio::join!(ended(late), ended(early));
        assert!(early_end >= early && early_end <= late_end);
        assert!(late_end >= late);
    }
}
