//! Kubernetes' answer to everything that did not go well: a `Status` object with reason, code and details.
//!
//! The texts are Kubernetes' own: people and programs match on them. The command line uses this type too.

use manifests::field::FieldError;
use manifests::{Kind, Resource};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt;

/// An answer that is not the wanted object. As an error type it displays its message.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Kubernetes' machine-readable reason: `NotFound`.
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// `details`: name, group, kind, uid, causes, retryAfterSeconds.
    pub details: Option<Value>,
    /// `metadata`: a `continue` token to go on with.
    pub list_meta: Option<Value>,
}

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a PUT or PATCH lost a race.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl Status {
    /// A status without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None, list_meta: None }
    }

    fn about(code: u16, reason: &'static str, message: String, resource: &Resource, name: &str) -> Self {
        let mut details = json!({});
        for (field, value) in [("name", name), ("group", &resource.group), ("kind", &resource.plural)] {
            if !value.is_empty() {
                details[field] = value.into();
            }
        }
        Self { code, reason: reason.into(), message, details: Some(details), list_meta: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 for an object; `why` ends the sentence.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        Self::about(403, "Forbidden", message, resource, name)
    }

    /// 404 for an object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::about(404, "NotFound", format!("{resource} {name:?} not found"), resource, name)
    }

    /// 404 for a path under which there is nothing.
    pub fn no_such_path() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(json!({}));
        status
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let mut status = Self::new(405, "MethodNotAllowed", message);
        status.details = Some(json!({}));
        status
    }

    /// 406; `accepted` are the types that would do.
    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: it is there already.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::about(409, "AlreadyExists", format!("{resource} {name:?} already exists"), resource, name)
    }

    /// 409: it changed meanwhile, or a precondition does not hold; `why` ends the sentence.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::about(409, "Conflict", message, resource, name)
    }

    /// 410: the revision asked for is no longer there.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(body_bytes_max: usize) -> Self {
        let message = format!("Request entity too large: limit is {body_bytes_max}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    pub fn unsupported_media_type(sent: &str, accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}{}",
            if sent.is_empty() { String::new() } else { format!(" (sent: {sent})") }
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object's fields do not pass.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let causes = errors.iter().map(|error| (error.path.clone(), error.reason(), error.body()));
        Self::invalid_of(kind, name, &causes.collect::<Vec<_>>())
    }

    /// 422 about one field; `why` is as in `Invalid value: "x": is taken`.
    pub fn invalid_field(kind: &Kind, name: &str, path: &str, reason: &'static str, why: String) -> Self {
        Self::invalid_of(kind, name, &[(path.to_owned(), reason, why)])
    }

    fn invalid_of(kind: &Kind, name: &str, causes: &[(String, &'static str, String)]) -> Self {
        let qualified =
            if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
        let texts = causes.iter().map(|(path, _, message)| format!("{path}: {message}")).collect();
        let message = format!("{qualified} {name:?} is invalid: {}", aggregate(texts));
        let causes: Vec<Value> = causes
            .iter()
            .map(|(path, reason, message)| json!({"reason": reason, "message": message, "field": path}))
            .collect();
        let mut details = json!({"name": name, "kind": kind.kind, "causes": causes});
        if !kind.group.is_empty() {
            details["group"] = kind.group.into();
        }
        let mut status = Self::new(422, "Invalid", message);
        status.details = Some(details);
        status
    }

    /// 422 for a patch that cannot be applied to the object.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        let mut status = Self::new(422, "Invalid", "the server rejected our request due to an error in our request");
        status.details = Some(json!({"causes": [{"message": message.into()}]}));
        status
    }

    /// 429; the client should come back after so many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details = Some(json!({"retryAfterSeconds": retry_after_seconds}));
        status
    }

    /// 500; `message` says what failed.
    pub fn internal(message: impl fmt::Display) -> Self {
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        status.details = Some(json!({"causes": [{"message": message.to_string()}]}));
        status
    }

    /// 501: a thing that Kubernetes has and this does not.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {}", message.into()))
    }

    /// Seconds after which the client should try again.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    /// As it goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(meta) = &self.list_meta {
            status["metadata"] = meta.clone();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// The `Status` of something that went well and leaves no object: a deletion.
pub fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource.plural, "uid": uid});
    if !resource.group.is_empty() {
        details["group"] = resource.group.as_ref().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Several errors as Go prints an aggregate: one bare, more in brackets, duplicates once.
fn aggregate(texts: Vec<String>) -> String {
    let mut distinct: Vec<String> = Vec::new();
    for text in texts {
        if !distinct.contains(&text) {
            distinct.push(text);
        }
    }
    if distinct.len() == 1 { distinct.remove(0) } else { format!("[{}]", distinct.join(", ")) }
}
