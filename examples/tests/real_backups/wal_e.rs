//! Agents that archive with a stock WAL-E.

use std::path::Path;

use serde_json::json;
use spilo_benches::Cluster;

use crate::archive::back_up;
use crate::{LIMIT, WAITING, caught_up, fill, log, s3, until};

/// People who run WAL-E go on doing so: the agent archives with it, and makes a replica from what it
/// finds. The base backup is spilo's, as WAL-E has had none since PostgreSQL 15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_wal_e_archives_and_replicas_are_made_with_it() {
    let store = s3::S3Server::start().await;
    let bin = std::env::var_os("SPILO_WAL_E_BIN").expect("SPILO_WAL_E_BIN: cargo xtask setup");
    let scratch = tempfile::tempdir().unwrap();
    let env_dir = scratch.path().join("env");
    std::fs::create_dir(&env_dir).unwrap();
    let prefix = format!("s3://{}/main", s3::BUCKET);
    let variables = [
        ("WALE_S3_PREFIX", prefix.clone()),
        (
            "WALE_S3_ENDPOINT",
            format!("http+path://{}", store.address()),
        ),
        ("WALE_LOG_DESTINATION", "stderr".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT_URL", store.url()),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY.to_owned()),
        ("PATH", "/usr/bin:/bin".to_owned()),
    ];
    for (name, value) in &variables {
        std::fs::write(env_dir.join(name), value).unwrap();
        spilo_benches::give_to_server_user(&env_dir.join(name)).unwrap();
    }
    for path in [scratch.path(), &env_dir] {
        spilo_benches::give_to_server_user(path).unwrap();
    }
    let cluster = Cluster::builder()
        .ttl(3)
        .nodes(2)
        .overlay(&json!({"backup": {
            "store": "wal-e",
            "command": Path::new(&bin).join("wal-e"),
            "env_dir": env_dir,
            // Its files of the log are as long as the whole server.
            "threshold_backup_size_percentage": 1000,
        }}))
        .without_starting()
        .start()
        .await
        .unwrap();
    let [first, second] = cluster.nodes() else {
        unreachable!("two nodes were asked for");
    };
    first.start_agent().unwrap();
    let primary = cluster.wait_streaming(0, LIMIT).await.unwrap();
    fill(primary, "t").await;
    let place = format!("--archive={prefix}");
    let options = [&*place, "--path-style", "--codec=lzo"];
    let name = back_up(primary, &variables, &options).await;
    until(async || primary.query_texts(WAITING).await.unwrap() == ["0"]).await;

    second.start_agent().unwrap();
    let primary = cluster.wait_streaming(1, LIMIT).await.unwrap();
    let said = log(second);
    assert!(
        said.contains(&format!("clone: from the backup {name}: ")),
        "{said}"
    );
    caught_up(second, primary).await;
    let rows = second.query_texts("SELECT count(*) FROM t").await.unwrap();
    assert_eq!(rows, ["20000"]);
    // It replaces what is there: only the primary archives.
    let setting =
        "SELECT current_setting('archive_mode') || ' ' || current_setting('archive_command')";
    let setting = primary.query_texts(setting).await.unwrap().remove(0);
    assert!(
        setting.starts_with("on ") && setting.contains("wal-e"),
        "{setting}"
    );
}
