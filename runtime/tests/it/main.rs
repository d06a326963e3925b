//! The runtime against what it drives: real guests, a real Docker engine, a real registry. One binary, since each would link the
//! whole compiler again.

#![allow(clippy::unwrap_used)]

mod commands;
mod common;
mod docker;
mod files;
mod http;
mod images;
mod load;
mod logs;
mod namespaces;
mod sandbox;
mod sessions;
