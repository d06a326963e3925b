//! HTTP towards clients: one connection, HTTP/1.1 or HTTP/2, every request answered through a [`Target`]. The hot path of a
//! Service call: between hyper and the pod's handler there is one choice among endpoints and no lock.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::balance::{Among, Way};
use crate::config::Limits;
use crate::connections::{Connection, Graceful};
use crate::handler::{Body, BoxError, empty};
use crate::pods::Pod;
use crate::shared::Shared;
use crate::web::forward;
use crate::web::reply::{Refusal, Reply};

/// Who answers the requests of a connection.
#[derive(Clone)]
pub(crate) enum Target {
    /// A Service's port: each request to a pod of its own choice, among those that policies let the asker reach.
    Port { way: Way, client: IpAddr, asker: Option<IpAddr> },
    /// One pod, for connections to its own address.
    Pod { addr: SocketAddr, pod: Arc<Pod> },
}

/// Serves a connection to its end.
pub(crate) async fn connection(shared: &Arc<Shared>, target: Target, stream: TcpStream, connection: &Connection) {
    let Some(version) = connection.drive_plain(sniff(&stream, shared.limits.header_timeout)).await.flatten() else {
        return;
    };
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, target) = (shared.clone(), target.clone());
        async move { Ok::<_, Infallible>(answer(&shared, &target, request).await) }
    });
    drive(&shared.limits, version, TokioIo::new(stream), service, connection).await;
}

async fn answer(shared: &Arc<Shared>, target: &Target, request: Request<Incoming>) -> Response<Reply> {
    let request = request.map(body);
    let answer = match target {
        Target::Port { way, client, asker } => {
            forward::to_port(shared, way, Among::Local, Some(*client), *asker, request).await
        }
        Target::Pod { addr, pod } => to_pod(*addr, pod, request).await,
    };
    answer.unwrap_or_else(|refusal| {
        tracing::debug!(error = &refusal as &dyn std::error::Error, "request refused");
        refusal.response()
    })
}

async fn to_pod(addr: SocketAddr, pod: &Arc<Pod>, request: Request<Body>) -> Result<Response<Reply>, Refusal> {
    let Some(in_flight) = pod.clone().enter() else {
        return Err(Refusal::NoEndpoints(addr.to_string()));
    };
    let response = in_flight.call(request).await?;
    Ok(response.map(|body| Reply::Pod { body, _in_flight: in_flight }))
}

/// A request's body for handlers. One without bytes needs no memory.
pub(crate) fn body(incoming: Incoming) -> Body {
    if http_body::Body::is_end_stream(&incoming) { empty() } else { incoming.map_err(BoxError::from).boxed_unsync() }
}

/// Which HTTP a client without TLS speaks, from its first bytes, which stay unread. None: nothing came in time.
pub(crate) async fn sniff(stream: &TcpStream, timeout: Duration) -> Option<Version> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let look = async {
        let mut start = [0; PREFACE.len()];
        loop {
            let length = stream.peek(&mut start).await.ok()?;
            if length == 0 {
                return None;
            }
            if start[..length] != PREFACE[..length] {
                return Some(Version::HTTP_11);
            }
            if length == PREFACE.len() {
                return Some(Version::HTTP_2);
            }
            // Peeking does not wait for more; such a client is rare and bounded by the timeout.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(timeout, look).await.ok().flatten()
}

/// Drives one connection with a service.
pub(crate) async fn drive<IO, S>(limits: &Limits, version: Version, io: IO, service: S, connection: &Connection)
where
    IO: Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Reply, Error = Infallible>,
    S::Future: Send + 'static,
{
    let ended = if version == Version::HTTP_2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.header_timeout)
            .max_concurrent_streams(limits.h2_streams_max)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX));
        connection.drive(builder.serve_connection(io, service)).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(limits.header_bytes_max.max(8 * 1024))
            .half_close(false);
        connection.drive(builder.serve_connection(io, service).with_upgrades()).await
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

impl<IO, S> Graceful for http1::UpgradeableConnection<IO, S>
where
    IO: Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Reply, Error = Infallible>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<IO, S> Graceful for http2::Connection<IO, S, TokioExecutor>
where
    IO: Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Reply, Error = Infallible>,
    S::Future: Send + 'static,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
