//! The shapes of the kinds: checking an object against them, and telling them to clients as OpenAPI.
//!
//! Both come from the one JSON schema of k8s-openapi. What stays in memory is its skeleton ([`types`]) without the
//! descriptions; the OpenAPI document is made anew when somebody asks for it.

mod check;
mod document;
mod paths;
mod types;

pub use check::{Checked, Wrong, check};
pub use document::openapi_v3;
pub(crate) use types::owner;
