//! What every test needs: addresses nobody else has, pods, a client.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use netproxy::{
    Body, Handler, HandlerError, PodView, PortRoute, Protocol, Proxy, ProxyConfig, Routes, ServiceRoute, full,
};

/// A fresh address in 127.0.0.0/8; other test processes on this machine have other ones.
pub fn address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id() % 8192;
    let bits = (127 << 24) | ((process + 1024) << 10) | (NEXT.fetch_add(1, Ordering::Relaxed) + 1);
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}

pub fn at(port: u16) -> SocketAddr {
    SocketAddr::new(address(), port)
}

pub fn config() -> ProxyConfig {
    let mut config = ProxyConfig::new(tokio::runtime::Handle::current());
    config.node_addresses = vec![address()];
    config
}

pub fn proxy() -> Proxy {
    Proxy::new(config())
}

/// A pod made of a function.
pub struct Pod<F>(pub F);

impl<F, R> Handler for Pod<F>
where
    F: Fn(Request<Body>) -> R + Send + Sync,
    R: Future<Output = Result<Response<Body>, HandlerError>> + Send + 'static,
{
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, HandlerError>> {
        (self.0)(request).boxed()
    }
}

/// A pod that says its name.
pub fn named(name: &'static str) -> Arc<dyn Handler> {
    Arc::new(Pod(move |_| async move { Ok(Response::new(full(name))) }))
}

/// A pod that says its name and counts.
pub fn counting(name: &'static str) -> (Arc<dyn Handler>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let pod = Pod(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok(Response::new(full(name))) }
    });
    (Arc::new(pod), count)
}

/// A pod that sends the request's body back.
pub fn echo() -> Arc<dyn Handler> {
    Arc::new(Pod(|request: Request<Body>| async move { Ok(Response::new(request.into_body())) }))
}

/// A pod of `namespace` that asks for something, on an address of its own.
pub fn view(namespace: &str) -> PodView {
    PodView::new(namespace, address())
}

/// Service `name` in `default` at `vip` with these endpoints.
pub fn service(name: &str, protocol: Protocol, vip: SocketAddr, endpoints: &[SocketAddr]) -> ServiceRoute {
    ServiceRoute {
        namespace: "default".into(),
        name: name.into(),
        cluster_ips: vec![vip.ip()],
        ports: vec![PortRoute {
            name: "main".into(),
            protocol,
            port: vip.port(),
            node_port: None,
            h2c: false,
            endpoints: endpoints.to_vec(),
            local: Vec::new(),
        }],
        ..ServiceRoute::default()
    }
}

pub fn tcp(name: &str, vip: SocketAddr, endpoints: &[SocketAddr]) -> ServiceRoute {
    service(name, Protocol::Tcp, vip, endpoints)
}

pub fn routes(services: Vec<ServiceRoute>) -> Routes {
    Routes { services, ..Routes::default() }
}

pub type HttpClient = Client<HttpConnector, Body>;

pub fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Status and text of a GET.
pub async fn get(client: &HttpClient, url: &str) -> (StatusCode, String) {
    let request = Request::get(url).body(netproxy::empty()).unwrap();
    text(client.request(request).await.unwrap()).await
}

pub async fn text<B>(response: Response<B>) -> (StatusCode, String)
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}
