//! The libraries that the server loads when it starts.

use std::path::{Path, PathBuf};

/// Finds the directory of the server's own libraries from where its program is, as the packages
/// and the sources lay them out; nothing where it lies elsewhere.
pub(crate) fn directory(program: &Path) -> Option<PathBuf> {
    let program = program.canonicalize().ok()?;
    let prefix = program.parent()?.parent()?;
    ["lib", "lib/postgresql", "lib64", "lib64/pgsql", "lib/pgsql"]
        .iter()
        .map(|name| prefix.join(name))
        // Which every server has.
        .find(|directory| directory.join("libpqwalreceiver.so").is_file())
}

/// Returns whether the server would find a library, by its rules: a name is looked for along
/// `dynamic_library_path`, a path is taken as it is, and either may lack its ending.
pub(crate) fn is_present(name: &str, search: &str, own: &Path, data_dir: &Path) -> bool {
    let expand = |path: &str| match path.strip_prefix("$libdir") {
        Some(rest) => PathBuf::from(format!("{}{rest}", own.display())),
        // What is relative is so to the server's working directory.
        None => data_dir.join(path),
    };
    let exists = |path: PathBuf| {
        let mut with_ending = path.clone().into_os_string();
        with_ending.push(".so");
        path.is_file() || Path::new(&with_ending).is_file()
    };
    if name.contains('/') {
        return exists(expand(name));
    }
    search
        .split(':')
        .any(|directory| exists(expand(directory.trim()).join(name)))
}

/// Takes out of a list of libraries those that are not `present`. Returns their names; nothing if
/// all are, or if it is no list.
pub(crate) fn take_out(list: &mut String, present: impl Fn(&str) -> bool) -> Option<String> {
    let (kept, missing): (Vec<_>, Vec<_>) = split(list)?
        .into_iter()
        .partition(|(_, name)| present(name));
    if missing.is_empty() {
        return None;
    }
    let written = |items: Vec<(&str, String)>| {
        let texts: Vec<_> = items.into_iter().map(|(text, _)| text).collect();
        texts.join(", ")
    };
    let missing = written(missing);
    *list = written(kept);
    Some(missing)
}

/// Takes a list apart: the items as they are written, each with the name that it means.
fn split(list: &str) -> Option<Vec<(&str, String)>> {
    let mut items = Vec::new();
    let (mut begin, mut quoted) = (0, false);
    for (at, c) in list.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[begin..]);
    if quoted {
        return None;
    }
    let name = |item: &str| {
        let inner = item
            .strip_prefix('"')
            .and_then(|item| item.strip_suffix('"'));
        inner.map_or_else(|| item.to_owned(), |inner| inner.replace("\"\"", "\""))
    };
    let items = items.into_iter().map(str::trim);
    Some(
        items
            .filter(|item| !item.is_empty())
            .map(|item| (item, name(item)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_that_are_not_there_are_taken_out() {
        for (list, kept, missing) in [
            ("a", "a", None),
            ("", "", None),
            ("a, x ,b", "a, b", Some("x")),
            ("x,y", "", Some("x, y")),
            (r#""a", "x""#, r#""a""#, Some(r#""x""#)),
            (r#"a, "x,"#, r#"a, "x,"#, None),
        ] {
            let mut left = list.to_owned();
            let found = take_out(&mut left, |name| ["a", "b"].contains(&name));
            assert_eq!((left.as_str(), found.as_deref()), (kept, missing), "{list}");
        }
    }

    #[test]
    fn a_library_is_looked_for_where_the_server_looks() {
        let dir = tempfile::tempdir().unwrap();
        let (own, extra) = (dir.path().join("lib"), dir.path().join("extra"));
        let data = dir.path().join("data");
        for (directory, file) in [
            (&own, "libpqwalreceiver.so"),
            (&own, "own.so"),
            (&extra, "extra.so"),
            (&data, "beside.so"),
            (&dir.path().join("bin"), "postgres"),
        ] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join(file), "").unwrap();
        }
        let found = directory(&dir.path().join("bin/postgres")).unwrap();
        assert_eq!(found, own.canonicalize().unwrap());
        assert_eq!(directory(&dir.path().join("data/postgres")), None);
        let search = format!("$libdir:{}", extra.display());
        for (name, there) in [
            ("own", true),
            ("own.so", true),
            ("extra", true),
            ("other", false),
            ("$libdir/own", true),
            ("$libdir/extra", false),
            ("./beside", true),
            ("beside", false),
        ] {
            assert_eq!(is_present(name, &search, &own, &data), there, "{name}");
        }
        let path = extra.join("extra");
        assert!(is_present(path.to_str().unwrap(), "$libdir", &own, &data));
        assert!(!is_present("extra", "$libdir", &own, &data));
    }
}
