//! What the cluster adds to objects on their way in, beyond the defaults of their kind: what depends on other objects,
//! on the uid, or on policy. Kubernetes has these as admission plugins and registry strategies. What a pod gets is in
//! `state::admission`, because controllers make pods too.

use crate::front::Call;
use crate::requests;
use crate::services::Turn;
use crate::status::Status;
use k8s_openapi::api::networking::v1::IngressClass;
use manifests::Resource;
use serde_json::{Map, Value, json};

/// The namespace's own name as a label.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Completes a value that is about to be created (`old` is `None`) or updated. What it answers must be kept until the
/// commit is done.
///
/// # Errors
/// 403 and 422 in the words of Kubernetes' plugins.
pub(crate) async fn admit(call: &Call, value: &mut Value, old: Option<&Value>) -> Result<Option<Turn>, Status> {
    match (call.kind.kind, old) {
        ("Namespace", _) => namespace(value, old.is_none()),
        ("Pod", None) => pod(call, value)?,
        ("Job", None) => {
            value["status"] = json!({});
            manifests::claim_pods(value);
        }
        ("Ingress", None) => ingress(call, value),
        ("CertificateSigningRequest", None) => requests::sign(value, &call.user),
        ("Service", _) => {
            let turn = call.api.services.complete(call.kind, || call.api.world(), value, old).await?;
            return Ok(Some(turn));
        }
        (kind, None) if kind != "Node" && call.kind.subresources.contains(&"status") => value["status"] = json!({}),
        _ => {}
    }
    Ok(None)
}

fn namespace(value: &mut Value, is_new: bool) {
    let name = value["metadata"]["name"].clone();
    if let Some(labels) = object(&mut value["metadata"], "labels") {
        labels.insert(NAME_LABEL.into(), name);
    }
    if is_new {
        value["spec"] = json!({"finalizers": ["kubernetes"]});
        value["status"] = json!({"phase": "Active"});
    }
}

fn pod(call: &Call, value: &mut Value) -> Result<(), Status> {
    state::admission::pod(value, &call.at.namespace, &call.api.world()).map_err(|why| {
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        Status::forbidden(&call.resource(), name, &why.to_string())
    })
}

/// An Ingress that names no class gets the default one.
fn ingress(call: &Call, value: &mut Value) {
    value["status"] = json!({"loadBalancer": {}});
    let is_named = value["spec"]["ingressClassName"].as_str().is_some_and(|class| !class.is_empty());
    if is_named || value["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_string() {
        return;
    }
    let is_default = "ingressclass.kubernetes.io/is-default-class";
    let world = call.api.world();
    let mut classes: Vec<_> = world
        .list(&Resource::of::<IngressClass>(), None)
        .filter(|class| class.meta().annotations.get(is_default).is_some_and(|value| value == "true"))
        .collect();
    // the newest wins where there are several, as in Kubernetes
    classes.sort_by_key(|class| (std::cmp::Reverse(class.meta().creation_timestamp), class.meta().name.clone()));
    if let Some(class) = classes.first()
        && let Some(spec) = object(value, "spec")
    {
        spec.insert("ingressClassName".into(), class.meta().name.clone().into());
    }
}

/// The map of a field, made if it is not there; `None` when something else is there.
fn object<'v>(value: &'v mut Value, field: &str) -> Option<&'v mut Map<String, Value>> {
    let field = value.as_object_mut()?.entry(field).or_insert(Value::Null);
    if field.is_null() {
        *field = json!({});
    }
    field.as_object_mut()
}
