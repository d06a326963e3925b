//! A request's body as a value of its kind: JSON, YAML or protobuf, bounded in depth, checked against the kind's schema.

use crate::front::Call;
use crate::protobuf;
use crate::query::FieldValidation;
use crate::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use manifests::{Kind, schema, yaml};
use serde_json::Value;

/// What bodies may be.
const BODY_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The media type of the body, without parameters; `application/json` when none is given.
pub fn content_type(headers: &HeaderMap) -> &str {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match given.split(';').next().unwrap_or_default().trim() {
        "" => "application/json",
        media_type => media_type,
    }
}

/// The body as a value, JSON, YAML or protobuf as its content type says.
///
/// # Errors
/// 415 for another content type, 400 for what does not parse (or is nested deeper than the parser goes).
pub fn value(headers: &HeaderMap, body: &Bytes) -> Result<Value, Status> {
    match content_type(headers) {
        "application/json" => json(body),
        "application/yaml" => {
            let text = std::str::from_utf8(body).map_err(|error| Status::bad_request(format!("yaml: {error}")))?;
            let documents = yaml::documents(text).map_err(|error| Status::bad_request(error.to_string()))?;
            documents
                .into_iter()
                .next()
                .map(|document| document.value)
                .ok_or_else(|| Status::bad_request("the body is empty"))
        }
        "application/vnd.kubernetes.protobuf" => {
            protobuf::decode(body).map_err(|error| Status::bad_request(error.to_string()))
        }
        other => Err(Status::unsupported_media_type(other, BODY_TYPES)),
    }
}

/// The body as JSON.
///
/// # Errors
/// 400 for what does not parse.
pub fn json(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}")))
}

/// The body as an object of the call's kind, with the warnings about fields it does not have.
///
/// # Errors
/// 400 when it is of another kind, has fields of the wrong type, or (strictly) unknown fields.
pub fn object(call: &Call, options: &str) -> Result<(Value, Vec<String>), Status> {
    let mut value = value(&call.headers, &call.body)?;
    let validation = call.query.field_validation(options)?;
    identify(call.kind, &mut value)?;
    let warnings = check(call.kind, &value, validation)?;
    Ok((value, warnings))
}

/// Sees that a value says the kind it is sent as; one that says nothing is taken for it.
///
/// # Errors
/// 400 when it says another kind.
pub fn identify(kind: &Kind, value: &mut Value) -> Result<(), Status> {
    let Some(fields) = value.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): not an object",
            kind.kind
        )));
    };
    let wanted_version = kind.api_version();
    let said = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, named) = (said("apiVersion"), said("kind"));
    if !version.is_empty() && version != wanted_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted_version})"
        )));
    }
    if !named.is_empty() && named != kind.kind {
        return Err(Status::bad_request(format!(
            "{named} in version {:?} cannot be handled as a {}: the kind in the data does not match the expected kind",
            kind.version, kind.kind
        )));
    }
    fields.insert("apiVersion".into(), wanted_version.into());
    fields.insert("kind".into(), kind.kind.into());
    Ok(())
}

/// Checks the shape of a value; what is unknown is a warning or an error.
///
/// # Errors
/// 400 for wrong types, and for unknown fields when the validation is strict.
pub fn check(kind: &Kind, value: &Value, validation: FieldValidation) -> Result<Vec<String>, Status> {
    let checked = schema::check(kind, value);
    if let Some(wrong) = checked.wrong.first() {
        return Err(Status::bad_request(format!(
            "{0} in version {1:?} cannot be handled as a {0}: {wrong}",
            kind.kind, kind.version
        )));
    }
    let unknown = checked.unknown.iter().map(|path| format!("unknown field {path:?}"));
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(unknown.collect()),
        FieldValidation::Strict if checked.unknown.is_empty() => Ok(Vec::new()),
        FieldValidation::Strict => {
            let list = unknown.collect::<Vec<_>>().join(", ");
            Err(Status::bad_request(format!(
                "{0} in version {1:?} cannot be handled as a {0}: strict decoding error: {list}",
                kind.kind, kind.version
            )))
        }
    }
}
