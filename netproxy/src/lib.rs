//! The hand for sockets: a route table in, bytes through. Services (TCP, UDP, in-process HTTP), ingress, cluster DNS, outgoing
//! HTTP of guests. It knows no Kubernetes objects (the agent turns them into [`Routes`]) and no wasmtime (a pod in this process is a
//! [`Handler`]). hyper and rustls stop here.

mod balance;
mod config;
mod connections;
mod dns;
mod handler;
mod ingress;
mod listener;
pub mod network;
mod outgoing;
mod pods;
mod problems;
mod proxy;
mod routes;
mod service;
mod shared;
mod table;
mod web;

pub use config::{Limits, ProxyConfig};
pub use handler::{Body, BoxError, Handler, HandlerError, empty, full};
pub use outgoing::RequestError;
pub use pods::PodGuard;
pub use problems::{About, Problem};
pub use proxy::Proxy;
pub use routes::{
    Backend, BackendPort, Certificate, HeadlessRecord, IngressRoute, IngressRule, PathKind, PortRoute, Protocol,
    Routes, ServiceRoute,
};
