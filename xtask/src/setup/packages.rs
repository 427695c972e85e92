//! The system's own packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Extent;
use super::sources::codename;
use crate::shell::{as_root, find_program, is_program, loudly, quietly};
use crate::terminal::warn;

/// Installs the packages that are missing.
///
/// # Errors
/// When apt fails, or when we may not use it.
pub(super) fn install(extent: Extent) -> Result<()> {
    let postgres = postgres_package();
    let packages = || std::iter::once(&postgres).chain(&PACKAGES);
    let missing: Vec<&str> = packages()
        .filter(|package| package.extent == Extent::Demo || extent == Extent::Full)
        .filter(|package| !package.proof.holds())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    warn(&format!(
        "installing from the system's packages: {}",
        missing.join(" ")
    ));
    // If a password has to be typed, then here, where no output is held back.
    as_root("true")
        .and_then(|mut nothing| loudly(&mut nothing))
        .with_context(|| {
            let names = missing.join(" ");
            format!("root has to run: apt-get install --no-install-recommends {names}")
        })?;
    quietly(&mut apt_get("update")?)?;
    let quiet_services = QuietServices::begin()?;
    let installed = quietly(
        apt_get("install")?
            .args(["--yes", "--no-install-recommends"])
            .args(&missing),
    );
    quiet_services.end(&missing)?;
    installed?;
    // Somebody may have removed a file of a package that apt holds to be installed.
    let broken =
        packages().find(|package| missing.contains(&package.name) && !package.proof.holds());
    match broken.map(|package| package.name) {
        Some(name) => bail!("{name} lacks files; try: apt-get install --reinstall {name}"),
        None => Ok(()),
    }
}

fn apt_get(operation: &str) -> Result<Command> {
    let mut apt_get = as_root("env")?;
    apt_get.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    // Another apt may be at work: on a fresh machine the daily update often is.
    apt_get.args(["-o", "DPkg::Lock::Timeout=300", operation]);
    Ok(apt_get)
}

/// Keeps packages from starting services and creating clusters while it lasts.
///
/// Debian starts what it installs, and makes a cluster `main` on port 5432. Nobody who runs a demo
/// has asked for either.
struct QuietServices {
    files: Vec<&'static str>,
}

impl QuietServices {
    fn begin() -> Result<Self> {
        let mut files = Vec::new();
        // Should we be interrupted and leave it behind, it must not bind the machine for ever.
        let policy = format!(
            "#!/bin/sh\n# {OURS}\n[ -d /proc/{} ] && exit 101\nexit 0\n",
            std::process::id()
        );
        let no_cluster = format!("# {OURS}\ncreate_main_cluster = false\n");
        for (file, mode, text) in [(POLICY, "755", policy), (NO_CLUSTER, "644", no_cluster)] {
            // A machine's own policy stands: containers have one that allows nothing.
            let there = Path::new(file).exists();
            if !there || std::fs::read_to_string(file).is_ok_and(|old| old.contains(OURS)) {
                put_as_root(file, mode, &text)?;
                files.push(file);
            }
        }
        Ok(Self { files })
    }

    fn end(self, installed: &[&str]) -> Result<()> {
        for file in self.files {
            quietly(as_root("rm")?.args(["-f", file]))?;
        }
        // Not started is not yet not enabled: it would start with the machine.
        if installed.contains(&"etcd-server") && Path::new("/run/systemd/system").is_dir() {
            quietly(as_root("systemctl")?.args(["disable", "--quiet", "etcd.service"]))?;
        }
        Ok(())
    }
}

fn put_as_root(file: &str, mode: &str, text: &str) -> Result<()> {
    let draft = std::env::temp_dir().join(format!("spilo-setup-{}", std::process::id()));
    std::fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
    let put = quietly(
        as_root("install")?
            .args(["-D", "-m", mode])
            .arg(&draft)
            .arg(file),
    );
    std::fs::remove_file(&draft)?;
    put.map(|_| ())
}

/// A package, and how to see without asking dpkg that it is there.
struct Package {
    name: &'static str,
    extent: Extent,
    proof: Proof,
}

enum Proof {
    Program(&'static str),
    File(&'static str),
    Postgres,
    PythonVenv,
}

impl Proof {
    fn holds(&self) -> bool {
        match *self {
            Self::Program(name) => find_program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
            Self::Postgres => has_any_postgres(),
            Self::PythonVenv => has_python_venv(),
        }
    }
}

/// Returns the package of PostgreSQL 15, or where the system has another version, that one's: it
/// brings the user postgres and the libraries that a version beside the system needs too.
fn postgres_package() -> Package {
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    match codename(&os_release) {
        Some("bookworm") => Package::new(
            "postgresql-15",
            Extent::Demo,
            Proof::File("/usr/lib/postgresql/15/bin/postgres"),
        ),
        _ => Package::new("postgresql", Extent::Demo, Proof::Postgres),
    }
}

fn has_any_postgres() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut versions = versions.into_iter().flatten().flatten();
    versions.any(|version| is_program(&version.path().join("bin/postgres")))
}

/// Returns whether the system's own Python can make environments.
fn has_python_venv() -> bool {
    let mut libraries = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    Path::new("/usr/bin/python3").exists()
        && libraries.any(|library| library.path().join("ensurepip/__init__.py").exists())
}

impl Package {
    const fn new(name: &'static str, extent: Extent, proof: Proof) -> Self {
        Self {
            name,
            extent,
            proof,
        }
    }
}

const PACKAGES: [Package; 12] = [
    Package::new("etcd-server", Extent::Demo, Proof::Program("etcd")),
    Package::new("etcd-client", Extent::Demo, Proof::Program("etcdctl")),
    Package::new("protobuf-compiler", Extent::Demo, Proof::Program("protoc")),
    // The well-known types, which protoc does not carry with it.
    Package::new(
        "libprotobuf-dev",
        Extent::Demo,
        Proof::File("/usr/include/google/protobuf/empty.proto"),
    ),
    Package::new("haproxy", Extent::Full, Proof::Program("haproxy")),
    Package::new("dnsmasq-base", Extent::Full, Proof::Program("dnsmasq")),
    Package::new("lzop", Extent::Full, Proof::Program("lzop")),
    // WAL-E sends its base backups through it.
    Package::new("pv", Extent::Full, Proof::Program("pv")),
    Package::new("pgbackrest", Extent::Full, Proof::Program("pgbackrest")),
    // With the Java that it runs on, and no service.
    Package::new(
        "zookeeper",
        Extent::Full,
        Proof::File("/usr/share/java/zookeeper.jar"),
    ),
    Package::new("iproute2", Extent::Full, Proof::Program("ip")),
    // Python itself may come from elsewhere, but one in a home directory is closed to the user
    // postgres, whom Patroni runs as.
    Package::new("python3-venv", Extent::Full, Proof::PythonVenv),
];

/// What `invoke-rc.d` and systemd's scripts ask before they start a service; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// What postgresql-common reads before it creates a cluster.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/spilo-setup.conf";

/// How to know our own files again.
const OURS: &str = "in place while `cargo xtask setup` installs packages";

/// Returns the system's sources of packages: the text of every file, and whether it is deb822.
pub(super) fn source_files() -> Vec<(PathBuf, String)> {
    let main = PathBuf::from("/etc/apt/sources.list");
    let parts = std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    let mut files: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
    files.sort();
    std::iter::once(main)
        .chain(files)
        .filter(|path| {
            path.extension()
                .is_some_and(|end| end == "list" || end == "sources")
        })
        .filter_map(|path| std::fs::read_to_string(&path).ok().map(|text| (path, text)))
        .collect()
}
