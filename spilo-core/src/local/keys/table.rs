//! The table of keys, in the order of the contract.

use super::Fate::{Built, Ignored, Judged, Refused};
use super::Kind::{Any, Choice, Flag, Integer, Lines, List, Map, Options, Secret, Text};
use super::{Fate, Key, Kind};
use crate::local::judge;

pub(in crate::local) const KEYS: &[Key] = &[
    key("scope", Text, Built),
    key("name", Text, Built),
    key("namespace", Text, Built),
    key("thread_pool_size", Integer(1, MANY), Ignored(NO_THREADS)),
    key("thread_stack_size", Text, Ignored(NO_THREADS)),
    key("log.type", Choice(&["plain", "json"]), Built),
    key("log.level", Text, Built),
    key(
        "log.traceback_level",
        Text,
        Ignored("no tracebacks are written"),
    ),
    key("log.format", Any, Ignored(PLAIN_LINES)),
    key("log.dateformat", Text, Ignored(PLAIN_LINES)),
    key("log.static_fields", Map, Ignored(PLAIN_LINES)),
    key(
        "log.max_queue_size",
        Integer(0, MANY),
        Ignored("lines are written as they come"),
    ),
    key("log.dir", Text, Built),
    key("log.mode", Integer(0, 0o777), Built),
    key("log.file_num", Integer(0, MANY), Built),
    key("log.file_size", Integer(1, i64::MAX), Built),
    key(
        "log.loggers",
        Map,
        Ignored("`log.level` holds for every part"),
    ),
    key(
        "log.deduplicate_heartbeat_logs",
        Flag,
        Ignored("a decision is logged once anyway"),
    ),
    key("restapi.listen", Text, Built),
    key("restapi.connect_address", Text, Built),
    key("restapi.authentication.username", Text, Built),
    key("restapi.authentication.password", Secret, Built),
    key("restapi.certfile", Text, Built),
    key("restapi.keyfile", Text, Built),
    key("restapi.keyfile_password", Secret, Refused(ENCRYPTED)),
    key("restapi.cafile", Text, Built),
    key(
        "restapi.ciphers",
        Text,
        Ignored("only suites that are safe today are offered"),
    ),
    key(
        "restapi.verify_client",
        Choice(&["none", "optional", "required"]),
        Built,
    ),
    key("restapi.allowlist", List, Built),
    key("restapi.allowlist_include_members", Flag, Built),
    key("restapi.http_extra_headers", Map, Built),
    key("restapi.https_extra_headers", Map, Built),
    key(
        "restapi.request_queue_size",
        Integer(0, 4096),
        Ignored("the backlog is the system's"),
    ),
    key(
        "restapi.thread_pool_size",
        Integer(1, MANY),
        Ignored(NO_THREADS),
    ),
    key(
        "restapi.server_tokens",
        Choice(&["original", "minimal", "productonly"]),
        Built,
    ),
    key("ctl.authentication.username", Text, Built),
    key("ctl.authentication.password", Secret, Built),
    key("ctl.insecure", Flag, Built),
    key("ctl.cacert", Text, Built),
    key("ctl.certfile", Text, Built),
    key("ctl.keyfile", Text, Built),
    key("ctl.keyfile_password", Secret, Refused(ENCRYPTED)),
    key("watchdog.mode", Any, Judged(judge::watchdog)),
    key(
        "watchdog.device",
        Text,
        Ignored("no watchdog device is opened"),
    ),
    key(
        "watchdog.safety_margin",
        Integer(-1, MANY),
        Ignored("no watchdog device is opened"),
    ),
    key(
        "watchdog.driver",
        Text,
        Ignored("no watchdog device is opened"),
    ),
    key("tags.nofailover", Any, Judged(judge::nofailover)),
    key("tags.failover_priority", Any, Judged(judge::priority)),
    key("tags.nosync", Any, Judged(judge::nosync)),
    key("tags.sync_priority", Any, Judged(judge::priority)),
    key("tags.nostream", Any, Judged(judge::nostream)),
    key("tags.replicatefrom", Any, Judged(judge::replicatefrom)),
    key("tags.noloadbalance", Any, Judged(judge::flag)),
    key("tags.clonefrom", Any, Judged(judge::clonefrom)),
    key("tags.*", Any, Built),
    key("etcd3.host", Text, Built),
    key("etcd3.hosts", List, Built),
    key("etcd3.url", Text, Built),
    key("etcd3.proxy", Text, Built),
    key("etcd3.srv", Text, Judged(judge::service_record)),
    key("etcd3.srv_suffix", Text, Judged(judge::service_record)),
    key("etcd3.use_proxies", Flag, Built),
    key("etcd3.protocol", Choice(&["http", "https"]), Built),
    key("etcd3.username", Text, Built),
    key("etcd3.password", Secret, Built),
    key("etcd3.cacert", Text, Built),
    key("etcd3.cert", Text, Built),
    key("etcd3.key", Text, Built),
    key(
        "etcd",
        Any,
        Refused("speaks the old etcd v2 protocol: use `etcd3` with the same keys"),
    ),
    key("consul", Any, Refused(OTHER_STORE)),
    key("zookeeper", Any, Refused(OTHER_STORE)),
    key("exhibitor", Any, Refused(OTHER_STORE)),
    key("kubernetes", Any, Refused(OTHER_STORE)),
    key("raft", Any, Refused(OTHER_STORE)),
    key(
        "citus",
        Any,
        Refused("turns synchronous replication on, which is not built"),
    ),
    key("bootstrap.dcs", Map, Built),
    key("bootstrap.method", Text, Judged(judge::bootstrap_method)),
    key("bootstrap.initdb", Options, Judged(judge::initdb)),
    key("bootstrap.post_bootstrap", Text, Built),
    key("bootstrap.post_init", Text, Built),
    key("bootstrap.pg_hba", Lines, Built),
    key(
        "bootstrap.users",
        Any,
        Refused("went in Patroni 4.0: make roles in `post_bootstrap`"),
    ),
    key("postgresql.listen", Text, Built),
    key("postgresql.connect_address", Text, Built),
    key("postgresql.proxy_address", Text, Built),
    key("postgresql.data_dir", Text, Built),
    key("postgresql.config_dir", Text, Built),
    key("postgresql.bin_dir", Text, Built),
    key(
        "postgresql.bin_name.pg_ctl",
        Text,
        Ignored("it is not used"),
    ),
    key("postgresql.bin_name.initdb", Text, Refused(OWN_NAMES)),
    key(
        "postgresql.bin_name.pg_controldata",
        Text,
        Refused(OWN_NAMES),
    ),
    key(
        "postgresql.bin_name.pg_basebackup",
        Text,
        Refused(OWN_NAMES),
    ),
    key("postgresql.bin_name.postgres", Text, Refused(OWN_NAMES)),
    key(
        "postgresql.bin_name.pg_isready",
        Text,
        Ignored("it is not used"),
    ),
    key("postgresql.bin_name.pg_rewind", Text, Refused(OWN_NAMES)),
    key("postgresql.pgpass", Text, Built),
    key("postgresql.database", Text, Built),
    key("postgresql.authentication.superuser.username", Text, Built),
    key(
        "postgresql.authentication.superuser.password",
        Secret,
        Built,
    ),
    key(
        "postgresql.authentication.superuser.sslmode",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.superuser.sslcert",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.superuser.sslkey",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.superuser.sslpassword",
        Secret,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.superuser.sslrootcert",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.superuser.sslcrl",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.superuser.sslcrldir",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.superuser.gssencmode",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.superuser.channel_binding",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.superuser.sslnegotiation",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.replication.username",
        Text,
        Built,
    ),
    key(
        "postgresql.authentication.replication.password",
        Secret,
        Built,
    ),
    key(
        "postgresql.authentication.replication.sslmode",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.replication.sslcert",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.replication.sslkey",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.replication.sslpassword",
        Secret,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.replication.sslrootcert",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.replication.sslcrl",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.replication.sslcrldir",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.replication.gssencmode",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.replication.channel_binding",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.replication.sslnegotiation",
        Text,
        Judged(judge::connection),
    ),
    key("postgresql.authentication.rewind.username", Text, Built),
    key("postgresql.authentication.rewind.password", Secret, Built),
    key(
        "postgresql.authentication.rewind.sslmode",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.rewind.sslcert",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.rewind.sslkey",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.rewind.sslpassword",
        Secret,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.rewind.sslrootcert",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.rewind.sslcrl",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.rewind.sslcrldir",
        Text,
        Refused(NO_CERTIFICATES),
    ),
    key(
        "postgresql.authentication.rewind.gssencmode",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.rewind.channel_binding",
        Text,
        Judged(judge::connection),
    ),
    key(
        "postgresql.authentication.rewind.sslnegotiation",
        Text,
        Judged(judge::connection),
    ),
    key("postgresql.use_unix_socket", Flag, Built),
    key(
        "postgresql.use_unix_socket_repl",
        Flag,
        Ignored("replication goes over TCP"),
    ),
    key("postgresql.use_slots", Flag, Ignored(CLUSTER_WIDE)),
    key("postgresql.parameters", Map, Built),
    key("postgresql.parameters_primary", Map, Ignored(BY_ROLE)),
    key("postgresql.parameters_replica", Map, Ignored(BY_ROLE)),
    key(
        "postgresql.parameters_standby_leader",
        Map,
        Ignored(BY_ROLE),
    ),
    key("postgresql.pg_hba", Lines, Built),
    key("postgresql.pg_hba_primary", Any, Refused(AS_DYNAMIC)),
    key("postgresql.pg_hba_replica", Any, Refused(AS_DYNAMIC)),
    key("postgresql.pg_hba_standby_leader", Any, Refused(AS_DYNAMIC)),
    key("postgresql.pg_ident", Lines, Built),
    key("postgresql.pg_ident_primary", Any, Refused(AS_DYNAMIC)),
    key("postgresql.pg_ident_replica", Any, Refused(AS_DYNAMIC)),
    key(
        "postgresql.pg_ident_standby_leader",
        Any,
        Refused(AS_DYNAMIC),
    ),
    key("postgresql.recovery_conf", Map, Built),
    key("postgresql.custom_conf", Text, Built),
    key(
        "postgresql.config_base_name",
        Text,
        Judged(judge::base_name),
    ),
    key("postgresql.pg_ctl_timeout", Any, Judged(judge::seconds)),
    key(
        "postgresql.callbacks.on_start",
        Text,
        Ignored("nothing is called"),
    ),
    key(
        "postgresql.callbacks.on_stop",
        Text,
        Ignored("nothing is called"),
    ),
    key(
        "postgresql.callbacks.on_restart",
        Text,
        Ignored("nothing is called"),
    ),
    key(
        "postgresql.callbacks.on_reload",
        Text,
        Ignored("nothing is called"),
    ),
    key(
        "postgresql.callbacks.on_role_change",
        Text,
        Ignored("nothing is called"),
    ),
    key("postgresql.pre_promote", Text, Refused(judge::PRE_PROMOTE)),
    key("postgresql.before_stop", Text, Ignored("nothing is called")),
    key(
        "postgresql.create_replica_methods",
        List,
        Judged(judge::replica_methods),
    ),
    key(
        "postgresql.create_replica_method",
        List,
        Judged(judge::replica_methods),
    ),
    key("postgresql.basebackup", Options, Judged(judge::basebackup)),
    key("postgresql.rewind", Options, Judged(judge::rewind_options)),
    key("postgresql.use_pg_rewind", Flag, Ignored(CLUSTER_WIDE)),
    key(
        "postgresql.remove_data_directory_on_rewind_failure",
        Flag,
        Judged(judge::remove),
    ),
    key(
        "postgresql.remove_data_directory_on_diverged_timelines",
        Flag,
        Judged(judge::remove),
    ),
    key(
        "postgresql.krbsrvname",
        Text,
        Refused("Kerberos is not built"),
    ),
];

const fn key(path: &'static str, kind: Kind, fate: Fate) -> Key {
    Key { path, kind, fate }
}

const MANY: i64 = i32::MAX as i64;
const NO_THREADS: &str = "there is no pool of threads to size";
const CLUSTER_WIDE: &str = "only the cluster's own configuration decides it";
const ENCRYPTED: &str = "encrypted keys are not read: store it decrypted, for the agent alone";
const OWN_NAMES: &str =
    "programs go by their own names: point `postgresql.bin_dir` at a directory of links to them";
const NO_CERTIFICATES: &str =
    "connecting by certificates of one's own is not built, and the role would not get in";
const PLAIN_LINES: &str = "lines keep their default form";
const OTHER_STORE: &str = "is not a store that is built in: use `etcd3`";
const AS_DYNAMIC: &str =
    "decides who may connect by role, and is not built: use `postgresql.pg_hba`";
const BY_ROLE: &str = "the same parameters hold in every role";
