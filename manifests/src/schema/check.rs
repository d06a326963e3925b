//! Does an object have its kind's shape? Unknown fields and wrong types, with their paths.

use super::types::{Shape, Type, Types};
use crate::Kind;
use crate::quantity;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fmt;

/// Findings of each sort that are reported; one client's nonsense fills no memory.
const FINDINGS_MAX: usize = 64;

/// What is not as the schema has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Paths of fields that the kind does not have: `spec.template.spec.containers[0].foo`.
    pub unknown: Vec<String>,
    /// Fields of the wrong type.
    pub wrong: Vec<Wrong>,
}

/// A field of the wrong type. Displays as Kubernetes' decoder says it: `json: cannot unmarshal string into Go struct field
/// DeploymentSpec.spec.replicas of type int32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Where it is: `spec.ports[0].port`.
    pub path: String,
    message: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Checks an object against the schema of its kind.
pub fn check(kind: &Kind, value: &Value) -> Checked {
    let mut walk = Walk { types: Types::get(), path: String::new(), checked: Checked::default() };
    if let Some(root) = walk.types.root(kind) {
        walk.object(root, value);
    }
    walk.checked
}

struct Walk {
    types: &'static Types,
    path: String,
    checked: Checked,
}

impl Walk {
    fn object(&mut self, of: &Type, value: &Value) {
        let Some(fields) = value.as_object() else { return };
        for (name, value) in fields {
            let before = self.path.len();
            if before > 0 {
                self.path.push('.');
            }
            self.path.push_str(name);
            match of.field(name) {
                Some(shape) => self.shape(of, shape, value),
                None if self.checked.unknown.len() < FINDINGS_MAX => self.checked.unknown.push(self.path.clone()),
                None => {}
            }
            self.path.truncate(before);
        }
    }

    fn shape(&mut self, of: &Type, shape: &Shape, value: &Value) {
        match (shape, value) {
            (Shape::Any, _) | (_, Value::Null) => {}
            (Shape::Of(index), Value::Object(_)) => self.object(self.types.at(*index), value),
            (Shape::List(inner), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.step(format!("[{index}]"), of, inner, item);
                }
            }
            (Shape::Map(inner), Value::Object(entries)) => {
                for (key, entry) in entries {
                    self.step(format!(".{key}"), of, inner, entry);
                }
            }
            (Shape::Bytes, Value::String(text)) => {
                if let Err(error) = STANDARD.decode(text) {
                    self.wrong(base64_fault(text, &error));
                }
            }
            (Shape::Time, Value::String(text)) => {
                if text.parse::<jiff::Timestamp>().is_err() {
                    let layout = "2006-01-02T15:04:05Z07:00";
                    self.wrong(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""));
                }
            }
            (Shape::Quantity, Value::String(text)) => {
                if let Err(error) = quantity::parse(text) {
                    self.wrong(error.to_string());
                }
            }
            (Shape::Quantity, Value::Number(number)) => {
                if let Err(error) = quantity::parse(&number.to_string()) {
                    self.wrong(error.to_string());
                }
            }
            (shape, value) if fits(shape, value) => {}
            (shape, value) => {
                let place = without_indexes(&self.path);
                let message = format!(
                    "json: cannot unmarshal {} into Go struct field {}.{place} of type {}",
                    found(value),
                    of.short_name(),
                    self.wanted(shape)
                );
                self.wrong(message);
            }
        }
    }

    fn step(&mut self, step: String, of: &Type, shape: &Shape, value: &Value) {
        let before = self.path.len();
        self.path.push_str(&step);
        self.shape(of, shape, value);
        self.path.truncate(before);
    }

    fn wrong(&mut self, message: String) {
        if self.checked.wrong.len() < FINDINGS_MAX {
            self.checked.wrong.push(Wrong { path: self.path.clone(), message });
        }
    }

    fn wanted(&self, shape: &Shape) -> String {
        match shape {
            Shape::Of(index) => {
                let of = self.types.at(*index);
                let version = of.name.rsplit('.').nth(1).unwrap_or_default();
                format!("{version}.{}", of.short_name())
            }
            Shape::String => "string".into(),
            Shape::Bytes => "[]uint8".into(),
            Shape::Time => "string".into(),
            Shape::Int32 => "int32".into(),
            Shape::Int64 => "int64".into(),
            Shape::Number => "float64".into(),
            Shape::Bool => "bool".into(),
            Shape::Quantity => "resource.Quantity".into(),
            Shape::IntOrString => "intstr.IntOrString".into(),
            Shape::List(inner) => format!("[]{}", self.wanted(inner)),
            Shape::Map(inner) => format!("map[string]{}", self.wanted(inner)),
            Shape::Any => "interface {}".into(),
        }
    }
}

fn fits(shape: &Shape, value: &Value) -> bool {
    let is_int32 = || value.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
    match shape {
        Shape::String => value.is_string(),
        Shape::Int32 => is_int32(),
        Shape::Int64 => value.is_i64(),
        Shape::Number => value.is_number(),
        Shape::Bool => value.is_boolean(),
        Shape::IntOrString => value.is_string() || is_int32(),
        _ => false,
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if number.is_f64() || number.as_i64().is_none_or(|n| i32::try_from(n).is_err()) => {
            format!("number {number}")
        }
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

/// The decoder names no indexes: `spec.containers.ports`.
fn without_indexes(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for char in path.chars() {
        match char {
            '[' => inside = true,
            ']' => inside = false,
            char if !inside => plain.push(char),
            _ => {}
        }
    }
    plain
}

fn base64_fault(text: &str, error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        _ => text.len(),
    };
    format!("illegal base64 data at input byte {at}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn expect_checked(kind: (&str, &str), yaml: &str, wanted: &Expect) {
        let value = &crate::yaml::documents(yaml).unwrap()[0].value;
        let checked = check(crate::by_kind(kind.0, kind.1).unwrap(), value);
        let lines: Vec<String> = checked
            .unknown
            .iter()
            .map(|path| format!("unknown {path}"))
            .chain(checked.wrong.iter().map(|wrong| format!("{}: {wrong}", wrong.path)))
            .collect();
        wanted.assert_debug_eq(&lines);
    }

    #[test]
    fn unknown_fields_and_wrong_types_have_their_path() {
        let deployment = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, labels: {n: 5}, foo: 1}
spec:
  replicas: three
  paused: 1
  template:
    spec:
      nodeSelector: [a]
      containers:
      - {name: a, image: 1, foo: {}, resources: {limits: {cpu: 1, memory: 1KiB}}}
      - {name: b, ports: [{containerPort: '80'}, {containerPort: 1.5}], livenessProbe: {httpGet: {port: http}}}
";
        let wanted = expect![[r#"
            [
                "unknown metadata.foo",
                "unknown spec.template.spec.containers[0].foo",
                "metadata.labels.n: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels.n of type string",
                "spec.paused: json: cannot unmarshal number into Go struct field DeploymentSpec.spec.paused of type bool",
                "spec.replicas: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
                "spec.template.spec.containers[0].image: json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.image of type string",
                "spec.template.spec.containers[0].resources.limits.memory: unable to parse quantity's suffix",
                "spec.template.spec.containers[1].ports[0].containerPort: json: cannot unmarshal string into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
                "spec.template.spec.containers[1].ports[1].containerPort: json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
                "spec.template.spec.nodeSelector: json: cannot unmarshal array into Go struct field PodSpec.spec.template.spec.nodeSelector of type map[string]string",
            ]
        "#]];
        expect_checked(("apps/v1", "Deployment"), deployment, &wanted);
        let secret = "{data: {a: aGk=, b: '$'}, stringData: {c: d}}";
        let wanted = expect![[r#"
            [
                "data.b: illegal base64 data at input byte 0",
            ]
        "#]];
        expect_checked(("v1", "Secret"), secret, &wanted);
    }

    #[test]
    fn every_kind_has_its_type() {
        let types = Types::get();
        for kind in crate::kinds() {
            let root = types.root(kind).map(|root| root.short_name().to_owned());
            assert_eq!(root.as_deref(), Some(kind.kind));
        }
    }
}
