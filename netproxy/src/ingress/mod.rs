//! The cluster's front door: HTTP and HTTPS listeners on this host's own addresses, each request to the Service its Ingress rule
//! names. `matching` decides who, `tls` with which certificate, `web::forward` carries.

mod matching;
mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

pub(crate) use self::matching::Matcher;
pub(crate) use self::tls::Certificates;
use crate::balance::{Among, Door, Way};
use crate::connections::{Connection, Connections};
use crate::listener;
use crate::problems::About;
use crate::routes::Protocol;
use crate::shared::Shared;
use crate::web::reply::{Refusal, Reply, words};
use crate::web::serve::{body, drive, sniff};
use crate::web::{forward, headers};

/// The listeners, as they came to be.
pub(crate) struct Ingress {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) certificates: Arc<Certificates>,
    connections: Arc<Connections>,
}

/// How a request came in.
#[derive(Clone, Copy)]
struct Front {
    scheme: &'static str,
    peer: IpAddr,
    port: u16,
}

impl Ingress {
    /// Binds what can be bound. Must run inside the data runtime.
    pub(crate) fn start(shared: &Arc<Shared>, addresses: &[IpAddr], http: Option<u16>, https: Option<u16>) -> Self {
        let mut ingress = Self {
            http: Vec::new(),
            https: Vec::new(),
            certificates: Certificates::new(),
            connections: Connections::new(shared.limits.connections_max, shared.permits.clone()),
        };
        if let Some(port) = http {
            ingress.http = ingress.listen(shared, addresses, port, None);
        }
        if let Some(port) = https {
            match ingress.certificates.server_config() {
                Ok(config) => {
                    ingress.https = ingress.listen(shared, addresses, port, Some(TlsAcceptor::from(config)));
                }
                // Our own fixed settings: no input of anyone leads here.
                Err(error) => tracing::error!(%error, "no TLS for the ingress"),
            }
        }
        ingress
    }

    fn listen(
        &self,
        shared: &Arc<Shared>,
        addresses: &[IpAddr],
        mut port: u16,
        tls: Option<TlsAcceptor>,
    ) -> Vec<SocketAddr> {
        let mut bound = Vec::new();
        for address in addresses {
            let addr = SocketAddr::new(*address, port);
            let listening = listener::bind(addr).and_then(|listener| Ok((listener.local_addr()?, listener)));
            let (addr, listener) = match listening {
                Ok(listening) => listening,
                Err(error) => {
                    shared.problems.add(About::Ingress(addr), listener::explain("ingress address", addr, &error));
                    continue;
                }
            };
            // Port 0 was "any free one": all addresses get the same.
            port = addr.port();
            bound.push(addr);
            let (owner, tls) = (shared.clone(), tls.clone());
            let connections = Connections::bounded_in(&self.connections, shared.limits.listener_connections_max);
            let stop = shared.stop.child_token();
            shared.data.spawn(listener::accept(listener, connections, stop, move |stream, peer, connection| {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let front = Front { scheme, peer: owner.shown(peer, Protocol::Tcp).ip(), port: addr.port() };
                serve(owner.clone(), tls.clone(), stream, front, connection)
            }));
        }
        bound
    }

    /// The connections' owner, for shutting down.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }
}

async fn serve(shared: Arc<Shared>, tls: Option<TlsAcceptor>, stream: TcpStream, front: Front, connection: Connection) {
    let limits = &shared.limits;
    let service = service_fn(|request: Request<Incoming>| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, front, request).await) }
    });
    let Some(tls) = tls else {
        if let Some(Some(version)) = connection.drive_plain(sniff(&stream, limits.header_timeout)).await {
            drive(limits, version, TokioIo::new(stream), service, &connection).await;
        }
        return;
    };
    let handshake = tokio::time::timeout(limits.handshake_timeout, tls.accept(stream));
    let Some(Ok(Ok(stream))) = connection.drive_plain(handshake).await else { return };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    drive(limits, version, TokioIo::new(stream), service, &connection).await;
}

async fn answer(shared: &Arc<Shared>, front: Front, request: Request<Incoming>) -> Response<Reply> {
    if request.method() == Method::CONNECT {
        return words(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here");
    }
    let mut request = request.map(body);
    let authority = headers::authority(&request).map(str::to_owned);
    let host = authority.as_deref().map_or("", headers::host_of);
    let way = {
        let table = shared.table.load();
        match table.ingress.find(host, request.uri().path()) {
            None => return words(StatusCode::NOT_FOUND, "default backend - 404"),
            Some(None) => return Refusal::NoEndpoints(host.to_owned()).response(),
            Some(Some(port)) => Way { port: port.clone(), door: Door::Ingress },
        }
    };
    let upgrade = headers::wants_upgrade(&request);
    headers::strip_hop_by_hop(request.headers_mut(), upgrade);
    headers::add_forwarded(request.headers_mut(), front.peer, front.scheme, authority.as_deref(), front.port);
    match forward::to_port(shared, &way, Among::All, Some(front.peer), None, request).await {
        Ok(response) => response,
        Err(refusal) => {
            tracing::debug!(error = &refusal as &dyn std::error::Error, "request refused");
            refusal.response()
        }
    }
}
