//! Clusters as a table, a line a member.

use spilo_dcs::discovery::{ClusterOverview, MemberOverview};

/// Renders a table.
pub(crate) fn render(clusters: &[ClusterOverview]) -> String {
    let head = [
        "Cluster", "Member", "Host", "Role", "State", "TL", "Lag", "Health",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for cluster in clusters {
        let health = cluster.health.to_string();
        if cluster.members.is_empty() {
            let mut row = <[String; 8]>::default();
            row[0].clone_from(&cluster.scope);
            row[7].clone_from(&health);
            rows.push(row);
        }
        for (n, member) in cluster.members.iter().enumerate() {
            let first = n == 0;
            rows.push([
                if first {
                    cluster.scope.clone()
                } else {
                    String::new()
                },
                member.name.clone(),
                host(member),
                role(cluster, member),
                member.state.clone(),
                member.timeline.map(|t| t.to_string()).unwrap_or_default(),
                lag(cluster, member),
                if first { health.clone() } else { String::new() },
            ]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; 8] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn host(member: &MemberOverview) -> String {
    match (&member.host, member.port) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        _ => String::new(),
    }
}

/// Returns the role in the words of `patronictl list`.
pub(crate) fn role(cluster: &ClusterOverview, member: &MemberOverview) -> String {
    if cluster.leader.as_deref() == Some(member.name.as_str()) {
        "Leader".to_owned()
    } else {
        member.role.clone()
    }
}

/// Returns how far a member is behind, in the unit that fits; nothing for the leader.
pub(crate) fn lag(cluster: &ClusterOverview, member: &MemberOverview) -> String {
    if cluster.leader.as_deref() == Some(member.name.as_str()) {
        return String::new();
    }
    match member.lag_bytes {
        None => "unknown".to_owned(),
        Some(bytes) if bytes < 10 << 10 => format!("{bytes} B"),
        Some(bytes) if bytes < 10 << 20 => format!("{} KiB", bytes >> 10),
        Some(bytes) => format!("{} MiB", bytes >> 20),
    }
}
