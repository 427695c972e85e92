//! Who may give orders.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::{Access, Allowed, Caller, Credentials};

const ORDERS: &[(&str, &str)] = &[
    ("PATCH", "/config"),
    ("PUT", "/config"),
    ("POST", "/switchover"),
    ("POST", "/failsafe"),
    ("POST", "/detach"),
];

const LOOKS: &[&str] = &[
    "/",
    "/patroni",
    "/cluster",
    "/config",
    "/history",
    "/failsafe",
    "/liveness",
];

fn api(node: &Arc<Fake>, change: impl FnOnce(&mut Access)) -> Api {
    let mut options = ApiOptions::default();
    change(&mut options.access);
    Api::new(node.clone(), options).unwrap()
}

fn from(address: &str, certificate: bool, mut request: Request) -> Request {
    let address: IpAddr = address.parse().unwrap();
    request.extensions_mut().insert(Caller {
        address,
        certificate,
    });
    request
}

fn authorized(value: &str, mut request: Request) -> Request {
    request
        .headers_mut()
        .insert("authorization", value.parse().unwrap());
    request
}

/// A body that each order takes as far as its checks of the body.
fn order(method: &str, path: &str) -> Request {
    request(method, path, "[]")
}

/// The code that an order gets when it was let in: its body is no object.
const LET_IN: u16 = 400;

#[tokio::test]
async fn orders_need_the_user_and_password_and_looks_do_not() {
    let node = Fake::new(primary());
    let credentials = Credentials {
        username: "admin".to_owned(),
        password: "s3:cret".to_owned(),
    };
    let api = api(&node, |access| access.authentication = Some(credentials));
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for (method, path) in ORDERS {
        let answer = send_to(&api, order(method, path)).await;
        assert_eq!(
            answer.parts(),
            (401, "no auth header received"),
            "{method} {path}"
        );
        assert_eq!(
            answer.headers["www-authenticate"],
            "Basic realm=\"Patroni\""
        );
        for wrong in [
            basic("admin:s3:cre"),
            basic("admin:s3:cret "),
            basic("admin:S3:cret"),
            basic(""),
            "Basic !!!".to_owned(),
            "Bearer x".to_owned(),
        ] {
            let answer = send_to(&api, authorized(&wrong, order(method, path))).await;
            assert_eq!(
                answer.parts(),
                (401, "not authenticated"),
                "{method} {path} {wrong}"
            );
        }
        let right = authorized(&basic("admin:s3:cret"), order(method, path));
        assert_eq!(
            send_to(&api, right).await.code.as_u16(),
            LET_IN,
            "{method} {path}"
        );
    }
    for path in LOOKS {
        assert_eq!(
            send_to(&api, request("GET", path, "")).await.code,
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn orders_need_an_allowed_address_and_consent_does_not() {
    let node = Fake::new(primary());
    let allowed: Allowed = "10.1.0.0/16".parse().unwrap();
    let api = api(&node, |access| access.allowlist = vec![allowed]);
    for (method, path) in ORDERS {
        let refused = if *path == "/failsafe" { LET_IN } else { 403 };
        let elsewhere = send_to(&api, from("10.2.0.1", true, order(method, path))).await;
        assert_eq!(elsewhere.code.as_u16(), refused, "{method} {path}");
        // Mounted in a server that does not say where requests come from.
        let nowhere = send_to(&api, order(method, path)).await;
        assert_eq!(nowhere.code.as_u16(), refused, "{method} {path}");
        let here = send_to(&api, from("10.1.9.9", false, order(method, path))).await;
        assert_eq!(here.code.as_u16(), LET_IN, "{method} {path}");
    }
    let answer = send_to(&api, request("POST", "/detach", "")).await;
    assert_eq!(answer.body, "Access is denied");
    let mut allowed = request("POST", "/detach", "");
    let address: SocketAddr = "10.1.0.1:1".parse().unwrap();
    allowed.extensions_mut().insert(ConnectInfo(address));
    assert_eq!(send_to(&api, allowed).await.code, 202);
}

#[tokio::test]
async fn members_can_be_allowed_by_their_own_addresses() {
    let node = Fake::new(primary());
    let api = api(&node, |access| access.allowlist_include_members = true);
    let code = async |address| {
        send_to(&api, from(address, false, request("POST", "/detach", "")))
            .await
            .code
            .as_u16()
    };
    assert_eq!(code("127.0.0.1").await, 202);
    assert_eq!(code("127.0.0.2").await, 403);
}

#[tokio::test]
async fn orders_need_a_certificate_if_clients_are_verified() {
    let node = Fake::new(primary());
    let api = api(&node, |access| access.certificate = true);
    for (method, path) in ORDERS {
        let without = send_to(&api, from("127.0.0.1", false, order(method, path))).await;
        assert_eq!(
            without.parts(),
            (403, "client certificate required"),
            "{method} {path}"
        );
        let with = send_to(&api, from("127.0.0.1", true, order(method, path))).await;
        assert_eq!(with.code.as_u16(), LET_IN, "{method} {path}");
    }
}

#[tokio::test]
async fn a_refused_order_does_nothing() {
    let node = Fake::new(primary());
    let api = api(&node, |access| access.certificate = true);
    for (method, path, body) in [
        ("PATCH", "/config", r#"{"ttl": 20}"#),
        ("PUT", "/config", r#"{"ttl": 20}"#),
        ("POST", "/switchover", r#"{"leader": "a"}"#),
        (
            "POST",
            "/failsafe",
            r#"{"name": "b", "conn_url": "x", "api_url": "y"}"#,
        ),
        ("POST", "/detach", ""),
    ] {
        assert_eq!(
            send_to(&api, request(method, path, body)).await.code,
            403,
            "{method} {path}"
        );
    }
    assert_eq!(node.dcs.raw.lock().unwrap().revision, Revision(20));
    assert_eq!(*node.consents.lock().unwrap(), []);
    assert_eq!(node.detached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn options_can_be_replaced_while_serving() {
    let node = Fake::new(primary());
    let api = node.api();
    assert_eq!(
        send_to(&api, request("POST", "/detach", "")).await.code,
        202
    );
    let mut options = ApiOptions::default();
    options.access.certificate = true;
    options.server = Some("Patroni".to_owned());
    options.headers = vec![("X-Frame-Options".to_owned(), "DENY".to_owned())];
    api.reconfigure(options.clone()).unwrap();
    let answer = send_to(&api, request("POST", "/detach", "")).await;
    assert_eq!(answer.code, 403);
    assert_eq!(answer.headers["server"], "Patroni");
    assert_eq!(answer.headers["x-frame-options"], "DENY");
    options.headers = vec![("X-Bad".to_owned(), "a\nb".to_owned())];
    let error = api.reconfigure(options).unwrap_err();
    assert!(
        error.to_string().starts_with("header \"X-Bad\": "),
        "{error}"
    );
    assert_eq!(
        send_to(&api, request("POST", "/detach", "")).await.headers["server"],
        "Patroni"
    );
}

#[test]
fn a_password_does_not_show_in_debug_output() {
    let credentials = Credentials {
        username: "u".to_owned(),
        password: "hunter2".to_owned(),
    };
    assert!(!format!("{credentials:?}").contains("hunter2"));
}
