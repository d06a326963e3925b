//! The hand that runs containers: a pod's container becomes a Wasm guest inside this process.
//!
//! On a pod's journey this is the last step: the agent has decided that a container should run, resolves its image
//! ([`images`]), loads it ([`Wasm::load`]: compiled once, mapped back from disk afterwards), starts it
//! ([`Wasm::start`]) with its log files ([`logs`]) and then only waits for [`Container::exited`].
//!
//! This is the only crate that names wasmtime, and no type of wasmtime leaves it. Deliberately absent: what a Pod is
//! (the agent flattens it into a [`ContainerSpec`]), sockets and routes of services (the [`Network`] a container is
//! given answers for them), restart policy, probes.

mod digest;
pub mod docker;
pub mod images;
pub mod logs;
mod namespace;
mod spec;
mod streams;
mod wasm;

pub use docker::{Docker, DockerConfig, DockerContainer, DockerContainerSpec, DockerError, PullError};
pub use namespace::NetworkNamespace;
pub use spec::{
    Body, BoxError, ContainerSpec, ExecError, Exit, ExitReason, HandleError, LoadError, LogSink, Mount, Network,
    NetworkError, StartError, Transport, Usage, WasmError,
};
pub use streams::{ExecOptions, Input, Output, PIECES_MAX, Session, SessionError};
pub use wasm::{Container, Program, Shape, Wasm, WasmConfig};
