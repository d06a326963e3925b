//! The nouns: Kubernetes' kinds as one table, YAML in and out, defaulting, validation, selectors, quantities.
//!
//! Layer 0: imports nothing of ours, does no IO, reads no clock. Every other crate reads the table of kinds here;
//! adding a built-in kind touches [`kinds`] and nothing else but its controller.

pub mod field;
mod fill;
mod human;
mod kind;
mod kinds;
mod labels;
pub mod merge;
mod meta;
pub mod names;
mod numbers;
pub mod pods;
pub mod quantity;
pub mod resource;
pub mod schedule;
pub mod schema;
pub mod selector;
pub mod yaml;

pub use kind::{Column, Kind, by_kind, by_resource};
pub use kinds::job::claim_pods;
pub use kinds::kinds;
pub use kinds::service::{is_externally_accessible, needs_health_check};
pub use numbers::int_or_percent;

pub use resource::Resource;
