//! The body of every response we send, without a box of its own: a pod's, an upstream's, or a few words of ours.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::handler::{Body, BoxError, HandlerError, full};
use crate::pods::InFlight;
use crate::web::upstream::UpstreamBody;

/// A response's body; a pod's keeps its request in flight until it is dropped.
pub(crate) enum Reply {
    Pod { body: Body, _in_flight: InFlight },
    Upstream(UpstreamBody),
    Own(Body),
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Pod { body, .. } | Self::Own(body) => Pin::new(body).poll_frame(cx),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Pod { body, .. } | Self::Own(body) => body.is_end_stream(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pod { body, .. } | Self::Own(body) => body.size_hint(),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}

/// Why there is no response from anyone else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nobody ready.
    #[error("no endpoints available for service {0:?}")]
    NoEndpoints(String),
    /// A pod's own refusal.
    #[error(transparent)]
    Pod(#[from] HandlerError),
    /// No endpoint could be connected to.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] BoxError),
    /// The endpoint broke the exchange off.
    #[error("the exchange with {0} broke off")]
    Broken(String, #[source] BoxError),
    /// No more upgraded connections.
    #[error("too many upgraded connections")]
    Tunnels,
}

impl Refusal {
    /// What the client gets.
    pub(crate) fn response(&self) -> Response<Reply> {
        let (status, text) = match self {
            Self::NoEndpoints(_) | Self::Tunnels => (StatusCode::SERVICE_UNAVAILABLE, self.to_string()),
            Self::Pod(HandlerError::Stopping(_) | HandlerError::Busy(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, self.to_string())
            }
            Self::Pod(HandlerError::Timeout) => (StatusCode::GATEWAY_TIMEOUT, self.to_string()),
            // What went wrong inside is the operator's business, not the client's.
            Self::Pod(HandlerError::Failed(_)) | Self::Connect(..) | Self::Broken(..) => {
                (StatusCode::BAD_GATEWAY, "Bad Gateway".to_owned())
            }
        };
        words(status, text)
    }
}

/// A short plain text.
pub(crate) fn words(status: StatusCode, text: impl Into<String>) -> Response<Reply> {
    let mut text: String = text.into();
    text.push('\n');
    let mut response = Response::new(Reply::Own(full(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
