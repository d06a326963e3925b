//! The way to the engine: bollard for what is asked and answered, a connection of our own for what is streamed.
//!
//! bollard cuts the streams of logs, executions and attached containers into messages by guessing from their first
//! byte whether they have headers, and keeps a line without an end until it ends. A terminal's bytes may begin with
//! anything and a line may never end, so those three are read raw here and taken apart by [`super::frames`], which is
//! told what they are. Each request has a connection of its own, so nothing lingers while nothing happens.

use std::path::PathBuf;
use std::sync::OnceLock;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::error::{Cause, DockerError, chain};

/// How long an engine may take to begin an answer.
const ANSWER_SECONDS_MAX: u64 = 120;
/// Bytes of an error message.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Where the engine is unless someone says otherwise.
const DEFAULT_ENDPOINT: &str = "unix:///var/run/docker.sock";

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where an engine listens.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl Endpoint {
    fn parse(text: &str) -> Result<Endpoint, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Endpoint::Unix(path.into()));
        }
        if let Some(address) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            return Ok(Endpoint::Tcp(address.trim_end_matches('/').to_owned()));
        }
        if text.starts_with('/') {
            return Ok(Endpoint::Unix(text.into()));
        }
        Err(format!("{text:?} is no endpoint that can be used: unix:///path or tcp://host:port (without TLS)"))
    }
}

/// The engine, whether it is there or not.
pub(super) struct Connection {
    endpoint: Result<Endpoint, String>,
    client: OnceLock<bollard::Docker>,
}

/// What is asked raw.
pub(super) struct Ask<'a> {
    pub(super) method: http::Method,
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, String)],
    pub(super) body: Option<serde_json::Value>,
    /// Become a stream in both directions.
    pub(super) upgrade: bool,
}

impl Connection {
    pub(super) fn new(endpoint: Option<&str>) -> Connection {
        let named = endpoint.map(str::to_owned).or_else(|| std::env::var("DOCKER_HOST").ok());
        let named = named.filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Connection { endpoint: Endpoint::parse(&named), client: OnceLock::new() }
    }

    fn endpoint(&self) -> Result<&Endpoint, DockerError> {
        self.endpoint.as_ref().map_err(DockerError::unreachable)
    }

    /// The client. An error means that there is no socket.
    pub(super) fn client(&self) -> Result<&bollard::Docker, DockerError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // bollard sends no version in its paths, so an engine answers with its own newest; nothing is negotiated.
        let version = bollard::API_DEFAULT_VERSION;
        let client = match self.endpoint()? {
            Endpoint::Unix(path) => {
                bollard::Docker::connect_with_unix(&path.to_string_lossy(), ANSWER_SECONDS_MAX, version)
            }
            Endpoint::Tcp(address) => {
                bollard::Docker::connect_with_http(&format!("tcp://{address}"), ANSWER_SECONDS_MAX, version)
            }
        };
        let client = client.map_err(|error| DockerError::unreachable(chain(&error)))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Asks on a connection of its own and waits for the head of the answer.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<http::Response<Incoming>, Cause> {
        let asking = self.send(ask);
        let limit = std::time::Duration::from_secs(ANSWER_SECONDS_MAX);
        let response = match tokio::time::timeout(limit, asking).await {
            Ok(response) => response?,
            Err(_) => return Err(Cause::Lost(format!("no answer within {ANSWER_SECONDS_MAX} s"))),
        };
        let status = response.status();
        if status.is_success() || status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let text = match Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        let message = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|json| Some(json.get("message")?.as_str()?.to_owned()))
            .unwrap_or(text);
        Err(Cause::Refused(status.as_u16(), message))
    }

    async fn send(&self, ask: Ask<'_>) -> Result<http::Response<Incoming>, Cause> {
        let lost = |error: &dyn std::error::Error| Cause::Lost(chain(error));
        let endpoint = self.endpoint().map_err(|error| lost(&error))?;
        let stream: Box<dyn Stream> = match endpoint {
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(|error| lost(&error))?),
            Endpoint::Tcp(address) => Box::new(TcpStream::connect(address).await.map_err(|error| lost(&error))?),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
        // Ends with the answer's body, or with its upgraded stream.
        tokio::spawn(connection.with_upgrades());

        let mut path = ask.path.to_owned();
        if !ask.query.is_empty() {
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(ask.query).finish();
            path = format!("{path}?{query}");
        }
        let mut request = http::Request::builder()
            .method(ask.method)
            .uri(path)
            .header(http::header::HOST, "docker")
            .header(http::header::CONTENT_TYPE, "application/json");
        if ask.upgrade {
            request = request.header(http::header::CONNECTION, "Upgrade").header(http::header::UPGRADE, "tcp");
        }
        let body = ask.body.map_or_else(Bytes::new, |json| json.to_string().into());
        let request = request.body(Full::new(body)).map_err(|error| lost(&error))?;
        sender.send_request(request).await.map_err(|error| lost(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let unix = |path: &str| Ok(Endpoint::Unix(path.into()));
        let cases = [
            ("unix:///run/d.sock", unix("/run/d.sock")),
            ("/run/d.sock", unix("/run/d.sock")),
            ("tcp://127.0.0.1:2375", Ok(Endpoint::Tcp("127.0.0.1:2375".into()))),
            ("tcp://127.0.0.1:2375/", Ok(Endpoint::Tcp("127.0.0.1:2375".into()))),
        ];
        for (text, expected) in cases {
            assert_eq!(Endpoint::parse(text), expected, "{text}");
        }
        for text in ["ssh://host", "https://host:2376", "docker.sock", ""] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
