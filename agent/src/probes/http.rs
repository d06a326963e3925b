//! `httpGet`: one request and the redirects within its host, over a socket or, to an HTTP component of the pod itself, in
//! process, so that a port which the kernel keeps to itself works too.

use super::{Doors, dial_error};
use crate::anyone;
use crate::container::chain;
use crate::ground::Ground;
use crate::routes::port_number;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use netproxy::Body;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::Url;

/// As much of a body as is read before the connection is closed.
const BODY_BYTES_MAX: usize = 10 << 10;
/// Requests of one question; the last redirect is not followed any more.
const REQUESTS_MAX: usize = 10;
/// As the kubelet calls itself.
const USER_AGENT: &str = "kube-probe/1.36";

/// Asks as `action` says and returns the last answer's head; the body is read to its bound and dropped. Redirects to another host
/// are not followed: their own head is the answer.
///
/// # Errors
/// In the words of the kubelet's HTTP client, without the URL.
pub async fn send_http(
    action: &HTTPGetAction,
    container: &Container,
    address: IpAddr,
    ground: &Ground,
    doors: &Doors,
) -> Result<Response<()>, String> {
    let first = Url::parse(&url(action, container, address)?).map_err(|error| error.to_string())?;
    let headers = headers(action)?;
    // with a host of its own it goes where that name leads
    let pod = action.host.as_deref().is_none_or(str::is_empty).then_some(address);
    let mut next = first.clone();
    for _ in 0..REQUESTS_MAX {
        let is_absolute = next.origin() != first.origin();
        let response = send(&next, &headers, is_absolute, pod, ground, doors).await?;
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let Some(location) = location.filter(|_| is_redirect(response.status())) else { return Ok(response) };
        let target =
            next.join(location).map_err(|error| format!("failed to parse Location header {location:?}: {error}"))?;
        if target.host_str() != first.host_str() || !matches!(target.scheme(), "http" | "https") {
            return Ok(response);
        }
        next = target;
    }
    Err(format!("stopped after {REQUESTS_MAX} redirects"))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

async fn send(
    url: &Url,
    headers: &HeaderMap,
    is_elsewhere: bool,
    pod: Option<IpAddr>,
    ground: &Ground,
    doors: &Doors,
) -> Result<Response<()>, String> {
    let (host, port) = place(url)?;
    let door = pod.filter(|_| url.scheme() == "http").and_then(|_| doors.get(port));
    let mut request = request(url, headers)?;
    if is_elsewhere {
        // a Host of the action's was for the first place
        request.headers_mut().insert(header::HOST, authority(url)?);
    }
    let response = match door {
        Some(door) => door.call(request).await.map_err(|error| error.to_string())?,
        None => {
            let stream = ground.connect(&host, port).await.map_err(|error| dial_error(&host, port, &error))?;
            if url.scheme() == "https" {
                let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
                let connector = connector()?;
                let stream = connector.connect(name, stream).await.map_err(|error| tls_error(&error))?;
                exchange(stream, request).await?
            } else {
                exchange(stream, request).await?
            }
        }
    };
    let (head, mut body) = response.into_parts();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > BODY_BYTES_MAX {
            break;
        }
    }
    Ok(Response::from_parts(head, ()))
}

/// Host, without brackets, and port.
fn place(url: &Url) -> Result<(String, u16), String> {
    let host = match url.host().ok_or("no Host in request URL")? {
        url::Host::Domain(name) => name.to_owned(),
        url::Host::Ipv4(v4) => v4.to_string(),
        url::Host::Ipv6(v6) => v6.to_string(),
    };
    Ok((host, url.port_or_known_default().ok_or("no port in request URL")?))
}

/// Sends one request on a connection that is made for it.
async fn exchange<S>(stream: S, request: Request<Body>) -> Result<Response<Body>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let (mut parts, body) = request.into_parts();
    // to the server itself, not through a proxy: the request line has the path alone
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    parts.uri = path.parse().map_err(|_| "invalid path".to_owned())?;
    let exchange = sender.send_request(Request::from_parts(parts, body));
    tokio::pin!(exchange);
    let mut connection = Box::pin(connection);
    let response = tokio::select! {
        response = &mut exchange => response.map_err(|error| chain(&error))?,
        ended = &mut connection => {
            ended.map_err(|error| chain(&error))?;
            exchange.await.map_err(|error| chain(&error))?
        }
    };
    let (head, body) = response.into_parts();
    // the connection is driven as long as somebody reads the body
    let guard = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let body = body.map_err(Into::into).map_frame(move |frame| {
        let _alive = &guard;
        frame
    });
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

fn request(url: &Url, headers: &HeaderMap) -> Result<Request<Body>, String> {
    let mut request = Request::get(url.as_str()).body(netproxy::empty()).map_err(|error| error.to_string())?;
    request.headers_mut().insert(header::HOST, authority(url)?);
    // several of one name stay several
    for (name, value) in headers {
        request.headers_mut().append(name, value.clone());
        if name == header::HOST {
            request.headers_mut().insert(name, value.clone());
        }
    }
    Ok(request)
}

fn authority(url: &Url) -> Result<HeaderValue, String> {
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    HeaderValue::try_from(authority).map_err(|error| error.to_string())
}

/// The headers of every request, those of the action included.
fn headers(action: &HTTPGetAction) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for wanted in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&wanted.name).map_err(|_| format!("invalid header {:?}", wanted.name))?;
        let value = HeaderValue::try_from(&wanted.value).map_err(|_| format!("invalid header {:?}", wanted.name))?;
        headers.append(name, value);
    }
    for (name, ours) in [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")] {
        // one that is set to nothing is not to be sent
        let is_unwanted = headers.get(&name).is_some_and(HeaderValue::is_empty);
        if is_unwanted {
            headers.remove(&name);
        } else if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(ours));
        }
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

/// The URL that an action means.
pub fn url(action: &HTTPGetAction, container: &Container, address: IpAddr) -> Result<String, String> {
    let port = port_number(&action.port, container).ok_or("couldn't find port")?;
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    match action.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            Ok(format!("{scheme}://[{host}]:{port}{slash}{path}"))
        }
        Some(host) => Ok(format!("{scheme}://{host}:{port}{slash}{path}")),
        None => Ok(format!("{scheme}://{}{slash}{path}", SocketAddr::new(address, port))),
    }
}

fn tls_error(error: &std::io::Error) -> String {
    let corrupt = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match corrupt {
        Some(rustls::Error::InvalidMessage(_)) => "http: server gave HTTP response to HTTPS client".into(),
        _ => format!("tls: {}", chain(error)),
    }
}

/// A client that takes any certificate: a probe asks whether somebody answers, not who.
fn connector() -> Result<TlsConnector, String> {
    static MADE: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| anyone::config().map(Arc::new).map_err(|error| error.to_string()));
    made.clone().map(TlsConnector::from)
}
