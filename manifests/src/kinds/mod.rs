//! The table of kinds: one row each, in files of one group of kinds. Nothing stands here that no controller or agent makes
//! real.

mod cells;
mod certificate_signing_request;
mod config;
mod cron_job;
mod deployment;
mod endpoints;
mod event;
mod ingress;
pub(crate) mod job;
mod lease;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
pub(crate) mod persistent_volume_claim;
mod pod;
mod pod_disruption_budget;
mod replicaset;
mod runtime_class;
pub(crate) mod service;
mod service_account;
mod storage_class;

use crate::Kind;

static KINDS: [Kind; 24] = [
    config::CONFIG_MAP,
    endpoints::ENDPOINTS,
    event::EVENT,
    namespace::NAMESPACE,
    node::NODE,
    persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    persistent_volume::PERSISTENT_VOLUME,
    pod::POD,
    config::SECRET,
    service_account::SERVICE_ACCOUNT,
    service::SERVICE,
    deployment::DEPLOYMENT,
    replicaset::REPLICA_SET,
    cron_job::CRON_JOB,
    job::JOB,
    certificate_signing_request::CERTIFICATE_SIGNING_REQUEST,
    lease::LEASE,
    endpoints::ENDPOINT_SLICE,
    ingress::INGRESS_CLASS,
    ingress::INGRESS,
    network_policy::NETWORK_POLICY,
    pod_disruption_budget::POD_DISRUPTION_BUDGET,
    runtime_class::RUNTIME_CLASS,
    storage_class::STORAGE_CLASS,
];

/// Every built-in kind.
pub fn kinds() -> &'static [Kind] {
    &KINDS
}
