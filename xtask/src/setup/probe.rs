//! Trying out a server before it is trusted with tests.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::shell::{as_server_user, quietly};

/// Makes a cluster, starts and stops it, as the user that servers run as.
///
/// # Errors
/// When any of it fails, or when the programs are of another version.
pub(super) fn server(major: u32, bin: &Path) -> Result<()> {
    let version = quietly(as_server_user(&bin.join("initdb")).arg("--version"))
        .with_context(|| format!("the programs in {} do not run", bin.display()))?;
    if !version.contains(&format!(" {major}.")) {
        bail!(
            "{} holds `{}`, not version {major}",
            bin.display(),
            version.trim()
        );
    }
    let place = std::env::temp_dir().join(format!("spilo-probe-{major}-{}", std::process::id()));
    let tried = start_and_stop(bin, &place);
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    tried.with_context(|| format!("the PostgreSQL {major} in {} does not work", bin.display()))
}

fn start_and_stop(bin: &Path, place: &Path) -> Result<()> {
    quietly(
        as_server_user(Path::new("mkdir"))
            .args(["-m", "700"])
            .arg(place),
    )?;
    let data = place.join("data");
    let mut initdb = as_server_user(&bin.join("initdb"));
    initdb.args([
        "--username=postgres",
        "--no-sync",
        "--auth=trust",
        "--locale=C",
        "--encoding=UTF8",
    ]);
    quietly(initdb.arg("-D").arg(&data).current_dir("/"))?;
    // No port is taken: the server listens on a socket in its own directory only.
    let options = format!(
        "-c listen_addresses= -c unix_socket_directories={}",
        place.display()
    );
    let mut start = as_server_user(&bin.join("pg_ctl"));
    start.args(["start", "--wait", "--silent", "--options", &options]);
    quietly(
        start
            .arg("-l")
            .arg(place.join("log"))
            .arg("-D")
            .arg(&data)
            .current_dir("/"),
    )?;
    let mut ask = as_server_user(&bin.join("psql"));
    let asked = ask.args(["-U", "postgres", "-XAtc", "SELECT 1", "postgres"]);
    let asked = quietly(asked.arg("-h").arg(place).current_dir("/"));
    let mut stop = as_server_user(&bin.join("pg_ctl"));
    stop.args(["stop", "--wait", "--silent", "--mode=fast"]);
    quietly(stop.arg("-D").arg(&data).current_dir("/"))?;
    asked.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::postgres_bin;

    #[test]
    fn real_servers_of_every_version_start_and_stop() {
        for major in [13, 15, 16, 18] {
            let bin = postgres_bin(major);
            if bin.exists() || std::env::var_os("SPILO_CI").is_some() {
                server(major, &bin).unwrap();
            } else {
                eprintln!("not tried: PostgreSQL {major} is absent; `cargo xtask setup --full`");
            }
        }
    }

    #[test]
    fn real_server_of_another_version_is_refused() {
        let bin = postgres_bin(15);
        if bin.exists() || std::env::var_os("SPILO_CI").is_some() {
            let refusal = server(14, &bin).unwrap_err().to_string();
            assert!(refusal.ends_with("not version 14"), "{refusal}");
        } else {
            eprintln!("not tried: PostgreSQL 15 is absent; `cargo xtask setup`");
        }
    }
}
