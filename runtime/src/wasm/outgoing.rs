//! Outgoing HTTP requests of guests: handed to the pod's [`Network`], which may answer them without a socket.

use std::future::Future;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::spec::{Body, BoxError, Network, NetworkError};

/// The hooks of one instance.
pub(super) struct Outgoing(pub(super) Arc<dyn Network>);

type Done = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Box<dyn Future<Output = Result<(Response<WasiBody>, Done), Error>> + Send>;

impl WasiHttpHooks for Outgoing {
    fn send_request(&mut self, request: Request<WasiBody>, options: Option<RequestOptions>, _: Done) -> Answer {
        let network = self.0.clone();
        Box::new(async move {
            let request = request.map(to_body);
            let sent = network.request(request);
            // One bound for the way to the first byte: connecting is part of it where there is a connection at all.
            let patience = options.as_ref().and_then(|options| {
                let connect = options.connect_timeout?;
                Some(connect.saturating_add(options.first_byte_timeout?))
            });
            let answer = match patience {
                Some(patience) => tokio::time::timeout(patience, sent).await.map_err(|_| Error::HttpResponseTimeout)?,
                None => sent.await,
            };
            let response = answer.map_err(to_error)?.map(to_wasi_body);
            Ok((response, Box::new(std::future::ready(Ok(()))) as Done))
        })
    }
}

/// A guest's body, for the rest of the house.
fn to_body(body: WasiBody) -> Body {
    body.map_err(|error| Box::new(error) as BoxError).boxed_unsync()
}

/// A body of the house, for a guest.
pub(super) fn to_wasi_body(body: Body) -> WasiBody {
    body.map_err(|error| match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::InternalError(Some(error.to_string())),
    })
    .boxed_unsync()
}

fn to_error(error: NetworkError) -> Error {
    match error {
        NetworkError::NameNotFound(_) => Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None },
        NetworkError::NameUnavailable => Error::DnsError { rcode: Some("SERVFAIL".into()), info_code: None },
        NetworkError::Refused => Error::ConnectionRefused,
        NetworkError::TimedOut => Error::ConnectionTimeout,
        NetworkError::Denied => Error::HttpRequestDenied,
        NetworkError::Request(error) => Error::InternalError(Some(error.to_string())),
    }
}
