//! How strategic merge patches treat each field: Kubernetes' `patchStrategy` and `patchMergeKey`, as one table over the
//! types of the schema.

use crate::{Kind, schema};

/// How a field is merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The field that names an element of a list.
    pub key: Option<&'static str>,
    /// A list is a map (with `key`) or a set (without) instead of one value.
    pub merge: bool,
    /// A map keeps only the keys that the patch names.
    pub retain_keys: bool,
}

/// A row of the table: type, field, merge key, `patchStrategy`.
pub(crate) type Row = (&'static str, &'static str, &'static str, &'static str);

/// The rule of a kind's field at a path of field names, list indices and map keys left out:
/// `["spec", "template", "spec", "containers"]`. The default rule where the schema knows no such field.
pub fn rule(kind: &Kind, path: &[&str]) -> Rule {
    schema::owner(kind, path).map_or_else(Rule::default, |(owner, field)| of(owner, field))
}

/// The rule of a field of a type, by the type's full schema name.
pub(crate) fn of(owner: &str, field: &str) -> Rule {
    row(owner, field).map_or_else(Rule::default, |(_, _, key, strategy)| Rule {
        key: (!key.is_empty()).then_some(*key),
        merge: strategy.contains("merge"),
        retain_keys: strategy.contains("retainKeys"),
    })
}

/// The row of a field of a type.
pub(crate) fn row(owner: &str, field: &str) -> Option<&'static Row> {
    ROWS.iter().find(|(of, name, ..)| *name == field && owner.strip_prefix("io.k8s.").is_some_and(|rest| rest == *of))
}

/// All rows; type names without `io.k8s.`.
pub(crate) const ROWS: &[Row] = &[
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", "uid", "merge"),
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", "", "merge"),
    ("api.core.v1.NamespaceStatus", "conditions", "type", "merge"),
    ("api.core.v1.NodeSpec", "podCIDRs", "", "merge"),
    ("api.core.v1.NodeStatus", "addresses", "type", "merge"),
    ("api.core.v1.NodeStatus", "conditions", "type", "merge"),
    ("api.core.v1.PodSpec", "containers", "name", "merge"),
    ("api.core.v1.PodSpec", "ephemeralContainers", "name", "merge"),
    ("api.core.v1.PodSpec", "hostAliases", "ip", "merge"),
    ("api.core.v1.PodSpec", "imagePullSecrets", "name", "merge"),
    ("api.core.v1.PodSpec", "initContainers", "name", "merge"),
    ("api.core.v1.PodSpec", "resourceClaims", "name", "merge,retainKeys"),
    ("api.core.v1.PodSpec", "schedulingGates", "name", "merge"),
    ("api.core.v1.PodSpec", "topologySpreadConstraints", "topologyKey", "merge"),
    ("api.core.v1.PodSpec", "volumes", "name", "merge,retainKeys"),
    ("api.core.v1.PodStatus", "conditions", "type", "merge"),
    ("api.core.v1.PodStatus", "hostIPs", "ip", "merge"),
    ("api.core.v1.PodStatus", "podIPs", "ip", "merge"),
    ("api.core.v1.PodStatus", "resourceClaimStatuses", "name", "merge,retainKeys"),
    ("api.core.v1.Container", "env", "name", "merge"),
    ("api.core.v1.Container", "ports", "containerPort", "merge"),
    ("api.core.v1.Container", "volumeDevices", "devicePath", "merge"),
    ("api.core.v1.Container", "volumeMounts", "mountPath", "merge"),
    ("api.core.v1.ContainerStatus", "volumeMounts", "mountPath", "merge"),
    ("api.core.v1.EphemeralContainer", "env", "name", "merge"),
    ("api.core.v1.EphemeralContainer", "ports", "containerPort", "merge"),
    ("api.core.v1.EphemeralContainer", "volumeDevices", "devicePath", "merge"),
    ("api.core.v1.EphemeralContainer", "volumeMounts", "mountPath", "merge"),
    ("api.core.v1.ServiceAccount", "secrets", "name", "merge"),
    ("api.core.v1.ServiceSpec", "ports", "port", "merge"),
    ("api.core.v1.ServiceStatus", "conditions", "type", "merge"),
    ("api.apps.v1.DeploymentSpec", "strategy", "", "retainKeys"),
    ("api.apps.v1.DeploymentStatus", "conditions", "type", "merge"),
    ("api.apps.v1.ReplicaSetStatus", "conditions", "type", "merge"),
    ("api.batch.v1.JobStatus", "conditions", "type", "merge"),
];
