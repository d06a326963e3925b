//! The edge that speaks Kubernetes' HTTP: the only crate that knows REST, patches and tables.
//!
//! Layer 3. A request's way through the house is the order of the modules: `transport` (TLS, bounds) -> `route` (what a
//! path means) -> `authn` (who) -> `authz` (may they) -> `verbs` (list, get, create, ...) -> `admission` (what the
//! cluster adds) -> `store` (the commit). Reads are answered from the `World` at one revision; stored bytes go out as
//! they are. Deliberately absent: RBAC (every authenticated user may do everything), server-side apply and
//! `managedFields`, protobuf in answers, and proxying to pods, Services and nodes, which is refused by name.

mod config;
mod front;
mod nodes;
mod transport;

mod authn;
mod authz;
mod query;
mod route;

mod body;
mod decode;
mod negotiate;
mod protobuf;
mod render;
mod selection;
mod snapshots;
mod table;

mod admission;
mod requests;
mod services;
mod verbs;

mod discovery;
mod eviction;
mod metrics;
mod openapi_v2;
mod pods;
mod reviews;
mod scale;
mod streams;

pub mod patch;
pub mod status;

pub use authn::{TokenFileError, TokenTable, User};
pub use authz::{Authorizer, is_own_request, is_question_about_oneself};
pub use config::{ApiConfig, Limits, NodeLinks};
pub use front::Api;
pub use nodes::{
    AttachOptions, ByteStream, CallError, ExecOptions, Input, LogStreamKind, LogsOptions, NodeUsage, Nodes, Opening,
    Output, OutputStream, PodUsage, Streams, Usage,
};
/// What a client of this API needs to speak with pods.
pub mod client {
    pub use crate::streams::spdy;
    pub use crate::streams::tunnel::Tunnel;
    pub use crate::streams::websocket::{Socket, open};
}
pub use route::{ResourceRoute, Route};
pub use transport::{ServingCertificate, TlsError, serve, tls_config};
