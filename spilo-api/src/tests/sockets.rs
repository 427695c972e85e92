//! The server on real sockets.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;
use crate::serve::{Limits, serve_within};
use crate::tls::ServerTls;

/// A server that ends with the test.
pub(super) struct Serving {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

pub(super) fn start(node: &Arc<Fake>, limits: Limits, tls: Option<ServerTls>) -> Serving {
    start_api(&node.api(), limits, tls)
}

pub(super) fn start_api(api: &Api, limits: Limits, tls: Option<ServerTls>) -> Serving {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let router = api.router();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        serve_within(limits, listener, router, tls, std::future::pending())
            .await
            .unwrap();
    });
    Serving {
        address,
        _tasks: tasks,
    }
}

/// Sends bytes and reads until the server closes.
async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut text = String::new();
    let _whole_or_reset = stream.read_to_string(&mut text).await;
    text
}

#[tokio::test]
async fn http_1_0_is_answered_and_the_connection_closed() {
    let server = start(&Fake::new(primary()), Limits::default(), None);
    let answer = raw(server.address, "GET /primary HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains(r#""role": "primary""#), "{answer}");
    for method in ["HEAD", "OPTIONS"] {
        let answer = raw(
            server.address,
            &format!("{method} /replica HTTP/1.0\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    let order = "POST /failsafe HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]";
    assert!(
        raw(server.address, order)
            .await
            .starts_with("HTTP/1.0 400 ")
    );
}

#[tokio::test]
async fn http_1_1_is_answered_and_the_connection_closed() {
    let server = start(&Fake::new(standby()), Limits::default(), None);
    let answer = raw(
        server.address,
        "OPTIONS /replica HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.to_lowercase().contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_server_knows_who_asks() {
    let node = Fake::new(primary());
    let mut options = ApiOptions::default();
    options.access.allowlist = vec!["127.0.0.1".parse().unwrap()];
    let api = Api::new(node.clone(), options.clone()).unwrap();
    let server = start_api(&api, Limits::default(), None);
    let order = "POST /detach HTTP/1.0\r\nContent-Length: 0\r\n\r\n";
    assert!(
        raw(server.address, order)
            .await
            .starts_with("HTTP/1.0 202 ")
    );
    options.access.allowlist = vec!["10.0.0.0/8".parse().unwrap()];
    api.reconfigure(options).unwrap();
    assert!(
        raw(server.address, order)
            .await
            .starts_with("HTTP/1.0 403 ")
    );
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let server = start(&Fake::new(primary()), Limits::default(), None);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    for bytes in [
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        &long,
        "\r\n\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The server may close before it has read everything.
        let _sent = stream.write_all(bytes.as_bytes()).await;
        let _sent = stream.shutdown().await;
        let mut text = String::new();
        let _read = stream.read_to_string(&mut text).await;
        assert!(!text.starts_with("HTTP/1.1 200"), "{bytes:.20}: {text}");
    }
    assert!(
        raw(server.address, "GET / HTTP/1.0\r\n\r\n")
            .await
            .starts_with("HTTP/1.0 200 ")
    );
}

#[tokio::test]
async fn slow_clients_lose_their_place() {
    let limits = Limits {
        connections: 2,
        head: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = start(&Fake::new(primary()), limits, None);
    let mut idle = Vec::new();
    // One that says nothing at all, and one that stops in the middle.
    for begin in ["", "GET /pri"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        idle.push(stream);
    }
    // Waits for a place, and gets it when the slow ones are cut off.
    let begun = std::time::Instant::now();
    assert!(
        raw(server.address, "GET / HTTP/1.0\r\n\r\n")
            .await
            .starts_with("HTTP/1.0 200 ")
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(100),
        "{:?}",
        begun.elapsed()
    );
    for mut stream in idle {
        let mut rest = Vec::new();
        let _closed = stream.read_to_end(&mut rest).await;
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let limits = Limits {
        whole: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = start(&Fake::new(primary()), limits, None);
    let order = "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{";
    assert_eq!(raw(server.address, order).await, "");
}

#[tokio::test]
async fn shutdown_lets_open_requests_end_within_their_bound() {
    let node = Fake::new(primary());
    node.change(|status| status.cluster = None);
    *node.dcs.mood.lock().unwrap() = Mood::Hangs;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let limits = Limits {
        drain: Duration::from_secs(5),
        ..Limits::default()
    };
    let serving = serve_within(limits, listener, node.api().router(), None, async {
        let _told_or_dropped = stopped.await;
    });
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /cluster HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        while node.dcs.reads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let (served, answer) = tokio::join!(serving, asking);
    served.unwrap();
    assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
    assert!(TcpStream::connect(address).await.is_err());
}
