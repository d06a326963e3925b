//! The master's body.
pub mod pki;
