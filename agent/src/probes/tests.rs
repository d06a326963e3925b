//! Probes: how answers are counted; and against real servers: redirects, TLS without trust, gRPC.

use super::http::send_http;
use super::{Doors, Tally, grpc};
use crate::ground::Ground;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, HTTPHeader};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netproxy::Body;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// What a path of the server means.
fn page(request: &Request<Incoming>, addr: SocketAddr) -> Response<Body> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let location = match request.uri().path() {
        "/there" => Some("/ok?from=there".to_owned()),
        "/relative" => Some("ok".to_owned()),
        "/full" => Some(format!("http://{addr}/ok")),
        "/away" => Some("http://away.example/ok".to_owned()),
        "/round" => Some("/round".to_owned()),
        _ => None,
    };
    let status = match request.uri().path() {
        "/bad" => 500,
        "/echo" if text("host") != "shop" || text("user-agent") != "kube-probe/1.36" || !text("accept").is_empty() => {
            400
        }
        _ if location.is_some() => 302,
        _ => 200,
    };
    let mut response = Response::builder().status(status).body(netproxy::full("words")).unwrap();
    if let Some(location) = location {
        response.headers_mut().insert("location", HeaderValue::try_from(location).unwrap());
    }
    response
}

async fn server() -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request| async move { Ok::<_, Infallible>(page(&request, addr)) });
            tokio::spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

fn get(addr: SocketAddr, path: &str) -> HTTPGetAction {
    HTTPGetAction { path: Some(path.into()), port: IntOrString::Int(addr.port().into()), ..HTTPGetAction::default() }
}

async fn asked(action: &HTTPGetAction, addr: SocketAddr) -> Result<u16, String> {
    let container = Container::default();
    let response = send_http(action, &container, addr.ip(), &Ground::default(), &Doors::default()).await;
    response.map(|response| response.status().as_u16())
}

#[tokio::test]
async fn redirects_are_followed_within_the_host() {
    let addr = server().await;
    for (path, expected) in [
        ("/ok", Ok(200)),
        ("/bad", Ok(500)),
        ("/there", Ok(200)),
        ("/relative", Ok(200)),
        ("/full", Ok(200)),
        ("/away", Ok(302)),
        ("/round", Err("stopped after 10 redirects".to_owned())),
    ] {
        assert_eq!(asked(&get(addr, path), addr).await, expected, "{path}");
    }
    let header = |name: &str, value: &str| HTTPHeader { name: name.into(), value: value.into() };
    let action =
        HTTPGetAction { http_headers: Some(vec![header("Host", "shop"), header("Accept", "")]), ..get(addr, "/echo") };
    assert_eq!(asked(&action, addr).await, Ok(200));
}

#[tokio::test]
async fn any_certificate_will_do_and_no_tls_is_said() {
    let certified = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        let service = service_fn(move |request| async move { Ok::<_, Infallible>(page(&request, addr)) });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
    let https = |addr| HTTPGetAction { scheme: Some("HTTPS".into()), ..get(addr, "/ok") };
    assert_eq!(asked(&https(addr), addr).await, Ok(200));
    let plain = server().await;
    let error = asked(&https(plain), plain).await.unwrap_err();
    assert_eq!(error, "http: server gave HTTP response to HTTPS client");
    let closed = listen().await.1;
    assert_eq!(asked(&get(closed, "/"), closed).await, Err(format!("dial tcp {closed}: connect: connection refused")));
}

/// A gRPC health server that knows the services `good` and `bad`; it takes its time for `slow`.
async fn health(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    let service = asked.get(7..).map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
    if service == "slow" {
        std::future::pending::<()>().await;
    }
    let (code, answer): (&str, &'static [u8]) = match service.as_str() {
        _ if path != "/grpc.health.v1.Health/Check" => ("12", &[]),
        "" | "good" => ("0", &[0, 0, 0, 0, 2, 8, 1]),
        "bad" => ("0", &[0, 0, 0, 0, 2, 8, 2]),
        _ => ("5", &[]),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers.insert("grpc-message", HeaderValue::from_static("unknown service"));
    let frames = [Ok(Frame::data(Bytes::from_static(answer))), Ok(Frame::trailers(trailers))];
    let body: Body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

#[tokio::test]
async fn grpc_health_is_asked() {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(health)).await;
            });
        }
    });
    let ask = async |addr: SocketAddr, service: Option<&str>, timeout_ms| {
        let action = GRPCAction { port: addr.port().into(), service: service.map(ToOwned::to_owned) };
        let timeout = Duration::from_millis(timeout_ms);
        grpc::ask(&action, addr.ip(), &Ground::default(), &Doors::default(), timeout).await
    };
    for (service, expected) in [
        (None, Ok(())),
        (Some("good"), Ok(())),
        (Some("bad"), Err("service unhealthy (responded with \"NOT_SERVING\")")),
        (Some("other"), Err("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")),
    ] {
        assert_eq!(ask(addr, service, 10_000).await, expected.map_err(ToOwned::to_owned), "{service:?}");
    }
    let slow = ask(addr, Some("slow"), 300).await.unwrap_err();
    assert_eq!(slow, "timeout: health rpc did not complete within 300ms");
    let closed = listen().await.1;
    let refused = ask(closed, None, 200).await.unwrap_err();
    assert_eq!(
        refused,
        format!("timeout: failed to connect service \"{closed}\" within 200ms: context deadline exceeded")
    );
    // a server that speaks HTTP/1.1
    let plain = server().await;
    assert!(ask(plain, None, 300).await.is_err());
}

#[test]
fn thresholds_count_answers_in_a_row() {
    let mut tally = Tally::default();
    let answers = [true, false, false, true, false, false, false, false, true];
    let told: Vec<Option<bool>> = answers.iter().map(|good| tally.count(*good, 1, 3)).collect();
    let (good, bad) = (Some(true), Some(false));
    assert_eq!(told, [good, None, None, None, None, None, bad, None, good]);
}
