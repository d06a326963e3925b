//! Outgoing HTTP of guests: a name or address becomes a Service, a pod or somebody outside; whoever lives in this process is
//! called without a socket.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{Request, Response};
use http_body_util::BodyExt;
use rustls_pki_types::ServerName;

use crate::balance::{Among, Port};
use crate::dns::names::{self, Found};
use crate::handler::{Body, BoxError, HandlerError};
use crate::shared::Shared;
use crate::web::reply::{Refusal, Reply};
use crate::web::upstream::{Origin, Security};
use crate::web::{forward, headers};

/// Aliases followed from one name.
const ALIASES_MAX: usize = 8;
/// Addresses of one outside name that are tried.
const ADDRESSES_MAX: usize = 4;

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
    Port(Arc<Port>),
    Address(SocketAddr),
    /// Outside the cluster, by name.
    Outside(String),
}

/// Sends a guest's request.
pub(crate) async fn request(
    shared: Arc<Shared>,
    mut request: Request<Body>,
    namespace: String,
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
    let place = find(&shared, host, number, &namespace)?;
    let answer = if tls {
        over_tls(&shared, place, host, number, request).await?
    } else {
        // A pod in this process reads what a socket would have brought it.
        headers::as_http1(&mut request);
        plain(&shared, place, number, request).await?
    };
    answer.map(|response| response.map(reply_body)).map_err(|refusal| failed(&authority, refusal))
}

type Answer = Result<Response<Reply>, Refusal>;

async fn plain(
    shared: &Arc<Shared>,
    place: Place,
    number: u16,
    request: Request<Body>,
) -> Result<Answer, RequestError> {
    Ok(match place {
        Place::Port(port) => forward::to_port(shared, &port, Among::All, None, request).await,
        Place::Address(addr) => forward::to_address(shared, Origin { addr, security: Security::None }, request).await,
        Place::Outside(name) => {
            let addrs = outside(shared, &name, number).await?;
            forward::to_addresses(shared, addrs, &Security::None, request).await
        }
    })
}

async fn over_tls(
    shared: &Arc<Shared>,
    place: Place,
    host: &str,
    number: u16,
    request: Request<Body>,
) -> Result<Answer, RequestError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| RequestError::Uri)?;
    let addrs = match place {
        Place::Port(port) => match port.choose(Among::All, &[], None) {
            Some(endpoint) => vec![endpoint.addr],
            None => return Err(RequestError::NoEndpoints(port.name.clone())),
        },
        Place::Address(addr) => vec![addr],
        Place::Outside(name) => outside(shared, &name, number).await?,
    };
    Ok(forward::to_addresses(shared, addrs, &Security::Tls(name), request).await)
}

fn find(shared: &Shared, host: &str, number: u16, namespace: &str) -> Result<Place, RequestError> {
    let table = shared.table.load();
    let at = |address: IpAddr| {
        let addr = SocketAddr::new(address, number);
        match table.vip(addr) {
            Some(port) => Ok(Place::Port(port.clone())),
            None if table.is_service_address(address) => {
                Err(RequestError::Connect(addr.to_string(), "the service has no such port".into()))
            }
            None => Ok(Place::Address(addr)),
        }
    };
    let mut name = host.to_owned();
    for _ in 0..ALIASES_MAX {
        if let Ok(address) = name.parse::<IpAddr>() {
            return at(address);
        }
        match names::resolve(&table, &shared.cluster_domain, &name, namespace) {
            Some(Found::Addresses(addresses)) => {
                // Headless Services have several; any will do, in turn.
                let turn = shared.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let address = addresses.get(turn % addresses.len().max(1));
                return address.map_or_else(|| Err(RequestError::NoEndpoints(name)), |address| at(*address));
            }
            // An alias is a full name.
            Some(Found::Alias(alias)) => name = format!("{alias}."),
            _ if names::is_inside(&shared.cluster_domain, &name) => return Err(RequestError::Resolve(name)),
            _ => return Ok(Place::Outside(name)),
        }
    }
    Err(RequestError::Resolve(host.to_owned()))
}

/// Addresses of a name outside the cluster, by the host's resolver.
pub(crate) async fn outside(shared: &Shared, name: &str, number: u16) -> Result<Vec<SocketAddr>, RequestError> {
    let target = (name.trim_end_matches('.').to_owned(), number);
    let lookup = shared.data.spawn(async move {
        tokio::net::lookup_host(target).await.map(|addrs| addrs.take(ADDRESSES_MAX).collect::<Vec<_>>())
    });
    match lookup.await {
        Ok(Ok(addrs)) if !addrs.is_empty() => Ok(addrs),
        _ => Err(RequestError::Resolve(name.to_owned())),
    }
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
