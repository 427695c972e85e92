//! Servers of tests, and the command that backs them up.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::s3;

/// The programs of one version of PostgreSQL.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    bin_dir: PathBuf,
}

impl Version {
    /// Returns the programs of a version; `None` only for one that this machine need not have.
    pub(crate) fn find(name: &str) -> Option<Self> {
        let variable = format!("SPILO_PG{name}_BIN");
        let bin_dir = std::env::var_os(&variable).map_or_else(
            || PathBuf::from(format!("/usr/lib/postgresql/{name}/bin")),
            PathBuf::from,
        );
        if bin_dir.join("postgres").is_file() {
            return Some(Self { bin_dir });
        }
        let needed = name == "15" || std::env::var_os("CI").is_some();
        let place = bin_dir.display();
        assert!(
            !needed,
            "PostgreSQL {name} is not in {place}; set {variable}"
        );
        eprintln!("NOT RUN: PostgreSQL {name} is not in {place} (set {variable})");
        None
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// An archive in S3, and a directory for the servers of one test.
pub(crate) struct Place {
    store: Store,
    home: TempDir,
    owner: Option<(u32, u32)>,
}

/// Who keeps the archive.
enum Store {
    OfTheTest(s3::S3Server),
    Moto(Moto),
    Directory,
}

impl Place {
    /// Takes the S3 server of the tests.
    pub(crate) async fn s3() -> Self {
        Self::on(Store::OfTheTest(s3::S3Server::start().await))
    }

    /// Takes a directory.
    pub(crate) fn directory() -> Self {
        let place = Self::on(Store::Directory);
        place.folder("archive");
        place
    }

    /// Takes moto, which others made.
    pub(crate) fn moto() -> Self {
        Self::on(Store::Moto(Moto::start()))
    }

    fn on(store: Store) -> Self {
        let home = tempfile::Builder::new().prefix("spilo-").tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self {
            store,
            home,
            owner: owner(),
        };
        // Servers run it as another user, who may not see where it was built.
        fs::copy(env!("CARGO_BIN_EXE_spilo-backup"), place.program()).unwrap();
        place.own(place.home());
        place
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Makes a folder that belongs to the servers.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.home().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        self.own(&path);
        path
    }

    /// Takes everything out of a folder.
    pub(crate) fn empty(&self, name: &str) {
        fs::remove_dir_all(self.home().join(name)).unwrap();
        self.folder(name);
    }

    /// Runs the command, and returns what it prints.
    pub(crate) fn backup(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command, which fails: its status and what it says.
    pub(crate) fn fails(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
        let mut command = self.command(arguments);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), told)
    }

    /// Starts the command, without anybody to listen to what it says.
    pub(crate) fn spawn(&self, arguments: &[String]) -> Child {
        let mut command = self.run(&self.program());
        let command = command.args(arguments).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().unwrap()
    }

    /// Returns where the objects lie as files.
    pub(crate) fn bucket(&self) -> PathBuf {
        match &self.store {
            Store::OfTheTest(server) => server.bucket(),
            Store::Moto(_) | Store::Directory => panic!("there is no bucket in a file system"),
        }
    }

    /// Returns the command with arguments, as a server runs it.
    pub(crate) fn command_line(&self, arguments: &str) -> String {
        format!("{} {arguments}", self.program().display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.run(&self.program());
        command.args(arguments);
        command
    }

    fn program(&self) -> PathBuf {
        self.home().join("spilo-backup")
    }

    /// Prepares a program to be run as the servers are.
    pub(crate) fn run(&self, program: &Path) -> Command {
        let address = match &self.store {
            Store::OfTheTest(server) => server.address().to_string(),
            Store::Moto(moto) => moto.address.clone(),
            Store::Directory => String::new(),
        };
        let archive = match &self.store {
            Store::Directory => self.home().join("archive").display().to_string(),
            Store::OfTheTest(_) | Store::Moto(_) => format!("s3://{}/main", s3::BUCKET),
        };
        let mut command = Command::new(program);
        command
            .current_dir(self.home())
            .env("SPILO_ARCHIVE", archive)
            .env("AWS_ENDPOINT_URL", format!("http://{address}"))
            .env("WALE_S3_PREFIX", format!("s3://{}/main", s3::BUCKET))
            .env("WALE_S3_ENDPOINT", format!("http+path://{address}"))
            .env("WALE_LOG_DESTINATION", "stderr")
            .env("HOME", self.home())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("LC_ALL", "C");
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.owner {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

/// A moto with one bucket. It is killed when it is dropped.
struct Moto {
    process: Child,
    address: String,
}

impl Moto {
    fn start() -> Self {
        let bin = std::env::var_os("SPILO_MOTO_BIN").expect("SPILO_MOTO_BIN: cargo xtask setup");
        let mut process = Command::new(Path::new(&bin).join("moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            let address = line.split_once("Running on http://")?.1.trim().to_owned();
            Some(address)
        });
        // What it goes on saying must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.expect("it says where it listens");
        let mut request = TcpStream::connect(&address).unwrap();
        let put = format!(
            "PUT /{} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n",
            s3::BUCKET
        );
        request.write_all(put.as_bytes()).unwrap();
        let mut answer = String::new();
        request.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        Self { process, address }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A server on a socket in its own directory. It is killed when it is dropped.
pub(crate) struct Server<'a> {
    place: &'a Place,
    version: Version,
    name: String,
    postmaster: Option<Child>,
}

impl<'a> Server<'a> {
    /// Makes a new server, which archives its log with a command.
    pub(crate) fn create(
        place: &'a Place,
        version: &Version,
        name: &str,
        archive_command: &str,
    ) -> Self {
        let mut server = Self::new(place, version, name);
        let mut initdb = place.run(&version.program("initdb"));
        initdb.args([
            "-k",
            "-N",
            "--locale=C",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-D",
        ]);
        let done = initdb.arg(server.data()).stdout(Stdio::null()).status();
        assert!(done.unwrap().success(), "initdb");
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{archive_command}'\n"
        ));
        server.start();
        server
    }

    /// Makes a standby of a server, which archives what it receives.
    pub(crate) fn standby(
        place: &'a Place,
        version: &Version,
        name: &str,
        of: &Server<'_>,
        archive_command: &str,
    ) -> Self {
        let mut server = Self::new(place, version, name);
        let mut copy = place.run(&version.program("pg_basebackup"));
        copy.args(["-R", "-X", "stream", "-c", "fast", "-D", &server.data()]);
        let copied = copy.args(["-d", &of.conninfo()]).status().unwrap();
        assert!(copied.success(), "pg_basebackup");
        server.configure(&format!(
            "archive_mode = always\narchive_command = '{archive_command}'\n"
        ));
        server.start();
        server
    }

    /// Restores the latest backup, replays what was archived since, and waits until it is done.
    pub(crate) fn restore(place: &'a Place, version: &Version, name: &str, settings: &str) -> Self {
        let server = Self::new(place, version, name);
        place.backup(&["backup-fetch", "LATEST", &server.data()]);
        let fetch = place.command_line("wal-fetch %f %p");
        server.recover(&fetch, settings)
    }

    /// Starts a server on a data directory that somebody restored, and waits until it is done.
    pub(crate) fn restored(
        place: &'a Place,
        version: &Version,
        name: &str,
        restore_command: &str,
    ) -> Self {
        Self::new(place, version, name).recover(restore_command, "")
    }

    fn recover(mut self, restore_command: &str, settings: &str) -> Self {
        self.configure(&format!(
            "archive_mode = off\nrestore_command = '{restore_command}'\n{settings}"
        ));
        let signal = self.path().join("recovery.signal");
        fs::write(&signal, "").unwrap();
        self.place.own(&signal);
        self.start();
        self.wait("recovery", |server| {
            server.try_sql("SELECT pg_is_in_recovery()").as_deref() == Some("f")
        });
        self
    }

    fn new(place: &'a Place, version: &Version, name: &str) -> Self {
        Self {
            place,
            version: version.clone(),
            name: name.to_owned(),
            postmaster: None,
        }
    }

    pub(crate) fn data(&self) -> String {
        self.path().display().to_string()
    }

    /// Returns the directory of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.place.home().join(format!("{}.socket", self.name))
    }

    pub(crate) fn conninfo(&self) -> String {
        let socket = self.socket();
        format!("host={} user=postgres dbname=postgres", socket.display())
    }

    /// Runs SQL, and returns what it prints.
    pub(crate) fn sql(&self, query: &str) -> String {
        let output = self.psql(query).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{query}: {told}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Returns everything that the server holds, as SQL.
    pub(crate) fn dump(&self) -> String {
        let mut dump = self.place.run(&self.version.program("pg_dumpall"));
        let output = dump.args(["-d", &self.conninfo()]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pg_dumpall: {told}");
        let text = String::from_utf8(output.stdout).unwrap();
        // Newer ones write a word by chance, so that nobody can guess it.
        let same =
            |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        text.lines().filter(same).collect::<Vec<_>>().join("\n")
    }

    /// Stops it, after it has archived what there is.
    pub(crate) fn stop(&mut self) {
        let mut postmaster = self.postmaster.take().unwrap();
        let mut pg_ctl = self.place.run(&self.version.program("pg_ctl"));
        pg_ctl.args(["stop", "-m", "fast", "-D", &self.data()]);
        let stopped = pg_ctl.stdout(Stdio::null()).status().unwrap();
        assert!(stopped.success(), "{}", self.log());
        postmaster.wait().unwrap();
    }

    /// Checks all tables and indexes of a running server by what PostgreSQL has for it: pg_amcheck,
    /// and where there is none yet (13) the functions that it calls for indexes. Returns how many
    /// were checked.
    pub(crate) fn check_relations(&self) -> usize {
        let pg_amcheck = self.version.program("pg_amcheck");
        if pg_amcheck.is_file() {
            let mut check = self.place.run(&pg_amcheck);
            check.args([
                "--all",
                "--install-missing",
                "--heapallindexed",
                "--verbose",
            ]);
            check.args(["--username=postgres", "--host"]);
            let output = check.arg(self.socket()).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            let found = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "pg_amcheck: {told}{found}");
            return told.matches("checking ").count();
        }
        self.sql("CREATE EXTENSION amcheck");
        let checked = self.sql(
            "SELECT count(bt_index_parent_check(i.indexrelid, true)::text) FROM pg_index i \
             JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam \
             WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid",
        );
        checked.parse().unwrap()
    }

    /// Checks the checksums of all pages of a server that is stopped.
    pub(crate) fn check(&self) {
        let mut checksums = self.place.run(&self.version.program("pg_checksums"));
        let output = checksums.args(["--check", "-D", &self.data()]).output();
        let output = output.unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}");
        assert!(told.contains("Bad checksums:  0"), "{told}");
    }

    /// Returns the files of the log that a server has not archived.
    pub(crate) fn left_to_archive(&self) -> Vec<String> {
        let folder = self.path().join("pg_wal/archive_status");
        let names = fs::read_dir(folder).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".ready")).collect()
    }

    fn path(&self) -> PathBuf {
        self.place.home().join(&self.name)
    }

    fn configure(&self, settings: &str) {
        let socket = self.place.folder(&format!("{}.socket", self.name));
        // WAL-E leaves configuration out.
        let files = [
            ("pg_hba.conf", "local all all trust\n"),
            ("pg_ident.conf", ""),
        ];
        for (file, text) in files {
            let path = self.path().join(file);
            if !path.exists() {
                fs::write(&path, text).unwrap();
                self.place.own(&path);
            }
        }
        let path = self.path().join("postgresql.conf");
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\n\
             shared_buffers = 16MB\nmax_connections = 20\n{settings}",
            socket.display()
        ));
        fs::write(&path, text).unwrap();
        self.place.own(&path);
    }

    fn start(&mut self) {
        let log = self.place.home().join(format!("{}.log", self.name));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut postgres = self.place.run(&self.version.program("postgres"));
        let postgres = postgres
            .args(["-D", &self.data()])
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.postmaster = Some(postgres.spawn().unwrap());
        self.wait("the server", |server| {
            server.try_sql("SELECT 1").as_deref() == Some("1")
        });
    }

    fn wait(&mut self, what: &str, is_there: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_there(self) {
            let ended = self.postmaster.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {}", self.log());
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(60), "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn try_sql(&self, query: &str) -> Option<String> {
        let output = self.psql(query).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_owned())
    }

    fn psql(&self, query: &str) -> Command {
        let mut psql = self.place.run(&self.version.program("psql"));
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", query]);
        psql.arg(self.conninfo());
        psql
    }

    fn log(&self) -> String {
        let path = self.place.home().join(format!("{}.log", self.name));
        fs::read_to_string(path).unwrap_or_default()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            let mut pg_ctl = self.place.run(&self.version.program("pg_ctl"));
            pg_ctl.args(["stop", "-m", "immediate", "-D", &self.data()]);
            pg_ctl.stdout(Stdio::null()).status().ok();
            postmaster.kill().ok();
            postmaster.wait().ok();
        }
    }
}

/// The user that servers run as, when the test runs as root.
fn owner() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let mut lines = users.lines();
    let line = lines.find(|line| line.starts_with("postgres:"));
    let fields: Vec<_> = line.expect("a user postgres").split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
