//! One request to a Service's port: to a pod in this process by a function call, to any other endpoint through a pooled
//! connection. Whoever refuses without having taken the request costs the client nothing: the next endpoint gets it.

use std::net::IpAddr;
use std::sync::Arc;

use http::{Request, Response, StatusCode};

use crate::balance::{Among, Port, Way};
use crate::handler::{Body, HandlerError};
use crate::pods::{Endpoint, InFlight};
use crate::routes::Protocol;
use crate::shared::Shared;
use crate::web::headers;
use crate::web::reply::{Refusal, Reply};
use crate::web::upgrade;
use crate::web::upstream::{Origin, Security, SendError};

/// What is said of an endpoint that policies do not let the client reach.
pub(crate) const DENIED: &str = "denied by network policy";

/// What one endpoint made of a request.
enum Attempt {
    Answered(Response<Reply>),
    /// It never took it.
    Back(Box<Request<Body>>, Refusal),
    Failed(Refusal),
}

/// Sends `request` to an endpoint that is found by `way`; those of `among` come first, the others only when there is none. `client` is
/// whom affinity knows, `asker` whom policies judge (`None` is this node).
pub(crate) async fn to_port(
    shared: &Arc<Shared>,
    way: &Way,
    among: Among,
    client: Option<IpAddr>,
    asker: Option<IpAddr>,
    mut request: Request<Body>,
) -> Result<Response<Reply>, Refusal> {
    let (mut tried, mut attempts) = (Vec::new(), 0);
    let mut last = None;
    while attempts < shared.limits.attempts_max {
        let chosen = way.choose(among, &tried, client).or_else(|| match among {
            Among::All => None,
            Among::Local => way.choose(Among::All, &tried, client),
        });
        let Some(endpoint) = chosen else { break };
        if !shared.permits(asker, endpoint.addr, Protocol::Tcp) {
            tried.push(endpoint.addr);
            last.get_or_insert_with(|| Refusal::Connect(endpoint.addr.to_string(), DENIED.into()));
            continue;
        }
        attempts += 1;
        match attempt(shared, &way.port, &endpoint, request).await {
            Attempt::Answered(response) => return Ok(response),
            Attempt::Failed(refusal) => return Err(refusal),
            Attempt::Back(back, refusal) => {
                request = *back;
                last = Some(refusal);
                tried.push(endpoint.addr);
            }
        }
    }
    Err(last.unwrap_or_else(|| Refusal::NoEndpoints(way.port.name.clone())))
}

async fn attempt(shared: &Arc<Shared>, port: &Port, endpoint: &Arc<Endpoint>, request: Request<Body>) -> Attempt {
    if let Some(in_flight) = endpoint.enter() {
        return match in_flight.call(request).await {
            Ok(response) => Attempt::Answered(response.map(|body| Reply::Pod { body, _in_flight: in_flight })),
            Err(HandlerError::Stopping(Some(back))) => Attempt::Back(back, HandlerError::Stopping(None).into()),
            Err(HandlerError::Busy(Some(back))) => Attempt::Back(back, HandlerError::Busy(None).into()),
            Err(error) => Attempt::Failed(error.into()),
        };
    }
    if endpoint.is_local() {
        return Attempt::Back(Box::new(request), HandlerError::Stopping(None).into());
    }
    let security = if port.h2c() { Security::H2c } else { Security::None };
    // Boxed, because all that dialing needs would make the future of every call to a pod larger.
    Box::pin(to_socket(shared, endpoint, Origin::new(endpoint.addr, security), request)).await
}

/// Through a socket, with everything a proxy does to a request.
async fn to_socket(
    shared: &Arc<Shared>,
    endpoint: &Arc<Endpoint>,
    origin: Origin,
    mut request: Request<Body>,
) -> Attempt {
    let upgrade = headers::wants_upgrade(&request) && origin.security == Security::None;
    let mut switched = None;
    if upgrade {
        let Some(permit) = shared.tunnels.try_permit() else { return Attempt::Failed(Refusal::Tunnels) };
        // Taken out here; a retry must find it again, so it goes back below if nobody took the request.
        switched = Some((permit, request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>()));
    }
    headers::strip_hop_by_hop(request.headers_mut(), upgrade);
    let name = || endpoint.addr.to_string();
    match shared.upstreams.send(&origin, request, Some(endpoint.open())).await {
        Ok(mut response) => {
            let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if switching && let Some((permit, Some(client))) = switched {
                upgrade::tunnel(shared, client, hyper::upgrade::on(&mut response), permit);
            } else if switching {
                return Attempt::Failed(Refusal::Broken(name(), "it switched protocols unasked".into()));
            }
            headers::strip_hop_by_hop(response.headers_mut(), switching);
            Attempt::Answered(response.map(Reply::Upstream))
        }
        Err(SendError::NotSent(mut back, error)) => {
            if let Some((_, Some(client))) = switched {
                back.extensions_mut().insert(client);
            }
            Attempt::Back(back, Refusal::Connect(name(), error))
        }
        Err(SendError::Broken(error)) => Attempt::Failed(Refusal::Broken(name(), error)),
    }
}

/// One request to an address: a pod of this process or a socket.
pub(crate) async fn to_address(
    shared: &Arc<Shared>,
    origin: Origin,
    request: Request<Body>,
) -> Result<Response<Reply>, Refusal> {
    let local = match origin.security {
        Security::None => shared.endpoints.get(origin.addr).filter(|endpoint| endpoint.is_local()),
        _ => None,
    };
    if let Some(endpoint) = local
        && let Some(in_flight) = endpoint.enter()
    {
        return to_pod(in_flight, request).await;
    }
    to_origins(shared, vec![origin], request).await
}

/// One request to a pod of this process.
pub(crate) async fn to_pod(in_flight: InFlight, request: Request<Body>) -> Result<Response<Reply>, Refusal> {
    let response = in_flight.call(request).await?;
    Ok(response.map(|body| Reply::Pod { body, _in_flight: in_flight }))
}

/// One request to somebody with several addresses: the first that can be connected to gets it.
pub(crate) async fn to_origins(
    shared: &Arc<Shared>,
    origins: Vec<Origin>,
    mut request: Request<Body>,
) -> Result<Response<Reply>, Refusal> {
    let mut last = Refusal::NoEndpoints(String::new());
    for origin in origins {
        match shared.upstreams.send(&origin, request, None).await {
            Ok(response) => return Ok(response.map(Reply::Upstream)),
            Err(SendError::Broken(error)) => return Err(Refusal::Broken(origin.addr.to_string(), error)),
            Err(SendError::NotSent(back, error)) => {
                request = *back;
                last = Refusal::Connect(origin.addr.to_string(), error);
            }
        }
    }
    Err(last)
}
