//! What is asked of the store, and its answers.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LAST_MODIFIED, RANGE,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::bucket::{Bucket, Object, Query};
use super::xml;

/// Answers a request. What is not understood is answered with 400 and its reason.
pub(super) async fn answer(
    bucket: &Bucket,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let path = decoded(head.uri.path().trim_start_matches('/'));
    let key = path.split_once('/').map_or("", |(_, key)| key).to_owned();
    let asked = asked(head.uri.query().unwrap_or_default());
    let body = match received(&head.headers, body).await {
        Ok(body) => body,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "BadRequest", &format!("{error:#}")),
    };
    if key.is_empty() {
        return of_bucket(bucket, &head.method, &asked, &body);
    }
    let upload = asked.get("uploadId").and_then(|text| text.parse().ok());
    let part = asked.get("partNumber").and_then(|text| text.parse().ok());
    match (&head.method, upload, part) {
        (&Method::GET | &Method::HEAD, None, _) => read(bucket, &key, &head.headers),
        (&Method::PUT, None, _) => write(bucket, key, body, &head.headers),
        (&Method::PUT, Some(upload), Some(part)) => {
            let etag = given_tag(&head.headers);
            match bucket.add(upload, part, body, etag) {
                Some(etag) => tagged(&etag),
                None => refused(StatusCode::NOT_FOUND, "NoSuchUpload", "it was not begun"),
            }
        }
        (&Method::POST, None, _) if asked.contains_key("uploads") => {
            let upload = bucket.begin().to_string();
            let elements = [("Key", &*xml::escaped(&key)), ("UploadId", &upload)];
            document(xml::document("InitiateMultipartUploadResult", &elements))
        }
        (&Method::POST, Some(upload), _) => match bucket.finish(upload) {
            None => refused(StatusCode::NOT_FOUND, "NoSuchUpload", "it was not begun"),
            Some(bytes) => {
                let name = xml::escaped(&key);
                match bucket.put(key, bytes, None, only_new(&head.headers)) {
                    None => exists(),
                    Some(etag) => {
                        let etag = format!("&quot;{etag}&quot;");
                        let elements = [("Key", &*name), ("ETag", &etag)];
                        document(xml::document("CompleteMultipartUploadResult", &elements))
                    }
                }
            }
        },
        (&Method::DELETE, upload, _) => {
            match upload {
                Some(upload) => drop(bucket.finish(upload)),
                None => bucket.delete(&key),
            }
            Ok(status(StatusCode::NO_CONTENT).body(Full::default())?)
        }
        (method, ..) => {
            let problem = format!("this store knows no {method} of an object");
            refused(StatusCode::BAD_REQUEST, "NotImplemented", &problem)
        }
    }
}

fn of_bucket(
    bucket: &Bucket,
    method: &Method,
    asked: &BTreeMap<String, String>,
    body: &Bytes,
) -> Result<Response<Full<Bytes>>> {
    if method == Method::POST {
        if let Some(prefix) = asked.get("forget") {
            return document(bucket.forget(prefix).to_string());
        }
        for key in xml::texts(&String::from_utf8_lossy(body), "Key") {
            bucket.delete(&key);
        }
        return document(xml::document("DeleteResult", &[]));
    }
    if asked.contains_key("location") {
        return document(xml::document("LocationConstraint", &[]));
    }
    let of = |name: &str| asked.get(name).cloned();
    let second = of("list-type").as_deref() == Some("2");
    let after = if second {
        of("continuation-token").or_else(|| of("start-after"))
    } else {
        of("marker")
    };
    let query = Query {
        prefix: of("prefix").unwrap_or_default(),
        delimiter: of("delimiter").unwrap_or_default(),
        after: after.unwrap_or_default(),
        limit: of("max-keys")
            .and_then(|text| text.parse().ok())
            .unwrap_or(1000),
    };
    document(xml::listing(&query, &bucket.list(&query), second))
}

fn read(bucket: &Bucket, key: &str, headers: &HeaderMap) -> Result<Response<Full<Bytes>>> {
    let Some(object) = bucket.get(key) else {
        return refused(StatusCode::NOT_FOUND, "NoSuchKey", "it is not there");
    };
    let whole = object.bytes.len();
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let Some((from, until)) = range.and_then(|range| range_of(range, whole)) else {
        return Ok(described(status(StatusCode::OK), &object).body(Full::new(object.bytes))?);
    };
    let answer = described(status(StatusCode::PARTIAL_CONTENT), &object).header(
        CONTENT_RANGE,
        format!("bytes {from}-{}/{whole}", until.saturating_sub(1)),
    );
    Ok(answer.body(Full::new(object.bytes.slice(from..until)))?)
}

fn write(
    bucket: &Bucket,
    key: String,
    body: Bytes,
    headers: &HeaderMap,
) -> Result<Response<Full<Bytes>>> {
    match bucket.put(key, body, given_tag(headers), only_new(headers)) {
        Some(etag) => tagged(&etag),
        None => exists(),
    }
}

/// Takes in a body, without the frames that some clients put into it.
async fn received(headers: &HeaderMap, body: Incoming) -> Result<Bytes> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let length = text("content-length").and_then(|text| text.parse().ok());
    let mut body = body;
    let mut whole = BytesMut::with_capacity(length.unwrap_or(0));
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    let framed = text("x-amz-content-sha256").is_some_and(|how| how.starts_with("STREAMING-"));
    if framed {
        unframed(&whole)
    } else {
        Ok(whole.freeze())
    }
}

/// Takes what lies between `length;signature` and the end of each frame.
fn unframed(framed: &[u8]) -> Result<Bytes> {
    let mut whole = BytesMut::with_capacity(framed.len());
    let mut rest = framed;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        let end = end.context("a frame without a head")?;
        let head = std::str::from_utf8(&rest[..end])?;
        let length = head.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(length, 16)
            .with_context(|| format!("{head:?} is no head of a frame"))?;
        if length == 0 {
            return Ok(whole.freeze());
        }
        rest = &rest[end + 2..];
        let data = rest.get(..length).context("a frame that is cut off")?;
        whole.extend_from_slice(data);
        rest = rest.get(length + 2..).context("a frame without an end")?;
    }
}

/// What the client says the checksum is becomes the tag, which boto compares: computing it is the
/// business of a store that is far away.
fn given_tag(headers: &HeaderMap) -> Option<String> {
    let given = headers.get("content-md5")?.to_str().ok()?;
    let mut bits: u32 = 0;
    let mut count = 0;
    let mut tag = String::new();
    for letter in given.bytes().take_while(|letter| *letter != b'=') {
        let value = BASE64.iter().position(|known| *known == letter)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            tag.push_str(&format!("{:02x}", bits >> count & 0xff));
        }
    }
    Some(tag)
}

fn only_new(headers: &HeaderMap) -> bool {
    headers.get(IF_NONE_MATCH).is_some_and(|tag| tag == "*")
}

fn range_of(range: &str, whole: usize) -> Option<(usize, usize)> {
    let (from, until) = range.strip_prefix("bytes=")?.split_once('-')?;
    let from: usize = from.parse().ok()?;
    let until = match until {
        "" => whole,
        until => until.parse::<usize>().ok()?.saturating_add(1).min(whole),
    };
    (from <= until).then_some((from, until))
}

fn asked(query: &str) -> BTreeMap<String, String> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    let pairs = parts.map(|part| part.split_once('=').unwrap_or((part, "")));
    pairs
        .map(|(name, value)| (decoded(name), decoded(&value.replace('+', " "))))
        .collect()
}

/// Undoes the percent signs.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = behind
            .get(..2)
            .and_then(|code| std::str::from_utf8(code).ok());
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        let (byte, left) = match code {
            Some(byte) if *first == b'%' => (byte, &behind[2..]),
            _ => (*first, behind),
        };
        bytes.push(byte);
        rest = left;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(status: StatusCode) -> hyper::http::response::Builder {
    Response::builder()
        .status(status)
        .header("x-amz-request-id", "0")
}

fn described(
    answer: hyper::http::response::Builder,
    object: &Object,
) -> hyper::http::response::Builder {
    answer
        .header(ETAG, format!("\"{}\"", object.etag))
        .header(LAST_MODIFIED, xml::MODIFIED_IN_HEAD)
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(ACCEPT_RANGES, "bytes")
}

fn tagged(etag: &str) -> Result<Response<Full<Bytes>>> {
    let answer = status(StatusCode::OK).header(ETAG, format!("\"{etag}\""));
    Ok(answer.body(Full::default())?)
}

fn document(text: String) -> Result<Response<Full<Bytes>>> {
    let answer = status(StatusCode::OK).header(CONTENT_TYPE, "application/xml");
    Ok(answer.body(Full::from(text))?)
}

fn exists() -> Result<Response<Full<Bytes>>> {
    let problem = "an object of this name is there";
    refused(
        StatusCode::PRECONDITION_FAILED,
        "PreconditionFailed",
        problem,
    )
}

fn refused(code: StatusCode, name: &str, problem: &str) -> Result<Response<Full<Bytes>>> {
    let elements = [("Code", name), ("Message", &*xml::escaped(problem))];
    let answer = status(code).header(CONTENT_TYPE, "application/xml");
    Ok(answer.body(Full::from(xml::document("Error", &elements)))?)
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_out_of_a_body() {
        let framed =
            b"4;chunk-signature=0\r\nab\r\n\r\n1\r\nc\r\n0\r\nx-amz-checksum-crc32:AA==\r\n\r\n";
        assert_eq!(unframed(framed).unwrap(), Bytes::from("ab\r\nc"));
        assert!(unframed(b"4\r\nab").is_err());
    }

    #[test]
    fn a_given_checksum_is_the_tag() {
        let mut headers = HeaderMap::new();
        let value = "1B2M2Y8AsgTpgAmY7PhCfg==".parse().unwrap();
        headers.insert("content-md5", value);
        let tag = given_tag(&headers);
        assert_eq!(tag.as_deref(), Some("d41d8cd98f00b204e9800998ecf8427e"));
    }

    #[test]
    fn a_range_is_cut_to_the_object() {
        assert_eq!(range_of("bytes=2-", 5), Some((2, 5)));
        assert_eq!(range_of("bytes=0-9", 5), Some((0, 5)));
        assert_eq!(range_of("bytes=1-1", 5), Some((1, 2)));
        assert_eq!(range_of("bytes=9-", 5), None);
    }

    #[test]
    fn a_query_is_decoded() {
        let asked = asked("list-type=2&prefix=a%2Fb+c&uploads");
        let pairs: Vec<_> = asked
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [("list-type", "2"), ("prefix", "a/b c"), ("uploads", "")]
        );
    }
}
