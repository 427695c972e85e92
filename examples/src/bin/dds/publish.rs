//! What is written into the store for other tools.

use std::collections::BTreeSet;
use std::time::Duration;

use spilo_dcs::discovery::Directory;
use tokio::time::timeout;

use super::serve::Clusters;

/// Publishes every cluster below `root` as long as there are any to be told of, and takes back those
/// that are gone. What failed is tried again.
pub(crate) async fn run(directory: &dyn Directory, root: &str, mut told: Clusters) {
    // What may stand there by us.
    let mut names: BTreeSet<String> = BTreeSet::new();
    loop {
        let clusters = told.borrow_and_update().1.clone();
        let there: BTreeSet<&str> = clusters.iter().map(|c| c.scope.as_str()).collect();
        for cluster in clusters.iter() {
            names.insert(cluster.scope.clone());
            let value = serde_json::to_vec(&cluster.still()).unwrap_or_default();
            let done = directory.publish(root, &cluster.scope, Some(value.into()));
            if let Err(error) = done.await {
                tracing::warn!(%error, scope = cluster.scope, "it is not published");
                break;
            }
        }
        let gone = names.iter().filter(|name| !there.contains(name.as_str()));
        let gone: Vec<String> = gone.cloned().collect();
        for name in gone {
            match directory.publish(root, &name, None).await {
                Ok(()) => drop(names.remove(&name)),
                Err(error) => tracing::warn!(%error, scope = name, "it is not taken back"),
            }
        }
        // All of it goes by itself a minute after the last word.
        if let Ok(Err(_)) = timeout(EVERY, told.changed()).await {
            return;
        }
    }
}

const EVERY: Duration = Duration::from_secs(15);
