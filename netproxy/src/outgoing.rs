//! Outgoing HTTP of guests: a name or address becomes a Service, a pod, the asking pod itself or somebody outside; whoever lives
//! in this process is called without a socket. No way leads to the node's localhost but a hostNetwork pod's.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{Request, Response};
use http_body_util::BodyExt;
use rustls_pki_types::ServerName;

use crate::balance::{Among, Way};
use crate::dns::resolver::{self, Known};
use crate::handler::{Body, BoxError, HandlerError};
use crate::routes::Protocol;
use crate::shared::Shared;
use crate::table::Table;
use crate::view::{PodView, Via, is_localhost};
use crate::web::reply::{Refusal, Reply};
use crate::web::upstream::{Origin, Security};
use crate::web::{forward, headers};

/// Why an outgoing request got no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No absolute http or https URI.
    #[error("the request's URI is not an absolute http or https one")]
    Uri,
    /// The host has no address.
    #[error("cannot resolve {0}")]
    Resolve(String),
    /// A Service without ready endpoints.
    #[error("no endpoints available for service {0}")]
    NoEndpoints(String),
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] BoxError),
    /// The pod refused: it stops or has too much to do.
    #[error("{0} refused the request: {1}")]
    Refused(String, String),
    /// The connection or the pod broke the exchange off.
    #[error("the exchange with {0} broke off")]
    Broken(String, #[source] BoxError),
    /// No answer in time.
    #[error("{0} did not answer in time")]
    Timeout(String),
}

/// Where a request goes.
enum Place {
    /// A Service's port.
    Port(Way),
    /// The pod that asks, by this address of its own.
    Own(SocketAddr),
    /// Anybody else, under any of these.
    Addresses(Vec<SocketAddr>),
    /// Outside the cluster, by name.
    Outside(String),
}

/// Sends a guest's request.
pub(crate) async fn request(
    shared: Arc<Shared>,
    mut request: Request<Body>,
    pod: Arc<PodView>,
) -> Result<Response<Body>, RequestError> {
    let authority = request.uri().authority().cloned().ok_or(RequestError::Uri)?;
    let tls = match request.uri().scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        _ => return Err(RequestError::Uri),
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let number = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    headers::strip_hop_by_hop(request.headers_mut(), false);
    let place = match find(&shared, &pod, host, number)? {
        // Boxed, because what it needs would make the future of every call to a pod larger.
        Place::Outside(name) => Box::pin(outside(&shared, &pod, &name, number)).await?,
        place => place,
    };
    let answer = if tls {
        over_tls(&shared, &pod, place, host, request).await?
    } else {
        // A pod in this process reads what a socket would have brought it.
        headers::as_http1(&mut request);
        plain(&shared, &pod, place, request).await
    };
    answer.map(|response| response.map(reply_body)).map_err(|refusal| failed(&authority, refusal))
}

type Answer = Result<Response<Reply>, Refusal>;

async fn plain(shared: &Arc<Shared>, pod: &PodView, place: Place, request: Request<Body>) -> Answer {
    let origins = match place {
        Place::Port(way) => {
            return forward::to_port(shared, &way, Among::All, Some(pod.address), Some(pod.address), request).await;
        }
        Place::Own(asked) => {
            let addr = SocketAddr::new(pod.address, asked.port());
            match shared.endpoints.get(addr).and_then(|endpoint| endpoint.enter()) {
                Some(in_flight) => return forward::to_pod(in_flight, request).await,
                None => own(pod, asked, &Security::None),
            }
        }
        Place::Addresses(addrs) => match permitted(shared, pod, addrs)?.as_slice() {
            [addr] => return forward::to_address(shared, Origin::new(*addr, Security::None), request).await,
            addrs => origins(addrs.to_vec(), &Security::None),
        },
        Place::Outside(name) => return Err(Refusal::NoEndpoints(name)),
    };
    forward::to_origins(shared, origins, request).await
}

async fn over_tls(
    shared: &Arc<Shared>,
    pod: &PodView,
    place: Place,
    host: &str,
    request: Request<Body>,
) -> Result<Answer, RequestError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| RequestError::Uri)?;
    let security = Security::Tls(name);
    let origins = match place {
        Place::Port(way) => match way.choose(Among::All, &[], Some(pod.address)) {
            Some(endpoint) => match permitted(shared, pod, vec![endpoint.addr]) {
                Ok(addrs) => origins(addrs, &security),
                Err(refusal) => return Ok(Err(refusal)),
            },
            None => return Err(RequestError::NoEndpoints(way.port.name.clone())),
        },
        Place::Own(asked) => own(pod, asked, &security),
        Place::Addresses(addrs) => match permitted(shared, pod, addrs) {
            Ok(addrs) => origins(addrs, &security),
            Err(refusal) => return Ok(Err(refusal)),
        },
        Place::Outside(name) => return Err(RequestError::Resolve(name)),
    };
    Ok(forward::to_origins(shared, origins, request).await)
}

/// Those that policies let the pod reach; else as if there were no connection.
fn permitted(shared: &Shared, pod: &PodView, mut addrs: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refusal> {
    let first = addrs.first().copied();
    addrs.retain(|addr| shared.permits(Some(pod.address), *addr, Protocol::Tcp));
    match first {
        Some(first) if addrs.is_empty() => Err(Refusal::Connect(first.to_string(), forward::DENIED.into())),
        _ => Ok(addrs),
    }
}

fn origins(addrs: Vec<SocketAddr>, security: &Security) -> Vec<Origin> {
    addrs.into_iter().map(|addr| Origin::new(addr, security.clone())).collect()
}

/// The sockets of the pod that asks: in its namespace where it has one, else under its address.
fn own(pod: &PodView, asked: SocketAddr, security: &Security) -> Vec<Origin> {
    let port = asked.port();
    match &pod.dial {
        Some(dial) => {
            let mut inside = vec![asked];
            if is_localhost(asked.ip()) {
                // The name does not say which of the two.
                inside = vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
                inside.sort_by_key(|addr| addr.is_ipv4() != asked.is_ipv4());
            }
            let via = |addr| Origin { addr, security: security.clone(), via: Some(Via(dial.clone())) };
            inside.into_iter().map(via).collect()
        }
        None if pod.host_network => origins(vec![asked], security),
        None => origins(vec![SocketAddr::new(pod.address, port)], security),
    }
}

fn find(shared: &Shared, pod: &PodView, host: &str, number: u16) -> Result<Place, RequestError> {
    let table = shared.table.load();
    match resolver::known(&table, &shared.cluster_domain, pod, host) {
        Known::Addresses(addresses) => {
            // Headless Services have several; any will do, in turn.
            let turn = shared.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let address = addresses.get(turn % addresses.len().max(1));
            let nobody = || Err(RequestError::NoEndpoints(host.to_owned()));
            address.map_or_else(nobody, |address| at(&table, pod, SocketAddr::new(*address, number)))
        }
        Known::Outside(name) => Ok(Place::Outside(name)),
        Known::Absent => Err(RequestError::Resolve(host.to_owned())),
    }
}

/// Who an address is.
fn at(table: &Table, pod: &PodView, addr: SocketAddr) -> Result<Place, RequestError> {
    // In loopback mode the node's own localhost may be a Service's address; a pod's localhost never is.
    if is_localhost(addr.ip()) && !pod.host_network {
        return Ok(Place::Own(addr));
    }
    match table.vip(addr) {
        Some(way) if way.admits(pod.address) => Ok(Place::Port(way.clone())),
        Some(_) => Err(RequestError::Connect(addr.to_string(), "the service does not let this pod in".into())),
        None if pod.is_own(addr.ip()) => Ok(Place::Own(addr)),
        None if table.is_service_address(addr.ip()) => {
            Err(RequestError::Connect(addr.to_string(), "the service has no such port".into()))
        }
        None => Ok(Place::Addresses(vec![addr])),
    }
}

/// Who a name outside the cluster is. Its addresses may be the cluster's all the same, and even the pod's own.
async fn outside(shared: &Shared, pod: &PodView, name: &str, number: u16) -> Result<Place, RequestError> {
    let found = resolver::outside(shared, pod, name).await;
    let found = found.map_err(|_| RequestError::Resolve(name.trim_end_matches('.').to_owned()))?;
    let table = shared.table.load();
    let mut addrs = Vec::new();
    for address in found {
        match at(&table, pod, SocketAddr::new(address, number)) {
            Ok(Place::Addresses(more)) => addrs.extend(more),
            // Another address of the name may still do.
            _ if !addrs.is_empty() => {}
            place => return place,
        }
    }
    Ok(Place::Addresses(addrs))
}

fn reply_body(reply: Reply) -> Body {
    match reply {
        Reply::Own(body) => body,
        reply => reply.boxed_unsync(),
    }
}

fn failed(authority: &Authority, refusal: Refusal) -> RequestError {
    let name = authority.to_string();
    match refusal {
        Refusal::NoEndpoints(service) => RequestError::NoEndpoints(service),
        Refusal::Pod(HandlerError::Timeout) => RequestError::Timeout(name),
        Refusal::Pod(HandlerError::Failed(error)) | Refusal::Broken(_, error) => RequestError::Broken(name, error),
        Refusal::Pod(error) => RequestError::Refused(name, error.to_string()),
        Refusal::Connect(_, error) => RequestError::Connect(name, error),
        Refusal::Tunnels => RequestError::Broken(name, refusal.to_string().into()),
    }
}
