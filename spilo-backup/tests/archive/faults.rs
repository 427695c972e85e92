//! A line to the store on which things go wrong.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spilo_backup::{Archive, ArchiveOptions, Body, Codec, Keep, Objects as _, Pushed};
use spilo_core::backup::BackupErrorKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{Place, client, segment};

const NAME: &str = "000000010000000000000003";

/// What happens to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The answer ends after so many bytes.
    CutAfter(usize),
    /// The request ends after so many bytes, and nothing is answered.
    CutRequest(usize),
    /// Whatever is asked, this is answered.
    Answer(&'static str),
    /// The byte there of the answer is another.
    Wrong(usize),
    /// It goes slowly.
    Slow,
    /// A request with more than headers arrives, and its answer does not.
    Unheard,
    /// Whatever year it is in the answer, it is this one.
    Year(&'static str),
    /// A listing names each object twice.
    Twice,
}

const BUSY: &str = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const ABSENT: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\n\
    Content-Length: 39\r\nConnection: close\r\n\r\n<Error><Code>NoSuchKey</Code>  </Error>";

/// What stands before a store says this while the store is away.
const LOST: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\
    Content-Length: 18\r\nConnection: close\r\n\r\n404 page not found";

/// A proxy before the store, which lets pass what no fault is planned for.
struct Line {
    address: SocketAddr,
    planned: Arc<Mutex<VecDeque<Fault>>>,
    _task: JoinSet<()>,
}

impl Line {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let planned = Arc::new(Mutex::new(VecDeque::new()));
        let faults = Arc::clone(&planned);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let fault = faults.lock().unwrap().pop_front();
                connections.spawn(carry(client, server, fault));
            }
        });
        Self {
            address,
            planned,
            _task: task,
        }
    }

    /// Returns an archive whose next connections have these faults.
    async fn archive(&self, codec: Codec, faults: &[Fault]) -> Archive {
        *self.planned.lock().unwrap() = faults.iter().copied().collect();
        let objects = client(&format!("http://{}", self.address)).await;
        let mut options = ArchiveOptions::default();
        options.codec = codec;
        Archive::new(Arc::new(objects), options)
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, fault: Option<Fault>) {
    if let Some(Fault::Answer(text)) = fault {
        let mut request = [0; 4096];
        let Ok(1..) = client.read(&mut request).await else {
            return;
        };
        client.write_all(text.as_bytes()).await.ok();
        client.shutdown().await.ok();
        return;
    }
    if let Some(Fault::Year(_) | Fault::Twice) = fault {
        return carry_whole(client, server, fault).await;
    }
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (asked, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let requests = async {
        let left = match fault {
            Some(Fault::CutRequest(bytes)) => bytes,
            _ => usize::MAX,
        };
        let none = Duration::ZERO;
        copy(&mut from_client, &mut to_server, &asked, left, None, none).await;
    };
    let answers = async {
        if fault == Some(Fault::Unheard) {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from_server.read(&mut buffer).await
                && asked.load(Ordering::Relaxed) < 4_000
            {
                to_client.write_all(&buffer[..read]).await.ok();
            }
            return;
        }
        let (left, wrong, pause) = match fault {
            Some(Fault::CutAfter(bytes)) => (bytes, None, Duration::ZERO),
            Some(Fault::Wrong(at)) => (usize::MAX, Some(at), Duration::ZERO),
            Some(Fault::Slow) => (usize::MAX, None, Duration::from_millis(5)),
            _ => (usize::MAX, None, Duration::ZERO),
        };
        copy(
            &mut from_server,
            &mut to_client,
            &answered,
            left,
            wrong,
            pause,
        )
        .await;
    };
    // Whichever way ends, the connection does.
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

/// Carries one request and its answer, which are read to their ends and changed in between.
async fn carry_whole(mut client: TcpStream, server: SocketAddr, fault: Option<Fault>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let Some(request) = message(&mut client).await else {
        return;
    };
    server.write_all(&request).await.unwrap();
    let Some(answer) = message(&mut server).await else {
        return;
    };
    let end = end_of_head(&answer).unwrap();
    let mut head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut body = answer[end..].to_vec();
    match fault {
        Some(Fault::Year(year)) => {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
            let this = (1970 + now.as_secs() / 31_556_952).to_string();
            assert!(head.contains(&this), "the answer has a date: {head}");
            head = head.replace(&this, year);
            // What is no text has no dates.
            if let Ok(text) = String::from_utf8(body.clone()) {
                body = text.replace(&this, year).into_bytes();
            }
        }
        Some(Fault::Twice) => {
            if let Ok(text) = String::from_utf8(body.clone()) {
                let mut twice = String::new();
                for part in text.split_inclusive("</Contents>") {
                    twice.push_str(part);
                    if let Some(at) = part.find("<Contents>") {
                        twice.push_str(&part[at..]);
                    }
                }
                let (old, new) = (body.len().to_string(), twice.len().to_string());
                head = head.replace(&format!("length: {old}"), &format!("length: {new}"));
                body = twice.into_bytes();
            }
        }
        _ => {}
    }
    client.write_all(head.as_bytes()).await.ok();
    client.write_all(&body).await.ok();
    client.shutdown().await.ok();
}

fn end_of_head(message: &[u8]) -> Option<usize> {
    let end = message.windows(4).position(|four| four == b"\r\n\r\n");
    end.map(|at| at + 4)
}

/// Reads a message of HTTP, of which the head says how long it is.
async fn message(from: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        if let Some(end) = end_of_head(&all) {
            let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |text| text.parse().unwrap());
            assert!(!head.contains("transfer-encoding"), "{head}");
            if all.len() >= end + length {
                return Some(all);
            }
        }
        let read @ 1.. = from.read(&mut buffer).await.ok()? else {
            return None;
        };
        all.extend_from_slice(&buffer[..read]);
    }
}

async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    copied: &AtomicUsize,
    mut left: usize,
    wrong: Option<usize>,
    pause: Duration,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut done = 0;
    while left > 0 {
        let most = left.min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..most]).await else {
            return;
        };
        if let Some(at) = wrong.and_then(|wrong| wrong.checked_sub(done))
            && at < read
        {
            buffer[at] ^= 0x10;
        }
        tokio::time::sleep(pause).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        done += read;
        copied.store(done, Ordering::Relaxed);
        left -= read;
    }
}

/// A store with one file of the log, and a line to it.
async fn line(codec: Codec) -> (Place, Line, Vec<u8>) {
    let place = Place::s3().await;
    let server = place._server.as_ref().unwrap().address();
    let line = Line::before(server).await;
    let bytes = segment(NAME, 7, 1 << 20, 1);
    let path = place.file(NAME, &bytes);
    place.archive(codec).push_wal(&path).await.unwrap();
    (place, line, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn f38_what_breaks_off_is_gone_on_with() {
    let (place, line, bytes) = line(Codec::Zstd).await;
    let into = place.scratch().join("RECOVERYXLOG");
    for faults in [
        &[Fault::CutAfter(0)][..],
        &[Fault::CutAfter(100)],
        &[Fault::CutAfter(300_000)],
        &[
            Fault::CutAfter(300_000),
            Fault::CutAfter(100_000),
            Fault::CutAfter(5),
        ],
        &[Fault::CutRequest(10)],
        &[Fault::Answer(BUSY)],
        &[Fault::Answer(BUSY), Fault::Answer(BUSY), Fault::Slow],
        &[Fault::Slow],
        &[Fault::Answer(ABSENT)],
    ] {
        let archive = line.archive(Codec::Zstd, faults).await;
        let fetched = archive.fetch_wal(NAME, &into).await;
        fetched.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        assert!(fs::read(&into).unwrap() == bytes, "{faults:?}");
        fs::remove_file(&into).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f38_what_goes_on_failing_is_an_error_and_leaves_nothing() {
    let (place, line, _) = line(Codec::Zstd).await;
    let into = place.scratch().join("RECOVERYXLOG");
    for fault in [
        Fault::CutAfter(0),
        Fault::CutAfter(1000),
        Fault::Answer(BUSY),
        // Of a store that says so to whatever it is asked, nothing is known.
        Fault::Answer(ABSENT),
        Fault::Answer(LOST),
    ] {
        let archive = line.archive(Codec::Zstd, &[fault; 50]).await;
        let error = archive.fetch_wal(NAME, &into).await.unwrap_err();
        assert_eq!(
            error.kind(),
            BackupErrorKind::Unavailable,
            "{fault:?}: {error}"
        );
        let left = fs::read_dir(place.scratch()).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["pg_wal"], "{fault:?}");
    }
}

/// Wherever a byte is changed on the way: in what says how long it is, or in what it is.
#[tokio::test(flavor = "multi_thread")]
async fn f38_wrong_bytes_are_never_handed_out() {
    for codec in [Codec::Zstd, Codec::Lz4, Codec::Lzo] {
        let (place, line, bytes) = line(codec).await;
        let into = place.scratch().join("RECOVERYXLOG");
        for at in (0..400).step_by(23).chain([5000, 100_000, 400_000]) {
            let archive = line.archive(codec, &[Fault::Wrong(at)]).await;
            let fetch = archive.fetch_wal(NAME, &into);
            let fetched = tokio::time::timeout(Duration::from_secs(60), fetch).await;
            if fetched.unwrap().is_ok() {
                assert!(fs::read(&into).unwrap() == bytes, "{codec} at {at}");
                fs::remove_file(&into).unwrap();
            }
            assert!(!into.exists(), "{codec} at {at}");
        }
    }
}

const SKEWED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\n\
    Content-Length: 94\r\nConnection: close\r\n\r\n<Error><Code>RequestTimeTooSkewed</Code>\
    <Message>The difference is too large</Message></Error>";

/// What a store says of time decides nothing: which backup is newest, what is deleted, and what is
/// fetched are the same whatever year it believes in.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_clock_is_wrong_changes_nothing() {
    for year in ["1999", "2199"] {
        let (place, line, bytes) = line(Codec::Zstd).await;
        crate::kept::history(&place).await;
        let archive = line.archive(Codec::Zstd, &[Fault::Year(year); 500]).await;
        let newest = archive.backups_by_age().await.unwrap().pop().unwrap();
        assert_eq!(newest.name.0, crate::kept::name(2, 12), "{year}");
        let kept = Keep::Newest(2);
        let expired = archive.expire(&kept, true).await.unwrap();
        let plain = place.archive(Codec::Zstd).expire(&kept, true).await;
        assert_eq!(expired, plain.unwrap(), "{year}");
        let into = place.scratch().join("RECOVERYXLOG");
        archive.fetch_wal(NAME, &into).await.unwrap();
        assert!(fs::read(&into).unwrap() == bytes, "{year}");
    }
    let (_place, line, _) = line(Codec::Zstd).await;
    let archive = line
        .archive(Codec::Zstd, &[Fault::Answer(SKEWED); 50])
        .await;
    let error = archive.backups_by_age().await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused);
    assert!(
        error.to_string().contains("the clocks of the server"),
        "{error}"
    );
}

const FULL: &str = "HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\n\
    Content-Length: 50\r\nConnection: close\r\n\r\n<Error><Code>XMinioStorageFull</Code>     </Error>";

/// The error names the bucket, the key and the remedy, and it is worth trying again.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_says_so() {
    let (_place, line, _) = line(Codec::Zstd).await;
    *line.planned.lock().unwrap() = [Fault::Answer(FULL); 50].into();
    let objects = client(&format!("http://{}", line.address)).await;
    let key = format!("wal_005/{NAME}.zst");
    let error = objects.put(&key, Body::whole("x")).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Unavailable);
    let text = error.to_string();
    let named = [
        format!("s3://{}/some/where/{key}", crate::s3::BUCKET),
        format!("make room for the bucket {}", crate::s3::BUCKET),
    ];
    assert!(named.iter().all(|named| text.contains(named)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_twice_is_there_once() {
    let (place, line, _) = line(Codec::Zstd).await;
    crate::kept::history(&place).await;
    let plain = place.objects.list("").await.unwrap();
    let archive = line.archive(Codec::Zstd, &[Fault::Twice; 500]).await;
    assert_eq!(archive.backups_by_age().await.unwrap().len(), 3);
    let expired = archive.expire(&Keep::Newest(2), false).await.unwrap();
    assert_eq!(expired.backups.len(), 2);
    let left = place.objects.list("").await.unwrap();
    // Two backups with one part each and one sentinel between them, and log.
    assert_eq!(plain.len() - left.len(), 3 + expired.wal_files);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_over_a_bad_line_is_there_once_and_whole() {
    let (place, line, _) = line(Codec::Zstd).await;
    let into = place.scratch().join("x");
    for (n, faults) in [
        &[Fault::CutAfter(0)][..],
        &[Fault::CutRequest(200_000)],
        &[
            Fault::CutRequest(200_000),
            Fault::CutRequest(500),
            Fault::CutAfter(20),
        ],
        &[Fault::Answer(BUSY), Fault::Answer(BUSY)],
        &[Fault::Slow],
        // Two for what is asked beforehand, and five attempts.
        &[Fault::Unheard; 7],
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("0000000100000000000000{:02X}", n + 16);
        let bytes = segment(&name, 7, 1 << 20, u8::try_from(n).unwrap());
        let path = place.file(&name, &bytes);
        let archive = line.archive(Codec::Zstd, faults).await;
        let pushed = archive.push_wal(&path).await;
        // Whether the first attempt arrived is not always known; that it is there is.
        pushed.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        let archive = place.archive(Codec::Zstd);
        assert_eq!(archive.push_wal(&path).await.unwrap(), Pushed::Already);
        archive.fetch_wal(&name, &into).await.unwrap();
        assert!(fs::read(&into).unwrap() == bytes, "{faults:?}");
    }
}
