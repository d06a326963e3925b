//! Field selectors: `status.phase=Running,spec.nodeName!=`.

use super::{SELECTOR_BYTES_MAX, SelectorError};
use crate::Kind;
use serde_json::Value;

/// Conditions on fields that must all hold. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    is_equal: bool,
    value: String,
}

impl FieldSelector {
    /// Reads a selector as a query writes it, for a kind: only some fields of each can be selected by.
    ///
    /// # Errors
    /// When the text does not parse, or the kind cannot be selected by a field.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut terms = Vec::new();
        for part in split(text).iter().filter(|part| !part.is_empty()) {
            let term = Term::parse(part)?;
            let field = term.field.as_str();
            let is_meta = field == "metadata.name" || (kind.namespaced && field == "metadata.namespace");
            if !is_meta && !kind.selectable.contains(&field) {
                return Err(SelectorError::Field(field.to_owned()));
            }
            terms.push(term);
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have, if the selector says one: a watch of one name needs no scan.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.is_equal && term.field == field).map(|term| term.value.as_str())
    }

    /// Whether it selects this object.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (field(object, &term.field) == term.value) == term.is_equal)
    }
}

impl Term {
    fn parse(text: &str) -> Result<Self, SelectorError> {
        let malformed = || SelectorError::Syntax(format!("invalid selector: '{text}'; can't understand '{text}'"));
        let at = text.find(['=', '!']).ok_or_else(malformed)?;
        let (field, rest) = text.split_at(at);
        let (is_equal, value) = if let Some(value) = rest.strip_prefix("!=") {
            (false, value)
        } else {
            (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')).ok_or_else(malformed)?)
        };
        Ok(Self { field: field.to_owned(), is_equal, value: unescape(value) })
    }
}

/// Terms are separated by commas, unless a backslash stands before one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            ',' => parts.push(String::new()),
            '\\' => {
                let escaped = chars.next();
                parts.last_mut().into_iter().for_each(|part| part.extend(['\\'].into_iter().chain(escaped)));
            }
            char => parts.last_mut().into_iter().for_each(|part| part.push(char)),
        }
    }
    parts
}

fn unescape(value: &str) -> String {
    let mut chars = value.chars();
    let mut plain = String::with_capacity(value.len());
    while let Some(char) = chars.next() {
        plain.extend(if char == '\\' { chars.next() } else { Some(char) });
    }
    plain
}

/// A field as text. What is not there is empty, or what its absence means.
fn field(object: &Value, path: &str) -> String {
    let found = path.split('.').fold(object, |value, name| &value[name]);
    match (found, path) {
        (Value::String(text), _) => text.clone(),
        (Value::Null, "spec.unschedulable" | "spec.hostNetwork") => "false".into(),
        (Value::Null, "status.successful" | "status.replicas") => "0".into(),
        (Value::Null, "reason" | "reportingComponent") => String::new(),
        (Value::Null, "source") => object["source"]["component"].as_str().unwrap_or("").to_owned(),
        (Value::Null, _) => String::new(),
        (Value::Object(source), "source") => source.get("component").and_then(Value::as_str).unwrap_or("").to_owned(),
        (other, _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selects_by_the_fields_a_kind_has() {
        let pods = crate::by_kind("v1", "Pod").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "status": {"phase": "Running"}});
        let cases = [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,status.phase!=Failed", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            (r"metadata.name=a\,b", false),
        ];
        for (text, wanted) in cases {
            assert_eq!(FieldSelector::parse(pods, text).unwrap().matches(&pod), wanted, "{text}");
        }
        let texts =
            ["spec.foo=1", "metadata.name"].map(|text| FieldSelector::parse(pods, text).unwrap_err().to_string());
        expect_test::expect![[r#"
            [
                "field label not supported: spec.foo",
                "invalid selector: 'metadata.name'; can't understand 'metadata.name'",
            ]
        "#]]
        .assert_debug_eq(&texts);
    }
}
