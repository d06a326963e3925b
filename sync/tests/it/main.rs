//! A node's link over real sockets on loopback: what both ends see, whatever happens between them.
#![allow(clippy::unwrap_used)]

mod asks;
mod bulk;
mod harness;
mod paths;
mod relay;
mod sessions;
mod trust;
