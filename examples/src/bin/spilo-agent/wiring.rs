//! From settings to the options of each part of the library.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use spilo_api::{Access, ApiOptions, HttpPeers, PeerOptions, ServerTls, ServerTlsOptions};
use spilo_core::local::{
    self, Credentials, Etcd3, Listen, Local, Role, ServerTokens, VerifyClient,
};
use spilo_core::machine::Identity;
use spilo_core::{Dcs, DynamicConfig};
use spilo_dcs::{Etcd, EtcdOptions};
use spilo_pg::{GuardOptions, LocalOptions};

use crate::{backups, stores};

/// Makes everything that a start makes out of the settings and changes nothing; returns what
/// cannot be made, a line each.
pub(crate) fn check(local: &Local) -> Vec<String> {
    let mut faults = Vec::new();
    let mut note = |made: Result<()>| faults.extend(made.err().map(|why| format!("{why:#}")));
    note(identity(local).map(drop));
    note(postgres(local).map(drop));
    if let Some(section) = &local.backup {
        note(backups::check(section));
    }
    note(api(local).and_then(|options| options.check().context("restapi")));
    // Members are shown the server's certificate where there is no other, and it is one fault.
    note(server_tls(local).and_then(|_| asking(peers(local)).context("ctl, restapi")));
    // That there is none is said by whoever reads the configuration.
    if crate::load::has_store(local) {
        note(store(local).map(drop));
    }
    if let Some(etcd3) = &local.etcd3 {
        // By itself it looks at its certificate when it connects, and then tries for ever. Of the
        // authorities it skips what it cannot read, which is not for this check to refuse.
        let mut alike = PeerOptions::default();
        alike.insecure = true;
        alike.certificate.clone_from(&etcd3.tls.certificate);
        alike.key.clone_from(&etcd3.tls.key);
        note(asking(alike).context("etcd3"));
    }
    faults
}

fn asking(options: PeerOptions) -> Result<()> {
    Ok(HttpPeers::new(options).map(drop)?)
}

/// Returns who this node is.
pub(crate) fn identity(local: &Local) -> Result<Identity> {
    let seed = DynamicConfig::seed(&local.bootstrap.dcs);
    let seed = seed.map_err(|problem| anyhow::anyhow!("bootstrap.dcs: {problem}"))?;
    let scheme = if local.restapi.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let database = &local.postgresql.database;
    let url = |address| format!("postgres://{address}/{database}");
    Ok(Identity {
        scope: local.scope.clone(),
        name: local.name.clone(),
        conn_url: url(&local.postgresql.connect),
        api_url: format!("{scheme}://{}/patroni", local.restapi.connect),
        proxy_url: local.postgresql.proxy.as_ref().map(url),
        tags: local.tags.clone(),
        bootstrap: Some(Arc::new(seed)),
        fence_budget: FENCE_BUDGET,
    })
}

/// Returns the store that the cluster agrees through, without connecting.
pub(crate) fn store(local: &Local) -> Result<Arc<dyn Dcs>> {
    if let Some(section) = &local.etcd3 {
        let etcd = Etcd::new(etcd(local, section).context("etcd3")?).context("etcd3")?;
        return Ok(Arc::new(etcd));
    }
    if let Some(section) = &local.consul {
        return stores::consul(local, section).context("consul");
    }
    let Some(section) = &local.zookeeper else {
        bail!("there is neither `etcd3` nor `consul` nor `zookeeper`");
    };
    stores::zookeeper(local, section).context("zookeeper")
}

/// Returns how long a request to the store may take: one that hangs must leave time for another
/// one before the lease is over.
pub(crate) fn request_timeout(local: &Local) -> Duration {
    let ttl = DynamicConfig::seed(&local.bootstrap.dcs).map(|seed| seed.ttl);
    ttl.unwrap_or(REQUEST * 4).div_f32(4.0).min(REQUEST)
}

/// Returns how etcd is reached.
fn etcd(local: &Local, etcd3: &Etcd3) -> Result<EtcdOptions> {
    let mut options = EtcdOptions::new(local.scope.clone(), etcd3.endpoints.iter().cloned());
    options.namespace.clone_from(&local.namespace);
    options.request_timeout = request_timeout(local);
    options.user = etcd3
        .credentials
        .as_ref()
        .map(|user| (user.username.clone(), user.password.expose().to_owned()));
    options.tls = stores::tls(&etcd3.tls);
    stores::srv(&mut options, etcd3)?;
    Ok(options)
}

/// Returns the options of the server, run as the owner of its data if this process is root.
pub(crate) fn postgres(local: &Local) -> Result<LocalOptions> {
    let from = &local.postgresql;
    let mut options = LocalOptions::new(
        local.scope.clone(),
        local.name.clone(),
        &from.data_dir,
        from.listen.port,
    );
    options.config_dir.clone_from(&from.config_dir);
    options.bin_dir.clone_from(&from.bin_dir);
    options.listen_addresses = from.listen.hosts.join(",");
    options.unix_socket_dir.clone_from(&from.unix_socket_dir);
    options.database.clone_from(&from.database);
    options.superuser = role(&from.superuser);
    options.replication = role(&from.replication);
    options.rewind = from.rewind.as_ref().map(role);
    options.pgpass = from.pgpass.as_deref().map(expanded);
    options.parameters = from.parameters.clone();
    options.pg_hba.clone_from(&from.pg_hba);
    options.pg_ident.clone_from(&from.pg_ident);
    options.recovery_conf = from.recovery_conf.clone();
    options.custom_conf.clone_from(&from.custom_conf);
    let arguments =
        |options: &[local::ToolOption]| options.iter().map(local::ToolOption::argument).collect();
    options.initdb = arguments(&local.bootstrap.initdb);
    options.basebackup = arguments(&from.basebackup);
    options.bootstrap_pg_hba.clone_from(&local.bootstrap.pg_hba);
    options
        .post_bootstrap
        .clone_from(&local.bootstrap.post_bootstrap);
    options.pg_ctl_timeout = from.pg_ctl_timeout;
    options.uid_gid = server_user(&from.data_dir)?;
    options.replica_methods.clone_from(&local.replica_methods);
    options.backups = match &local.backup {
        Some(section) => Some(backups::backups(section, &options)?),
        None => None,
    };
    options.recovery = match &local.bootstrap.recovery {
        Some(section) => Some(backups::recovery(section, &options)?),
        None => None,
    };
    Ok(options)
}

/// Returns the options of the guard of that server.
pub(crate) fn guard(postgres: &LocalOptions) -> GuardOptions {
    let mut options = GuardOptions::new(postgres.guard_dir());
    options.program = beside_this_program("spilo-guard");
    options
}

/// Returns a program that is installed in the directory of this one. The guard is a hundredth of
/// the agent, and stays in memory for as long as the server runs.
pub(crate) fn beside_this_program(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.parent()?.join(name);
    program.is_file().then_some(program)
}

/// Returns how other members are asked.
///
/// Patroni's agents check no certificate of a member that they ask. Where an authority is known
/// this one does; the one of the own API is believed if `ctl` names none.
pub(crate) fn peers(local: &Local) -> PeerOptions {
    let (ctl, tls) = (&local.ctl, local.restapi.tls.as_ref());
    let mut options = PeerOptions::default();
    options.authentication = ctl
        .credentials
        .as_ref()
        .or(local.restapi.credentials.as_ref())
        .map(credentials);
    let own_authorities = tls.and_then(|tls| tls.client_authorities.clone());
    options.ca = ctl.tls.authorities.clone().or(own_authorities);
    options.insecure = ctl.insecure || options.ca.is_none();
    if ctl.tls.certificate.is_some() {
        options.certificate.clone_from(&ctl.tls.certificate);
        options.key.clone_from(&ctl.tls.key);
    } else if let Some(tls) = tls {
        options.certificate = Some(tls.certificate.clone());
        options.key.clone_from(&tls.key);
    }
    options
}

/// Returns who may use the REST API, and how it answers.
pub(crate) fn api(local: &Local) -> Result<ApiOptions> {
    let from = &local.restapi;
    let mut access = Access::default();
    access.authentication = from.credentials.as_ref().map(credentials);
    for entry in &from.allowlist {
        access
            .allowlist
            .push(entry.parse().context("restapi.allowlist")?);
    }
    access.allowlist_include_members = from.allowlist_include_members;
    let verify = from
        .tls
        .as_ref()
        .map_or(VerifyClient::None, |tls| tls.verify_client);
    access.certificate = verify != VerifyClient::None;
    let mut options = ApiOptions::default();
    options.access = access;
    if from.server_tokens == ServerTokens::ProductOnly {
        options.server = Some("spilo".to_owned());
    }
    options.headers.clone_from(&from.http_headers);
    if from.tls.is_some() {
        options.headers.extend(from.https_headers.iter().cloned());
    }
    Ok(options)
}

/// Reads the certificate of the REST API, if it has one.
pub(crate) fn server_tls(local: &Local) -> Result<Option<ServerTls>> {
    let Some(from) = &local.restapi.tls else {
        return Ok(None);
    };
    let mut options = ServerTlsOptions::new(&from.certificate);
    options.key.clone_from(&from.key);
    options.ca.clone_from(&from.client_authorities);
    options.verify_client = match from.verify_client {
        VerifyClient::None => spilo_api::VerifyClient::None,
        VerifyClient::Optional => spilo_api::VerifyClient::Optional,
        VerifyClient::Required => spilo_api::VerifyClient::Required,
    };
    Ok(Some(ServerTls::load(options).context("restapi")?))
}

/// Opens the port of the REST API on every address that it is to be on.
pub(crate) fn listeners(listen: &Listen) -> Result<Vec<TcpListener>> {
    let open = |host: &String| {
        let listened = match host.as_str() {
            // Both families where the machine has both.
            "*" => TcpListener::bind(("::", listen.port))
                .or_else(|_| TcpListener::bind(("0.0.0.0", listen.port))),
            host => TcpListener::bind((host, listen.port)),
        };
        listened.with_context(|| match host.as_str() {
            host if host.contains(':') => format!("restapi.listen: [{host}]:{}", listen.port),
            host => format!("restapi.listen: {host}:{}", listen.port),
        })
    };
    listen.hosts.iter().map(open).collect()
}

/// Returns whom PostgreSQL has to run as: nobody else, or if this process is root, which
/// PostgreSQL refuses to be, the owner of the data, or else the user `postgres`.
pub(crate) fn server_user(data_dir: &Path) -> Result<Option<(u32, u32)>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    match fs::metadata(data_dir) {
        Ok(meta) if meta.uid() != 0 => return Ok(Some((meta.uid(), meta.gid()))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let shown = data_dir.display();
            return Err(error)
                .with_context(|| format!("postgresql.data_dir: cannot look at {shown}"));
        }
        // A directory that root has made for it.
        Ok(_) | Err(_) => {}
    }
    match nix::unistd::User::from_name("postgres") {
        Ok(Some(user)) => Ok(Some((user.uid.as_raw(), user.gid.as_raw()))),
        Ok(None) => bail!(
            "PostgreSQL refuses to run as root, and there is no user postgres: start the agent as \
             the user that is to own the data"
        ),
        Err(error) => Err(error).context("cannot look up the user postgres"),
    }
}

/// Returns what is wrong with being root, if this process is.
pub(crate) fn as_root(local: &Local) -> Result<Option<String>> {
    let Some((uid, _)) = server_user(&local.postgresql.data_dir)? else {
        return Ok(None);
    };
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    let user = user.map_or_else(|| uid.to_string(), |user| user.name);
    // Whoever owns a directory may put links into it.
    Ok(Some(format!(
        "runs as root and writes files into directories that belong to {user}, whom PostgreSQL runs \
         as: start the agent as {user} instead (in its systemd unit: User={user})"
    )))
}

fn role(role: &Role) -> spilo_pg::Credentials {
    let password = role
        .password
        .as_ref()
        .map(|password| password.expose().to_owned());
    spilo_pg::Credentials::new(role.username.clone(), password)
}

fn credentials(from: &Credentials) -> spilo_api::Credentials {
    spilo_api::Credentials {
        username: from.username.clone(),
        password: from.password.expose().to_owned(),
    }
}

fn expanded(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// What a fence takes at worst: the time before the end of the lease that nobody writes in.
const FENCE_BUDGET: Duration = Duration::from_millis(250);

/// What a request to etcd may take; a healthy etcd answers within milliseconds.
const REQUEST: Duration = Duration::from_secs(2);
