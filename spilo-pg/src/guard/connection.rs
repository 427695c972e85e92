//! One connection to the guard: lines in, lines out, never blocking, never growing.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{MAX_LINE, Reply};

/// An agent's connection.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// An answer that is not ready yet. Further requests wait for it.
    pub(super) waiting: Waiting,
    /// Whether an agent holds it, as its first request has shown, and it may be silent.
    pub(super) is_presence: bool,
    last_heard: Instant,
    bad_lines: u32,
    closed: bool,
}

/// What an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Nothing,
    /// For the count of changes to be another one.
    Change(u64),
    /// For the proof of the fence that was asked for then.
    Fence(Instant),
    /// For the launcher to become the postmaster with this process id.
    Launch(u32),
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            waiting: Waiting::Nothing,
            is_presence: false,
            last_heard: Instant::now(),
            bad_lines: 0,
            closed: false,
        })
    }

    /// Reads once what has arrived.
    pub(super) fn read(&mut self) {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.closed = true,
            Ok(count) => {
                self.input
                    .extend_from_slice(chunk.get(..count).unwrap_or_default());
                self.last_heard = Instant::now();
            }
            Err(error) if is_temporary(&error) => {}
            Err(_) => self.closed = true,
        }
    }

    /// Whether whoever asked waits for the answer.
    pub(super) fn is_attended(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.stream, gone)];
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let _asked = poll(&mut fds, Some(&zero));
        !fds.iter().any(|fd| fd.revents().intersects(gone))
    }

    /// Takes the next whole line that has arrived, unless an answer is outstanding.
    pub(super) fn next_line(&mut self) -> Option<Vec<u8>> {
        if self.waiting != Waiting::Nothing || self.closed {
            return None;
        }
        let Some(end) = self.input.iter().position(|&byte| byte == b'\n') else {
            // Nobody who means well sends this.
            self.closed |= self.input.len() > MAX_LINE;
            return None;
        };
        let rest = self.input.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.input, rest);
        line.pop();
        Some(line)
    }

    /// Whether a line may be ready, so that the guard must not sleep on it.
    pub(super) fn has_line(&self) -> bool {
        self.waiting == Waiting::Nothing && self.input.contains(&b'\n')
    }

    /// Sends an answer, as much of it as goes.
    pub(super) fn answer(&mut self, reply: &Reply) {
        self.waiting = Waiting::Nothing;
        match serde_json::to_vec(reply) {
            Ok(line) => self.output.extend(line),
            Err(_) => self.closed = true,
        }
        self.output.push(b'\n');
        self.flush();
        // Who asks and asks and never reads is cut off.
        self.closed |= self.output.len() > 2 * MAX_LINE;
    }

    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if is_temporary(&error) => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// Notes a line that was no request; a few of them end the connection.
    pub(super) fn note_bad_line(&mut self) {
        self.bad_lines += 1;
        self.closed |= self.bad_lines > BAD_LINES;
    }

    pub(super) fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether there is room for more input.
    pub(super) fn wants_to_read(&self) -> bool {
        self.input.len() <= MAX_LINE
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether it takes a place without a purpose.
    pub(super) fn is_stale(&self) -> bool {
        !self.is_presence && self.waiting == Waiting::Nothing && self.last_heard.elapsed() > STALE
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// What is read per turn of the loop, so that a flood costs a bounded time.
const CHUNK: usize = 4096;
const BAD_LINES: u32 = 8;
/// A request takes milliseconds; a connection that says nothing for this long wants nothing.
const STALE: Duration = Duration::from_secs(2);
