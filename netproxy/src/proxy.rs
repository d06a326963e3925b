//! The assembly: one [`Proxy`] per node holds the tables and the listeners. Reads (a connection, a request, a DNS query) load
//! a snapshot; writes (new routes) take one mutex.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::balance::{Among, Backends, Port};
use crate::config::ProxyConfig;
use crate::dns;
use crate::dns::resolver::{self, Known};
use crate::handler::{Body, Handler};
use crate::ingress::Ingress;
use crate::outgoing::{self, RequestError};
use crate::pods::{self, PodGuard};
use crate::policy;
use crate::problems::Problem;
use crate::routes::{HostPort, PortRoute, Protocol, Routes, ServiceRoute};
use crate::service::Listeners;
use crate::shared::Shared;
use crate::table::{Service, Table};
use crate::view::PodView;

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
        let dns = config.dns.and_then(|addr| dns::server::start(&shared, addr));
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
        let host_ports = std::mem::take(&mut routes.host_ports);
        let mut table = Table::build(routes, &old, |route, index| port(shared, &old, route, index));
        for wanted in host_ports {
            // Two pods of one place: the first keeps it, and the listeners tell the other's trouble.
            let kept = old.host_port(&wanted).filter(|_| table.host_port(&wanted).is_none());
            let made = host_port(shared, kept, &wanted);
            table.host_ports.push((wanted, made));
        }
        let table = Arc::new(table);
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

    /// As [`Proxy::serve_pod`], with a listener that was made elsewhere, such as in the network namespace of the pod.
    ///
    /// # Errors
    /// When the listener cannot be used; nothing is registered then.
    pub fn serve_pod_on(
        &self,
        listener: std::net::TcpListener,
        addr: SocketAddr,
        handler: Arc<dyn Handler>,
    ) -> std::io::Result<PodGuard> {
        let _runtime = self.0.shared.data.enter();
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(pods::serve_on(&self.0.shared, Some(listener), addr, handler))
    }

    /// A connection to the HTTP server that lives in this process at `addr`, whether or not the kernel lets it listen there.
    /// None: there is none. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When there are too many connections or no sockets.
    pub async fn connect_pod(&self, addr: SocketAddr) -> std::io::Result<Option<tokio::net::TcpStream>> {
        pods::connect(&self.0.shared, addr).await
    }

    /// A ready endpoint for a connection of `from` to a Service address; None if `vip` is no Service's, the Service does not let
    /// such clients in, or nothing that policies let it reach is ready for this node.
    pub fn pick(&self, from: IpAddr, vip: SocketAddr) -> Option<SocketAddr> {
        let shared = &self.0.shared;
        let table = shared.table.load();
        let way = table.vip(vip).filter(|way| way.admits(from))?;
        let mut refused = Vec::new();
        loop {
            let endpoint = way.choose(Among::All, &refused, Some(from))?;
            if shared.permits(Some(from), endpoint.addr, Protocol::Tcp) {
                return Some(endpoint.addr);
            }
            refused.push(endpoint.addr);
        }
    }

    /// Takes new policies. What is open already goes on.
    pub fn set_policies(&self, policies: policy::Table) {
        self.0.shared.policies.store(Arc::new(policies));
    }

    /// Reads the policies as they are now.
    pub fn with_policies<T>(&self, read: impl FnOnce(&policy::Table) -> T) -> T {
        read(&self.0.shared.policies.load())
    }

    /// Whether policies let `from` reach `to`. What goes to a Service, or to a port of this node that leads to pods, is judged by all
    /// that it may lead to: who accepts it there may not know who asks.
    pub fn permits(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        let shared = &self.0.shared;
        if shared.policies.load().pods.is_empty() || self.0.dns.is_some_and(|dns| dns == to) {
            return true;
        }
        let table = shared.table.load();
        let is_node = self.0.node_addresses.contains(&to.ip());
        let way = table.at(protocol, to).or_else(|| table.at_node(protocol, to.port()).filter(|_| is_node));
        match way {
            Some(way) => way.all(|endpoint| shared.permits(Some(from), endpoint, protocol)),
            None => shared.permits(Some(from), to, protocol),
        }
    }

    /// Whether `vip` is an address and TCP port of a Service, ready or not.
    pub fn is_service(&self, vip: SocketAddr) -> bool {
        self.0.shared.table.load().vip(vip).is_some()
    }

    /// Addresses of a name that can be told at once, as `pod` sees them: of its hosts file and of the cluster (search path,
    /// ndots:5). Empty: neither knows it, or it is an alias to one outside.
    pub fn resolve(&self, name: &str, pod: &PodView) -> Vec<IpAddr> {
        match self.known(name, pod) {
            Known::Addresses(addresses) => addresses,
            _ => Vec::new(),
        }
    }

    /// As [`Proxy::resolve`], then whoever answers the pod's other names: the host's resolver or name servers of its own.
    ///
    /// # Errors
    /// `NotFound` when there is no such name; anything else is trouble that may pass.
    pub async fn lookup(&self, name: &str, pod: &PodView) -> std::io::Result<Vec<IpAddr>> {
        match self.known(name, pod) {
            Known::Addresses(addresses) => Ok(addresses),
            Known::Outside(outside) => resolver::outside(&self.0.shared, pod, &outside).await,
            Known::Absent => Err(std::io::Error::new(std::io::ErrorKind::NotFound, format!("no such host: {name}"))),
        }
    }

    fn known(&self, name: &str, pod: &PodView) -> Known {
        resolver::known(&self.0.shared.table.load(), &self.0.shared.cluster_domain, pod, name)
    }

    /// An outgoing HTTP request of a guest of `pod`. Absolute URI, scheme http or https. To a Service or pod that lives in
    /// this process it is a function call. `localhost` and the pod's own address are the pod: what is served in process there,
    /// then its sockets.
    pub fn request(
        &self,
        request: http::Request<Body>,
        pod: Arc<PodView>,
    ) -> impl Future<Output = Result<http::Response<Body>, RequestError>> + Send + 'static {
        outgoing::request(self.0.shared.clone(), request, pod)
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
    let at = |addrs: &[SocketAddr]| addrs.iter().map(|addr| shared.endpoints.at(*addr)).collect();
    let backends = Backends {
        endpoints: at(&wanted.endpoints),
        local: at(&wanted.local),
        internal: route.internal,
        external: route.external,
        sources: route.balancer_sources.clone(),
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

/// The port object of a host port: the old one of the same place, leading elsewhere now perhaps, or a new one.
fn host_port(shared: &Shared, kept: Option<&Arc<Port>>, wanted: &HostPort) -> Arc<Port> {
    let backends = Backends { endpoints: vec![shared.endpoints.at(wanted.to)], ..Backends::default() };
    match kept {
        Some(port) => {
            port.update(backends);
            port.clone()
        }
        None => Port::new(format!("host port {}", wanted.port), backends, shared.limits.affinity_clients_max),
    }
}
