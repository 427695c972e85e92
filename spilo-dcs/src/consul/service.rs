//! The member as a service in Consul's catalogue, as Patroni registers it.

use std::time::Duration;

use serde_json::{Map, Value, json};
use spilo_core::{MemberName, Scope};
use tokio::time::Instant;

use super::failure::Failure;
use super::http::Request;
use super::{Consul, held};

/// How members are registered as services, for those who find them by Consul's DNS or templates.
///
/// The service has the scope's name and the tags of the member's role: `primary` (and `master`,
/// as it was once called) or `replica`. Its check asks the member's REST API for that role.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registration {
    /// Tags beside those of the role.
    pub tags: Vec<String>,
    /// How often Consul asks the REST API.
    pub check_interval: Duration,
    /// The name that the REST API's certificate is checked against; that in its URL if `None`.
    pub tls_server_name: Option<String>,
}

impl Default for Registration {
    /// Returns Patroni's defaults: no further tags, a check every 5 s.
    fn default() -> Self {
        Self {
            tags: Vec::new(),
            check_interval: Duration::from_secs(5),
            tls_server_name: None,
        }
    }
}

impl Consul {
    /// Registers the member as its record says, if that says something new.
    ///
    /// It never fails: the catalogue is for others, and the cluster does without it. What failed is
    /// tried again with the next announcement.
    pub(super) async fn register(
        &self,
        me: &MemberName,
        record: &[u8],
        ttl: Duration,
        until: Instant,
    ) {
        let options = self.http.options();
        let Some(registration) = &options.registration else {
            return;
        };
        let wanted = service(&options.scope, me, record, registration, ttl);
        if held(&self.registered).as_ref() == Some(&wanted) {
            return;
        }
        let id = id(&options.scope, me);
        let done = match &wanted {
            Some(service) => {
                let body = service.to_string().into_bytes();
                let path = ["agent", "service", "register"];
                let request = Request::put(path).with_body(body);
                self.http.send(request, until).await
            }
            None => {
                let path = ["agent", "service", "deregister", id.as_str()];
                self.http.send(Request::put(path), until).await
            }
        };
        match done {
            Ok(_) => *held(&self.registered) = Some(wanted),
            Err(Failure { problem, .. }) => {
                tracing::warn!(service = id, problem, "the service is not registered");
            }
        }
    }
}

fn id(scope: &Scope, me: &MemberName) -> String {
    format!("{scope}/{me}")
}

/// Returns what is registered for a member; `None` for one that serves nobody.
fn service(
    scope: &Scope,
    me: &MemberName,
    record: &[u8],
    registration: &Registration,
    ttl: Duration,
) -> Option<Value> {
    let record: Map<String, Value> = serde_json::from_slice(record).ok()?;
    let text = |field: &str| record.get(field)?.as_str();
    if text("state") != Some("running") {
        return None;
    }
    let role = text("role")?;
    let mut tags = registration.tags.clone();
    tags.push(role.to_owned());
    if role == "primary" {
        tags.push("master".to_owned());
    }
    let server = reqwest::Url::parse(text("conn_url")?).ok()?;
    let mut check = reqwest::Url::parse(text("api_url")?).ok()?;
    check.set_path(&format!("/{}", role.replace('_', "-")));
    let mut body = json!({
        "ID": id(scope, me),
        "Name": name(scope),
        "Address": server.host_str()?.trim_matches(['[', ']']),
        "Port": server.port().unwrap_or(POSTGRES_PORT),
        "Tags": tags,
        "EnableTagOverride": true,
        "Check": {
            "HTTP": check.as_str(),
            "Interval": format!("{}s", registration.check_interval.as_secs().max(1)),
            // Of a member that is gone for good, nothing is left.
            "DeregisterCriticalServiceAfter": format!("{}s", ttl.as_secs() * 10),
        },
    });
    if let Some(name) = &registration.tls_server_name {
        body["Check"]["TLSServerName"] = json!(name);
    }
    Some(body)
}

/// Returns the scope as a name that DNS takes.
fn name(scope: &Scope) -> String {
    let mut name = String::new();
    for c in scope.as_str().to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => name.push(c),
            '.' | '_' | ' ' => name.push('-'),
            other => name.push_str(&format!("u{:04}", u32::from(other))),
        }
    }
    name.truncate(LONGEST_NAME);
    name
}

const POSTGRES_PORT: u16 = 5432;

/// Patroni's limit.
const LONGEST_NAME: usize = 230;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(record: &str) -> Option<Value> {
        let (scope, me) = (Scope::new("My_DB").unwrap(), MemberName::new("n1").unwrap());
        let registration = Registration {
            tags: vec!["db".to_owned()],
            ..Registration::default()
        };
        service(
            &scope,
            &me,
            record.as_bytes(),
            &registration,
            Duration::from_secs(30),
        )
    }

    #[test]
    fn a_running_member_is_registered_as_patroni_does() {
        let record = r#"{"conn_url":"postgres://10.0.0.1:5433/postgres",
            "api_url":"https://10.0.0.1:8008/patroni","state":"running","role":"primary"}"#;
        assert_eq!(
            of(record),
            Some(json!({
                "ID": "My_DB/n1",
                "Name": "my-db",
                "Address": "10.0.0.1",
                "Port": 5433,
                "Tags": ["db", "primary", "master"],
                "EnableTagOverride": true,
                "Check": {
                    "HTTP": "https://10.0.0.1:8008/primary",
                    "Interval": "5s",
                    "DeregisterCriticalServiceAfter": "300s",
                },
            }))
        );
        let standby = of(&record
            .replace("primary", "replica")
            .replace("10.0.0.1:5433", "[::1]"));
        let standby = standby.unwrap();
        assert_eq!(standby["Tags"], json!(["db", "replica"]));
        assert_eq!(standby["Check"]["HTTP"], "https://10.0.0.1:8008/replica");
        assert_eq!(
            (&standby["Address"], &standby["Port"]),
            (&json!("::1"), &json!(5432))
        );
    }

    #[test]
    fn what_does_not_serve_is_not_registered() {
        for record in [
            "",
            "{",
            "{}",
            r#"{"conn_url":"postgres://a/b","api_url":"http://a:1","state":"stopped","role":"replica"}"#,
            r#"{"conn_url":"nonsense","api_url":"http://a:1","state":"running","role":"replica"}"#,
        ] {
            assert_eq!(of(record), None, "{record}");
        }
    }

    #[test]
    fn a_scope_becomes_a_name_for_dns() {
        for (scope, expected) in [
            ("demo", "demo"),
            ("Demo.DB_1 x", "demo-db-1-x"),
            ("a+b", "au0043b"),
        ] {
            assert_eq!(name(&Scope::new(scope).unwrap()), expected);
        }
        let long = Scope::new("x".repeat(250));
        assert!(long.is_err() || name(&long.unwrap()).len() == LONGEST_NAME);
    }
}
