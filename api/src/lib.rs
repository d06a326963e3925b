//! The edge that speaks Kubernetes' HTTP: the only crate that knows REST, patches and tables.
//!
//! Layer 3. A request's way through the house is the order of the modules: `transport` (TLS, bounds) -> `route` (what a
//! path means) -> `authn` (who) -> `authz` (may they) -> `verbs` (list, get, create, ...) -> `admission` (what the
//! cluster adds) -> `store` (the commit). Reads are answered from the `World` at one revision; stored bytes go out as
//! they are. Deliberately absent: RBAC (every authenticated user may do everything), server-side apply and
//! `managedFields`, protobuf in answers, and the pod subresources that need a stream both ways (exec, attach, portforward), which
//! are refused by name.

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
mod services;
mod verbs;

mod discovery;
mod openapi_v2;
mod pods;
mod reviews;
mod scale;

pub mod patch;
pub mod status;

pub use authn::{TokenFileError, TokenTable, User};
pub use config::{ApiConfig, Limits};
pub use front::Api;
pub use nodes::{ByteStream, CallError, LogStreamKind, LogsOptions, Nodes};
pub use transport::{TlsError, serve, tls_config};
