//! A pod's quality-of-service class, from what its containers ask for and may have.

use crate::quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// `status.qosClass`: `Guaranteed` when every container limits CPU and memory and asks for just that, `BestEffort` when none says
/// anything of either, else `Burstable`. Ephemeral containers do not count.
pub fn qos(spec: &PodSpec) -> &'static str {
    let all: Vec<&Container> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let says = |container: &Container| {
        let resources = container.resources.clone().unwrap_or_default();
        let mut named = resources.limits.into_iter().chain(resources.requests).flatten();
        named.any(|(name, quantity)| is_counted(&name) && quantity::milli(&quantity).is_some_and(|milli| milli > 0))
    };
    if !all.iter().any(|container| says(container)) {
        return "BestEffort";
    }
    if all.iter().all(|container| is_guaranteed(container)) { "Guaranteed" } else { "Burstable" }
}

fn is_counted(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory")
}

fn is_guaranteed(container: &Container) -> bool {
    let resources = container.resources.clone().unwrap_or_default();
    let (limits, requests) = (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
    ["cpu", "memory"].iter().all(|name| {
        let limit = limits.get(*name).and_then(quantity::milli).filter(|milli| *milli > 0);
        // a missing request is its limit
        let request = requests.get(*name).map_or(limit, quantity::milli);
        limit.is_some() && request == limit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        for (containers, class) in [
            (r#"[{"name":"a"}]"#, "BestEffort"),
            (r#"[{"name":"a","resources":{"limits":{"cpu":"1","memory":"1Gi"}}}]"#, "Guaranteed"),
            (
                r#"[{"name":"a","resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m"}}}]"#,
                "Guaranteed",
            ),
            (
                r#"[{"name":"a","resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"0.5"}}}]"#,
                "Burstable",
            ),
            (r#"[{"name":"a","resources":{"limits":{"cpu":"1","memory":"1Gi"}}},{"name":"b"}]"#, "Burstable"),
            (r#"[{"name":"a","resources":{"requests":{"memory":"1Gi"}}}]"#, "Burstable"),
            (r#"[{"name":"a","resources":{"requests":{"example.com/gpu":"1"}}}]"#, "BestEffort"),
        ] {
            let spec: PodSpec = serde_json::from_str(&format!(r#"{{"containers":{containers}}}"#)).unwrap();
            assert_eq!(qos(&spec), class, "{containers}");
        }
    }
}
