//! Every key of Patroni's local configuration, what it holds, and what becomes of it here.

mod table;

use serde_json::Value;

pub(super) use table::KEYS;

/// One key, by its path: segments joined by dots, `*` for a segment that the operator chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) fate: Fate,
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// One line of text; a number is taken as it is written.
    Text,
    /// Text that is masked wherever it would be shown.
    Secret,
    /// A boolean.
    Flag,
    /// An integer from a range.
    Integer(i64, i64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of scalars, or their text with commas between.
    List,
    /// A list of lines, in which a comma is only a comma.
    Lines,
    /// A map whose inside is not looked at here.
    Map,
    /// Command line options: a list of switches and one-key maps, or a map.
    Options,
    /// Whatever there is; the key's judge looks at it.
    Any,
}

/// What becomes of a key that is set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// It is read.
    Built,
    /// It is not built: one warning, which ends with what happens instead.
    Ignored(&'static str),
    /// It is not built, and ignoring it is not safe: an error, which ends with the way out.
    Refused(&'static str),
    /// It depends on the value.
    Judged(fn(&Value) -> Verdict),
}

/// What a judge thinks of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As if it were built.
    Fine,
    /// A warning with this text.
    Warn(String),
    /// An error with this text.
    Refuse(String),
}

/// Finds the key at `path`, by its own path before a pattern.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let exact = KEYS.iter().find(|key| key.path == path);
    exact.or_else(|| {
        KEYS.iter()
            .find(|key| key.path.ends_with('*') && matches(key.path, path))
    })
}

/// Returns whether `path` is a section, one that holds other keys.
pub(super) fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// Returns the path of the known key that an unknown one was most likely meant to be.
pub(super) fn nearest(path: &str) -> String {
    let (parent, leaf) = path.rsplit_once('.').unwrap_or(("", path));
    let mut best = (usize::MAX, "");
    for known in KEYS
        .iter()
        .map(|key| key.path)
        .filter(|known| !known.ends_with('*'))
    {
        let parts: Vec<_> = known.match_indices('.').map(|(at, _)| at).collect();
        for end in parts.into_iter().chain([known.len()]) {
            let candidate = &known[..end];
            let (section, name) = candidate.rsplit_once('.').unwrap_or(("", candidate));
            // The same section first: a slip of the finger is likelier than a slip of the indent.
            // A name that fits exactly elsewhere still beats a bad fit here.
            let away = if section == parent { 0 } else { 2 };
            let cost = 2 * unlikeness(leaf, name) + away;
            if cost < best.0 {
                best = (cost, candidate);
            }
        }
    }
    best.1.to_owned()
}

/// Returns the candidate that `name` is nearest to.
pub(super) fn nearest_of<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    candidates
        .min_by_key(|candidate| distance(name, candidate))
        .unwrap_or_default()
}

fn matches(pattern: &str, path: &str) -> bool {
    let Some(parent) = pattern.strip_suffix(".*") else {
        return false;
    };
    path.strip_prefix(parent)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|rest| !rest.is_empty() && !rest.contains('.'))
}

/// Says how unlike a slip and a name are; a word cut short is close, however long the rest.
fn unlikeness(slip: &str, name: &str) -> usize {
    let cut = slip.len() >= 3 && name.starts_with(slip);
    if cut { 1 } else { distance(slip, name) }
}

/// Counts the insertions, deletions and replacements between two words (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_answered_with_the_key_that_was_meant() {
        for (slip, meant) in [
            ("postgresql.lisen", "postgresql.listen"),
            ("postgresql.datadir", "postgresql.data_dir"),
            ("data_dir", "postgresql.data_dir"),
            ("postgresq", "postgresql"),
            ("restapi.connect_adress", "restapi.connect_address"),
            ("restapi.auth", "restapi.authentication"),
            ("etcd3.hots", "etcd3.hosts"),
            (
                "postgresql.authentication.superuser.pasword",
                "postgresql.authentication.superuser.password",
            ),
            (
                "postgresql.superuser",
                "postgresql.authentication.superuser",
            ),
        ] {
            assert_eq!(nearest(slip), meant, "{slip}");
        }
    }

    #[test]
    fn a_key_stands_in_the_table_once() {
        let mut paths: Vec<_> = KEYS.iter().map(|key| key.path).collect();
        paths.sort_unstable();
        let before = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), before);
    }
}
