//! The edge that speaks Kubernetes' HTTP: the only crate that knows REST, patches and tables.
//!
//! Layer 3. A request's way through the house reads top down in the modules: [`transport`] (TLS, bounds) ->
//! [`route`] (what a path means) -> [`authn`] (who) -> [`authz`] (may they) -> [`verbs`] (list, get, create, ...) ->
//! [`admission`] (what the cluster adds) -> `store` (the commit). Reads are answered from the `World` at one revision;
//! stored bytes go out as they are. Deliberately absent: RBAC (every authenticated user may do everything),
//! server-side apply and `managedFields`, protobuf, and the pod subresources that need a stream both ways
//! (exec, attach, portforward), which are refused by name.

mod config;
mod nodes;

pub mod patch;
pub mod status;

pub use config::{ApiConfig, Limits};
pub use nodes::{ByteStream, CallError, LogStreamKind, LogsOptions, Nodes};
