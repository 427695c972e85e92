//! Certificates of a test's own.

use std::path::Path;
use std::process::{Command, Stdio};

/// Makes `NAME.crt` and `NAME.key` of an authority.
pub(crate) fn authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN={name} -keyout {name}.key -out {name}.crt"
        ),
    );
}

/// Makes `NAME.crt` and `NAME.key` of a server and client, by the authority `ca`.
pub(crate) fn certificate(directory: &Path, name: &str) {
    let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:etcd.spilo.test\nextendedKeyUsage=serverAuth,clientAuth\n";
    std::fs::write(directory.join("extensions"), extensions).unwrap();
    openssl(
        directory,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
         -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ),
    );
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out {name}.crt"
        ),
    );
}

fn openssl(directory: &Path, arguments: &str) {
    let status = Command::new("openssl")
        .current_dir(directory)
        .args(arguments.split_whitespace())
        .stderr(Stdio::null())
        .status()
        .expect("openssl runs; `cargo xtask setup` installs it");
    assert!(status.success(), "openssl {arguments}");
}
