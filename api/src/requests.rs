//! What the API adds to CertificateSigningRequests: who asks, and which part of one may be written through which door.
//!
//! Who asks is what approvers decide on, so it is what authentication says and nothing else.

use crate::authn::User;
use crate::verbs::Subresource;
use jiff::Timestamp;
use manifests::field::{Fault, FieldError};
use serde_json::{Map, Value, json};
use state::rfc3339;

/// Conditions that are said through the subresource `approval` only.
const VERDICTS: [&str; 2] = ["Approved", "Denied"];
/// Conditions that stay once they are said.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Writes into a new request who asks.
pub(crate) fn sign(value: &mut Value, user: &User) {
    value["status"] = json!({});
    let Some(spec) = value["spec"].as_object_mut() else { return };
    for field in ["uid", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".into(), user.name.as_str().into());
    spec.insert("groups".into(), json!(user.groups));
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.as_str().into());
    }
}

/// Puts back what a write through this door may not change, and says when conditions came.
pub(crate) fn keep(new: &mut Map<String, Value>, old: &Map<String, Value>, part: Subresource, now: Timestamp) {
    match old.get("spec") {
        Some(spec) => drop(new.insert("spec".into(), spec.clone())),
        None => drop(new.remove("spec")),
    }
    if part == Subresource::Approval {
        let conditions = new.get("status").map(|status| status["conditions"].clone()).unwrap_or_default();
        let mut status = old.get("status").cloned().unwrap_or_else(|| json!({}));
        if let Some(status) = status.as_object_mut() {
            status.insert("conditions".into(), conditions);
        }
        new.insert("status".into(), status);
    }
    let before = old.get("status").map(|status| status["conditions"].clone()).unwrap_or_default();
    let Some(status) = new.get_mut("status") else { return };
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let Some(condition) = condition.as_object_mut() else { continue };
        let known = of_type(&before, condition.get("type").and_then(Value::as_str).unwrap_or_default());
        let same = known.filter(|known| Some(&known["status"]) == condition.get("status"));
        let transition = same.map(|known| known["lastTransitionTime"].clone());
        for (field, value) in [("lastUpdateTime", None), ("lastTransitionTime", transition)] {
            let is_said = condition.get(field).is_some_and(|said| !said.is_null());
            if !is_said {
                let value = value.filter(|value| !value.is_null()).unwrap_or_else(|| rfc3339(now).into());
                condition.insert(field.into(), value);
            }
        }
    }
}

/// What a write through this door may not say.
pub(crate) fn check(new: &Value, old: &Value, part: Subresource) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (before, after) = (&old["status"]["conditions"], &new["status"]["conditions"]);
    let forbidden = |detail: String| FieldError { path: "status.conditions".into(), fault: Fault::Forbidden(detail) };
    for kind in LASTING {
        match (of_type(before, kind), of_type(after, kind)) {
            (Some(_), None) => errors.push(forbidden(format!("updates may not remove a condition of type {kind:?}"))),
            (None, Some(_)) if VERDICTS.contains(&kind) && part != Subresource::Approval => {
                errors.push(forbidden(format!("updates may not add a condition of type {kind:?}")));
            }
            _ => {}
        }
    }
    let certificate = &old["status"]["certificate"];
    if !certificate.is_null() && *certificate != new["status"]["certificate"] {
        let detail = "updates may not modify a certificate once it is set".to_owned();
        errors.push(FieldError { path: "status.certificate".into(), fault: Fault::Forbidden(detail) });
    }
    errors
}

fn of_type<'v>(conditions: &'v Value, kind: &str) -> Option<&'v Value> {
    conditions.as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(conditions: &[&str], certificate: Option<&str>) -> Value {
        let conditions: Vec<Value> = conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        json!({
            "metadata": {"name": "a"}, "spec": {"username": "u", "request": "r"},
            "status": {"conditions": conditions, "certificate": certificate},
        })
    }

    fn written(old: &Value, new: &Value, part: Subresource) -> (Value, usize) {
        let mut new = new.clone();
        if let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) {
            keep(new, old, part, "2026-01-01T00:00:00Z".parse().unwrap());
        }
        let errors = check(&new, old, part).len();
        (new, errors)
    }

    #[test]
    fn who_asks_is_what_authentication_says() {
        let mut value = json!({"spec": {"username": "root", "groups": ["system:masters"], "uid": "1", "extra": {"a": []},
            "request": "r"}, "status": {"certificate": "mine"}});
        sign(&mut value, &User::new("eve", ["dev".to_owned()]));
        let spec = json!({"username": "eve", "groups": ["dev", "system:authenticated"], "request": "r"});
        assert_eq!(value, json!({"spec": spec, "status": {}}));
    }

    #[test]
    fn each_door_is_for_its_part() {
        let (none, approved) = (request(&[], None), request(&["Approved"], None));
        let (value, errors) = written(&none, &approved, Subresource::Approval);
        assert_eq!((errors, &value["status"]["conditions"][0]["type"]), (0, &json!("Approved")));
        assert_eq!(value["status"]["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(written(&none, &approved, Subresource::Status).1, 1, "a verdict through another door");
        assert_eq!(written(&approved, &none, Subresource::Approval).1, 1, "a verdict taken back");
        let issued = request(&["Approved"], Some("c"));
        assert_eq!(written(&approved, &issued, Subresource::Status).1, 0);
        assert_eq!(written(&issued, &request(&["Approved"], Some("d")), Subresource::Status).1, 1);
        let (value, errors) = written(&approved, &issued, Subresource::Approval);
        assert_eq!((errors, &value["status"]["certificate"]), (0, &Value::Null), "approvers sign nothing");
        let mut other = approved.clone();
        other["spec"]["username"] = "v".into();
        assert_eq!(written(&approved, &other, Subresource::Status).0["spec"]["username"], "u");
    }
}
