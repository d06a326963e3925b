//! The proxy from outside: real sockets in 127.0.0.0/8, pods as handlers in this process.

// Helpers of tests are tests too; clippy's own exception covers only functions marked as such.
#![allow(clippy::unwrap_used)]

mod dns;
mod host_ports;
mod hostile;
mod ingress;
mod outgoing;
mod services;
mod support;
