//! Joins the two hands: a pod's network as a guest sees it, and a guest as the proxy's HTTP server.
//!
//! `runtime` and `netproxy` do not know each other; their body types are the same underneath, so nothing is copied here.

use futures::future::BoxFuture;
use netproxy::{Handler, HandlerError, Proxy, RequestError};
use runtime::{Body, HandleError, Network, NetworkError};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// The network as one pod sees it.
pub struct PodNetwork {
    /// The pod's address.
    pub address: IpAddr,
    /// Its namespace: where short names are looked up.
    pub namespace: String,
    /// The node's proxy.
    pub proxy: Proxy,
}

impl Network for PodNetwork {
    fn address(&self) -> IpAddr {
        self.address
    }

    fn resolve(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetworkError>> {
        let (proxy, namespace, name) = (self.proxy.clone(), self.namespace.clone(), name.to_owned());
        Box::pin(async move {
            match proxy.lookup(&name, &namespace).await {
                Ok(addresses) if addresses.is_empty() => Err(NetworkError::NameNotFound(name)),
                Ok(addresses) => Ok(addresses),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NetworkError::NameNotFound(name)),
                Err(_) => Err(NetworkError::NameUnavailable),
            }
        })
    }

    fn route(&self, to: SocketAddr) -> SocketAddr {
        self.proxy.pick(to).unwrap_or(to)
    }

    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, NetworkError>> {
        let exchange = self.proxy.request(request, &self.namespace);
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
