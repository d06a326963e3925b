//! Outgoing HTTP of guests.

use crate::handler::BoxError;

/// Why an outgoing request got no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No absolute http or https URI.
    #[error("the request's URI is not an absolute http or https one")]
    Uri,
    /// The host has no address.
    #[error("cannot resolve {0}")]
    Resolve(String),
    /// A Service without ready endpoints.
    #[error("no endpoints available for service {0}")]
    NoEndpoints(String),
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] BoxError),
    /// The TLS handshake failed.
    #[error("TLS with {0} failed")]
    Tls(String, #[source] BoxError),
    /// The connection or the pod broke the exchange off.
    #[error("the exchange with {0} broke off")]
    Broken(String, #[source] BoxError),
    /// No answer in time.
    #[error("{0} did not answer in time")]
    Timeout(String),
    /// The proxy shuts down.
    #[error("the proxy is shut down")]
    Closed,
}
