//! The subresource `scale`: the one number of a Deployment or ReplicaSet, as `autoscaling/v1`'s Scale.

use crate::body::Answer;
use crate::decode;
use crate::front::Call;
use crate::patch;
use crate::render;
use crate::status::{MODIFIED, Status};
use crate::verbs::{Patch, Subresource, find, update_with};
use serde_json::{Value, json};
use state::Object;

pub(crate) fn get(call: &Call) -> Result<Answer, Status> {
    let object = find(call, &call.api.world())?;
    Ok(render::written(call, 200, &scale(&object)))
}

pub(crate) async fn update(call: &Call) -> Result<Answer, Status> {
    let wanted = decode::value(&call.headers, &call.body)?;
    let is_dry = call.query.dry_run("UpdateOptions")?;
    set(call, is_dry, |_| Ok(wanted.clone())).await
}

pub(crate) async fn patch(call: &Call) -> Result<Answer, Status> {
    let is_dry = call.query.dry_run("PatchOptions")?;
    let patch = Patch::of(call)?;
    set(call, is_dry, |scale| match &patch {
        Patch::Strategic(changes) | Patch::Merge(changes) => {
            let mut scale = scale.clone();
            patch::merge::apply(&mut scale, changes);
            Ok(scale)
        }
        Patch::Json(_) => patch.apply(call, scale),
    })
    .await
}

async fn set(call: &Call, is_dry: bool, wanted: impl Fn(&Value) -> Result<Value, Status>) -> Result<Answer, Status> {
    let tries_max = call.api.limits().patch_tries_max;
    let object = update_with(call, Subresource::None, is_dry, tries_max, |current| {
        let before = scale(current);
        let wanted = wanted(&before)?;
        check(call, current, &wanted)?;
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        let mut value = current.value();
        value["spec"]["replicas"] = replicas.into();
        Ok(value)
    })
    .await?;
    Ok(render::written(call, 200, &scale(&object)))
}

fn check(call: &Call, current: &Object, wanted: &Value) -> Result<(), Status> {
    let name = &call.at.name;
    if wanted["kind"].as_str().is_some_and(|kind| kind != "Scale") {
        return Err(Status::bad_request(format!("expected a Scale, got a {}", wanted["kind"])));
    }
    if wanted["metadata"]["name"].as_str().is_some_and(|said| said != name) {
        return Err(Status::bad_request("the name of the object does not match the name on the URL"));
    }
    let said = wanted["metadata"]["resourceVersion"].as_str().filter(|said| !said.is_empty());
    if said.is_some_and(|said| said != current.revision().to_string()) {
        return Err(Status::conflict(&call.resource(), name, MODIFIED));
    }
    match &wanted["spec"]["replicas"] {
        Value::Null => Ok(()),
        replicas => match replicas.as_i64() {
            Some(number) if (0..=i64::from(i32::MAX)).contains(&number) => Ok(()),
            Some(number) => {
                let why = format!("Invalid value: {number}: must be greater than or equal to 0");
                let mut status =
                    Status::new(422, "Invalid", format!("Scale.autoscaling {name:?} is invalid: spec.replicas: {why}"));
                status.details = Some(json!({"name": name, "group": "autoscaling", "kind": "Scale",
                    "causes": [{"reason": "FieldValueInvalid", "message": why, "field": "spec.replicas"}]}));
                Err(status)
            }
            None => Err(Status::bad_request(format!(
                "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {} into Go struct field ScaleSpec.spec.replicas of type int32",
                if replicas.is_string() { "string" } else { "value" }
            ))),
        },
    }
}

fn scale(object: &Object) -> Value {
    let value = object.value();
    let metadata = &value["metadata"];
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": value["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {
            "replicas": value["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&value["spec"]["selector"]),
        },
    })
}

/// A `LabelSelector` as a query writes it.
fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut terms: Vec<String> =
        labels.map(|(label, value)| format!("{label}={}", value.as_str().unwrap_or_default())).collect();
    for requirement in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = requirement["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        terms.push(match requirement["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("Exists") => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.join(",")
}
