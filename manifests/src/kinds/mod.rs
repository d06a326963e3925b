//! The table of kinds: one row each, in files of one group of kinds. Nothing stands here that no controller or agent makes
//! real.

mod cells;
mod config;
mod deployment;
mod endpoints;
mod event;
mod ingress;
pub(crate) mod job;
mod lease;
mod namespace;
mod node;
mod pod;
mod replicaset;
mod runtime_class;
mod service;
mod service_account;

use crate::Kind;

static KINDS: [Kind; 17] = [
    config::CONFIG_MAP,
    endpoints::ENDPOINTS,
    event::EVENT,
    namespace::NAMESPACE,
    node::NODE,
    pod::POD,
    config::SECRET,
    service_account::SERVICE_ACCOUNT,
    service::SERVICE,
    deployment::DEPLOYMENT,
    replicaset::REPLICA_SET,
    job::JOB,
    lease::LEASE,
    endpoints::ENDPOINT_SLICE,
    ingress::INGRESS_CLASS,
    ingress::INGRESS,
    runtime_class::RUNTIME_CLASS,
];

/// Every built-in kind.
pub fn kinds() -> &'static [Kind] {
    &KINDS
}
