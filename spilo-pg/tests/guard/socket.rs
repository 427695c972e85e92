//! What arrives on the socket cannot stop the guard, and cannot make it late.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use spilo_core::guard::{Guard as _, GuardErrorKind};
use spilo_pg::guard::boot_time;

use crate::fixture::{MARGIN, Node, deadline_in, secs};

fn open(run_dir: &Path) -> UnixStream {
    let stream = UnixStream::connect(run_dir.join("guard.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
}

fn ask(stream: &UnixStream, line: &[u8]) -> String {
    let mut writer = stream;
    writer.write_all(line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn garbage_is_answered_with_an_error_and_changes_nothing() {
    let node = Node::new().await;
    let deadline = deadline_in(1, secs(20.0), secs(20.0));
    node.client().arm(deadline.clone()).await.unwrap();
    let stream = open(&node.run_dir());
    let lines: [&[u8]; 6] = [
        b"\n",
        b"\xff\xfe\0\n",
        b"{\"v\":1}\n",
        b"{\"v\":2,\"do\":\"disarm\"}\n",
        b"{\"v\":1,\"do\":\"arm\",\"epoch\":-1}\n",
        b"{\"v\":1,\"do\":\"launch\",\"program\":7}\n",
    ];
    for line in lines {
        let answer = ask(&stream, line);
        assert!(answer.contains("\"error\""), "{answer}");
    }
    let answer = ask(
        &stream,
        b"{\"v\":1,\"do\":\"status\",\"from the future\":{}}\n",
    );
    assert!(answer.contains("\"status\""), "{answer}");
    assert_eq!(
        node.client().status().await.unwrap().deadline,
        Some(deadline)
    );
}

#[tokio::test]
async fn line_without_end_closes_the_connection() {
    let node = Node::new().await;
    let mut stream = open(&node.run_dir());
    // The guard may close before all of it is written.
    let _cut_off = stream.write_all(&[b'x'; 200_000]);
    let mut rest = Vec::new();
    let _reset = stream.read_to_end(&mut rest);
    assert_eq!(rest, [0_u8; 0]);
    node.client().status().await.unwrap();
}

#[tokio::test]
async fn arm_with_a_lower_epoch_or_in_the_past_is_refused() {
    let node = Node::new().await;
    node.client()
        .arm(deadline_in(5, secs(20.0), secs(20.0)))
        .await
        .unwrap();
    let error = node
        .client()
        .arm(deadline_in(4, secs(30.0), secs(30.0)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
    let error = node
        .client()
        .arm(deadline_in(6, secs(0.0), secs(0.0)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), GuardErrorKind::Refused);
}

#[tokio::test]
async fn idle_connections_do_not_keep_an_agent_out() {
    let node = Node::new().await;
    let idle: Vec<UnixStream> = (0..100).map(|_| open(&node.run_dir())).collect();
    tokio::time::sleep(secs(2.0)).await;
    let limit = boot_time() + secs(10.0);
    while let Err(error) = node.client().status().await {
        assert_eq!(error.kind(), GuardErrorKind::Silent, "silence is not death");
        assert!(boot_time() < limit, "idle connections keep the agent out");
    }
    drop(idle);
}

/// The flood asks for the status, which is the dearest thing to ask for, and sends garbage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_is_kept_under_a_flood() {
    let (node, deadline) = Node::primary(secs(3.0), secs(3.0)).await;
    node.leave_loop().await;
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..20)
        .map(|number| {
            let (stop, run_dir) = (Arc::clone(&stop), node.run_dir());
            thread::spawn(move || flood(&run_dir, number, &stop))
        })
        .collect();
    let gone = node.wait_until_gone(deadline.hard + MARGIN).await;
    stop.store(true, Ordering::Relaxed);
    let sent: u64 = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
    println!(
        "flood of {sent} writes: gone at {gone}, hard deadline {}",
        deadline.hard
    );
    assert!(sent > 100);
    node.assert_nothing_was_written_after(deadline.hard, "flood");
    assert_eq!(node.client().status().await.unwrap().fences, 1);
}

fn flood(run_dir: &Path, number: usize, stop: &AtomicBool) -> u64 {
    let line: &[u8] = if number.is_multiple_of(2) {
        b"{\"v\":1,\"do\":\"status\"}\n"
    } else {
        b"garbage\n"
    };
    let burst = line.repeat(200);
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(run_dir.join("guard.sock")) else {
            continue;
        };
        stream
            .set_write_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        while !stop.load(Ordering::Relaxed) && stream.write_all(&burst).is_ok() {
            sent += 1;
        }
    }
    sent
}
