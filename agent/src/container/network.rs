//! Joins the two hands: a pod's network as a guest sees it, and a guest as the proxy's HTTP server.
//!
//! `runtime` and `netproxy` do not know each other; their body types are the same underneath, so nothing is copied here.

use super::files;
use super::sandbox::Footing;
use crate::body::Body as Node;
use crate::ground::Ground;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::PodSpec;
use netproxy::network::Cidr;
use netproxy::{Dial, Handler, HandlerError, PodView, Protocol, Proxy, RequestError};
use runtime::{Body, HandleError, Network, NetworkError, NetworkNamespace, Transport};
use state::Object;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpStream;

/// The network as one pod sees it.
pub struct PodNetwork {
    view: Arc<PodView>,
    namespace: Option<NetworkNamespace>,
    /// Where the pod is known by its address.
    inside: Vec<Cidr>,
    proxy: Proxy,
    ground: Ground,
}

impl PodNetwork {
    /// That of a pod which stands on `footing`.
    pub fn new(node: &Node, object: &Object, spec: &PodSpec, footing: &Footing) -> Self {
        let namespace = footing.sandbox.as_ref().and_then(|sandbox| sandbox.namespace.clone());
        let mut view = files::view_of(node, object, spec, footing.address);
        view.dial = namespace.clone().map(|namespace| Arc::new(Inside(namespace)) as Arc<dyn Dial>);
        let inside = if view.host_network { Vec::new() } else { inside(node) };
        Self { view: Arc::new(view), namespace, inside, proxy: node.proxy.clone(), ground: node.ground.clone() }
    }
}

/// The cluster's networks, and this node: there the pod's own address is answered.
fn inside(node: &Node) -> Vec<Cidr> {
    let cluster = [&node.cluster.cluster_cidr, &node.cluster.service_cidr];
    let own = Cidr { address: node.config.node_ip, prefix: if node.config.node_ip.is_ipv4() { 32 } else { 128 } };
    cluster.into_iter().filter_map(|text| text.parse().ok()).chain([own]).collect()
}

impl Network for PodNetwork {
    fn address(&self) -> IpAddr {
        self.view.address
    }

    fn namespace(&self) -> Option<&NetworkNamespace> {
        self.namespace.as_ref()
    }

    fn resolve(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetworkError>> {
        let (proxy, view, name) = (self.proxy.clone(), self.view.clone(), name.to_owned());
        Box::pin(async move {
            match proxy.lookup(&name, &view).await {
                Ok(addresses) if addresses.is_empty() => Err(NetworkError::NameNotFound(name)),
                Ok(addresses) => Ok(addresses),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NetworkError::NameNotFound(name)),
                Err(_) => Err(NetworkError::NameUnavailable),
            }
        })
    }

    fn route(&self, to: SocketAddr, transport: Transport) -> SocketAddr {
        let to = self.proxy.pick(self.view.address, to).unwrap_or(to);
        self.ground.stack().map_or(to, |stack| stack.reach(to, protocol(transport)))
    }

    fn bound(&self, address: SocketAddr) -> SocketAddr {
        self.ground.stack().map_or(address, |stack| stack.local(address))
    }

    fn shown(&self, address: SocketAddr, transport: Transport) -> SocketAddr {
        self.ground.stack().map_or(address, |stack| stack.shown(address, protocol(transport)))
    }

    fn hears(&self, at: SocketAddr) {
        let Some(stack) = self.ground.stack() else { return };
        if at.ip().is_unspecified() {
            stack.sends_from(self.view.address, at.port());
        } else if stack.local(SocketAddr::new(self.view.address, 0)).ip() == at.ip() {
            stack.is_bound(stack.shown(at, Protocol::Udp).port());
        }
    }

    fn may_reach(&self, to: SocketAddr, transport: Transport) -> bool {
        self.proxy.permits(self.view.address, to, protocol(transport))
    }

    fn is_guarded(&self) -> bool {
        self.proxy.with_policies(|policies| policies.guards(self.view.address))
    }

    fn may_come(&self, from: IpAddr, port: u16, transport: Transport) -> bool {
        let own = SocketAddr::new(self.view.address, port);
        self.proxy.with_policies(|policies| policies.permits(from, own, protocol(transport)))
    }

    fn is_inside(&self, to: IpAddr) -> bool {
        self.inside.iter().any(|network| network.contains(to))
    }

    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, NetworkError>> {
        let exchange = self.proxy.request(request, self.view.clone());
        Box::pin(async move {
            exchange.await.map_err(|error| match error {
                RequestError::Resolve(name) => NetworkError::NameNotFound(name),
                RequestError::NoEndpoints(_) | RequestError::Connect(..) => NetworkError::Refused,
                RequestError::Timeout(_) => NetworkError::TimedOut,
                other => NetworkError::Request(other.into()),
            })
        })
    }
}

fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    }
}

/// The way into a pod's network namespace.
struct Inside(NetworkNamespace);

impl Dial for Inside {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        let namespace = self.0.clone();
        Box::pin(async move { namespace.connect(to).await })
    }
}

/// A running HTTP component as the proxy's handler.
pub struct Served(pub runtime::Container);

impl Handler for Served {
    fn call(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, HandlerError>> {
        let container = self.0.clone();
        Box::pin(async move {
            container.handle(request).await.map_err(|error| match error {
                HandleError::Stopping => HandlerError::Stopping(None),
                HandleError::Busy | HandleError::Instantiate { .. } => HandlerError::Busy(None),
                HandleError::TimedOut { .. } => HandlerError::Timeout,
                other => HandlerError::Failed(other.into()),
            })
        })
    }
}
