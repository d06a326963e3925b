//! The front door: hosts and paths, TLS, HTTP/2, upgrades, streams.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use netproxy::{
    About, Backend, BackendPort, Body, BoxError, Certificate, IngressRoute, IngressRule, PathKind, Proxy, Routes,
    ServiceRoute, empty, full,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Pod, at, client, config, echo, named, routes, tcp, text};

fn rule(host: &str, path: &str, service: &str) -> IngressRule {
    IngressRule {
        host: Some(host.to_owned()),
        path: path.to_owned(),
        kind: PathKind::Prefix,
        backend: Backend { service: service.to_owned(), port: BackendPort::Name("main".to_owned()) },
    }
}

fn table(services: Vec<ServiceRoute>, rules: Vec<IngressRule>) -> Routes {
    let ingress = IngressRoute { namespace: "default".into(), name: "door".into(), rules, default_backend: None };
    Routes { ingresses: vec![ingress], ..routes(services) }
}

fn front() -> (Proxy, SocketAddr, SocketAddr) {
    let mut config = config();
    config.ingress_http_port = Some(0);
    config.ingress_https_port = Some(0);
    let proxy = Proxy::new(config);
    let (http, https) = proxy.ingress_addresses();
    (proxy, http[0], https[0])
}

async fn get(addr: SocketAddr, host: &str, path: &str) -> Response<Incoming> {
    let request = Request::get(format!("http://{addr}{path}")).header(header::HOST, host).body(empty()).unwrap();
    client().request(request).await.unwrap()
}

#[tokio::test]
async fn rules_lead_to_services() {
    let (proxy, http, _) = front();
    let pod = proxy.serve_pod(at(0), named("pod"));
    let seen = Pod(|request: Request<Body>| async move {
        let mut lines: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .filter(|line| !line.starts_with("x-forwarded-port"))
            .collect();
        lines.sort();
        Ok(Response::builder().header("keep-alive", "5").header("x-mine", "kept").body(full(lines.join("\n"))).unwrap())
    });
    let seen = proxy.serve_pod(at(0), Arc::new(seen));
    proxy.set_routes(table(
        vec![tcp("web", at(8000), &[pod.addr()]), tcp("seen", at(8000), &[seen.addr()]), tcp("none", at(8000), &[])],
        vec![
            rule("web.test", "/", "web"),
            rule("web.test", "/seen", "seen"),
            rule("*.wild.test", "/", "web"),
            rule("none.test", "/", "none"),
            rule("missing.test", "/", "missing"),
        ],
    ));
    for (host, path, status) in [
        ("web.test", "/x", 200),
        ("web.test:80", "/", 200),
        ("a.wild.test", "/", 200),
        ("wild.test", "/", 404),
        ("other.test", "/", 404),
        ("none.test", "/", 503),
        ("missing.test", "/", 503),
    ] {
        assert_eq!(get(http, host, path).await.status(), status, "{host}{path}");
    }
    let request = Request::get(format!("http://{http}/seen"))
        .header(header::HOST, "web.test")
        .header("x-forwarded-for", "6.6.6.6")
        .header("connection", "x-secret")
        .header("x-secret", "for one hop")
        .header("te", "gzip")
        .body(empty())
        .unwrap();
    let response = client().request(request).await.unwrap();
    assert_eq!(response.headers().get("x-mine").unwrap(), "kept");
    expect_test::expect![[r#"
        host: web.test
        x-forwarded-for: 127.0.0.1
        x-forwarded-host: web.test
        x-forwarded-proto: http
        x-real-ip: 127.0.0.1"#]]
    .assert_eq(&text(response).await.1);
}

/// A plain HTTP/1.1 server on a socket.
async fn socket_server<F, R>(handle: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind(at(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handle = handle.clone();
            let service = service_fn(move |request| {
                let answer = handle(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    addr
}

#[tokio::test]
async fn bodies_stream_both_ways_to_a_socket_behind_a_dead_one() {
    let (proxy, http, _) = front();
    let server = socket_server(|request: Request<Incoming>| async move {
        Response::new(request.into_body().map_err(BoxError::from).boxed_unsync())
    })
    .await;
    proxy.set_routes(table(vec![tcp("web", at(8000), &[at(9), server])], vec![rule("web.test", "/", "web")]));
    for _ in 0..4 {
        let chunks = (0..64).map(|n| Ok(Frame::data(Bytes::from(vec![n as u8; 100_000]))));
        let body: Body = StreamBody::new(futures::stream::iter(chunks)).boxed_unsync();
        let request = Request::post(format!("http://{http}/")).header(header::HOST, "web.test").body(body).unwrap();
        let response = client().request(request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), 6_400_000);
        assert!(bytes.chunks(100_000).enumerate().all(|(n, chunk)| chunk.iter().all(|byte| *byte == n as u8)));
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_pod_back() {
    const CHUNK: usize = 64 * 1024;
    let (proxy, http, _) = front();
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let pod = Pod(move |_| {
        let counted = counted.clone();
        let endless = futures::stream::repeat_with(move || {
            counted.fetch_add(CHUNK, Ordering::SeqCst);
            Ok(Frame::data(Bytes::from(vec![0; CHUNK])))
        });
        async move { Ok(Response::new(StreamBody::new(endless).boxed_unsync())) }
    });
    let pod = proxy.serve_pod(at(0), Arc::new(pod));
    proxy.set_routes(table(vec![tcp("web", at(8000), &[pod.addr()])], vec![rule("web.test", "/", "web")]));
    let mut response = get(http, "web.test", "/").await;
    response.body_mut().frame().await.unwrap().unwrap();
    // It goes on until every buffer on the way is full, then stands still.
    let mut before = 0;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let now = made.load(Ordering::SeqCst);
        if now == before {
            break;
        }
        before = now;
        assert!(now < 64 << 20, "{now} bytes were taken from the pod for a client that does not read");
    }
    drop(response);
    pod.drain().await;
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let (proxy, http, _) = front();
    let server = socket_server(|mut request: Request<Incoming>| async move {
        assert_eq!(request.headers()[header::UPGRADE], "websocket");
        assert_eq!(request.headers()["sec-websocket-key"], "abc");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 5];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .body(empty())
            .unwrap()
    })
    .await;
    proxy.set_routes(table(vec![tcp("web", at(8000), &[at(9), server])], vec![rule("web.test", "/", "web")]));
    for _ in 0..3 {
        let mut stream = TcpStream::connect(http).await.unwrap();
        stream
            .write_all(
                b"GET / HTTP/1.1\r\nhost: web.test\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-key: abc\r\n\r\nhello",
            )
            .await
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(
            answer.contains("\r\nconnection: upgrade\r\n") && answer.contains("\r\nupgrade: websocket\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nolleh"), "{answer}");
    }
}

fn certificate(name: &str, host: &str) -> (Certificate, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let certificate = Certificate {
        name: name.to_owned(),
        hosts: Vec::new(),
        chain_pem: made.cert.pem().into_bytes(),
        key_pem: made.signing_key.serialize_pem().into_bytes(),
    };
    (certificate, made)
}

/// Connects with `server` as name, trusting `root` only.
async fn tls(
    addr: SocketAddr,
    server: &str,
    root: &rcgen::CertifiedKey<rcgen::KeyPair>,
    alpn: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.cert.der().clone()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(server.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(addr).await?).await
}

#[tokio::test]
async fn certificates_follow_the_servers_name() {
    let (proxy, _, https) = front();
    let pod = proxy.serve_pod(at(0), echo());
    let (one, one_root) = certificate("default/one", "one.test");
    let (wild, wild_root) = certificate("default/wild", "*.wild.test");
    let (mut bad, _) = certificate("default/bad", "bad.test");
    bad.key_pem = one.key_pem.clone();
    let broken =
        Certificate { name: "default/broken".into(), hosts: vec![], chain_pem: b"no".into(), key_pem: b"no".into() };
    let rules = vec![rule("one.test", "/", "web"), rule("*.wild.test", "/", "web")];
    let mut wanted = table(vec![tcp("web", at(8000), &[pod.addr()])], rules);
    wanted.certificates = vec![bad, broken, one, wild];
    proxy.set_routes(wanted.clone());
    let problems: Vec<About> = proxy.problems().into_iter().map(|problem| problem.about).collect();
    assert_eq!(problems, [About::Certificate("default/bad".into()), About::Certificate("default/broken".into())]);
    proxy.set_routes(wanted);
    assert_eq!(proxy.problems(), []);

    let stream = tls(https, "one.test", &one_root, b"http/1.1").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/").header(header::HOST, "one.test").body(full("over one")).unwrap();
    assert_eq!(text(sender.send_request(request).await.unwrap()).await, (StatusCode::OK, "over one".into()));

    let stream = tls(https, "a.wild.test", &wild_root, b"h2").await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://a.wild.test/").body(full("over two")).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(text(response).await, (StatusCode::OK, "over two".into()));

    // Other names get the self-signed default, which this client does not trust.
    assert!(tls(https, "bad.test", &one_root, b"h2").await.is_err());
}

#[tokio::test]
async fn http2_in_front_http1_behind() {
    let (proxy, http, _) = front();
    let server = socket_server(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), Version::HTTP_11);
        let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
        let cookie = request.headers()[header::COOKIE].to_str().unwrap().to_owned();
        Response::new(full(format!("{host} {} {cookie}", request.uri())))
    })
    .await;
    proxy.set_routes(table(vec![tcp("web", at(8000), &[server])], vec![rule("web.test", "/", "web")]));
    let stream = TcpStream::connect(http).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://web.test/path?q")
        .header(header::COOKIE, "a=1")
        .header(header::COOKIE, "b=2")
        .body(empty())
        .unwrap();
    assert_eq!(text(sender.send_request(request).await.unwrap()).await.1, "web.test /path?q a=1; b=2");
}

#[tokio::test]
async fn h2c_backends_get_http2_and_trailers_pass() {
    let (proxy, http, _) = front();
    let listener = TcpListener::bind(at(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.version(), Version::HTTP_2);
                assert_eq!(request.headers()[header::TE], "trailers");
                let trailers =
                    [("grpc-status", "0")].map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
                let frames = [Frame::data(Bytes::from("data")), Frame::trailers(trailers.into_iter().collect())];
                let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
                Ok::<_, Infallible>(Response::new(body))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let mut service = tcp("web", at(8000), &[addr]);
    service.ports[0].h2c = true;
    proxy.set_routes(table(vec![service], vec![rule("web.test", "/", "web")]));
    let stream = TcpStream::connect(http).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request =
            Request::post("http://web.test/pkg.Service/Call").header(header::TE, "trailers").body(full("x")).unwrap();
        let collected = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "data");
    }
}
