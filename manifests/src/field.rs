//! What is wrong with a field, in Kubernetes' words, and the cursor that finds it: [`At`] walks an object and knows where
//! it is.

use serde_json::Value;
use std::fmt;

/// One thing wrong with one field. Displays as `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct FieldError {
    /// Where: `spec.containers[0].image`.
    pub path: String,
    /// What is wrong there.
    pub fault: Fault,
}

/// The ways a field can be wrong; Kubernetes' `field.ErrorType`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It must be there.
    Required(String),
    /// Its value does not do.
    Invalid(Value, String),
    /// Its value is not one of these.
    NotSupported(Value, Vec<String>),
    /// Another field has the same value already.
    Duplicate(Value),
    /// It names something that is not there.
    NotFound(Value),
    /// It must not be there, or must not change.
    Forbidden(String),
    /// It is longer than so many bytes.
    TooLong(usize),
    /// It has so many items, more than it may.
    TooMany(usize, usize),
}

impl FieldError {
    /// The machine-readable reason of a `Status`' cause: `FieldValueInvalid`.
    pub fn reason(&self) -> &'static str {
        match self.fault {
            Fault::Required(_) => "FieldValueRequired",
            Fault::Invalid(..) => "FieldValueInvalid",
            Fault::NotSupported(..) => "FieldValueNotSupported",
            Fault::Duplicate(_) => "FieldValueDuplicate",
            Fault::NotFound(_) => "FieldValueNotFound",
            Fault::Forbidden(_) => "FieldValueForbidden",
            Fault::TooLong(_) => "FieldValueTooLong",
            Fault::TooMany(..) => "FieldValueTooMany",
        }
    }

    /// The text without the path, as in a cause's message.
    pub fn body(&self) -> String {
        self.fault.to_string()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = |f: &mut fmt::Formatter<'_>, head: &str, detail: &str| {
            if detail.is_empty() { f.write_str(head) } else { write!(f, "{head}: {detail}") }
        };
        match self {
            Self::Required(detail) => with(f, "Required value", detail),
            Self::Invalid(value, detail) => with(f, &format!("Invalid value: {value}"), detail),
            Self::NotSupported(value, supported) => {
                let supported: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
                write!(f, "Unsupported value: {value}: supported values: {}", supported.join(", "))
            }
            Self::Duplicate(value) => write!(f, "Duplicate value: {value}"),
            Self::NotFound(value) => write!(f, "Not found: {value}"),
            Self::Forbidden(detail) => with(f, "Forbidden", detail),
            Self::TooLong(bytes_max) => write!(f, "Too long: may not be more than {bytes_max} bytes"),
            Self::TooMany(items, items_max) => write!(f, "Too many: {items}: must have at most {items_max} items"),
        }
    }
}

/// A place in an object: a value and the path that leads to it. What is not there is null.
#[derive(Clone, Debug)]
pub struct At<'v> {
    /// What is there.
    pub value: &'v Value,
    path: String,
}

impl<'v> At<'v> {
    /// The whole object.
    pub fn root(value: &'v Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A field of it.
    pub fn field(&self, name: &str) -> At<'v> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        At { value: &self.value[name], path }
    }

    /// A field of a field of it.
    pub fn fields(&self, names: &[&str]) -> At<'v> {
        names.iter().fold(self.clone(), |at, name| at.field(name))
    }

    /// The items of a list, with their index in the path.
    pub fn items(&self) -> impl Iterator<Item = At<'v>> + use<'v> {
        let path = self.path.clone();
        let items = self.value.as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(move |(index, value)| At { value, path: format!("{path}[{index}]") })
    }

    /// The entries of a map, with their key in the path.
    pub fn entries(&self) -> impl Iterator<Item = (&'v str, At<'v>)> + use<'v> {
        let path = self.path.clone();
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(move |(key, value)| (key.as_str(), At { value, path: format!("{path}[{key}]") }))
    }

    /// How many items or entries there are.
    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(items) => items.len(),
            Value::Object(entries) => entries.len(),
            _ => 0,
        }
    }

    /// Whether there are no items or entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its text; empty when there is none.
    pub fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or("")
    }

    /// Its number.
    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether it is true.
    pub fn is_true(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    /// Whether something is there.
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Where this is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// That something is wrong here.
    pub fn fault(&self, fault: Fault) -> FieldError {
        FieldError { path: self.path.clone(), fault }
    }

    /// That it must be there.
    pub fn required(&self, detail: &str) -> FieldError {
        self.fault(Fault::Required(detail.to_owned()))
    }

    /// That the value here does not do.
    pub fn invalid(&self, detail: impl Into<String>) -> FieldError {
        self.fault(Fault::Invalid(self.value.clone(), detail.into()))
    }

    /// That the value here is not one of these.
    pub fn not_supported(&self, supported: &[&str]) -> FieldError {
        let value = if self.is_set() { self.value.clone() } else { Value::from("") };
        self.fault(Fault::NotSupported(value, supported.iter().map(|word| (*word).to_owned()).collect()))
    }

    /// That a value which must be there is missing or none of these; nothing when it is one of them.
    pub fn one_of(&self, supported: &[&str]) -> Option<FieldError> {
        match self.text() {
            "" => Some(self.required("")),
            text if supported.contains(&text) => None,
            _ => Some(self.not_supported(supported)),
        }
    }

    /// That a number is less than zero.
    pub fn non_negative(&self) -> Option<FieldError> {
        self.int().filter(|number| *number < 0).map(|_| self.invalid("must be greater than or equal to 0"))
    }

    /// That another has the value already.
    pub fn duplicate(&self) -> FieldError {
        self.fault(Fault::Duplicate(self.value.clone()))
    }

    /// That it must not be there, or not change.
    pub fn forbidden(&self, detail: &str) -> FieldError {
        self.fault(Fault::Forbidden(detail.to_owned()))
    }
}

/// Every way in which a name or a number of this place is wrong, by one of the checks of [`crate::names`].
pub fn invalid_by(at: &At<'_>, faults: Vec<String>) -> impl Iterator<Item = FieldError> {
    let at = at.clone();
    faults.into_iter().map(move |fault| at.invalid(fault))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_read_as_kubernetes_says_them() {
        let value = json!({"spec": {"replicas": -1, "type": "x", "data": {"a b": 1}}});
        let spec = At::root(&value).field("spec");
        let texts = [
            spec.field("replicas").invalid("must be greater than or equal to 0").to_string(),
            spec.field("type").not_supported(&["A", "B"]).to_string(),
            spec.field("none").required("").to_string(),
            spec.field("data").entries().next().map(|(_, at)| at.duplicate().to_string()).unwrap_or_default(),
        ];
        expect_test::expect![[r#"
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.type: Unsupported value: \"x\": supported values: \"A\", \"B\"",
                "spec.none: Required value",
                "spec.data[a b]: Duplicate value: 1",
            ]
        "#]]
        .assert_debug_eq(&texts);
    }
}
