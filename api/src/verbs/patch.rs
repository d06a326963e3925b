//! PATCH: three kinds of patches, applied to the current object until nobody changes it meanwhile.

use super::update::{Subresource, update_with};
use crate::body::Answer;
use crate::front::Call;
use crate::patch::{self, PatchError};
use crate::query::FieldValidation;
use crate::status::Status;
use crate::{decode, render};
use serde_json::Value;

const PATCH_TYPES: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// A patch as it was sent.
pub(crate) enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Of the call's body.
    ///
    /// # Errors
    /// 415 for a type there is not (server-side apply among them), 400 for what does not parse.
    pub(crate) fn of(call: &Call) -> Result<Self, Status> {
        let content_type = decode::content_type(&call.headers);
        match content_type {
            "application/json-patch+json" => decode::json(&call.body).map(Self::Json),
            "application/merge-patch+json" => decode::json(&call.body).map(Self::Merge),
            "application/strategic-merge-patch+json" => decode::json(&call.body).map(Self::Strategic),
            other => Err(Status::unsupported_media_type(other, PATCH_TYPES)),
        }
    }

    /// What it makes of a value of the call's kind.
    ///
    /// # Errors
    /// 400 for a malformed patch, 422 for one that does not apply.
    pub(crate) fn apply(&self, call: &Call, value: &Value) -> Result<Value, Status> {
        let patched = match self {
            Self::Json(operations) => patch::json::apply(value, operations),
            Self::Merge(changes) => {
                let mut value = value.clone();
                patch::merge::apply(&mut value, changes);
                Ok(value)
            }
            Self::Strategic(changes) => patch::strategic::apply(value, changes, &patch::rules_of(call.kind)),
        };
        patched.map_err(|error| match error {
            PatchError::Malformed(message) => Status::bad_request(message),
            PatchError::Inapplicable(message) => Status::unprocessable(message),
            PatchError::TooLarge { bytes_max } => Status::too_large(bytes_max),
        })
    }
}

pub(super) async fn patch(call: &Call, part: Subresource) -> Result<Answer, Status> {
    let is_dry = call.query.dry_run("PatchOptions")?;
    let validation = call.query.field_validation("PatchOptions")?;
    let patch = Patch::of(call)?;
    let mut warnings = Vec::new();
    let tries_max = call.api.limits().patch_tries_max;
    let object = update_with(call, part, is_dry, tries_max, |current| {
        let old = current.value();
        let mut value = patch.apply(call, &old)?;
        decode::identify(call.kind, &mut value)?;
        if value["metadata"]["name"] != old["metadata"]["name"] {
            return Err(Status::bad_request("the name of the object may not be changed by a patch"));
        }
        warnings = checked(call, &value, &old, validation)?;
        // a patch that leaves the resourceVersion alone is no claim about it
        if value["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]
            && let Some(metadata) = value["metadata"].as_object_mut()
        {
            metadata.remove("resourceVersion");
        }
        Ok(value)
    })
    .await?;
    let mut answer = render::object(call, 200, &object)?;
    render::warn(&mut answer, &warnings);
    Ok(answer)
}

/// The patched value's shape; fields that were unknown before the patch are not this client's.
fn checked(call: &Call, value: &Value, old: &Value, validation: FieldValidation) -> Result<Vec<String>, Status> {
    let known = decode::check(call.kind, old, FieldValidation::Warn).unwrap_or_default();
    let mut warnings = decode::check(call.kind, value, FieldValidation::Warn)?;
    warnings.retain(|warning| !known.contains(warning));
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !warnings.is_empty() => {
            // Kubernetes answers a patch in other words than a create
            let mut status = Status::new(
                422,
                "Invalid",
                format!(
                    "{} {:?} is invalid: patch: Invalid value: strict decoding error: {}",
                    call.kind.kind,
                    call.at.name,
                    warnings.join(", ")
                ),
            );
            status.details = Some(serde_json::json!({"name": call.at.name, "kind": call.kind.kind, "causes": [
                {"reason": "FieldValueInvalid", "message": format!("strict decoding error: {}", warnings.join(", ")), "field": "patch"},
            ]}));
            Err(status)
        }
        _ => Ok(warnings),
    }
}
