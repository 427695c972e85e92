//! The log: Patroni's lines, so that what reads them goes on reading them.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};
use spilo_core::local::{Log, LogFormat, LogLevel};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt as layer, reload};

/// Changes the level of a log that is running.
#[derive(Debug)]
pub(crate) struct LevelHandle(reload::Handle<Targets, Registry>);

impl LevelHandle {
    /// Writes lines of `level` and more important ones from now on.
    pub(crate) fn set(&self, level: LogLevel) {
        // It fails only when the subscriber is gone, at the end of the process.
        self.0.reload(targets(level)).ok();
    }
}

/// What waits in the log's queue; it is written when this is dropped, or after a while it is not.
pub(crate) struct Waiting(Option<WorkerGuard>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let (written, end) = std::sync::mpsc::sync_channel::<()>(0);
        let guard = self.0.take();
        // The guard itself waits for a writer that hangs, at worst for ever.
        let waits = std::thread::Builder::new().spawn(move || {
            drop(guard);
            drop(written);
        });
        if waits.is_ok() {
            // Nothing is ever sent: the channel ends with the thread.
            end.recv_timeout(FINISH).unwrap_or_default();
        }
    }
}

/// Starts the log of this process; what waits is written when the second value is dropped.
///
/// A thread of its own writes: nobody who renews a lease may wait for a disk that hangs, or for a
/// reader who does not read. What such a thread cannot take is lost.
pub(crate) fn start(log: &Log) -> Result<(LevelHandle, Waiting)> {
    let (filter, handle) = reload::Layer::new(targets(log.level));
    let line = Line { format: log.format };
    let queue = NonBlockingBuilder::default().buffered_lines_limit(QUEUE);
    let (writer, written) = match &log.dir {
        Some(dir) => {
            let file = RollingFile::open(dir.join("patroni.log"), log)
                .with_context(|| format!("log.dir: cannot write a log in {}", dir.display()))?;
            queue.finish(file)
        }
        None => queue.finish(io::stderr()),
    };
    let out = layer::layer()
        .event_format(line)
        .with_writer(writer)
        // It would say so on the standard error, and end the process where that is what fails.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(filter).with(out).init();
    Ok((LevelHandle(handle), Waiting(Some(written))))
}

/// The lines that wait: minutes of a node to which much happens.
const QUEUE: usize = 1000;

/// Long enough for any disk that works, and an agent that ends must end.
const FINISH: Duration = Duration::from_secs(2);

/// The libraries below say at `INFO` what is `DEBUG` to an operator.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let others = if level >= Level::DEBUG {
        level
    } else {
        level.min(Level::WARN)
    };
    Targets::new()
        .with_default(others)
        .with_target("spilo", level)
}

/// One event as one line.
struct Line {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = chrono::Local::now()
            .format("%Y-%m-%d %H:%M:%S,%3f")
            .to_string();
        let line = match self.format {
            LogFormat::Plain => fields.plain(&time, level_name(*event.metadata().level())),
            LogFormat::Json => fields.json(time, level_name(*event.metadata().level())),
        };
        writeln!(writer, "{line}")
    }
}

/// The message and the fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn plain(&self, time: &str, level: &str) -> String {
        let mut line = format!("{time} {level}: {}", self.message);
        for (name, value) in &self.others {
            let value = match value {
                Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => {
                    text.clone()
                }
                other => other.to_string(),
            };
            // Writing to a string cannot fail.
            write!(line, " {name}={value}").ok();
        }
        // One event, one line, whatever a program printed.
        line.replace('\n', "\\n").replace('\r', "\\r")
    }

    fn json(self, time: String, level: &str) -> String {
        let mut line = Map::new();
        line.insert("asctime".to_owned(), time.into());
        line.insert("levelname".to_owned(), level.into());
        line.insert("message".to_owned(), self.message.into());
        for (name, value) in self.others {
            line.entry(name).or_insert(value);
        }
        Value::Object(line).to_string()
    }

    fn set(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.others.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
}

/// Python's names.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// A log file that is set aside as `….1` when it is full, `….1` as `….2`, and so on.
#[derive(Debug)]
struct RollingFile {
    path: PathBuf,
    file: File,
    size: u64,
    log: Log,
}

impl RollingFile {
    fn open(path: PathBuf, log: &Log) -> io::Result<Self> {
        let file = open(&path, log.file_mode)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            size,
            log: log.clone(),
        })
    }

    fn roll(&mut self) -> io::Result<()> {
        let aside = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.log.file_count).rev() {
            match fs::rename(aside(n), aside(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.log.file_count == 0 {
            fs::remove_file(&self.path)?;
        } else {
            fs::rename(&self.path, aside(1))?;
        }
        self.file = open(&self.path, self.log.file_mode)?;
        self.size = 0;
        Ok(())
    }
}

impl Write for RollingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.log.file_bytes {
            // A file that cannot be set aside is written on: a long log beats none.
            if let Err(error) = self.roll() {
                let path = self.path.display();
                // Nobody is left to tell where this fails as well.
                writeln!(io::stderr(), "cannot begin a new log file {path}: {error}").ok();
            }
        }
        let written = self.file.write(bytes)?;
        self.size = self
            .size
            .saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &std::path::Path, mode: Option<u32>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .append(true)
        .create(true)
        .mode(mode.unwrap_or(0o600))
        .open(path)?;
    if let Some(mode) = mode {
        // The one given to `open` is cut by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields() -> Fields {
        let Value::Object(others) = json!({"rule": "holding", "why": "a b", "lag": 5}) else {
            unreachable!()
        };
        Fields {
            message: "two\nlines".to_owned(),
            others,
        }
    }

    #[test]
    fn an_event_is_one_line_in_patronis_form() {
        assert_eq!(
            fields().plain("2026-01-02 03:04:05,678", "INFO"),
            "2026-01-02 03:04:05,678 INFO: two\\nlines rule=holding why=\"a b\" lag=5"
        );
        assert_eq!(
            fields().json("T".to_owned(), "INFO"),
            r#"{"asctime":"T","levelname":"INFO","message":"two\nlines","rule":"holding","why":"a b","lag":5}"#
        );
    }

    #[test]
    fn a_full_log_file_is_set_aside_and_the_oldest_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.log");
        let mut log = Log::default();
        log.file_bytes = 10;
        log.file_count = 2;
        log.file_mode = Some(0o640);
        let mut file = RollingFile::open(path.clone(), &log).unwrap();
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("patroni.log"), "fourth\n");
        assert_eq!(read("patroni.log.1"), "third\n");
        assert_eq!(read("patroni.log.2"), "second\n");
        assert!(!dir.path().join("patroni.log.3").exists());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }
}
