//! Where the servers' log and backups go.

use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use spilo_backup::{CommandOptions, Separate};
use spilo_core::backup::{BackupSource, BackupStore as _};
use spilo_core::pg::Progress;

use crate::s3::{BUCKET, S3};

/// An archive in a store of our own, as the command `spilo-backup` reaches it.
#[derive(Debug)]
pub(crate) struct Archive {
    program: PathBuf,
    env_dir: PathBuf,
    owner: Option<(u32, u32)>,
    server: S3,
}

impl Archive {
    /// Starts the store, and puts the program where the servers' user can run it.
    pub(crate) async fn new(dir: &Path, owner: Option<(u32, u32)>, password: &str) -> Result<Self> {
        let built = std::env::current_exe()?.with_file_name("spilo-backup");
        let program = dir.join("spilo-backup");
        std::fs::copy(&built, &program).with_context(|| {
            format!(
                "there is no {}: `cargo xtask demo --backup` builds it",
                built.display()
            )
        })?;
        let server = S3::start(&dir.join("s3"), USER, password).await?;
        let env_dir = dir.join("archive.env");
        std::fs::DirBuilder::new().mode(0o700).create(&env_dir)?;
        let region = "us-east-1".to_owned();
        for (name, value) in [
            ("AWS_ENDPOINT_URL", server.url()),
            ("AWS_ACCESS_KEY_ID", USER.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", password.to_owned()),
            ("AWS_REGION", region),
        ] {
            let path = env_dir.join(name);
            let mut file = std::fs::OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o600).open(&path);
            std::io::Write::write_all(&mut file?, value.as_bytes())?;
            give(&path, owner)?;
        }
        give(&env_dir, owner)?;
        Ok(Self {
            program,
            env_dir,
            owner,
            server,
        })
    }

    /// Returns what a node archives to and is made from; `resident` is where its archiver works.
    pub(crate) fn store(&self, resident: Option<PathBuf>) -> Separate {
        Separate::new(self.options(), resident)
    }

    /// Returns where it is, as people name it.
    pub(crate) fn described(&self) -> String {
        format!("{} at {}", self.place(), self.server.url())
    }

    /// Makes a base backup of a server, and returns its name.
    pub(crate) async fn back_up(
        &self,
        data_dir: &Path,
        conninfo: &str,
        progress: Progress,
    ) -> Result<String> {
        let store = self.store(None);
        let source = BackupSource::new(data_dir, conninfo);
        Ok(store.push(&source, progress).await?.0)
    }

    fn place(&self) -> String {
        format!("s3://{BUCKET}/demo")
    }

    fn options(&self) -> CommandOptions {
        let mut options = CommandOptions::new(&self.program);
        options.arguments = vec![format!("--archive={}", self.place())];
        options.arguments.push("--path-style".to_owned());
        options.env_dir = Some(self.env_dir.clone());
        options.user = self.owner;
        options
    }
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((user, group)) = owner else {
        return Ok(());
    };
    let given = chown(path, Some(user), Some(group));
    given.with_context(|| format!("cannot give {} to postgres", path.display()))
}

/// The only user of the store.
const USER: &str = "spilo";
