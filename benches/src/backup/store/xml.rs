//! The documents that S3 speaks in.

use std::fmt::Write as _;

use super::bucket::{Page, Query};
use crate::backup::store::BUCKET;

/// Returns a page of a listing, of the first or the second version of the request.
pub(super) fn listing(query: &Query, page: &Page, second: bool) -> String {
    let mut text = format!(
        "{HEAD}<ListBucketResult xmlns=\"{SPACE}\"><Name>{BUCKET}</Name><Prefix>{}</Prefix>\
         <MaxKeys>{}</MaxKeys><Delimiter>{}</Delimiter><IsTruncated>{}</IsTruncated>",
        escaped(&query.prefix),
        query.limit,
        escaped(&query.delimiter),
        page.next.is_some()
    );
    if second {
        let count = page.objects.len() + page.prefixes.len();
        add(&mut text, "KeyCount", &count.to_string());
    } else {
        add(&mut text, "Marker", &escaped(&query.after));
    }
    if let Some(next) = &page.next {
        let name = if second {
            "NextContinuationToken"
        } else {
            "NextMarker"
        };
        add(&mut text, name, &escaped(next));
    }
    for (key, bytes, etag) in &page.objects {
        text.push_str("<Contents>");
        add(&mut text, "Key", &escaped(key));
        add(&mut text, "LastModified", MODIFIED);
        add(&mut text, "ETag", &format!("&quot;{etag}&quot;"));
        add(&mut text, "Size", &bytes.to_string());
        text.push_str("<StorageClass>STANDARD</StorageClass></Contents>");
    }
    for prefix in &page.prefixes {
        text.push_str("<CommonPrefixes>");
        add(&mut text, "Prefix", &escaped(prefix));
        text.push_str("</CommonPrefixes>");
    }
    text.push_str("</ListBucketResult>");
    text
}

/// Returns a document of some elements, whose texts need no escape.
pub(super) fn document(root: &str, elements: &[(&str, &str)]) -> String {
    let mut text = format!("{HEAD}<{root} xmlns=\"{SPACE}\">");
    for (name, value) in elements {
        add(&mut text, name, value);
    }
    // What cannot be written to a string is not text.
    write!(text, "</{root}>").expect("a string takes every text");
    text
}

/// Returns the texts of all elements of a name.
pub(super) fn texts(document: &str, name: &str) -> Vec<String> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let parts = document.split(&begin).skip(1);
    let texts = parts.filter_map(|part| part.split_once(&end));
    texts.map(|(text, _)| unescaped(text)).collect()
}

/// Returns a text as it stands in a document.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

fn add(text: &mut String, name: &str, value: &str) {
    write!(text, "<{name}>{value}</{name}>").expect("a string takes every text");
}

/// No tool that is measured asks how old an object is.
const MODIFIED: &str = "2026-01-01T00:00:00.000Z";

/// The same moment for the head of an answer.
pub(super) const MODIFIED_IN_HEAD: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
const SPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
