//! What the cluster adds to a pod when it is created, whoever creates it: the API for its clients, a controller for a
//! template.
//!
//! Kubernetes' admission plugins ServiceAccount, DefaultTolerationSeconds, RuntimeClass and Priority, on the world alone.
//! Deliberately absent: defaulting and validation (`manifests`), the volume of the service account's token (the node
//! mounts it), quotas.

use crate::{Key, World};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Map, Value, json};

/// How long a pod stays bound to a node that does not answer, unless it says otherwise.
const TOLERATION_SECONDS: i64 = 300;
/// The tolerations every pod gets: Kubernetes' taints of a node in trouble.
const TROUBLES: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Why a pod may not be created; said after `pods "NAME" is forbidden: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Its namespace is on its way out.
    #[error("unable to create new content in namespace {0} because it is being terminated")]
    Terminating(String),
    /// It names a service account that is not there.
    #[error("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found")]
    ServiceAccount {
        /// The pod's namespace.
        namespace: String,
        /// The account it named.
        name: String,
    },
    /// It names a runtime class that is not there.
    #[error("pod rejected: RuntimeClass \"{0}\" not found")]
    RuntimeClass(String),
    /// It names a priority class that is not there.
    #[error("no PriorityClass with name {0} was found")]
    PriorityClass(String),
    /// Its own node selector contradicts its runtime class.
    #[error("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {class}; pod.spec.nodeSelector[{key}] = {own}")]
    NodeSelector {
        /// The label in question.
        key: String,
        /// What the class wants.
        class: String,
        /// What the pod wants.
        own: String,
    },
}

/// Completes a new pod of this namespace, whose status starts here. Doing it again changes nothing.
///
/// # Errors
/// [`Forbidden`] when the pod names something that does not exist.
pub fn pod(pod: &mut Value, namespace: &str, world: &World) -> Result<(), Forbidden> {
    if world.get(&Key::of::<Namespace>("", namespace)).is_some_and(|object| object.is_deleting()) {
        return Err(Forbidden::Terminating(namespace.into()));
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    service_account(spec, namespace, world)?;
    runtime_class(spec, world)?;
    priority(spec, world)?;
    tolerations(spec);
    let class = qos_class(spec);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
    Ok(())
}

/// Kubernetes' quality of service class: what is squeezed first when a node runs out.
fn qos_class(spec: &Map<String, Value>) -> &'static str {
    let containers = ["initContainers", "containers"].iter().filter_map(|field| spec.get(*field)?.as_array()).flatten();
    let (mut any, mut all) = (false, true);
    for resources in containers.map(|container| &container["resources"]) {
        for name in ["cpu", "memory"] {
            let amount = |field: &str| {
                let text = resources[field][name].as_str()?;
                manifests::quantity::milli(&Quantity(text.to_owned())).filter(|amount| *amount != 0)
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.or(limit).is_some();
            all &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn service_account(spec: &mut Map<String, Value>, namespace: &str, world: &World) -> Result<(), Forbidden> {
    let name = text(spec, "serviceAccountName").or_else(|| text(spec, "serviceAccount"));
    let name = name.unwrap_or_else(|| "default".into());
    let Some(account) = world.view::<ServiceAccount>(namespace, &name) else {
        // a new namespace's own account may be on its way; any other must be there
        if name != "default" {
            return Err(Forbidden::ServiceAccount { namespace: namespace.into(), name });
        }
        put_account(spec, &name);
        return Ok(());
    };
    put_account(spec, &name);
    if let (false, Some(secrets)) = (spec.contains_key("imagePullSecrets"), &account.image_pull_secrets) {
        let names: Vec<Value> = secrets.iter().map(|secret| json!({"name": secret.name})).collect();
        spec.insert("imagePullSecrets".into(), names.into());
    }
    if let (false, Some(mount)) =
        (spec.contains_key("automountServiceAccountToken"), account.automount_service_account_token)
    {
        spec.insert("automountServiceAccountToken".into(), mount.into());
    }
    Ok(())
}

fn put_account(spec: &mut Map<String, Value>, name: &str) {
    spec.insert("serviceAccountName".into(), name.into());
    spec.insert("serviceAccount".into(), name.into());
}

fn runtime_class(spec: &mut Map<String, Value>, world: &World) -> Result<(), Forbidden> {
    let Some(name) = text(spec, "runtimeClassName") else { return Ok(()) };
    let Some(class) = world.view::<RuntimeClass>("", &name) else { return Err(Forbidden::RuntimeClass(name)) };
    if let (Some(overhead), false) = (&class.overhead, spec.contains_key("overhead")) {
        spec.insert("overhead".into(), json!(overhead.pod_fixed));
    }
    let Some(scheduling) = &class.scheduling else { return Ok(()) };
    let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
    for (key, class) in scheduling.node_selector.iter().flatten() {
        let own = selector[key].as_str();
        if let Some(own) = own.filter(|own| own != class) {
            return Err(Forbidden::NodeSelector { key: key.clone(), class: class.clone(), own: own.into() });
        }
        selector[key] = class.as_str().into();
    }
    if selector.as_object().is_some_and(Map::is_empty) {
        spec.remove("nodeSelector");
    }
    for toleration in scheduling.tolerations.iter().flatten() {
        add_toleration(spec, json!(toleration));
    }
    Ok(())
}

fn priority(spec: &mut Map<String, Value>, world: &World) -> Result<(), Forbidden> {
    let (value, policy) = match text(spec, "priorityClassName").as_deref() {
        None => (0, "PreemptLowerPriority".to_owned()),
        Some("system-node-critical") => (2_000_001_000, "PreemptLowerPriority".to_owned()),
        Some("system-cluster-critical") => (2_000_000_000, "PreemptLowerPriority".to_owned()),
        Some(name) => {
            let class = world.view::<PriorityClass>("", name);
            let class = class.ok_or_else(|| Forbidden::PriorityClass(name.into()))?;
            (class.value.unwrap_or(0), class.preemption_policy.clone().unwrap_or_else(|| "PreemptLowerPriority".into()))
        }
    };
    spec.insert("priority".into(), value.into());
    spec.entry("preemptionPolicy").or_insert_with(|| policy.into());
    Ok(())
}

fn tolerations(spec: &mut Map<String, Value>) {
    for trouble in TROUBLES {
        let tolerates = |toleration: &Value| {
            let key = toleration["key"].as_str().unwrap_or("");
            let effect = toleration["effect"].as_str().unwrap_or("");
            (key.is_empty() || key == trouble) && (effect.is_empty() || effect == "NoExecute")
        };
        if !spec.get("tolerations").and_then(Value::as_array).is_some_and(|own| own.iter().any(tolerates)) {
            let toleration = json!({
                "key": trouble, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            });
            add_toleration(spec, toleration);
        }
    }
}

fn add_toleration(spec: &mut Map<String, Value>, toleration: Value) {
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if let Some(tolerations) = tolerations.as_array_mut()
        && !tolerations.contains(&toleration)
    {
        tolerations.push(toleration);
    }
}

fn text(spec: &Map<String, Value>, field: &str) -> Option<String> {
    spec.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Object, Revision};
    use std::sync::Arc;

    #[test]
    fn a_pod_is_completed_once_and_for_all() {
        let mut world = World::default();
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "docker"},
            "handler": "docker", "scheduling": {"nodeSelector": {"runtime": "docker"}}});
        let class = Object::encode(manifests::Resource::of::<RuntimeClass>(), Revision(1), class).unwrap();
        world.put(Arc::new(class));
        let resources = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}});
        let mut value = json!({"spec": {"runtimeClassName": "docker", "containers": [{"resources": resources}]}});
        pod(&mut value, "shop", &world).unwrap();
        let once = value.clone();
        pod(&mut value, "shop", &world).unwrap();
        assert_eq!(value, once);
        assert_eq!(value["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
        assert_eq!(value["spec"]["nodeSelector"], json!({"runtime": "docker"}));
        assert_eq!(value["spec"]["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!((&value["spec"]["serviceAccountName"], &value["spec"]["priority"]), (&json!("default"), &json!(0)));
        value["spec"]["nodeSelector"]["runtime"] = "wasm".into();
        assert!(matches!(pod(&mut value, "shop", &world), Err(Forbidden::NodeSelector { .. })));
        let mut robot = json!({"spec": {"serviceAccountName": "robot"}});
        let refused = pod(&mut robot, "shop", &world).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "error looking up service account shop/robot: serviceaccount \"robot\" not found"
        );
    }
}
