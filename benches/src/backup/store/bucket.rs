//! The objects of the only bucket.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

/// Objects, and uploads that are not finished.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<u64, BTreeMap<u32, Bytes>>,
    last: u64,
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    /// Without quotation marks.
    pub(super) etag: String,
}

/// What a listing asks for.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub(super) prefix: String,
    pub(super) delimiter: String,
    /// The name, or the common beginning, behind which the listing goes on.
    pub(super) after: String,
    pub(super) limit: usize,
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Name, length and tag.
    pub(super) objects: Vec<(String, usize, String)>,
    pub(super) prefixes: Vec<String>,
    /// Where the next page goes on, if there is one.
    pub(super) next: Option<String>,
}

impl Bucket {
    /// Stores an object; with `only_new`, reports whether there was none of the name.
    pub(super) fn put(
        &self,
        key: String,
        bytes: Bytes,
        etag: Option<String>,
        only_new: bool,
    ) -> Option<String> {
        let mut state = self.state();
        if only_new && state.objects.contains_key(&key) {
            return None;
        }
        let etag = etag.unwrap_or_else(|| state.tag());
        let object = Object {
            bytes,
            etag: etag.clone(),
        };
        state.objects.insert(key, object);
        Some(etag)
    }

    pub(super) fn get(&self, key: &str) -> Option<Object> {
        self.state().objects.get(key).cloned()
    }

    pub(super) fn delete(&self, key: &str) {
        self.state().objects.remove(key);
    }

    /// Removes everything under a prefix, and returns how many bytes it was.
    pub(super) fn forget(&self, prefix: &str) -> usize {
        let mut bytes = 0;
        self.state().objects.retain(|key, object| {
            let goes = key.starts_with(prefix);
            bytes += if goes { object.bytes.len() } else { 0 };
            !goes
        });
        bytes
    }

    pub(super) fn list(&self, query: &Query) -> Page {
        let state = self.state();
        let mut page = Page::default();
        let from = query.prefix.as_str().max(query.after.as_str());
        let range = (Bound::Included(from), Bound::Unbounded);
        let mut last = "";
        for (key, object) in state.objects.range::<str, _>(range) {
            let Some(rest) = key.strip_prefix(&query.prefix) else {
                break;
            };
            let cut = (!query.delimiter.is_empty())
                .then(|| rest.find(&query.delimiter))
                .flatten();
            let name = match cut {
                Some(at) => &key[..query.prefix.len() + at + query.delimiter.len()],
                None => key,
            };
            if name <= query.after.as_str() || name == last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == query.limit {
                page.next = Some(last.to_owned());
                break;
            }
            last = name;
            match cut {
                Some(_) => page.prefixes.push(name.to_owned()),
                None => {
                    let (bytes, etag) = (object.bytes.len(), object.etag.clone());
                    page.objects.push((name.to_owned(), bytes, etag));
                }
            }
        }
        page
    }

    pub(super) fn begin(&self) -> u64 {
        let mut state = self.state();
        state.last += 1;
        let upload = state.last;
        state.uploads.insert(upload, BTreeMap::new());
        upload
    }

    /// Adds a part, unless there is no such upload.
    pub(super) fn add(
        &self,
        upload: u64,
        part: u32,
        bytes: Bytes,
        etag: Option<String>,
    ) -> Option<String> {
        let mut state = self.state();
        state.uploads.get_mut(&upload)?.insert(part, bytes);
        Some(etag.unwrap_or_else(|| state.tag()))
    }

    /// Puts the parts together, unless there is no such upload.
    pub(super) fn finish(&self, upload: u64) -> Option<Bytes> {
        let parts = self.state().uploads.remove(&upload)?;
        let mut whole = BytesMut::with_capacity(parts.values().map(Bytes::len).sum());
        for part in parts.values() {
            whole.extend_from_slice(part);
        }
        Some(whole.freeze())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns a tag that no other object has. It is no checksum, and does not look like one.
    fn tag(&mut self) -> String {
        self.last += 1;
        format!("{:032x}-1", self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(bucket: &Bucket, prefix: &str, after: &str, limit: usize) -> Vec<String> {
        let page = bucket.list(&Query {
            prefix: prefix.to_owned(),
            delimiter: "/".to_owned(),
            after: after.to_owned(),
            limit,
        });
        let objects = page.objects.into_iter().map(|(key, ..)| key);
        objects.chain(page.prefixes).chain(page.next).collect()
    }

    #[test]
    fn a_listing_goes_on_where_its_page_ended() {
        let bucket = Bucket::default();
        for key in ["a/1", "a/b/1", "a/b/2", "a/c", "b"] {
            bucket.put(key.to_owned(), Bytes::new(), None, true);
        }
        assert_eq!(listed(&bucket, "a/", "", 9), ["a/1", "a/c", "a/b/"]);
        assert_eq!(listed(&bucket, "a/", "", 2), ["a/1", "a/b/", "a/b/"]);
        assert_eq!(listed(&bucket, "a/", "a/b/", 2), ["a/c"]);
        assert_eq!(listed(&bucket, "", "", 9), ["b", "a/"]);
    }

    #[test]
    fn an_object_that_must_be_new_replaces_none() {
        let bucket = Bucket::default();
        let put = |only_new| bucket.put("a".to_owned(), Bytes::new(), None, only_new);
        assert!(put(true).is_some() && put(true).is_none() && put(false).is_some());
    }
}
