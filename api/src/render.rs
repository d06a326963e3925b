//! Objects on their way out: whole (the stored bytes as they are), metadata only, or as a table; JSON or YAML.

use crate::body::{self, Answer};
use crate::front::Call;
use crate::negotiate::{Format, Shape};
use crate::status::Status;
use crate::table;
use http::header::{HeaderName, HeaderValue};
use manifests::yaml;
use serde_json::{Value, json};
use state::Object;

/// `Warning` headers of one answer; more than these help nobody.
const WARNINGS_MAX: usize = 32;

/// One object as the answer.
pub fn object(call: &Call, code: u16, object: &Object) -> Result<Answer, Status> {
    if call.wanted.shape == Shape::Whole && call.wanted.format == Format::Json {
        return Ok(body::json_bytes(code, object.json().clone()));
    }
    value(call, code, object.value())
}

/// One object, as a value, as the answer.
pub fn value(call: &Call, code: u16, value: Value) -> Result<Answer, Status> {
    let shaped = match call.wanted.shape {
        Shape::Whole => value,
        Shape::Metadata => metadata_only(&value),
        Shape::Table => {
            let include = table::Include::of(&call.query)?;
            let meta = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
            table::table(call.kind, std::slice::from_ref(&value), meta, include, true, call.api.now())
        }
    };
    Ok(written(call, code, &shaped))
}

/// A value in the wanted format, as it is.
pub fn written(call: &Call, code: u16, value: &Value) -> Answer {
    match call.wanted.format {
        Format::Json => body::json(code, value),
        Format::Yaml => body::answer(code, "application/yaml", body::full(yaml::to_string(value))),
    }
}

/// An object's `PartialObjectMetadata`.
pub fn metadata_only(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// Adds `Warning` headers as RFC 7234 writes them.
pub fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let quoted: String = warning
            .chars()
            .filter(|char| !char.is_control())
            .flat_map(|char| if matches!(char, '"' | '\\') { vec!['\\', char] } else { vec![char] })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
}
