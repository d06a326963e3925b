//! Fields of a pod and of its resources as variables and files show them: the downward API.
//!
//! Pure. Used by the environment and by downwardAPI volumes.

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What the downward API needs beside the pod itself.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// `status.podIP`
    pub pod_ip: String,
    /// `status.hostIP`
    pub host_ip: String,
    /// The node's allocatable resources: what an absent limit means.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Why a field has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No such field.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// No such resource.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// The container named by the selector is not in the pod.
    #[error("container {0} not found")]
    Container(String),
    /// Not a quantity.
    #[error("invalid quantity {0:?}")]
    Quantity(String),
}

/// The value of a `fieldRef`.
pub fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, FieldError> {
    let (meta, empty) = (&pod.metadata, PodSpec::default());
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(meta.annotations.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return Err(FieldError::Path(path.into())),
    })
}

/// `metadata.labels['app']` -> `app`
fn subscript<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")
}

/// A map as the downward API writes it: sorted `key="value"` lines.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let mut text = String::new();
    for (key, value) in map.into_iter().flatten() {
        // writing to a String cannot fail
        let _ = writeln!(text, "{key}={value:?}");
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

/// The value of a `resourceFieldRef`; `container` is the one it is asked for, unless the selector names another.
pub fn resource(
    spec: &PodSpec,
    facts: &PodFacts,
    container: &str,
    selector: &ResourceFieldSelector,
) -> Result<String, FieldError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(container);
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let found = containers.find(|candidate| candidate.name == name);
    let resources = found.ok_or_else(|| FieldError::Container(name.into()))?.resources.clone().unwrap_or_default();
    let (which, resource) =
        selector.resource.split_once('.').ok_or_else(|| FieldError::Resource(selector.resource.clone()))?;
    let own = match which {
        "limits" => resources.limits.unwrap_or_default().get(resource).cloned(),
        "requests" => resources.requests.unwrap_or_default().get(resource).cloned(),
        _ => return Err(FieldError::Resource(selector.resource.clone())),
    };
    let default = if which == "limits" { facts.allocatable.get(resource).cloned() } else { None };
    let value = own.or(default).unwrap_or(Quantity("0".into()));
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !resource.starts_with("hugepages-") {
        return Err(FieldError::Resource(selector.resource.clone()));
    }
    let divisor = selector.divisor.clone().filter(|divisor| divisor.0 != "0" && !divisor.0.is_empty());
    let divisor = divisor.unwrap_or(Quantity("1".into()));
    let (value, divisor) = (milli(&value)?, milli(&divisor)?.max(1));
    // rounded up, as Kubernetes does
    Ok(value.div_euclid(divisor).saturating_add(i128::from(value.rem_euclid(divisor) > 0)).to_string())
}

fn milli(quantity: &Quantity) -> Result<i128, FieldError> {
    manifests::quantity::milli(quantity).ok_or_else(|| FieldError::Quantity(quantity.0.clone()))
}
