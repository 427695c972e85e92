//! What systemd is told: one datagram each, by hand, since that is the whole protocol.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The line to the service manager, if one listens.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<OsString>,
}

impl Notifier {
    /// Takes the socket that the service manager named in the environment.
    pub(crate) fn from_environment() -> Self {
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()),
        }
    }

    /// Says that the node is up, which is what starting it waits for.
    pub(crate) fn ready(&self) {
        self.tell(&format!("READY=1\nMAINPID={}", std::process::id()));
    }

    /// Says that the configuration is being read again; [`ready`](Self::ready) ends it.
    pub(crate) fn reloading(&self) {
        self.tell("RELOADING=1");
    }

    /// Says that the agent is about to end.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Says in one line what the node is doing, for `systemctl status`.
    pub(crate) fn status(&self, line: &str) {
        self.tell(&format!("STATUS={}", line.replace('\n', " ")));
    }

    fn tell(&self, message: &str) {
        // Nothing depends on it but a display and a start-up time-out, which speaks for itself.
        if let Err(error) = self.send(message) {
            tracing::debug!(%error, "cannot notify the service manager");
        }
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Some(name) = &self.socket else {
            return Ok(());
        };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up the agent.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(message.as_bytes(), &address)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_is_told_in_its_protocol() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier {
            socket: Some(path.into()),
        };
        notifier.ready();
        notifier.status("primary\nof demo");
        notifier.reloading();
        notifier.stopping();
        let mut heard = Vec::new();
        for _ in 0..4 {
            let mut buffer = [0; 200];
            let length = manager.recv(&mut buffer).unwrap();
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        let ready = format!("READY=1\nMAINPID={}", std::process::id());
        assert_eq!(
            heard,
            [
                &ready,
                "STATUS=primary of demo",
                "RELOADING=1",
                "STOPPING=1"
            ]
        );
    }

    #[test]
    fn nobody_listening_is_no_failure() {
        assert!(Notifier { socket: None }.send("READY=1").is_ok());
    }
}
