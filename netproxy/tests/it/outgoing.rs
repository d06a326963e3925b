//! Requests of guests: by name, by address, without sockets where possible.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use netproxy::{Body, Dial, HeadlessRecord, PodView, Proxy, RequestError, ServiceRoute, empty, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Pod, at, client, get, named, proxy, routes, tcp, text, view};

async fn ask(proxy: &Proxy, url: &str, namespace: &str) -> Result<(StatusCode, String), RequestError> {
    ask_as(proxy, url, view(namespace)).await
}

async fn ask_as(proxy: &Proxy, url: &str, pod: PodView) -> Result<(StatusCode, String), RequestError> {
    let response = proxy.request(Request::get(url).body(empty()).unwrap(), Arc::new(pod)).await?;
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
    assert_eq!(proxy.resolve("web", &view("default")), [vip.ip()]);
    assert_eq!(proxy.resolve("web", &view("other")), [] as [IpAddr; 0]);
    assert_eq!(proxy.lookup("web.default.svc", &view("other")).await.unwrap(), [vip.ip()]);
    assert_eq!(proxy.lookup("localhost", &view("other")).await.unwrap(), [IpAddr::from([127, 0, 0, 1])]);
    let missing = proxy.lookup("nobody.default.svc.cluster.local", &view("default")).await.unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

/// Answers every request with `text`.
async fn server(addr: SocketAddr, text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(addr).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
                let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_pods_localhost_is_never_the_nodes() {
    let proxy = proxy();
    // What an administrator keeps to the node itself.
    let node = server("127.0.0.1:0".parse().unwrap(), "node").await;
    let port = node.port();
    let alias = ServiceRoute {
        namespace: "default".into(),
        name: "alias".into(),
        external_name: Some("localhost".into()),
        ..ServiceRoute::default()
    };
    proxy.set_routes(routes(vec![alias]));
    let mut pod = view("default");
    pod.hosts = vec![("127.0.0.1".parse().unwrap(), vec!["sneaky.example.com".into()])];
    let names = [
        "localhost",
        "LOCALHOST.",
        "127.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "alias",
        "sneaky.example.com",
    ];
    for name in names {
        let answer = ask_as(&proxy, &format!("http://{name}:{port}/"), pod.clone()).await;
        assert!(matches!(answer, Err(RequestError::Connect(..))), "{name}: {answer:?}");
    }
    // The pod's own sockets are what it means.
    server(SocketAddr::new(pod.address, port), "pod").await;
    for name in names {
        let answer = ask_as(&proxy, &format!("http://{name}:{port}/"), pod.clone()).await.unwrap();
        assert_eq!(answer.1, "pod", "{name}");
    }
    // And before them what it serves in this process.
    let served = proxy.serve_pod(SocketAddr::new(pod.address, port), named("in process"));
    assert_eq!(ask_as(&proxy, &format!("http://localhost:{port}/"), pod.clone()).await.unwrap().1, "in process");
    drop(served);
    // A pod in the node's network has the node's localhost.
    pod.host_network = true;
    assert_eq!(ask_as(&proxy, &format!("http://localhost:{port}/"), pod).await.unwrap().1, "node");
}

/// Stands for a network namespace: whatever is asked for is one server, and is remembered.
struct Inside(SocketAddr, Mutex<Vec<SocketAddr>>);

impl Dial for Inside {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>> {
        self.1.lock().unwrap().push(to);
        let refused = to.is_ipv6().then(|| std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let addr = self.0;
        Box::pin(async move { refused.map_or(Ok(()), Err).and(TcpStream::connect(addr).await) })
    }
}

#[tokio::test]
async fn a_pod_with_a_namespace_is_asked_inside_it() {
    let proxy = proxy();
    let one = Arc::new(Inside(moody_server().await, Mutex::default()));
    let two = Arc::new(Inside(server(at(0), "two").await, Mutex::default()));
    let pod = |dial: &Arc<Inside>| PodView { dial: Some(dial.clone()), ..view("default") };
    let first = pod(&one);
    for (name, expected) in [
        ("localhost", vec!["127.0.0.1:90".parse().unwrap()]),
        ("[::1]", vec!["[::1]:90".parse().unwrap(), "127.0.0.1:90".parse().unwrap()]),
        (first.address.to_string().as_str(), vec![SocketAddr::new(first.address, 90)]),
    ] {
        assert_eq!(ask_as(&proxy, &format!("http://{name}:90/"), first.clone()).await.unwrap().1, "ok", "{name}");
        assert_eq!(std::mem::take(&mut *one.1.lock().unwrap()), expected, "{name}");
    }
    // The same address in another namespace is another server, kept connections or not.
    assert_eq!(ask_as(&proxy, "http://localhost:90/", pod(&two)).await.unwrap().1, "two");
    let served = proxy.serve_pod(SocketAddr::new(first.address, 90), named("in process"));
    assert_eq!(ask_as(&proxy, "http://localhost:90/", first).await.unwrap().1, "in process");
    drop(served);
}

#[tokio::test]
async fn a_listener_of_another_namespace_serves_the_pod() {
    let proxy = proxy();
    let listener = std::net::TcpListener::bind(at(0)).unwrap();
    let inside = listener.local_addr().unwrap();
    // Where it is known, as opposed to where it listens: nobody here has that address.
    let outside: SocketAddr = "203.0.113.9:8080".parse().unwrap();
    let pod = proxy.serve_pod_on(listener, outside, named("pod")).unwrap();
    assert!(pod.listening() && pod.addr() == outside);
    assert_eq!(get(&client(), &format!("http://{inside}/")).await.1, "pod");
    assert_eq!(ask(&proxy, &format!("http://{outside}/"), "default").await.unwrap().1, "pod");
    pod.drain().await;
    while TcpStream::connect(inside).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pod_without_a_listener_can_be_connected_to() {
    let proxy = proxy();
    let addr: SocketAddr = "203.0.113.5:80".parse().unwrap();
    assert!(proxy.connect_pod(addr).await.unwrap().is_none());
    let pod = proxy.serve_pod(addr, named("pod"));
    assert!(!pod.listening());
    let mut stream = proxy.connect_pod(addr).await.unwrap().unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("pod"), "{answer}");
}
