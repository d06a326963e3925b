//! The nouns: Kubernetes' kinds as one table, YAML in and out, defaulting, validation, selectors, quantities.
//!
//! Layer 0: imports nothing of ours, does no IO, reads no clock. Every other crate reads the table of kinds here;
//! adding a built-in kind touches [`kinds`] and nothing else but its controller.

pub mod quantity;
pub mod resource;

pub use resource::Resource;
