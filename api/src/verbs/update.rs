//! PUT, and the half of PATCH that comes after the patch: a new value in place of the current one.

use super::{commit, create, find};
use crate::body::Answer;
use crate::front::Call;
use crate::status::{MODIFIED, Status};
use crate::{admission, decode, render, requests};
use serde_json::{Map, Value};
use state::{Object, Write, is_finished};
use std::sync::Arc;

/// Kinds that PUT creates when they are not there, as in Kubernetes.
const CREATED_BY_UPDATE: &[&str] = &["Endpoints", "Event", "Lease", "Service"];

/// Which part of the object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subresource {
    /// The desired state.
    None,
    /// The observed state.
    Status,
    /// A namespace's `spec.finalizers`.
    Finalize,
    /// A pod's node, and the condition that says so.
    Binding,
    /// A pod's `spec.ephemeralContainers`.
    EphemeralContainers,
    /// Whether a certificate is to be signed.
    Approval,
}

pub(super) async fn update(call: &Call, part: Subresource) -> Result<Answer, Status> {
    let is_dry = call.query.dry_run("UpdateOptions")?;
    let (mut value, warnings) = decode::object(call, "UpdateOptions")?;
    let metadata = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, namespace, said) = (metadata("name"), metadata("namespace"), metadata("resourceVersion"));
    if name != call.at.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.at.name
        )));
    }
    if !namespace.is_empty() && namespace != call.at.namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
            call.at.namespace
        )));
    }
    let is_unconditional = said.is_empty() || said == "0";
    let is_absent = call.api.world().get(&call.key()).is_none();
    let (code, object) = if is_absent && is_unconditional && CREATED_BY_UPDATE.contains(&call.kind.kind) {
        (201, Arc::new(create::create_value(call, &mut value, is_dry).await?))
    } else {
        let tries_max = if is_unconditional { call.api.limits().patch_tries_max } else { 1 };
        (200, update_with(call, part, is_dry, tries_max, |_| Ok(value.clone())).await?)
    };
    let mut answer = render::object(call, code, &object)?;
    render::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Replaces the object the path names by what `change` makes of it; asks `change` again, up to `tries_max` times, when
/// the object changed meanwhile.
///
/// # Errors
/// 404, 409, 422, and what `change` answers.
pub(crate) async fn update_with(
    call: &Call,
    part: Subresource,
    is_dry: bool,
    tries_max: u32,
    mut change: impl FnMut(&Object) -> Result<Value, Status>,
) -> Result<Arc<Object>, Status> {
    let mut tries_left = tries_max;
    loop {
        tries_left = tries_left.saturating_sub(1);
        let current = find(call, &call.api.world())?;
        let wanted = change(&current)?;
        match replace(call, part, is_dry, &current, wanted).await {
            // only the store's own conflict is one with somebody else: the caller's preconditions are checked before
            Err(Refused::Raced(_)) if tries_left > 0 => {}
            Err(Refused::Raced(status) | Refused::Final(status)) => return Err(status),
            Ok(object) => return Ok(object),
        }
    }
}

/// Why a replacement was not made.
enum Refused {
    /// The object changed between the decision and the commit.
    Raced(Status),
    /// Asking again would not help.
    Final(Status),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Final(status)
    }
}

async fn replace(
    call: &Call,
    part: Subresource,
    is_dry: bool,
    current: &Arc<Object>,
    mut value: Value,
) -> Result<Arc<Object>, Refused> {
    precondition(call, current, &value)?;
    let old = current.value();
    if call.kind.namespaced {
        value["metadata"]["namespace"] = call.at.namespace.clone().into();
    }
    keep(&mut value, &old, part, call);
    (call.kind.default)(&mut value);
    let allocation = admission::admit(call, &mut value, Some(&old)).await?;
    let mut errors = (call.kind.validate)(&value, Some(&old));
    if call.kind.kind == "CertificateSigningRequest" {
        errors.extend(requests::check(&value, &old, part));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(call.kind, &call.at.name, &errors).into());
    }
    if value == old && !is_finished(&value) {
        return Ok(current.clone());
    }
    let write = Write::update(current, value.clone());
    if is_dry {
        let shown = write.value.unwrap_or(value);
        let object = Object::encode(call.resource(), current.revision(), shown).map_err(Status::internal)?;
        return Ok(Arc::new(object));
    }
    let committed = commit(call, write).await;
    drop(allocation);
    match committed {
        Ok(event) => Ok(event.object.clone()),
        Err(status) if status.code == 409 => Err(Refused::Raced(status)),
        Err(status) => Err(Refused::Final(status)),
    }
}

/// What the client says it saw must be what is there.
fn precondition(call: &Call, current: &Object, value: &Value) -> Result<(), Status> {
    let said = |field: &str| value["metadata"][field].as_str().filter(|text| !text.is_empty());
    let uid = &current.meta().uid;
    if let Some(wanted) = said("uid").filter(|wanted| wanted != uid) {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Status::conflict(&call.resource(), &call.at.name, &why));
    }
    if let Some(wanted) = said("resourceVersion").filter(|wanted| *wanted != "0")
        && wanted != current.revision().to_string()
    {
        return Err(Status::conflict(&call.resource(), &call.at.name, MODIFIED));
    }
    Ok(())
}

/// Puts back what this write may not change.
fn keep(value: &mut Value, old: &Value, part: Subresource, call: &Call) {
    let (Some(new), Some(old)) = (value.as_object_mut(), old.as_object()) else { return };
    let old_metadata = old.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let metadata = new.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    if let Some(metadata) = metadata.as_object_mut() {
        let mut fixed = vec![
            "name",
            "generateName",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ];
        if matches!(part, Subresource::Status | Subresource::Approval) {
            fixed.extend(["labels", "ownerReferences", "finalizers"]);
        }
        for field in fixed {
            restore(metadata, &old_metadata, field);
        }
    }
    match part {
        Subresource::None if call.kind.subresources.contains(&"status") => restore(new, old, "status"),
        Subresource::EphemeralContainers => keep_but_ephemeral(new, old),
        Subresource::None | Subresource::Binding | Subresource::Approval => {}
        Subresource::Status | Subresource::Finalize => {
            let kept = if part == Subresource::Status { "status" } else { "spec" };
            let names: Vec<String> = new.keys().chain(old.keys()).cloned().collect();
            for name in names {
                if name != kept && name != "metadata" {
                    restore(new, old, &name);
                }
            }
        }
    }
    if call.kind.kind == "CertificateSigningRequest" {
        requests::keep(new, old, part, call.api.now());
    }
    // a pod's ephemeral containers come through their own door
    if call.kind.kind == "Pod"
        && part == Subresource::None
        && let (Some(Value::Object(spec)), Some(Value::Object(old))) = (new.get_mut("spec"), old.get("spec"))
    {
        restore(spec, old, "ephemeralContainers");
    }
    // spec.finalizers of a namespace are its controller's, through /finalize
    if call.kind.kind == "Namespace"
        && part != Subresource::Finalize
        && let Some(spec) = old.get("spec")
    {
        new.insert("spec".into(), spec.clone());
    }
}

/// Takes nothing but the ephemeral containers of `new`.
fn keep_but_ephemeral(new: &mut Map<String, Value>, old: &Map<String, Value>) {
    let wanted = new.get_mut("spec").and_then(|spec| spec.as_object_mut()?.remove("ephemeralContainers"));
    *new = old.clone();
    let Some(Value::Object(spec)) = new.get_mut("spec") else { return };
    match wanted {
        None | Some(Value::Null) => drop(spec.remove("ephemeralContainers")),
        Some(wanted) => drop(spec.insert("ephemeralContainers".into(), wanted)),
    }
}

fn restore(new: &mut Map<String, Value>, old: &Map<String, Value>, field: &str) {
    match old.get(field) {
        Some(value) => {
            new.insert(field.to_owned(), value.clone());
        }
        None => {
            new.remove(field);
        }
    }
}
