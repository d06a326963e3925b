//! POST: an object that is not there yet.

use super::commit;
use crate::body::Answer;
use crate::front::Call;
use crate::status::Status;
use crate::{admission, decode, render};
use k8s_openapi::api::core::v1::Namespace;
use manifests::Resource;
use serde_json::{Value, json};
use state::{Key, Object, Revision, Write};

/// Tries of a create whose generated name was taken.
const NAME_TRIES_MAX: u32 = 8;

pub(super) async fn create(call: &Call) -> Result<Answer, Status> {
    let is_dry = call.query.dry_run("CreateOptions")?;
    let (mut value, warnings) = decode::object(call, "CreateOptions")?;
    let object = create_value(call, &mut value, is_dry).await?;
    let mut answer = render::object(call, 201, &object)?;
    render::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Creates a decoded object.
pub(super) async fn create_value(call: &Call, value: &mut Value, is_dry: bool) -> Result<Object, Status> {
    place(call, value)?;
    live_namespace(call, value["metadata"]["name"].as_str().unwrap_or_default())?;
    strip(call, value);
    (call.kind.default)(value);
    let is_generated = value["metadata"]["name"].as_str().is_none_or(str::is_empty);
    let mut tries_left = if is_generated { NAME_TRIES_MAX } else { 1 };
    loop {
        tries_left -= 1;
        let mut candidate = value.clone();
        let (expect_key, outcome) = attempt(call, &mut candidate, is_dry).await;
        match outcome {
            Err(status) if status.reason == "AlreadyExists" && tries_left > 0 => {
                tracing::debug!(key = %expect_key, "generated name is taken");
            }
            outcome => return outcome,
        }
    }
}

async fn attempt(call: &Call, value: &mut Value, is_dry: bool) -> (Key, Result<Object, Status>) {
    call.api.stamped(|stamp| stamp.complete(value, call.kind.counts_generation));
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = Key::new(call.resource(), &call.at.namespace, &name);
    // held until the commit is in the world, so that nobody else is given the same address
    let allocation = match admission::admit(call, value, None).await {
        Ok(allocation) => allocation,
        Err(status) => return (key, Err(status)),
    };
    let errors = (call.kind.validate)(value, None);
    if !errors.is_empty() {
        return (key, Err(Status::invalid(call.kind, &name, &errors)));
    }
    let outcome = if is_dry {
        dry(call, &key, value.take())
    } else {
        match commit(call, Write::create(key.clone(), value.take())).await {
            Ok(event) => {
                Object::decode(call.resource(), event.revision, event.object.json().clone()).map_err(Status::internal)
            }
            Err(status) => Err(status),
        }
    };
    drop(allocation);
    (key, outcome)
}

fn dry(call: &Call, key: &Key, value: Value) -> Result<Object, Status> {
    if call.api.world().get(key).is_some() {
        return Err(Status::already_exists(&key.resource, &key.name));
    }
    let bytes = serde_json::to_vec(&value).map_err(Status::internal)?;
    Object::decode(call.resource(), Revision(0), bytes.into()).map_err(Status::internal)
}

/// Gives the object the namespace of the path, or refuses it.
fn place(call: &Call, value: &mut Value) -> Result<(), Status> {
    let fields = value.as_object_mut().ok_or_else(|| Status::bad_request("the body is no object"))?;
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    let metadata = metadata.as_object_mut().ok_or_else(|| Status::bad_request("metadata is no object"))?;
    let said = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !said.is_empty() && said != call.at.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if call.kind.namespaced {
        metadata.insert("namespace".into(), call.at.namespace.clone().into());
    } else {
        metadata.remove("namespace");
    }
    let has = |field: &str| metadata.get(field).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    if !has("name") && !has("generateName") {
        let why = "Required value: name or generateName is required".to_owned();
        return Err(Status::invalid_field(call.kind, "", "metadata.name", "FieldValueRequired", why));
    }
    Ok(())
}

/// What a client cannot say at creation.
fn strip(call: &Call, value: &mut Value) {
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for field in [
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            metadata.remove(field);
        }
    }
    // a node comes with what it knows of itself
    if call.kind.subresources.contains(&"status")
        && call.kind.kind != "Node"
        && let Some(fields) = value.as_object_mut()
    {
        fields.remove("status");
    }
}

/// Sees that the path's namespace is there and stays.
///
/// # Errors
/// 404 when it is not there, 403 when it is about to go.
fn live_namespace(call: &Call, object: &str) -> Result<(), Status> {
    let name = &call.at.namespace;
    if !call.kind.namespaced {
        return Ok(());
    }
    let world = call.api.world();
    let namespaces = Resource::of::<Namespace>();
    let key = Key::new(namespaces.clone(), "", name);
    let namespace = world.get(&key).ok_or_else(|| Status::not_found(&namespaces, name))?;
    if namespace.is_deleting() {
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let mut status = Status::forbidden(&call.resource(), object, &why);
        if let Some(details) = &mut status.details {
            let message = format!("namespace {name} is being terminated");
            let cause = json!({"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"});
            details["causes"] = json!([cause]);
        }
        return Err(status);
    }
    Ok(())
}
