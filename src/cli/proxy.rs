//! `proxy`: the API on a local port, with our credentials, for programs that have none.
//!
//! Only requests for this machine's own names are let through, unless the user says otherwise: a web page must not be able to
//! reach the API through its reader's browser. Deliberately absent: `--www`, static files; it is refused.

use std::path::PathBuf;
use std::sync::Arc;

use http::header::{CONNECTION, HOST, HeaderMap, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use regex::Regex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::client::Client;
use super::failure::{Failure, Result, fail};
use super::output;
use super::session::Session;
use super::stream::terminal;

/// How many connections are open at once; more wait to be taken.
const CONNECTIONS_MAX: usize = 1024;
/// The largest request body that is passed on.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// What stands between a connection and its other end only.
const HOP_BY_HOP: [&str; 7] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
];

/// Flags of `proxy`.
#[derive(Debug, clap::Args)]
pub struct ProxyArgs {
    /// The port on which to run the proxy; 0 picks a free one
    #[arg(short = 'p', long, default_value_t = 8001)]
    port: u16,
    /// The IP address on which to serve on
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    /// Unix socket on which to run the proxy
    #[arg(short = 'u', long, value_name = "FILE")]
    unix_socket: Option<PathBuf>,
    /// Prefix to serve the proxied API under
    #[arg(long, default_value = "/")]
    api_prefix: String,
    /// Regular expressions for hosts that the proxy should accept
    #[arg(long, default_value = r"^localhost$,^127\.0\.0\.1$,^\[::1\]$")]
    accept_hosts: String,
    /// Regular expressions for paths that the proxy should accept
    #[arg(long, default_value = "^.*")]
    accept_paths: String,
    /// Regular expressions for paths that the proxy should reject, accepted or not
    #[arg(long, default_value = "^/api/.*/pods/.*/exec,^/api/.*/pods/.*/attach")]
    reject_paths: String,
    /// Regular expressions for HTTP methods that the proxy should reject
    #[arg(long, default_value = "^$")]
    reject_methods: String,
    /// Disable request filtering; dangerous where others can reach the port
    #[arg(long)]
    disable_filter: bool,
    /// Also serve static files (not available)
    #[arg(short = 'w', long, hide = true)]
    www: Option<String>,
}

/// Which requests are let through.
struct Filter {
    accept_hosts: Vec<Regex>,
    accept_paths: Vec<Regex>,
    reject_paths: Vec<Regex>,
    reject_methods: Vec<Regex>,
}

impl Filter {
    fn read(args: &ProxyArgs) -> Result<Filter> {
        let list = |text: &str| -> Result<Vec<Regex>> {
            text.split(',')
                .map(|one| Regex::new(one).map_err(|error| Failure::Text(format!("invalid regexp {one:?}: {error}"))))
                .collect()
        };
        Ok(Filter {
            accept_hosts: list(&args.accept_hosts)?,
            accept_paths: list(&args.accept_paths)?,
            reject_paths: list(&args.reject_paths)?,
            reject_methods: list(&args.reject_methods)?,
        })
    }

    fn accepts(&self, method: &str, path: &str, host: &str) -> bool {
        let any = |list: &[Regex], text: &str| list.iter().any(|regex| regex.is_match(text));
        let rejected = any(&self.reject_methods, method) || any(&self.reject_paths, path);
        !rejected && any(&self.accept_paths, path) && any(&self.accept_hosts, host)
    }
}

/// What all connections share.
struct Shared {
    client: Client,
    filter: Option<Filter>,
    /// With a slash at both ends.
    prefix: String,
}

/// Carries it out.
pub async fn run(session: &Session, args: ProxyArgs) -> Result<()> {
    if args.www.is_some() {
        return fail("--www is not available in this version of coracle");
    }
    let filter = Filter::read(&args)?;
    if args.disable_filter && args.unix_socket.is_none() {
        eprintln!("Request filter disabled, your proxy is vulnerable to XSRF attacks, please be cautious");
    }
    let prefix = match args.api_prefix.trim_matches('/') {
        "" => "/".to_string(),
        inner => format!("/{inner}/"),
    };
    let filter = (!args.disable_filter).then_some(filter);
    let shared = Arc::new(Shared { client: session.client.clone(), filter, prefix });
    match &args.unix_socket {
        Some(path) => {
            let listener = UnixListener::bind(path)
                .map_err(|error| Failure::Text(format!("listen unix {}: {error}", path.display())))?;
            output::line(&format!("Starting to serve on {}", path.display()));
            let serve = serve(shared, Listener::Unix(listener));
            tokio::select! {
                never = serve => match never {},
                () = terminal::killed() => {}
            }
            // A socket's file outlives its listener.
            let _ = std::fs::remove_file(path);
            Err(Failure::Exit(1))
        }
        None => {
            let address = (args.address.as_str(), args.port);
            let listener = TcpListener::bind(address).await.map_err(|error| {
                let text = error.to_string().to_lowercase();
                let text = text.split(" (os error").next().unwrap_or_default();
                Failure::Text(format!("listen tcp {}:{}: bind: {text}", args.address, args.port))
            })?;
            let bound = listener.local_addr().map_err(|error| Failure::Text(error.to_string()))?;
            output::line(&format!("Starting to serve on {bound}"));
            match serve(shared, Listener::Tcp(listener)).await {}
        }
    }
}

/// Where clients come in.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

async fn serve(shared: Arc<Shared>, listener: Listener) -> std::convert::Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok(stream) => {
                    let shared = shared.clone();
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    // A client that hangs up midway is its own business.
                    connections.spawn(async move { connection.await.ok() });
                }
                Err(error) => {
                    eprintln!("error accepting connection: {error}");
                    // Mostly too many open files, which passes.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
) -> std::result::Result<Response<Body>, http::Error> {
    let path = request.uri().path().to_string();
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if let Some(filter) = &shared.filter
        && !filter.accepts(request.method().as_str(), &path, without_port(host))
    {
        return plain(StatusCode::FORBIDDEN, "Forbidden\n");
    }
    let Some(rest) = below(&path, &shared.prefix) else {
        return plain(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest,
    };
    let Ok(target) = target.parse::<Uri>() else { return plain(StatusCode::BAD_REQUEST, "bad request path\n") };
    let wants_upgrade = request.headers().contains_key(UPGRADE);
    let ours = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    parts.uri = target;
    parts.headers.remove(HOST);
    parts.extensions.clear();
    forget_hops(&mut parts.headers, wants_upgrade);
    let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return plain(StatusCode::PAYLOAD_TOO_LARGE, &format!("{error}\n")),
    };
    let sent = shared.client.pass(Request::from_parts(parts, Body::from(body))).await;
    let mut response = match sent {
        Ok(response) => response,
        Err(failure) => return plain(StatusCode::BAD_GATEWAY, &format!("{}\n", failure.message())),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = ours
    {
        let theirs = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                tokio::io::copy_bidirectional(&mut ours, &mut theirs).await.ok();
            }
        });
        return Ok(response);
    }
    forget_hops(response.headers_mut(), false);
    Ok(response)
}

fn plain(status: StatusCode, text: &str) -> std::result::Result<Response<Body>, http::Error> {
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .header(http::header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(Body::from(text.as_bytes().to_vec()))
}

fn forget_hops(headers: &mut HeaderMap, keep_upgrade: bool) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if !keep_upgrade {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
}

/// A `Host` without its port: `[::1]:8001` -> `[::1]`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The path below the prefix, with its slash.
fn below(path: &str, prefix: &str) -> Option<String> {
    path.strip_prefix(prefix).map(|rest| format!("/{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ProxyArgs,
    }

    fn filter(line: &str) -> Result<Filter> {
        Filter::read(&Line::try_parse_from(line.split(' ')).unwrap().args)
    }

    #[test]
    fn who_is_let_through() {
        let standard = filter("proxy").unwrap();
        assert!(standard.accepts("GET", "/api/v1/pods", "localhost"));
        assert!(standard.accepts("DELETE", "/api/v1/namespaces/a/pods/b", "127.0.0.1"));
        assert!(standard.accepts("GET", "/version", "[::1]"));
        assert!(!standard.accepts("GET", "/version", "evil.example"));
        assert!(!standard.accepts("GET", "/version", "localhost.evil.example"));
        assert!(!standard.accepts("POST", "/api/v1/namespaces/a/pods/b/exec", "localhost"));
        assert!(!standard.accepts("POST", "/api/v1/namespaces/a/pods/b/attach", "localhost"));
        let strict = filter("proxy --reject-methods=POST,PUT --accept-paths=^/api/").unwrap();
        assert!(!strict.accepts("PUT", "/api/v1", "localhost"));
        assert!(!strict.accepts("GET", "/apis", "localhost"));
        assert!(strict.accepts("GET", "/api/v1", "localhost"));
        assert!(filter("proxy --accept-hosts=(").is_err());
    }

    #[test]
    fn paths_and_hosts() {
        assert_eq!(below("/api/v1", "/").as_deref(), Some("/api/v1"));
        assert_eq!(below("/k8s/api/v1", "/k8s/").as_deref(), Some("/api/v1"));
        assert_eq!(below("/api/v1", "/k8s/"), None);
        assert_eq!(without_port("[::1]:8001"), "[::1]");
        assert_eq!(without_port("localhost"), "localhost");
        assert_eq!(without_port("127.0.0.1:80"), "127.0.0.1");
    }
}
