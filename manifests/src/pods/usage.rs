//! What a pod asks of its node.

use crate::quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// Thousandths of a resource (`cpu`, `memory`, ...) that a pod asks for: its containers together, or its greediest init
/// container, whichever is more, and its overhead. Sidecars (init containers that always restart) count as containers.
pub fn requests(spec: &PodSpec, resource: &str) -> i128 {
    let asks = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        requests.and_then(|requests| requests.get(resource)).and_then(quantity::milli).unwrap_or(0)
    };
    let (mut sidecars, mut peak) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += asks(container);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + asks(container));
        }
    }
    let containers: i128 = spec.containers.iter().map(asks).sum();
    let overhead = spec.overhead.as_ref().and_then(|overhead| overhead.get(resource)).and_then(quantity::milli);
    peak.max(containers + sidecars) + overhead.unwrap_or(0)
}
