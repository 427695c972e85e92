//! The stores that a configuration names.

use super::*;

#[test]
fn zookeeper_is_found_as_patroni_finds_it() {
    for hosts in [json!("z1,z2:81"), json!(["z1:2181", "z2:81"])] {
        let section = json!({"hosts": hosts, "auth_data": {"digest": "me:secret"}});
        let parsed = with(json!({"etcd3": null, "zookeeper": section})).unwrap();
        assert_eq!(parsed.warnings, [""; 0]);
        assert_eq!(parsed.shown["zookeeper"]["auth_data"]["digest"], "***");
        let zookeeper = parsed.local.zookeeper.unwrap();
        assert_eq!(zookeeper.hosts, ["z1:2181", "z2:81"]);
        assert_eq!(zookeeper.digest, Some(Secret::new("me:secret")));
    }
    for (section, problem) in [
        (
            json!({}),
            "zookeeper.hosts: is missing: no server of the store is named",
        ),
        (
            json!({"hosts": "z1", "auth_data": {"digest": "me"}}),
            "zookeeper.auth_data.digest: must be `user:password`",
        ),
    ] {
        let change = json!({"etcd3": null, "zookeeper": section});
        assert_eq!(errors(change), [problem]);
    }
    for (key, value) in [
        ("use_ssl", json!(true)),
        ("set_acls", json!({"CN=a": ["ALL"]})),
    ] {
        let section = json!({"hosts": "z", key: value});
        let refused = errors(json!({"etcd3": null, "zookeeper": section}));
        assert!(
            refused[0].starts_with(&format!("zookeeper.{key}")),
            "{refused:?}"
        );
    }
    let both = json!({"zookeeper": {"hosts": "z1"}});
    let problem = "zookeeper: is a second store beside `etcd3`: a cluster agrees through one";
    assert_eq!(errors(both), [problem]);
}

#[test]
fn etcd_is_found_in_dns_as_patroni_finds_it() {
    let found = |section| with(json!({"etcd3": section})).unwrap().local.etcd3;
    let section = json!({
        "hosts": null, "srv": "db.example.org.", "srv_suffix": "blue",
        "name_servers": ["127.0.0.1:8600", "::1"],
    });
    let etcd = found(section).unwrap();
    assert_eq!(etcd.endpoints, [""; 0]);
    let srv = etcd.srv.unwrap();
    assert_eq!(srv.domain, "db.example.org");
    assert_eq!(srv.suffix.as_deref(), Some("blue"));
    let servers = srv.name_servers.iter().map(ToString::to_string);
    assert_eq!(servers.collect::<Vec<_>>(), ["127.0.0.1:8600", "[::1]:53"]);

    // Endpoints beside it count until DNS has answered; a proxy is all there is.
    let both = found(json!({"hosts": "e1", "srv": "example.org"})).unwrap();
    assert_eq!(both.endpoints, ["http://e1:2379"]);
    assert!(both.srv.is_some());
    let proxy = found(json!({"hosts": null, "proxy": "p1", "srv": "example.org"})).unwrap();
    assert_eq!(proxy.srv, None);

    for (section, problem) in [
        (
            json!({"srv": "example..org"}),
            "etcd3.srv: must be a domain such as `example.org`, found \"example..org\"",
        ),
        (
            json!({"srv": "example.org", "name_servers": "dns.example.org"}),
            "etcd3.name_servers: must be an IP address, with or without a port, found \
             \"dns.example.org\"",
        ),
        (
            json!({"srv": "example.org", "srv_suffix": "a.b"}),
            "etcd3.srv_suffix: must be at most 40 letters, digits and hyphens, found \"a.b\"",
        ),
        (
            json!({"srv": "example.org", "protocol": "https"}),
            "etcd3.cacert: is missing, and https needs it: the authorities of the system are not \
             asked",
        ),
    ] {
        assert_eq!(errors(json!({"etcd3": section})), [problem]);
    }
}

#[test]
fn consul_is_found_as_patroni_finds_it() {
    for (section, url) in [
        (json!({}), "http://127.0.0.1:8500"),
        (json!({"host": "c1"}), "http://c1:8500"),
        (json!({"host": "c1:81", "port": 82}), "http://c1:82"),
        (json!({"host": "c1:81", "verify": false}), "http://c1:81"),
        (json!({"host": "c1", "port": "82"}), "http://c1:82"),
        (
            json!({"host": "c1", "scheme": "https", "cacert": "/ca"}),
            "https://c1:8500",
        ),
        (
            json!({"url": "http://c2", "host": "c1", "port": 82}),
            "http://c2:82",
        ),
    ] {
        let parsed = with(json!({"etcd3": null, "consul": section})).unwrap();
        assert_eq!(parsed.local.etcd3, None);
        assert_eq!(parsed.local.consul.unwrap().url, url, "{section}");
    }
    let all = json!({
        "etcd3": null,
        "consul": {
            "token": "secret", "dc": "dc2", "consistency": "consistent", "checks": [],
            "verify": true, "register_service": "on", "service_tags": "a,b",
            "service_check_interval": "1m", "cert": "/c", "key": "/k",
        },
    });
    let parsed = with(all).unwrap();
    assert_eq!(parsed.warnings, [""; 0]);
    let consul = parsed.local.consul.unwrap();
    assert_eq!(consul.token, Some(Secret::new("secret")));
    assert_eq!(consul.datacenter.as_deref(), Some("dc2"));
    let service = consul.service.unwrap();
    assert_eq!(service.tags, ["a", "b"]);
    assert_eq!(service.check_interval, Duration::from_secs(60));
    assert_eq!(parsed.shown["consul"]["token"], "***");

    let weaker = json!({
        "etcd3": null,
        "consul": {"consistency": "stale", "checks": ["serfHealth"]},
    });
    assert_eq!(with(weaker).unwrap().warnings.len(), 2);
    let endless = json!({"etcd3": null, "consul": {"service_check_interval": "often"}});
    assert_eq!(
        errors(endless),
        ["consul.service_check_interval: must be a span such as `5s` or `1m`, found \"often\""]
    );
    let unchecked = json!({
        "etcd3": null,
        "consul": {"scheme": "https", "cacert": "/ca", "verify": false},
    });
    assert!(errors(unchecked)[0].starts_with("consul.verify: a certificate that nobody checks"));
}
