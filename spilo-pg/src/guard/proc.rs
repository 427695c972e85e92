//! Reading `/proc` without allocating, for the fence, and the clock.

use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use spilo_core::time::NodeTime;

/// Returns the time now on the clock that the guard's deadlines are measured on.
///
/// It is `CLOCK_BOOTTIME`, which goes on while the machine is suspended.
pub fn boot_time() -> NodeTime {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    NodeTime(seconds.saturating_mul(1000).saturating_add(millis))
}

/// An open `/proc`.
#[derive(Debug)]
pub(super) struct Proc(OwnedFd);

/// The open list of the children of this process: it can be read when no file can be opened.
#[derive(Debug)]
pub(super) struct OwnChildren(OwnedFd);

impl OwnChildren {
    pub(super) fn open(proc: &Proc) -> rustix::io::Result<Self> {
        let mut path = [0; PATH];
        let me = rustix::process::getpid().as_raw_nonzero();
        let written = write_path(&mut path, format_args!("{me}/task/{me}/children\0"))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&proc.0, written, flags, Mode::empty()).map(Self)
    }

    /// Reads the list, as it is now, into `text`.
    pub(super) fn read<'a>(&self, text: &'a mut [u8]) -> rustix::io::Result<Children<'a>> {
        let mut length = 0;
        while let Some(rest) = text.get_mut(length..)
            && !rest.is_empty()
        {
            let from = u64::try_from(length).unwrap_or(u64::MAX);
            match rustix::io::pread(&self.0, rest, from) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Children(text.get(..length).unwrap_or_default()))
    }
}

/// What the fence wants to know of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: i32,
    /// The controlling terminal, 0 for none.
    pub(super) terminal: i32,
    /// A zombie, or on its way to become one: it runs no instruction of its program any more.
    pub(super) dead: bool,
    /// SIGKILL is on its way to it.
    pub(super) doomed: bool,
}

impl Proc {
    pub(super) fn open() -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/proc", flags, Mode::empty()).map(Self)
    }

    /// Reads the children of the main thread of `pid` into `text`.
    pub(super) fn children<'a>(
        &self,
        pid: Pid,
        text: &'a mut [u8],
    ) -> rustix::io::Result<Children<'a>> {
        let mut path = [0; PATH];
        let pid = pid.as_raw_nonzero();
        let written = write_path(&mut path, format_args!("{pid}/task/{pid}/children\0"))?;
        let length = self.read(written, text)?;
        Ok(Children(text.get(..length).unwrap_or_default()))
    }

    /// Reads the state of `pid`; none if there is no such process.
    pub(super) fn stat(&self, pid: Pid) -> rustix::io::Result<Option<Stat>> {
        let mut path = [0; PATH];
        let pid = pid.as_raw_nonzero();
        let written = write_path(&mut path, format_args!("{pid}/stat\0"))?;
        let mut text = [0; 1024];
        match self.read(written, &mut text) {
            Ok(length) => Ok(text.get(..length).and_then(parse_stat)),
            Err(error) if is_of_the_dead(error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns whether SIGKILL was sent to `pid` as a whole.
    ///
    /// A process that has begun to obey has taken the signal from its own thread's list, and for
    /// a moment (long, when hundreds die on few processors) nothing in [`Stat`] shows it. The list
    /// of the whole process keeps it to the end.
    pub(super) fn is_killed(&self, pid: Pid) -> bool {
        let mut path = [0; PATH];
        let pid = pid.as_raw_nonzero();
        let mut text = [0; 4096];
        write_path(&mut path, format_args!("{pid}/status\0"))
            .and_then(|path| self.read(path, &mut text))
            .is_ok_and(|length| parse_pending(text.get(..length).unwrap_or_default()))
    }

    fn read(&self, path: &CStr, into: &mut [u8]) -> rustix::io::Result<usize> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, path, flags, Mode::empty())?;
        let mut length = 0;
        while let Some(rest) = into.get_mut(length..)
            && !rest.is_empty()
        {
            match rustix::io::read(&file, rest) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(length)
    }
}

/// Whether this is what a process that is gone answers, and not a machine that is short of
/// descriptors or memory.
pub(super) fn is_of_the_dead(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::SRCH)
}

/// The process ids in a list of children.
#[derive(Clone, Debug)]
pub(super) struct Children<'a>(&'a [u8]);

impl Iterator for Children<'_> {
    type Item = Pid;

    fn next(&mut self) -> Option<Pid> {
        let text = self.0.trim_ascii_start();
        // A number that the end of the buffer cut is no process id. It is found again in the next
        // pass, when those before it are gone.
        let end = text.iter().position(u8::is_ascii_whitespace)?;
        let (number, rest) = text.split_at(end);
        self.0 = rest;
        number_of(number).and_then(|raw: i32| Pid::from_raw(raw))
    }
}

/// Reads a line of `/proc/PID/stat`. The name in it is in brackets and may contain anything, so
/// the fields are counted from the last bracket.
pub(super) fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let mut fields = line.get(end + 1..)?.split(u8::is_ascii_whitespace).skip(1);
    let state = *fields.next()?.first()?;
    let parent = number_of(fields.next()?)?;
    let terminal = number_of(fields.nth(2)?)?;
    let flags: u32 = number_of(fields.nth(1)?)?;
    let pending: u64 = number_of(fields.nth(21)?)?;
    let dead = matches!(state, b'Z' | b'X' | b'x') || flags & EXITING != 0;
    Some(Stat {
        parent,
        terminal,
        dead,
        doomed: dead || pending & SIGKILL_PENDING != 0,
    })
}

/// Reads from `/proc/PID/status` whether SIGKILL is pending for the process.
fn parse_pending(text: &[u8]) -> bool {
    text.split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"ShdPnd:"))
        .and_then(|mask| std::str::from_utf8(mask.trim_ascii()).ok())
        .and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .is_some_and(|mask| mask & SIGKILL_PENDING != 0)
}

fn number_of<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn write_path<'a>(
    buffer: &'a mut [u8; PATH],
    text: std::fmt::Arguments<'_>,
) -> rustix::io::Result<&'a CStr> {
    let mut rest = buffer.as_mut_slice();
    rest.write_fmt(text).map_err(|_| Errno::NAMETOOLONG)?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::NAMETOOLONG)
}

/// Two process ids of ten digits and the words between them.
const PATH: usize = 64;
/// `PF_EXITING` in the flags of `/proc/PID/stat`.
const EXITING: u32 = 0x4;
/// The bit of SIGKILL among the pending signals.
const SIGKILL_PENDING: u64 = 1 << 8;

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "17 (a) b) (c) S 5 17 17 34816 17 4194304 100 0 0 0 1 2 0 0 20 0 1 0 99 1000 \
                        200 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";

    #[test]
    fn stat_is_read_behind_the_last_bracket() {
        let stat = parse_stat(LINE.as_bytes());
        let expected = Stat {
            parent: 5,
            terminal: 34816,
            dead: false,
            doomed: false,
        };
        assert_eq!(stat, Some(expected));
    }

    #[test]
    fn zombie_exiting_and_killed_are_told_apart() {
        let read = |from: &str, to: &str| parse_stat(LINE.replace(from, to).as_bytes()).unwrap();
        assert!(read(" S ", " Z ").dead);
        assert!(read(" 4194304 ", " 4194308 ").dead);
        let killed = read(" 1 1 0 0 0 0 ", " 1 1 0 0 0 256 ");
        assert_eq!((killed.dead, killed.doomed), (false, true));
    }

    #[test]
    fn stat_of_this_process_is_read() {
        let me = rustix::process::getpid();
        let stat = Proc::open().unwrap().stat(me).unwrap().unwrap();
        assert_eq!(
            stat.parent.unsigned_abs(),
            std::os::unix::process::parent_id()
        );
        assert!(!stat.doomed);
    }

    #[test]
    fn pending_sigkill_is_the_thirty_first_field() {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (before, after) = (fields[..30].join(" "), fields[31..].join(" "));
        let line = format!("{before} 256 {after}");
        assert!(parse_stat(line.as_bytes()).unwrap().doomed);
    }

    #[test]
    fn sigkill_pending_for_the_process_is_read() {
        let text = |mask| format!("Name:\ta\nSigPnd:\t0000000000000100\nShdPnd:\t{mask}\nX:\t1\n");
        assert!(parse_pending(text("0000000000000100").as_bytes()));
        assert!(!parse_pending(text("0000000000000200").as_bytes()));
        assert!(!parse_pending(b"Name:\ta\n"));
        assert!(!Proc::open().unwrap().is_killed(rustix::process::getpid()));
    }

    #[test]
    fn cut_list_of_children_loses_only_the_cut_number() {
        let found: Vec<i32> = Children(b"12 345 67")
            .map(|pid| pid.as_raw_nonzero().get())
            .collect();
        assert_eq!(found, [12, 345]);
        assert_eq!(Children(b"").count(), 0);
    }
}
