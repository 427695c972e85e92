//! What is installed beside the system: a directory that is made elsewhere and moved into place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::packages::source_files;
use super::sources::{ARCHIVE, codename, own_source};
use super::{has_postgres, probe};
use crate::shell::{command, is_program, quietly};
use crate::terminal::warn;
use crate::tools::{CONSUL, PG13, PG15, consul_program, tools_directory};

/// Fills a directory of the tools, and puts it into place only when it is whole.
///
/// # Errors
/// When it cannot be filled; nothing is left then.
pub(super) fn make(name: &str, what: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let home = tools_directory();
    let finished = home.join(name);
    warn(&format!("installing {what} in {}", finished.display()));
    // One level down, so that what is needed only while filling can lie beside it.
    let draft = home
        .join(format!(".draft-{}", std::process::id()))
        .join(name);
    fs::create_dir_all(&draft).with_context(|| format!("cannot create {}", draft.display()))?;
    let filled = fill(&draft).and_then(|()| {
        drop(fs::remove_dir_all(&finished));
        // Another run may have been faster; then its work is as good as ours.
        match fs::rename(&draft, &finished) {
            Err(failure) if !finished.is_dir() => Err(failure).context("cannot move into place"),
            _ => Ok(()),
        }
    });
    fs::remove_dir_all(draft.parent().unwrap_or(&draft)).context("cannot remove the draft")?;
    filled
}

/// Unpacks PostgreSQL 13 from Debian 11, the last release that had it.
///
/// # Errors
/// When neither the mirror nor the archive serves that release, or the programs do not work here.
pub(super) fn install_postgres_13() -> Result<()> {
    let own = ["libicu67", "libldap-2.4-2", "libssl1.1", "libffi7"];
    install_postgres(13, PG13, "bullseye", &own)
}

/// Unpacks PostgreSQL 15 from Debian 12, where the system is of another release.
///
/// # Errors
/// When neither the mirror nor the archive serves that release, or the programs do not work here.
pub(super) fn install_postgres_15() -> Result<()> {
    let own = ["libicu72", "libldap-2.5-0", "libffi8"];
    install_postgres(15, PG15, "bookworm", &own)
}

/// Unpacks Consul from Debian 11, the last release that had it: one program that needs nothing.
///
/// # Errors
/// When neither the mirror nor the archive serves that release, or the program does not work here.
pub(super) fn install_consul() -> Result<()> {
    let program = consul_program();
    if is_program(&program) {
        return Ok(());
    }
    make(CONSUL, "Consul", |directory| {
        let apt = Apt::new(&directory.with_file_name("apt"), "bullseye")?;
        for archive in apt.download(&["consul"])? {
            quietly(command("dpkg-deb").arg("-x").arg(archive).arg(directory))?;
        }
        quietly(command(directory.join("usr/bin/consul")).arg("version"))?;
        Ok(())
    })
}

/// Unpacks a version of PostgreSQL from the release that had it, with the `libraries` that later
/// releases no longer have.
fn install_postgres(major: u32, name: &str, suite: &str, libraries: &[&str]) -> Result<()> {
    if has_postgres(major) {
        return Ok(());
    }
    make(name, &format!("PostgreSQL {major}"), |directory| {
        let apt = Apt::new(&directory.with_file_name("apt"), suite)?;
        let (server, client) = (
            format!("postgresql-{major}"),
            format!("postgresql-client-{major}"),
        );
        let programs = [&server, &client, "libpq5", "patchelf"];
        for archive in apt.download(&[&programs, libraries, &LIBRARIES_OF_LDAP].concat())? {
            quietly(command("dpkg-deb").arg("-x").arg(archive).arg(directory))?;
        }
        let bin = directory.join(format!("usr/lib/postgresql/{major}/bin"));
        lead_to_own_libraries(directory, &bin)?;
        probe::server(major, &bin)
    })
}

/// An apt with directories of its own, so that the system's stay as they are.
struct Apt {
    home: PathBuf,
}

impl Apt {
    fn new(home: &Path, suite: &str) -> Result<Self> {
        let os_release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
        let own = codename(&os_release).context("/etc/os-release names no release")?;
        let Some(source) = own_source(&source_files(), own) else {
            bail!("no file in /etc/apt says where the packages of {own} come from");
        };
        for part in [
            "lists/partial",
            "cache/archives/partial",
            "sources",
            "archives",
        ] {
            fs::create_dir_all(home.join(part))?;
        }
        fs::write(home.join("status"), "")?;
        let apt = Self {
            home: home.to_owned(),
        };
        // Mirrors drop a release when its support ends, and the archive has none before that.
        let Err(dropped) = apt.update(&source.for_suite(suite)) else {
            return Ok(apt);
        };
        warn(&format!(
            "the mirror of {own} does not serve {suite}; trying {ARCHIVE}"
        ));
        apt.update(&source.archived(suite)).with_context(|| {
            format!(
                "the mirror of {own} does not serve {suite}: {dropped:#}\n\
                 and {ARCHIVE} does not serve it either"
            )
        })?;
        Ok(apt)
    }

    /// Makes `source` the only one, and fetches what it offers.
    fn update(&self, source: &str) -> Result<()> {
        fs::write(self.home.join("sources/other.sources"), source)?;
        quietly(self.command().args(["update", "--error-on=any"])).map(drop)
    }

    fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let archives = self.home.join("archives");
        quietly(
            self.command()
                .arg("download")
                .args(packages)
                .current_dir(&archives),
        )?;
        let entries = fs::read_dir(&archives)?;
        let files: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        Ok(files)
    }

    fn command(&self) -> Command {
        let mut apt_get = command("apt-get");
        apt_get.arg("--quiet");
        for (option, place) in [
            ("Dir::State", ""),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourceparts", "sources"),
        ] {
            apt_get
                .arg("-o")
                .arg(format!("{option}={}", self.home.join(place).display()));
        }
        apt_get.args(["-o", "Dir::Etc::sourcelist=/dev/null"]);
        apt_get
    }
}

/// Makes the programs find the libraries that were unpacked with them.
///
/// A wrapper that sets `LD_LIBRARY_PATH` would do too, but would hide the programs from anyone who
/// looks at `/proc/PID/exe`, and would hand the libraries down to every command that a server runs.
fn lead_to_own_libraries(directory: &Path, bin: &Path) -> Result<()> {
    let server_library = bin.with_file_name("lib");
    // Just-in-time compilation needs an LLVM that is several times as large as everything else;
    // a server without this library knows that it has none.
    for needless in ["llvmjit.so", "llvmjit_types.bc"] {
        fs::remove_file(server_library.join(needless))?;
    }
    fs::remove_dir_all(server_library.join("bitcode"))?;
    let patchelf = directory.join("usr/bin/patchelf");
    for program in fs::read_dir(bin)? {
        let program = program?.path();
        if !fs::read(&program)?.starts_with(b"\x7fELF") {
            continue;
        }
        // The old kind of run path also leads the libraries' own libraries.
        let own_libraries = format!("$ORIGIN/../../../{}", multiarch()?);
        let mut change = command(&patchelf);
        quietly(
            change
                .args(["--force-rpath", "--set-rpath", &own_libraries])
                .arg(&program),
        )?;
    }
    Ok(())
}

fn multiarch() -> Result<String> {
    let architecture = quietly(command("dpkg").arg("--print-architecture"))?;
    match architecture.trim() {
        "amd64" => Ok("x86_64-linux-gnu".to_owned()),
        "arm64" => Ok("aarch64-linux-gnu".to_owned()),
        other => bail!("the architecture {other} is not known here"),
    }
}

/// What LDAP stood on up to Debian 12; later it has nothing to do with these.
const LIBRARIES_OF_LDAP: [&str; 8] = [
    "libgnutls30",
    "libhogweed6",
    "libidn2-0",
    "libnettle8",
    "libp11-kit0",
    "libsasl2-2",
    "libtasn1-6",
    "libunistring2",
];
