//! Requests of guests: by name, by address, without sockets where possible.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use netproxy::{Body, HeadlessRecord, Proxy, RequestError, ServiceRoute, empty, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Pod, at, named, proxy, routes, tcp, text};

async fn ask(proxy: &Proxy, url: &str, namespace: &str) -> Result<(StatusCode, String), RequestError> {
    let response = proxy.request(Request::get(url).body(empty()).unwrap(), namespace).await?;
    Ok(text(response).await)
}

#[tokio::test]
async fn services_of_this_node_are_called_without_a_socket() {
    let proxy = proxy();
    // Addresses of nobody (RFC 5737): if anything needed a socket, it would fail.
    let vip: SocketAddr = "203.0.113.1:80".parse().unwrap();
    let pod = Pod(|request: Request<Body>| async move {
        let host = request.headers()[http::header::HOST].to_str().unwrap().to_owned();
        Ok(Response::new(full(format!("{host} {}", request.uri()))))
    });
    let pod = proxy.serve_pod("203.0.113.2:8080".parse().unwrap(), Arc::new(pod));
    assert!(!pod.listening());
    let headless = ServiceRoute {
        namespace: "default".into(),
        name: "direct".into(),
        headless: vec![HeadlessRecord { address: pod.addr().ip(), hostname: Some("web-0".into()) }],
        ..ServiceRoute::default()
    };
    let alias = ServiceRoute {
        namespace: "default".into(),
        name: "alias".into(),
        external_name: Some("web.default.svc.cluster.local".into()),
        ..ServiceRoute::default()
    };
    proxy.set_routes(routes(vec![
        tcp("web", vip, &[pod.addr()]),
        tcp("empty", "203.0.113.3:80".parse().unwrap(), &[]),
        headless,
        alias,
    ]));
    for (url, namespace, expected) in [
        ("http://web/a?b=c", "default", "web /a?b=c"),
        ("http://web.default/", "other", "web.default /"),
        ("http://web.default.svc/", "other", "web.default.svc /"),
        ("http://web.default.svc.cluster.local:80/x", "other", "web.default.svc.cluster.local:80 /x"),
        ("http://203.0.113.1/", "other", "203.0.113.1 /"),
        ("http://203.0.113.2:8080/", "other", "203.0.113.2:8080 /"),
        ("http://direct:8080/", "default", "direct:8080 /"),
        ("http://web-0.direct:8080/", "default", "web-0.direct:8080 /"),
        ("http://alias/", "default", "alias /"),
    ] {
        assert_eq!(ask(&proxy, url, namespace).await.unwrap(), (StatusCode::OK, expected.into()), "{url}");
    }
    assert!(matches!(ask(&proxy, "http://empty/", "default").await, Err(RequestError::NoEndpoints(_))));
    assert!(matches!(ask(&proxy, "http://web:81/", "default").await, Err(RequestError::Connect(..))));
    assert!(matches!(
        ask(&proxy, "http://nobody.default.svc.cluster.local/", "default").await,
        Err(RequestError::Resolve(_))
    ));
    assert!(matches!(ask(&proxy, "/relative", "default").await, Err(RequestError::Uri)));
    assert!(matches!(ask(&proxy, "ftp://web/", "default").await, Err(RequestError::Uri)));
}

/// Answers HTTP/1.1 on every connection and closes every second one without an answer.
async fn moody_server() -> SocketAddr {
    let listener = TcpListener::bind(at(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                assert!(length > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                // Takes the next request of this connection, and hangs up on it.
                let _ = stream.read(&mut request).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_kept_connection_that_breaks_costs_nothing() {
    let proxy = proxy();
    let addr = moody_server().await;
    for _ in 0..6 {
        let answer = ask(&proxy, &format!("http://{addr}/"), "default").await.unwrap();
        assert_eq!(answer, (StatusCode::OK, "ok".into()));
    }
}

#[tokio::test]
async fn names_resolve_as_in_a_pod() {
    let proxy = proxy();
    let pod = proxy.serve_pod(at(0), named("pod"));
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("web", vip, &[pod.addr()])]));
    assert_eq!(proxy.resolve("web", "default"), [vip.ip()]);
    assert_eq!(proxy.resolve("web", "other"), [] as [std::net::IpAddr; 0]);
    assert_eq!(proxy.lookup("web.default.svc", "other").await.unwrap(), [vip.ip()]);
    assert!(proxy.lookup("localhost", "other").await.unwrap().iter().all(std::net::IpAddr::is_loopback));
}
