//! What the daemon does while the file system keeps its configuration from being read again.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

#[path = "support/machine.rs"]
mod machine;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::libc::{ENXIO, O_NONBLOCK};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use machine::{configuration, free_port};

/// A daemon without a store or a server, which ends with this.
struct Agent {
    process: Child,
    told: UnixDatagram,
    said: Receiver<String>,
    api: u16,
}

impl Agent {
    /// Starts one with the configuration in the file `agent.yml`, and waits until it is up.
    fn start(dir: &Path, api: u16) -> Self {
        let told = UnixDatagram::bind(dir.join("notify")).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_spilo-agent"))
            .arg("agent.yml")
            .current_dir(dir)
            .env_clear()
            .env("NOTIFY_SOCKET", dir.join("notify"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (line, said) = channel();
        // It ends with the daemon, whose output it reads.
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|text| line.send(text))
        });
        let agent = Self {
            process,
            told,
            said,
            api,
        };
        agent.until_told("READY=1");
        agent
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    /// Waits until the service manager is told this.
    fn until_told(&self, wanted: &str) {
        let mut message = [0; 1024];
        loop {
            let length = self.told.recv(&mut message).unwrap();
            if message[..length].starts_with(wanted.as_bytes()) {
                return;
            }
        }
    }

    /// Waits until the log says this.
    fn until_said(&self, wanted: &str) {
        while !self.said.recv_timeout(PATIENCE).unwrap().contains(wanted) {}
    }

    /// Asks the REST API, whose answers come from the thread that renews the lease.
    fn answers(&self) -> bool {
        let mut stream = TcpStream::connect(("127.0.0.1", self.api)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /patroni HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 ")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Nothing to do where it has ended already.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_configuration_that_hangs_holds_nobody_up_and_is_read_by_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let api = free_port();
    let (config, file) = (configuration(dir.path(), api), dir.path().join("agent.yml"));
    fs::write(&file, &config).unwrap();
    let mut agent = Agent::start(dir.path(), api);

    // Who opens it waits for somebody at the other end.
    fs::remove_file(&file).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&file)
            .status()
            .unwrap()
            .success()
    );
    agent.signal(Signal::SIGHUP);
    agent.until_told("RELOADING=1");
    assert!(agent.answers());
    for _ in 0..2 {
        agent.signal(Signal::SIGHUP);
        agent.until_said("still being read");
    }
    assert!(agent.answers());

    // What was asked for three times is read twice: a fault changes nothing, and the second
    // reading finds what has become of it.
    write(&file, "tags: [1");
    agent.until_said("ERROR: the configuration is not reloaded");
    agent.until_told("RELOADING=1");
    write(&file, &config);
    agent.until_said("the configuration is reloaded");
    agent.until_told("READY=1");
    let reader = OpenOptions::new()
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open(&file);
    assert_eq!(reader.unwrap_err().raw_os_error(), Some(ENXIO));

    // Nor does it keep the daemon from ending.
    agent.signal(Signal::SIGHUP);
    agent.until_told("RELOADING=1");
    agent.signal(Signal::SIGTERM);
    agent.until_said("stopped");
    assert!(agent.process.wait().unwrap().success());
}

/// Writes into a pipe as soon as somebody reads it.
fn write(pipe: &Path, text: &str) {
    let mut pipe = File::options().write(true).open(pipe).unwrap();
    pipe.write_all(text.as_bytes()).unwrap();
}

/// What a loaded machine may take for anything that takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);
