//! The hand for sockets: a route table in, bytes through. Services (TCP, UDP, in-process HTTP), ingress, cluster DNS, outgoing
//! HTTP of guests. It knows no Kubernetes objects (the agent turns them into [`Routes`]) and no wasmtime (a pod in this process is a
//! [`Handler`]). hyper and rustls stop here.
//!
//! A rolling update drops no request if the agent (1) calls [`Proxy::serve_pod`] for the new pod, (2) names it in
//! [`Proxy::set_routes`] once it is ready, (3) leaves the old pod out of the routes, (4) awaits [`PodGuard::drain`], within the grace
//! period, and only then stops the old pod.
//!
//! The rooms: `routes` is what comes in, `table` what is looked up, `balance` who is next, `pods` who lives here; `service`,
//! `ingress`, `dns` and `outgoing` are the four ways in; `web` is HTTP for all of them; `network` is the kernel's part.

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
pub mod policy;
mod problems;
mod proxy;
mod routes;
mod service;
mod shared;
mod table;
mod view;
mod web;

pub use config::{Limits, ProxyConfig};
pub use handler::{Body, BoxError, Handler, HandlerError, empty, full};
pub use outgoing::RequestError;
pub use pods::PodGuard;
pub use problems::{About, Problem};
pub use proxy::Proxy;
pub use routes::{
    Backend, BackendPort, Certificate, HeadlessRecord, HealthCheck, HostPort, IngressRoute, IngressRule, PathKind,
    PortRoute, Protocol, Routes, ServiceRoute, TrafficPolicy,
};
pub use view::{Dial, DnsPolicy, NAMESERVERS_MAX, PodDns, PodView, SEARCHES_MAX};
