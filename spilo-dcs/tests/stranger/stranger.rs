//! A server that is none of the store's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

/// Answers every connection with the same bytes once something was sent, and hangs up.
pub(crate) fn always(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Whoever has gone away is answered as well.
            if stream.read(&mut [0; 4096]).is_ok() {
                stream.write_all(&answer).ok();
            }
        }
    });
    address
}
