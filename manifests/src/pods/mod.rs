//! Pods: what is shared by their kind, the templates of other kinds, and those who look at them.

pub(crate) mod containers;
pub(crate) mod defaults;
pub(crate) mod ephemeral;
pub(crate) mod probes;
mod qos;
pub(crate) mod spec;
pub(crate) mod update;
pub(crate) mod volumes;

pub use defaults::pod as default;
pub use qos::qos;

use k8s_openapi::api::core::v1::Pod;

/// The phase; `Unknown` when nobody has said.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown")
}
