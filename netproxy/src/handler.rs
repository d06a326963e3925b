//! What netproxy hands requests to: a [`Handler`] is a pod's HTTP side living in this process, a [`Body`] is what
//! streams both ways. No runtime, no wasmtime here; the agent joins the two.

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// Any error of a body or of a handler.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A streaming body; the same type as the runtime's.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// An HTTP server inside this process.
pub trait Handler: Send + Sync {
    /// Serves one request. The response's body may outlive the call; it counts as in flight until it ends.
    fn call(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, HandlerError>>;
}

/// Why a handler gave no response.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// It stops and did not take the request; if it hands it back whole, another endpoint gets it. 503 otherwise.
    #[error("the pod is stopping")]
    Stopping(Option<Box<http::Request<Body>>>),
    /// Too many requests are in it already. 503, or another endpoint when the request is handed back.
    #[error("the pod is overloaded")]
    Busy(Option<Box<http::Request<Body>>>),
    /// It took the request and did not answer in time. 504.
    #[error("the pod did not answer in time")]
    Timeout,
    /// It took the request and failed (trap, broken response). 502.
    #[error("the pod failed to answer")]
    Failed(#[source] BoxError),
}

/// A body of fixed bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without bytes.
pub fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}
