//! Where the system gets its packages from, and the same place for another release.

use std::path::PathBuf;

/// A source of packages, in the words of deb822: `URIs`, `Suites`, `Signed-By` and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    fields: Vec<(String, String)>,
}

impl Source {
    /// Returns this source for another release, as the text of a `.sources` file.
    ///
    /// Mirror and keys stay what the machine's owner chose.
    pub(super) fn for_suite(&self, suite: &str) -> String {
        self.with(suite, &[])
    }

    /// Returns this source for a release that mirrors no longer serve, from [`ARCHIVE`].
    ///
    /// The keys stay: Debian signs its archive with those of the release. Nobody signs it anew, so
    /// that dates up to which an index was to be valid have passed.
    pub(super) fn archived(&self, suite: &str) -> String {
        self.with(suite, &[("URIs", ARCHIVE), ("Check-Valid-Until", "no")])
    }

    fn with(&self, suite: &str, further: &[(&str, &str)]) -> String {
        let of_suite = [("Types", "deb"), ("Suites", suite), ("Components", "main")];
        let replaced = || of_suite.iter().chain(further).copied();
        let kept = self
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let dropped = |name: &str| {
            replaced().any(|(other, _)| name.eq_ignore_ascii_case(other))
                // It says `yes`, or the source would not have been chosen.
                || name.eq_ignore_ascii_case("Enabled")
        };
        replaced()
            .chain(kept.filter(|(name, _)| !dropped(name)))
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect()
    }

    fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        let of_name = self
            .fields
            .iter()
            .filter(move |(field, _)| field.eq_ignore_ascii_case(name));
        of_name.flat_map(|(_, value)| value.split_whitespace())
    }

    fn offers(&self, suite: &str) -> bool {
        let is = |name: &str, wanted: &str| self.words(name).any(|word| word == wanted);
        is("Types", "deb")
            && is("Suites", suite)
            && is("Components", "main")
            && !is("Enabled", "no")
    }
}

/// Returns the source that the system's own release comes from.
pub(super) fn own_source(files: &[(PathBuf, String)], suite: &str) -> Option<Source> {
    files
        .iter()
        .flat_map(|(path, text)| {
            let deb822 = path.extension().is_some_and(|end| end == "sources");
            if deb822 {
                deb822_sources(text)
            } else {
                one_line_sources(text)
            }
        })
        .find(|source| source.offers(suite))
}

/// Returns the release that `/etc/os-release` names.
pub(super) fn codename(os_release: &str) -> Option<&str> {
    let name = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim().trim_matches('"'))
}

/// Reads the stanzas of a `.sources` file.
fn deb822_sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    // The empty line at the end closes the last stanza.
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .chain([""])
    {
        if line.trim().is_empty() {
            if !fields.is_empty() {
                sources.push(Source {
                    fields: std::mem::take(&mut fields),
                });
            }
        } else if line.starts_with([' ', '\t']) {
            // A value goes on, as a key that is written out does: its lines must stay lines.
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

/// Reads the lines of a `.list` file: `deb [option=value ...] URI SUITE COMPONENT...`.
fn one_line_sources(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line_source).collect()
}

fn one_line_source(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let (mut words, mut fields) = (rest.split_whitespace(), Vec::new());
    let mut field = |name: &str, value: String| fields.push((name.to_owned(), value));
    field("Types", "deb".to_owned());
    field("URIs", words.next()?.to_owned());
    field("Suites", words.next()?.to_owned());
    field("Components", words.collect::<Vec<_>>().join(" "));
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=')?;
        let name = OPTIONS
            .iter()
            .find(|(short, _)| *short == name)
            .map_or(name, |(_, long)| long);
        field(name, value.replace(',', " "));
    }
    Some(Source { fields })
}

/// Where Debian keeps the releases that its mirrors no longer serve.
pub(super) const ARCHIVE: &str = "http://archive.debian.org/debian";

/// The options of the one-line format that are spelt differently in deb822.
const OPTIONS: [(&str, &str); 3] = [
    ("arch", "Architectures"),
    ("lang", "Languages"),
    ("target", "Targets"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# a comment
Types: deb
URIs: https://deb.nodesource.com/node_20.x
Suites: nodistro
Components: main

Types: deb deb-src
# another
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Enabled: yes
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

    fn own(name: &str, text: &str) -> Option<String> {
        let files = [(PathBuf::from(name), text.to_owned())];
        own_source(&files, "bookworm").map(|source| source.for_suite("bullseye"))
    }

    #[test]
    fn another_release_comes_from_the_same_mirror_with_the_same_keys() {
        let expected = "\
Types: deb
Suites: bullseye
Components: main
URIs: http://mirror.example/debian
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
        assert_eq!(own("debian.sources", DEB822).as_deref(), Some(expected));
        let line = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                    http://mirror.example/debian bookworm main contrib # mine";
        let own_line = own("sources.list", line).unwrap();
        assert_eq!(own_line.replace("signed-by", "Signed-By"), expected);
    }

    #[test]
    fn an_archived_release_comes_from_the_archive_with_the_same_keys_and_stale_dates() {
        let archived = |name: &str, text: &str| {
            let files = [(PathBuf::from(name), text.to_owned())];
            own_source(&files, "bookworm").unwrap().archived("bullseye")
        };
        let expected = "\
Types: deb
Suites: bullseye
Components: main
URIs: http://archive.debian.org/debian
Check-Valid-Until: no
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
        assert_eq!(archived("debian.sources", DEB822), expected);
        let line = "deb [check-valid-until=yes \
                    signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                    http://mirror.example/debian bookworm main";
        let from_line = archived("sources.list", line);
        assert_eq!(from_line.replace("signed-by", "Signed-By"), expected);
    }

    #[test]
    fn a_key_that_is_written_out_keeps_its_lines() {
        let key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n";
        let text =
            format!("Types: deb\nURIs: http://m/d\nSuites: bookworm\nComponents: main\n{key}");
        let bullseye = own("debian.sources", &text).unwrap();
        assert!(
            bullseye.ends_with(&key.replace("By:\n", "By: \n")),
            "{bullseye}"
        );
    }

    #[test]
    fn options_of_a_line_take_their_long_names() {
        let line = "deb [ arch=amd64,arm64 trusted=yes ] http://m/d bookworm main";
        let expected = "Types: deb\nSuites: bullseye\nComponents: main\nURIs: http://m/d\n\
                        Architectures: amd64 arm64\ntrusted: yes\n";
        assert_eq!(own("a.list", line).as_deref(), Some(expected));
    }

    #[test]
    fn sources_that_do_not_serve_the_release_are_passed_over() {
        for line in [
            "",
            "# deb http://m/d bookworm main",
            "deb-src http://m/d bookworm main",
            "deb http://m/d bookworm-updates main",
            "deb http://m/d bookworm contrib",
            "deb [broken http://m/d bookworm main",
            "deb http://m/d",
        ] {
            assert_eq!(own("a.list", line), None, "{line}");
        }
        let disabled = DEB822.replace("Enabled: yes", "Enabled: no");
        assert_eq!(own("debian.sources", &disabled), None);
        // The wrong ending means the wrong format.
        assert_eq!(own("debian.list", DEB822), None);
    }

    #[test]
    fn the_codename_is_read_with_and_without_quotes() {
        assert_eq!(
            codename("NAME=x\nVERSION_CODENAME=bookworm\n"),
            Some("bookworm")
        );
        assert_eq!(codename("VERSION_CODENAME=\"trixie\""), Some("trixie"));
        assert_eq!(codename("NAME=x\n"), None);
    }
}
