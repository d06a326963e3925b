//! The assembly: one [`Proxy`] per node holds the tables and the listeners. Reads (a connection, a request, a DNS query) load
//! a snapshot; writes (new routes, a pod comes or goes) take one mutex.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::ProxyConfig;
use crate::handler::{Body, Handler};
use crate::outgoing::RequestError;
use crate::pods::PodGuard;
use crate::problems::Problem;
use crate::routes::Routes;

/// A node's proxy. Clones share it; it stops when the last is gone or on [`Proxy::shutdown`].
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<ProxyConfig>,
}

impl Proxy {
    /// Binds the ingress and DNS listeners; what cannot be bound becomes a problem.
    pub fn new(config: ProxyConfig) -> Self {
        Self { inner: Arc::new(config) }
    }

    /// Takes a new route table; only what differs from the last one is touched. Open connections go on.
    pub fn set_routes(&self, routes: Routes) {
        let _ = routes;
    }

    /// Makes `handler` the HTTP server at `addr` (pod IP and container port): for connections from outside if the kernel lets
    /// us listen there (else a problem), and in-process for Services, ingress and [`Proxy::request`] always. Dropping the guard
    /// ends both; requests in flight finish.
    pub fn serve_pod(&self, addr: SocketAddr, handler: Arc<dyn Handler>) -> PodGuard {
        let _ = (addr, handler);
        todo!()
    }

    /// A ready endpoint for a connection to a Service address; None if `vip` is no Service's or nothing is ready.
    pub fn pick(&self, vip: SocketAddr) -> Option<SocketAddr> {
        let _ = vip;
        None
    }

    /// Whether `vip` is an address and TCP port of a Service, ready or not.
    pub fn is_service(&self, vip: SocketAddr) -> bool {
        let _ = vip;
        false
    }

    /// Addresses of a cluster name as a pod of `namespace` sees it (search path, ndots:5). Empty: not a name of the cluster.
    pub fn resolve(&self, name: &str, namespace: &str) -> Vec<IpAddr> {
        let _ = (name, namespace);
        Vec::new()
    }

    /// As [`Proxy::resolve`], then the host's resolver for names outside the cluster.
    pub async fn lookup(&self, name: &str, namespace: &str) -> std::io::Result<Vec<IpAddr>> {
        let _ = (name, namespace);
        Ok(Vec::new())
    }

    /// An outgoing HTTP request of a guest in `namespace`. Absolute URI, scheme http or https. To a Service or pod that lives in
    /// this process it is a function call.
    pub fn request(
        &self,
        request: http::Request<Body>,
        namespace: &str,
    ) -> impl Future<Output = Result<http::Response<Body>, RequestError>> + Send + 'static {
        let _ = (request, namespace);
        async { Err(RequestError::Closed) }
    }

    /// Where the ingress listens: (HTTP, HTTPS), actual ports.
    pub fn ingress_addresses(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let _ = &self.inner;
        (Vec::new(), Vec::new())
    }

    /// Where the DNS server listens, if it does.
    pub fn dns_address(&self) -> Option<SocketAddr> {
        None
    }

    /// Problems since the last call.
    pub fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// Stops listening, lets requests in flight finish within `Limits::drain_timeout`, ends what is left.
    pub async fn shutdown(&self) {}
}
