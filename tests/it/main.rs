//! Black-box tests: the real binary, the stock kubectl, real Wasm guests. Each test has a cluster of its own, in a
//! temporary directory, on free ports, in loopback networks of its own; no privilege is needed.
#![allow(clippy::unwrap_used)] // a test says what is wrong by panicking

mod harness;

mod bad_input;
mod cli;
mod debug_top;
mod dns;
mod docker;
mod faults;
mod fleet;
mod fleet_faults;
mod guests;
mod images;
mod mixed;
mod offline;
mod policy;
mod restart;
mod rootless;
mod streams;
mod traffic;
mod up;
mod volumes;
mod voyage;
