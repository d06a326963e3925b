//! The assembly: one [`Proxy`] per node holds the tables and the listeners. Reads (a connection, a request, a DNS query) load
//! a snapshot; writes (new routes) take one mutex.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::balance::{Among, Backends, Port};
use crate::config::ProxyConfig;
use crate::dns;
use crate::dns::names::{self, Found};
use crate::handler::{Body, Handler};
use crate::ingress::Ingress;
use crate::outgoing::{self, RequestError};
use crate::pods::{self, PodGuard};
use crate::problems::Problem;
use crate::routes::{PortRoute, Routes, ServiceRoute};
use crate::service::Listeners;
use crate::shared::Shared;
use crate::table::{Service, Table};

/// A node's proxy. Clones share it; it stops when the last is gone or on [`Proxy::shutdown`].
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    node_addresses: Vec<IpAddr>,
    ingress: Ingress,
    dns: Option<SocketAddr>,
    /// One change at a time.
    listeners: Mutex<Listeners>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Proxy {
    /// Binds the ingress and DNS listeners; what cannot be bound becomes a problem.
    pub fn new(config: ProxyConfig) -> Self {
        let _runtime = config.data.enter();
        let shared = Shared::new(&config);
        let addresses = &config.node_addresses;
        let ingress = Ingress::start(&shared, addresses, config.ingress_http_port, config.ingress_https_port);
        let dns = config.dns.and_then(|addr| dns::server::start(&shared, addr, config.resolv_conf));
        let node_addresses = config.node_addresses;
        Self(Arc::new(Inner { shared, node_addresses, ingress, dns, listeners: Mutex::default() }))
    }

    /// Takes a new route table; only what differs from the last one is touched. Open connections go on.
    pub fn set_routes(&self, mut routes: Routes) {
        let shared = &self.0.shared;
        let _runtime = shared.data.enter();
        let mut listeners = self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let certificates = std::mem::take(&mut routes.certificates);
        self.0.ingress.certificates.set(certificates, routes.default_certificate.take(), &shared.problems);
        let old = shared.table.load_full();
        let table = Arc::new(Table::build(routes, &old, |route, index| port(shared, &old, route, index)));
        shared.table.store(table.clone());
        listeners.apply(shared, &table, &self.0.node_addresses);
        drop(old);
        shared.endpoints.sweep();
    }

    /// Makes `handler` the HTTP server at `addr` (pod IP and container port): for connections from outside if the kernel lets
    /// us listen there (else a problem), and in-process for Services, ingress and [`Proxy::request`] always. Dropping the guard
    /// ends both; requests in flight finish.
    pub fn serve_pod(&self, addr: SocketAddr, handler: Arc<dyn Handler>) -> PodGuard {
        let _runtime = self.0.shared.data.enter();
        pods::serve(&self.0.shared, addr, handler)
    }

    /// A ready endpoint for a connection to a Service address; None if `vip` is no Service's or nothing is ready.
    pub fn pick(&self, vip: SocketAddr) -> Option<SocketAddr> {
        let table = self.0.shared.table.load();
        table.vip(vip)?.choose(Among::All, &[], None).map(|endpoint| endpoint.addr)
    }

    /// Whether `vip` is an address and TCP port of a Service, ready or not.
    pub fn is_service(&self, vip: SocketAddr) -> bool {
        self.0.shared.table.load().vip(vip).is_some()
    }

    /// Addresses of a cluster name as a pod of `namespace` sees it (search path, ndots:5). Empty: not a name of the cluster, or
    /// an alias to one outside.
    pub fn resolve(&self, name: &str, namespace: &str) -> Vec<IpAddr> {
        match self.found(name, namespace) {
            Some(Found::Addresses(addresses)) => addresses,
            _ => Vec::new(),
        }
    }

    /// As [`Proxy::resolve`], then the host's resolver for names outside the cluster.
    pub async fn lookup(&self, name: &str, namespace: &str) -> std::io::Result<Vec<IpAddr>> {
        let outside = match self.found(name, namespace) {
            Some(Found::Addresses(addresses)) => return Ok(addresses),
            Some(Found::Alias(alias)) => alias,
            _ => name.to_owned(),
        };
        if names::is_inside(&self.0.shared.cluster_domain, &outside) {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, format!("no such host: {outside}")));
        }
        let addrs = outgoing::outside(&self.0.shared, &outside, 0).await.map_err(std::io::Error::other)?;
        Ok(addrs.into_iter().map(|addr| addr.ip()).collect())
    }

    fn found(&self, name: &str, namespace: &str) -> Option<Found> {
        let shared = &self.0.shared;
        let (table, domain) = (shared.table.load(), &shared.cluster_domain);
        let found = names::resolve(&table, domain, name, namespace);
        match &found {
            // An alias to a name of the cluster; a chain of them is a mistake nobody needs followed.
            Some(Found::Alias(alias)) if names::is_inside(domain, alias) => Some(names::lookup(&table, domain, alias)),
            _ => found,
        }
    }

    /// An outgoing HTTP request of a guest in `namespace`. Absolute URI, scheme http or https. To a Service or pod that lives in
    /// this process it is a function call.
    pub fn request(
        &self,
        request: http::Request<Body>,
        namespace: &str,
    ) -> impl Future<Output = Result<http::Response<Body>, RequestError>> + Send + 'static {
        outgoing::request(self.0.shared.clone(), request, namespace.to_owned())
    }

    /// Where the ingress listens: (HTTP, HTTPS), actual ports.
    pub fn ingress_addresses(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        (self.0.ingress.http.clone(), self.0.ingress.https.clone())
    }

    /// Where the DNS server listens, if it does.
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.0.dns
    }

    /// Problems since the last call.
    pub fn problems(&self) -> Vec<Problem> {
        self.0.shared.problems.news()
    }

    /// Stops listening, lets requests in flight finish within `Limits::drain_timeout`, ends what is left.
    pub async fn shutdown(&self) {
        let shared = &self.0.shared;
        shared.stop.cancel();
        let owners = [self.0.ingress.connections(), &shared.service_connections];
        owners.iter().for_each(|owner| owner.finish());
        let drained = async {
            for owner in owners {
                owner.empty().await;
            }
        };
        if tokio::time::timeout(shared.limits.drain_timeout, drained).await.is_err() {
            tracing::debug!("connections were still open at the end of the drain timeout");
        }
        owners.iter().for_each(|owner| owner.abort());
        shared.tunnels.abort();
        shared.upstreams.clear();
    }
}

/// The port object of a Service's port: the old one with new endpoints, or a new one.
fn port(shared: &Shared, old: &Table, route: &ServiceRoute, index: usize) -> Arc<Port> {
    let wanted = &route.ports[index];
    let backends = Backends {
        endpoints: wanted.endpoints.iter().map(|addr| shared.endpoints.at(*addr)).collect(),
        h2c: wanted.h2c,
        affinity: route.affinity,
    };
    let same = |other: &PortRoute| other.port == wanted.port && other.protocol == wanted.protocol;
    let existing = old
        .service(&route.namespace, &route.name)
        .and_then(|service: &Arc<Service>| service.ports.get(service.route.ports.iter().position(same)?));
    match existing {
        Some(port) => {
            port.update(backends);
            port.clone()
        }
        None => {
            let name = format!("{}/{}:{}", route.namespace, route.name, wanted.port);
            Port::new(name, backends, shared.limits.affinity_clients_max)
        }
    }
}
