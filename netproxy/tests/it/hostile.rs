//! Clients that mean no good get their own connection closed, and nobody else notices.

use std::time::Duration;

use http::StatusCode;
use netproxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{at, client, config, get, named, routes, tcp};

/// What the server sends until it closes.
async fn send(addr: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // It may close before it has read all of this.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bad_requests_harm_nobody() {
    let mut config = config();
    config.ingress_http_port = Some(0);
    config.ingress_https_port = Some(0);
    config.limits.header_timeout = Duration::from_millis(300);
    config.limits.handshake_timeout = Duration::from_millis(300);
    let proxy = Proxy::new(config);
    let pod = proxy.serve_pod(at(0), named("pod"));
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("web", vip, &[pod.addr()])]));
    let (http, https) = proxy.ingress_addresses();
    for addr in [vip, pod.addr(), http[0], https[0]] {
        let tls = addr == https[0];
        let garbage: Vec<u8> = (0..10_000u32).map(|n| ((n * 7919) >> 3) as u8).collect();
        send(addr, &garbage).await;
        let bare = send(addr, b"\r\n\r\nnonsense\r\n\r\n").await;
        assert!(tls || bare.starts_with("HTTP/1.1 400"), "{addr}: {bare}");
        // A whole header, but far too large.
        let huge = format!("GET / HTTP/1.1\r\nhost: x\r\nbig: {}\r\n\r\n", "x".repeat(1 << 20));
        let answer = send(addr, huge.as_bytes()).await;
        assert!(tls || answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{addr}: {answer}");
        let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000));
        let answer = send(addr, many.as_bytes()).await;
        assert!(tls || answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{addr}: {answer}");
        // These say too little and wait; they end only because the time for it does.
        send(addr, b"GET / HTTP/1.1\r\nhost:").await;
        send(addr, b"PRI * HT").await;
        send(addr, b"").await;
        send(addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").await;
    }
    assert_eq!(get(&client(), &format!("http://{vip}/")).await, (StatusCode::OK, "pod".into()));
}

#[tokio::test]
async fn a_full_listener_makes_others_wait_not_fail() {
    let mut config = config();
    config.limits.listener_connections_max = 2;
    let proxy = Proxy::new(config);
    let pod = proxy.serve_pod(at(0), named("pod"));
    let (vip, other) = (at(8000), at(8001));
    proxy.set_routes(routes(vec![tcp("web", vip, &[pod.addr()]), tcp("other", other, &[pod.addr()])]));
    let idle = [TcpStream::connect(vip).await.unwrap(), TcpStream::connect(vip).await.unwrap()];
    let waiting = tokio::spawn(async move { get(&client(), &format!("http://{vip}/")).await });
    assert_eq!(get(&client(), &format!("http://{other}/")).await.1, "pod");
    assert!(!waiting.is_finished());
    drop(idle);
    assert_eq!(waiting.await.unwrap().1, "pod");
}
