//! REST plumbing: one request out, one JSON value, text or stream of lines back; failures in kubectl's words.
//!
//! The connection, TLS and credentials are the kube crate's client. Deliberately absent: typed objects; the verbs work on
//! plain JSON, so that kinds unknown at build time work like all others.

use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;

use super::Globals;
use super::duration;
use super::failure::{Failure, Result, Status, fail};
use super::kubeconfig;

/// The largest answer taken into memory.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// What a request body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// An object.
    Json,
    /// RFC 6902.
    JsonPatch,
    /// RFC 7386.
    MergePatch,
    /// Kubernetes' own, with merge keys.
    StrategicMergePatch,
}

impl Media {
    fn content_type(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::JsonPatch => "application/json-patch+json",
            Media::MergePatch => "application/merge-patch+json",
            Media::StrategicMergePatch => "application/strategic-merge-patch+json",
        }
    }
}

/// `Accept` for a server-side table.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A client of one cluster.
#[derive(Clone)]
pub struct Client {
    inner: kube::Client,
    url: String,
    host: String,
    timeout: Option<Duration>,
    verbosity: i32,
}

impl Client {
    /// Prepares a client; connects on the first request. Also tells the namespace of the chosen context.
    pub async fn new(globals: &Globals) -> Result<(Client, String)> {
        let connection = kubeconfig::connection(globals).await?;
        let timeout = match globals.request_timeout.as_str() {
            "0" | "" => None,
            text => match text.parse::<u64>().map(Duration::from_secs).or_else(|_| duration::parse(text)) {
                Ok(timeout) if timeout.is_zero() => None,
                Ok(timeout) => Some(timeout),
                Err(_) => {
                    return fail(
                        "Invalid timeout value. Timeout must be a single integer in seconds, or an integer followed by a corresponding time unit (e.g. 1s | 2m | 3h)",
                    );
                }
            },
        };
        let url = connection.config.cluster_url.to_string().trim_end_matches('/').to_string();
        let inner = kube::Client::try_from(connection.config).map_err(|error| Failure::Text(error.to_string()))?;
        let verbosity = globals.v.unwrap_or(0);
        Ok((Client { inner, url, host: connection.host, timeout, verbosity }, connection.namespace))
    }

    /// The server's base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `--request-timeout` says; none without a limit.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// GET of a JSON document.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.get_as(path, "application/json").await
    }

    /// GET with an `Accept` of the caller's choice; the answer is JSON.
    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Value> {
        let request = Request::get(path).header(http::header::ACCEPT, accept);
        self.json(self.collect(request.body(Body::empty())).await?)
    }

    /// GET of plain text.
    pub async fn text(&self, path: &str) -> Result<String> {
        let bytes = self.collect(Request::get(path).body(Body::empty())).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// POST, PUT, PATCH or DELETE with a JSON body.
    pub async fn send(&self, method: Method, path: &str, media: Media, body: &Value) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, media.content_type());
        self.json(self.collect(request.body(Body::from(body.to_string().into_bytes()))).await?)
    }

    /// GET of an answer that goes on: its bytes as they come.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<impl futures::AsyncBufRead + Unpin + use<>> {
        let request = Request::get(path).header(http::header::ACCEPT, accept).body(Body::empty());
        let response = self.exchange(request).await?;
        let response = self.refusal(response).await?;
        Ok(response.into_body().into_data_stream().map_err(std::io::Error::other).into_async_read())
    }

    /// Somebody else's request, with our credentials; the answer as it is, whatever it says.
    pub async fn pass(&self, request: Request<Body>) -> Result<Response<Body>> {
        self.inner.send(request).await.map_err(|error| self.unreachable(&error))
    }

    /// A request to switch protocols: the answer that agrees, or why the server does not.
    pub async fn upgrade(&self, request: http::Result<Request<Body>>) -> Result<Response<Body>> {
        let response = self.exchange(request).await?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        self.refusal(response).await
    }

    /// The events of a watch, until the server ends it. A watch that the server refuses midway ends with its failure.
    pub async fn watch(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl futures::Stream<Item = Result<Value>> + Unpin + use<>> {
        let lines = self.stream(path, accept).await?.lines();
        Ok(Box::pin(lines.filter_map(|line| async move {
            let line = line.ok()?;
            let event: Value = serde_json::from_str(&line).ok()?;
            if event["type"] == "ERROR" {
                return Some(Err(Failure::Refused(Box::new(status_of(&event["object"])))));
            }
            Some(Ok(event))
        })))
    }

    fn json(&self, bytes: Vec<u8>) -> Result<Value> {
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Text(format!("couldn't read the server's answer as JSON: {error}")))
    }

    async fn collect(&self, request: http::Result<Request<Body>>) -> Result<Vec<u8>> {
        let work = async {
            let response = self.exchange(request).await?;
            let response = self.refusal(response).await?;
            self.bytes(response).await
        };
        match self.timeout {
            None => work.await,
            Some(limit) => match tokio::time::timeout(limit, work).await {
                Ok(done) => done,
                Err(_) => Err(Failure::Unreachable {
                    message: "Unable to connect to the server: net/http: request canceled (Client.Timeout exceeded while awaiting headers)".into(),
                }),
            },
        }
    }

    async fn bytes(&self, response: Response<Body>) -> Result<Vec<u8>> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unreachable(&error))?;
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > ANSWER_BYTES_MAX {
                return fail("the server's answer is too large");
            }
        }
        Ok(bytes)
    }

    async fn exchange(&self, request: http::Result<Request<Body>>) -> Result<Response<Body>> {
        let request = request.map_err(|error| Failure::Text(error.to_string()))?;
        let (method, path) = (request.method().clone(), request.uri().to_string());
        let started = Instant::now();
        let response = self.inner.send(request).await.map_err(|error| self.unreachable(&error))?;
        if self.verbosity >= 6 {
            let took = started.elapsed().as_millis();
            eprintln!("{method} {}{path} {} in {took} milliseconds", self.url, response.status());
        }
        for warning in response.headers().get_all(http::header::WARNING) {
            if let Some(text) = warning.to_str().ok().and_then(warning_text) {
                eprintln!("Warning: {text}");
            }
        }
        Ok(response)
    }

    async fn refusal(&self, response: Response<Body>) -> Result<Response<Body>> {
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let bytes = self.bytes(response).await?;
        let status = match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) if value["kind"] == "Status" => status_of(&value),
            _ => Status {
                reason: reason_of(code).into(),
                message: match String::from_utf8_lossy(&bytes).trim() {
                    "" => format!("the server answered {code}"),
                    text => text.to_string(),
                },
                details: Value::Null,
            },
        };
        Err(Failure::Refused(Box::new(status)))
    }

    /// Finds the cause at the bottom and says it as kubectl would.
    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut deepest = error;
        let mut current = Some(error);
        while let Some(cause) = current {
            if let Some(io) = cause.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::ConnectionRefused
            {
                let message = format!(
                    "The connection to the server {} was refused - did you specify the right host or port?",
                    self.host
                );
                return Failure::Unreachable { message };
            }
            deepest = cause;
            current = cause.source();
        }
        let cause = match deepest.to_string() {
            text if text.contains("UnknownIssuer") => {
                "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_string()
            }
            text => text,
        };
        Failure::Unreachable { message: format!("Unable to connect to the server: {cause}") }
    }
}

/// `299 - "text"` -> `text`.
fn warning_text(header: &str) -> Option<String> {
    let start = header.find('"')?;
    let end = header.rfind('"').filter(|end| *end > start)?;
    Some(header[start + 1..end].replace("\\\"", "\"").replace("\\\\", "\\"))
}

fn status_of(value: &Value) -> Status {
    Status {
        reason: value["reason"].as_str().unwrap_or_default().to_string(),
        message: value["message"].as_str().unwrap_or("unknown").to_string(),
        details: value["details"].clone(),
    }
}

fn reason_of(code: http::StatusCode) -> &'static str {
    match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        409 => "Conflict",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    }
}

/// Puts parameters behind a path, escaped.
pub fn with_query(path: &str, parameters: &[(&str, String)]) -> String {
    let mut out = path.to_string();
    for (at, (key, value)) in parameters.iter().enumerate() {
        out.push(if at == 0 { '?' } else { '&' });
        out.push_str(key);
        out.push('=');
        out.push_str(&escape(value));
    }
    out
}

/// Percent-encodes what may not stand in a path segment or a query value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
