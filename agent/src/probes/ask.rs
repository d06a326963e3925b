//! One question to a container: HTTP, TCP or exec.
//!
//! An HTTP component of the pod itself is asked in process, so that a port which the kernel keeps to itself works too. The
//! same acts serve lifecycle hooks.

use crate::routes::port_number;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, Probe, TCPSocketAction};
use netproxy::{Body, Handler};
use runtime::LogSink;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;

/// As much of an answer as a message shows.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// The HTTP components of a pod: port to handler.
#[derive(Default)]
pub struct Doors(Mutex<BTreeMap<u16, Arc<dyn Handler>>>);

impl Doors {
    /// A component serves this port.
    pub fn open(&self, port: u16, handler: Arc<dyn Handler>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port, handler);
    }

    /// It does no more.
    pub fn close(&self, port: u16) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
    }

    fn get(&self, port: u16) -> Option<Arc<dyn Handler>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&port).cloned()
    }
}

/// Whom to ask.
pub struct Target {
    /// The guest.
    pub guest: runtime::Container,
    /// Its spec: names of ports.
    pub container: Container,
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's HTTP components.
    pub doors: Arc<Doors>,
}

impl Target {
    /// Asks once; the error is what the event says.
    pub async fn ask(&self, probe: &Probe, timeout: Duration) -> Result<(), String> {
        if let Some(action) = &probe.http_get {
            return self.ask_http(action, timeout).await;
        }
        if let Some(action) = &probe.tcp_socket {
            return self.ask_tcp(action, timeout).await;
        }
        if let Some(action) = &probe.exec {
            return match tokio::time::timeout(timeout, run_exec(&self.guest, action)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("command timed out: {:?} timed out after {timeout:?}", command(action))),
            };
        }
        match &probe.grpc {
            Some(_) => Err("gRPC probes are not supported by this node".into()),
            None => Err("missing probe handler".into()),
        }
    }

    async fn ask_http(&self, action: &HTTPGetAction, timeout: Duration) -> Result<(), String> {
        let url = url(action, &self.container, self.address)?;
        let answer = tokio::time::timeout(timeout, send_http(action, &self.container, self.address, &self.doors)).await;
        let response = match answer {
            Ok(response) => response.map_err(|cause| format!("Get {url:?}: {cause}"))?,
            Err(_) => {
                let cause = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
                return Err(format!("Get {url:?}: {cause}"));
            }
        };
        let status = response.status();
        if status >= StatusCode::OK && status < StatusCode::BAD_REQUEST {
            return Ok(());
        }
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }

    async fn ask_tcp(&self, action: &TCPSocketAction, timeout: Duration) -> Result<(), String> {
        let port = port_number(&action.port, &self.container).ok_or("couldn't find port")?;
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        if host.is_none() && self.doors.get(port).is_some() {
            return Ok(());
        }
        let host = host.map_or_else(|| self.address.to_string(), ToOwned::to_owned);
        match tokio::time::timeout(timeout, TcpStream::connect((host.as_str(), port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(dial_error(&host, port, &error)),
            Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
        }
    }
}

/// Sends an `httpGet` action and returns the answer's head; the body is read to its bound and dropped.
pub async fn send_http(
    action: &HTTPGetAction,
    container: &Container,
    address: IpAddr,
    doors: &Doors,
) -> Result<Response<()>, String> {
    let port = port_number(&action.port, container).ok_or("couldn't find port")?;
    if action.scheme.as_deref() == Some("HTTPS") {
        return Err("HTTPS probes are not supported by this node".into());
    }
    let host = action.host.as_deref().filter(|host| !host.is_empty());
    let request = request(action, container, address)?;
    let response = match (host, doors.get(port)) {
        (None, Some(handler)) => handler.call(request).await.map_err(|error| error.to_string())?,
        _ => {
            let host = host.map_or_else(|| address.to_string(), ToOwned::to_owned);
            send_tcp(request, &host, port).await?
        }
    };
    let (head, mut body) = response.into_parts();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > OUTPUT_BYTES_MAX {
            break;
        }
    }
    Ok(Response::from_parts(head, ()))
}

async fn send_tcp(request: Request<Body>, host: &str, port: u16) -> Result<Response<Body>, String> {
    let stream = TcpStream::connect((host, port)).await.map_err(|error| dial_error(host, port, &error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let (mut parts, body) = request.into_parts();
    // to the server itself, not through a proxy: the request line has the path alone
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    parts.uri = path.parse().map_err(|_| "invalid path".to_owned())?;
    let exchange = sender.send_request(Request::from_parts(parts, body));
    tokio::pin!(exchange);
    let mut connection = Box::pin(connection);
    let response = tokio::select! {
        response = &mut exchange => response.map_err(|error| error.to_string())?,
        ended = &mut connection => {
            ended.map_err(|error| error.to_string())?;
            exchange.await.map_err(|error| error.to_string())?
        }
    };
    let (head, body) = response.into_parts();
    // the connection is driven as long as somebody reads the body
    let driver = tokio::spawn(connection);
    let guard = tokio_util::task::AbortOnDropHandle::new(driver);
    let body = body.map_err(Into::into).map_frame(move |frame| {
        let _alive = &guard;
        frame
    });
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

fn request(action: &HTTPGetAction, container: &Container, address: IpAddr) -> Result<Request<Body>, String> {
    let uri: Uri = url(action, container, address)?.parse().map_err(|_| "invalid URL".to_owned())?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut request = Request::get(uri).header(header::HOST, authority).header(header::ACCEPT, "*/*");
    if let Some(headers) = request.headers_mut() {
        headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-probe/1.36"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        for wanted in action.http_headers.iter().flatten() {
            let name = HeaderName::try_from(&wanted.name).map_err(|_| format!("invalid header {:?}", wanted.name))?;
            let value =
                HeaderValue::try_from(&wanted.value).map_err(|_| format!("invalid header {:?}", wanted.name))?;
            headers.insert(name, value);
        }
    }
    request.body(netproxy::empty()).map_err(|error| error.to_string())
}

fn url(action: &HTTPGetAction, container: &Container, address: IpAddr) -> Result<String, String> {
    let port = port_number(&action.port, container).ok_or("couldn't find port")?;
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    match action.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => Ok(format!("{scheme}://{host}:{port}{slash}{path}")),
        None => Ok(format!("{scheme}://{}{slash}{path}", SocketAddr::new(address, port))),
    }
}

fn dial_error(host: &str, port: u16, error: &std::io::Error) -> String {
    let cause = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: {cause}")
}

fn command(action: &ExecAction) -> Vec<String> {
    action.command.clone().unwrap_or_default()
}

/// Runs the program once more with the action's arguments; what it printed is the error when it fails.
pub async fn run_exec(guest: &runtime::Container, action: &ExecAction) -> Result<(), String> {
    let output = Arc::new(Output::default());
    let exit = guest.exec(command(action), output.clone(), output.clone()).await.map_err(|error| error.to_string())?;
    if exit.code == 0 { Ok(()) } else { Err(output.text()) }
}

/// Keeps the first bytes of what a command prints.
#[derive(Default)]
struct Output(Mutex<Vec<u8>>);

impl LogSink for Output {
    fn write(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Output {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
