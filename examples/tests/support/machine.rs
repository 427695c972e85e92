//! A machine on which the daemon can start, without a store or a server.

#[path = "../../../spilo-dcs/tests/ports/ports.rs"]
mod ports;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Makes programs that only say their version, and returns a configuration that fits them.
pub(crate) fn configuration(dir: &Path, api: u16) -> String {
    fs::create_dir(dir.join("bin")).unwrap();
    for name in [
        "postgres",
        "initdb",
        "pg_basebackup",
        "pg_controldata",
        "pg_rewind",
        "pg_waldump",
        "psql",
    ] {
        let program = dir.join("bin").join(name);
        fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 15.6'\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (root, postgresql) = (dir.display(), free_port());
    format!(
        "scope: demo
name: a
restapi: {{listen: '127.0.0.1:{api}'}}
etcd3: {{host: '127.0.0.1:1'}}
postgresql:
  listen: 127.0.0.1:{postgresql}
  data_dir: {root}/data
  bin_dir: {root}/bin
  authentication: {{superuser: {{password: s3cret}}, replication: {{password: s3cret}}}}
"
    )
}

pub(crate) fn free_port() -> u16 {
    ports::free_ports(1)[0]
}
