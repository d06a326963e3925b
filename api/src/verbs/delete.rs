//! DELETE of an object and of a collection. What a deletion does to an object is `state`'s to know.

use super::{commit, find};
use crate::body::Answer;
use crate::front::Call;
use crate::query::not_dry_run;
use crate::selection::Selection;
use crate::status::{self, Status};
use crate::{decode, render};
use serde_json::{Value, json};
use state::{Deletion, Object, Propagation, Write};
use std::sync::Arc;

/// Namespaces that are always there.
const ETERNAL_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public"];

/// `DeleteOptions`, from the body and the query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub deletion: Deletion,
    pub uid: Option<String>,
    pub revision: Option<String>,
    pub is_dry: bool,
}

impl Options {
    fn of(call: &Call) -> Result<Self, Status> {
        let body = if call.body.is_empty() { Value::Null } else { decode::value(&call.headers, &call.body)? };
        let mut options = Self::of_value(&body)?;
        options.is_dry |= call.query.dry_run("DeleteOptions")?;
        if let Some(seconds) = call.query.number("gracePeriodSeconds")? {
            options.deletion.grace_seconds = Some(seconds);
        }
        let policy = call.query.get("propagationPolicy");
        if let Some(propagation) = propagation(policy, call.query.flag_given("orphanDependents"))? {
            options.deletion.propagation = Some(propagation);
        }
        Ok(options)
    }

    /// Of a `DeleteOptions` object.
    ///
    /// # Errors
    /// 400 for another kind, 422 for words it does not have.
    pub(crate) fn of_value(body: &Value) -> Result<Self, Status> {
        if body.get("kind").and_then(Value::as_str).is_some_and(|kind| kind != "DeleteOptions") {
            return Err(Status::bad_request("decoded object cannot be converted to DeleteOptions"));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut is_dry = false;
        for value in body["dryRun"].as_array().into_iter().flatten() {
            if value != "All" {
                return Err(not_dry_run("DeleteOptions", value.as_str().unwrap_or_default()));
            }
            is_dry = true;
        }
        let propagation = propagation(body["propagationPolicy"].as_str(), body["orphanDependents"].as_bool())?;
        Ok(Self {
            deletion: Deletion { grace_seconds: body["gracePeriodSeconds"].as_i64(), propagation },
            uid: text(&body["preconditions"]["uid"]),
            revision: text(&body["preconditions"]["resourceVersion"]),
            is_dry,
        })
    }
}

fn propagation(policy: Option<&str>, orphan: Option<bool>) -> Result<Option<Propagation>, Status> {
    let refuse = |field: &str, reason: &str, why: String| {
        Err(crate::query::invalid_option("DeleteOptions", field, reason, &why))
    };
    match (policy, orphan) {
        (Some(_), Some(_)) => refuse(
            "propagationPolicy",
            "FieldValueInvalid",
            "Invalid value: orphanDependents and deletionPropagation cannot be both set".into(),
        ),
        (Some("Background"), None) | (None, Some(false)) => Ok(Some(Propagation::Background)),
        (Some("Foreground"), None) => Ok(Some(Propagation::Foreground)),
        (Some("Orphan"), None) | (None, Some(true)) => Ok(Some(Propagation::Orphan)),
        (None, None) => Ok(None),
        (Some(other), None) => refuse(
            "propagationPolicy",
            "FieldValueNotSupported",
            format!(r#"Unsupported value: {other:?}: supported values: "Background", "Foreground", "Orphan""#),
        ),
    }
}

pub(super) async fn delete(call: &Call) -> Result<Answer, Status> {
    let options = Options::of(call)?;
    let object = find(call, &call.api.world())?;
    if let Some(left) = delete_object(call, object.clone(), &options).await? {
        return render::object(call, 200, &left);
    }
    if call.kind.kind == "Pod" {
        return render::object(call, 200, &object);
    }
    let done = status::success(&call.resource(), &object.meta().name, &object.meta().uid);
    Ok(render::written(call, 200, &done))
}

/// Deletes an object, or asks it to go. Answers what is left of it: nothing, or the object on its way.
///
/// # Errors
/// 409 for a precondition that does not hold, 403 for what may not be deleted, 404 when it is gone already.
pub(crate) async fn delete_object(
    call: &Call,
    mut object: Arc<Object>,
    options: &Options,
) -> Result<Option<Arc<Object>>, Status> {
    let (resource, key) = (call.resource(), object.key().clone());
    if call.kind.kind == "Namespace" && ETERNAL_NAMESPACES.contains(&&*key.name) {
        return Err(Status::forbidden(&resource, &key.name, "this namespace may not be deleted"));
    }
    let mut tries_left = call.api.limits().patch_tries_max;
    loop {
        tries_left = tries_left.saturating_sub(1);
        precondition(call, &object, options)?;
        let Some(write) = Write::delete_gracefully(&object, options.deletion, call.api.now()) else {
            return Ok(Some(object));
        };
        let goes = write.value.is_none();
        if options.is_dry {
            let shown = write.value.map(|value| Object::encode(resource, object.revision(), value));
            return shown.transpose().map_err(Status::internal).map(|left| left.map(Arc::new));
        }
        match commit(call, write).await {
            Ok(_) if goes => return Ok(None),
            Ok(event) => return Ok(Some(event.object.clone())),
            Err(status) if status.code == 409 && tries_left > 0 => {
                let world = call.api.world();
                object = world.get(&key).cloned().ok_or_else(|| Status::not_found(&resource, &key.name))?;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Sees that the object is the one that is meant.
///
/// # Errors
/// 409 when it is not.
pub(crate) fn precondition(call: &Call, object: &Object, options: &Options) -> Result<(), Status> {
    let (resource, name) = (call.resource(), &object.meta().name);
    let uid = &object.meta().uid;
    if let Some(wanted) = options.uid.as_ref().filter(|wanted| *wanted != uid) {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Status::conflict(&resource, name, &why));
    }
    let revision = object.revision().to_string();
    if let Some(wanted) = options.revision.as_ref().filter(|wanted| **wanted != revision) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {revision}"
        );
        return Err(Status::conflict(&resource, name, &why));
    }
    Ok(())
}

pub(super) async fn delete_collection(call: &Call) -> Result<Answer, Status> {
    if call.kind.kind == "Namespace" {
        return Err(Status::method_not_allowed());
    }
    let options = Options::of(call)?;
    let selection = Selection::of(call)?;
    let world = call.api.world();
    let mut items = Vec::new();
    for object in world.list(&call.resource(), selection.namespace()) {
        if !selection.takes(object) {
            continue;
        }
        match delete_object(call, object.clone(), &options).await {
            Ok(left) => items.push(left.unwrap_or_else(|| object.clone()).value()),
            // gone meanwhile: what was wanted
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": format!("{}List", call.kind.kind),
        "apiVersion": call.kind.api_version(),
        "metadata": {"resourceVersion": call.api.world().revision().to_string()},
        "items": items,
    });
    Ok(render::written(call, 200, &list))
}
