//! Clusters as a page.

use std::fmt::Write as _;

use spilo_dcs::discovery::{ClusterOverview, Health};

use super::table::{lag, role};

/// Renders a page that asks for itself again every two seconds.
pub(crate) fn render(clusters: &[ClusterOverview]) -> String {
    let ill = clusters
        .iter()
        .filter(|cluster| cluster.health != Health::Healthy)
        .count();
    let mut page = HEAD.to_owned();
    let _ = writeln!(
        page,
        "<h1>{} clusters</h1><p>{ill} of them not healthy</p>",
        clusters.len()
    );
    // Those that somebody has to look at stand first.
    let mut order: Vec<&ClusterOverview> = clusters.iter().collect();
    order.sort_by_key(|cluster| cluster.health == Health::Healthy);
    for cluster in order {
        section(&mut page, cluster);
    }
    page.push_str("</body></html>\n");
    page
}

fn section(page: &mut String, cluster: &ClusterOverview) {
    let class = match cluster.health {
        Health::Healthy => "healthy",
        Health::Degraded(_) | Health::Bootstrapping => "degraded",
        Health::Leaderless(_) => "leaderless",
    };
    let _ = write!(
        page,
        "<section class=\"{class}\"><h2>{}</h2><p>{}; led for {} s, changed {} s ago</p><table>\
         <tr><th>member<th>host<th>role<th>state<th>timeline<th>position<th>behind</tr>",
        escaped(&cluster.scope),
        escaped(&cluster.health.to_string()),
        cluster.led_for.as_secs(),
        cluster.changed_before.as_secs(),
    );
    for member in &cluster.members {
        let host = member.host.as_deref().unwrap_or("-");
        let port = member.port.map(|port| port.to_string()).unwrap_or_default();
        let timeline = member.timeline.map(|t| t.to_string()).unwrap_or_default();
        let _ = write!(
            page,
            "<tr><td>{}<td>{}:{port}<td>{}<td>{}<td>{timeline}<td>{}<td>{}</tr>",
            escaped(&member.name),
            escaped(host),
            escaped(&role(cluster, member)),
            escaped(&member.state),
            member.position.as_deref().unwrap_or("-"),
            lag(cluster, member),
        );
    }
    page.push_str("</table>");
    for problem in &cluster.problems {
        let _ = write!(page, "<p class=\"problem\">{}</p>", escaped(problem));
    }
    page.push_str("</section>\n");
}

/// Whoever writes into the store must not write into the page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>clusters</title>
<meta http-equiv=\"refresh\" content=\"2\">
<style>
body { font: 14px sans-serif; margin: 2em; }
section { border-left: 6px solid; padding: 0 1em; margin: 1em 0; }
.healthy { border-color: #2a2; } .degraded { border-color: #e90; } .leaderless { border-color: #c22; }
td, th { text-align: left; padding: 0.1em 1.2em 0.1em 0; }
.problem { color: #c22; }
</style></head><body>
";
