//! Headers that belong to one hop, and what a proxy adds for the next (RFC 9110 section 7.6, RFC 9113 section 8.2).

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version, uri};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Removes what was meant for us only. An upgrade's own two headers stay when `upgrade`.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    // Most requests name nothing in Connection; then nothing is allocated.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !(upgrade && *name == header::UPGRADE))
        .collect();
    for name in named {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}

/// Whether an HTTP/1.1 request asks for another protocol.
pub(crate) fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(header::UPGRADE)
        && request
            .headers()
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Says who asked for what. What the client claimed about that is not believed.
pub(crate) fn add_forwarded(
    headers: &mut HeaderMap,
    peer: IpAddr,
    scheme: &'static str,
    host: Option<&str>,
    port: u16,
) {
    if let Ok(peer) = HeaderValue::from_str(&peer.to_canonical().to_string()) {
        headers.insert(REAL_IP, peer.clone());
        headers.insert(FORWARDED_FOR, peer);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.insert(FORWARDED_PORT, HeaderValue::from(port));
    match host.and_then(|host| HeaderValue::from_str(host).ok()) {
        Some(host) => headers.insert(FORWARDED_HOST, host),
        None => headers.remove(FORWARDED_HOST),
    };
}

/// Host and port as the client named them: HTTP/2's authority, HTTP/1's absolute form, or Host.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()),
    }
}

/// The host of `name`, `name:port`, `[v6]:port`, without user information.
pub(crate) fn host_of(authority: &str) -> &str {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(end) = authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
        return &authority[..end + 2];
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

/// Makes any request one that an HTTP/1.1 server reads: path only, Host, one Cookie header.
pub(crate) fn as_http1<B>(request: &mut Request<B>) {
    if !request.headers().contains_key(header::HOST)
        && let Some(host) =
            request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| uri::Uri::from_static("/"), uri::Uri::from);
    }
    if request.version() != Version::HTTP_11 {
        *request.version_mut() = Version::HTTP_11;
        let crumbs: Vec<&[u8]> = request.headers().get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if crumbs.len() > 1
            && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
        {
            request.headers_mut().insert(header::COOKIE, cookie);
        }
    }
    // Our own server says "100 Continue" when the body is asked for.
    request.headers_mut().remove(header::EXPECT);
}

/// Makes any request one for HTTP/2 without TLS: absolute URI, no Host.
pub(crate) fn as_http2<B>(request: &mut Request<B>) {
    let host = authority(request).unwrap_or("localhost");
    let path = request.uri().path_and_query().map_or("/", uri::PathAndQuery::as_str);
    if let Ok(uri) = uri::Builder::new().scheme("http").authority(host).path_and_query(path).build() {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::HOST);
    request.headers_mut().remove(header::EXPECT);
}
