//! The skeleton of the schema: every type, its fields and their shapes; made once, at first use.

use crate::{Kind, kinds};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::OnceLock;

/// Where schemas lie in an OpenAPI document.
pub(super) const SCHEMAS: &str = "#/components/schemas/";

/// An object type.
pub(super) struct Type {
    /// As in the document: `io.k8s.api.core.v1.PodSpec`.
    pub name: Box<str>,
    /// By name, sorted.
    pub fields: Box<[(Box<str>, Shape)]>,
}

/// What a field may hold.
pub(super) enum Shape {
    /// An object of the type at this index.
    Of(u16),
    String,
    /// Base64.
    Bytes,
    /// RFC 3339.
    Time,
    Int32,
    Int64,
    Number,
    Bool,
    Quantity,
    IntOrString,
    List(Box<Shape>),
    Map(Box<Shape>),
    /// Anything: not looked into.
    Any,
}

/// All types of all kinds.
pub(super) struct Types {
    all: Vec<Type>,
    /// Type index of each kind, in the order of the table.
    roots: Vec<u16>,
}

impl Types {
    /// Made at the first call.
    pub fn get() -> &'static Self {
        static TYPES: OnceLock<Types> = OnceLock::new();
        TYPES.get_or_init(Self::make)
    }

    /// The type at an index of a shape.
    pub fn at(&self, index: u16) -> &Type {
        &self.all[usize::from(index)]
    }

    /// The type of a kind.
    pub fn root(&self, kind: &Kind) -> Option<&Type> {
        let at = kinds().iter().position(|row| row.kind == kind.kind && row.group == kind.group)?;
        self.roots.get(at).map(|index| self.at(*index))
    }

    /// Kind by kind: the schemas with all their descriptions are large, and only one kind's are there at a time.
    fn make() -> Self {
        let mut types = Self { all: Vec::new(), roots: Vec::new() };
        let mut indexes = HashMap::new();
        for kind in kinds() {
            let (definitions, names) = definitions(std::iter::once(kind));
            let first = indexes.len();
            for name in definitions.keys() {
                if !indexes.contains_key(name.as_str()) {
                    indexes.insert(name.clone(), u16::try_from(indexes.len()).unwrap_or(u16::MAX));
                }
            }
            let is_new = |(name, _): &(&String, &Value)| indexes.get(*name).is_some_and(|at| usize::from(*at) >= first);
            types.all.extend(definitions.iter().filter(is_new).map(|(name, schema)| Type {
                name: name.as_str().into(),
                fields: fields(schema, &definitions, &indexes),
            }));
            types.roots.extend(names.iter().map(|name| indexes.get(name).copied().unwrap_or_default()));
        }
        types.all.shrink_to_fit();
        types
    }
}

fn fields(
    schema: &Value,
    definitions: &Map<String, Value>,
    indexes: &HashMap<String, u16>,
) -> Box<[(Box<str>, Shape)]> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let mut fields: Vec<(Box<str>, Shape)> =
        properties.map(|(name, schema)| (name.as_str().into(), shape(schema, definitions, indexes))).collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields.into()
}

impl Type {
    /// The shape of a field, if there is one of the name.
    pub fn field(&self, name: &str) -> Option<&Shape> {
        let at = self.fields.binary_search_by(|(field, _)| (**field).cmp(name)).ok()?;
        Some(&self.fields[at].1)
    }

    /// The last part of its name: `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// The schemas that these kinds need by name, and the kinds' own names in order.
pub(super) fn definitions<'k>(of: impl Iterator<Item = &'k Kind>) -> (Map<String, Value>, Vec<String>) {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let names = of.map(|kind| {
        let schema = (kind.schema)(&mut generator);
        reference(schema.as_value()).unwrap_or_default().to_owned()
    });
    let names = names.collect();
    (generator.take_definitions(false), names)
}

/// The name a schema refers to.
pub(super) fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix(SCHEMAS)
}

fn shape(schema: &Value, definitions: &Map<String, Value>, indexes: &HashMap<String, u16>) -> Shape {
    if let Some(name) = reference(schema) {
        return match (name.rsplit('.').next().unwrap_or_default(), definitions.get(name)) {
            ("Quantity", _) => Shape::Quantity,
            ("IntOrString", _) => Shape::IntOrString,
            (_, Some(target)) if target["properties"].is_object() => {
                indexes.get(name).map_or(Shape::Any, |index| Shape::Of(*index))
            }
            (_, Some(target)) => shape(target, definitions, indexes),
            (_, None) => Shape::Any,
        };
    }
    match (schema["type"].as_str().unwrap_or_default(), schema["format"].as_str().unwrap_or_default()) {
        ("string", "byte") => Shape::Bytes,
        ("string", "date-time") => Shape::Time,
        ("string", _) => Shape::String,
        ("integer", "int64") => Shape::Int64,
        ("integer", _) => Shape::Int32,
        ("number", _) => Shape::Number,
        ("boolean", _) => Shape::Bool,
        ("array", _) => Shape::List(Box::new(shape(&schema["items"], definitions, indexes))),
        ("object", _) if schema["additionalProperties"].is_object() => {
            Shape::Map(Box::new(shape(&schema["additionalProperties"], definitions, indexes)))
        }
        _ => Shape::Any,
    }
}

/// The type that the last field of a path belongs to, and that field. Lists and maps are looked through.
pub(crate) fn owner<'p>(kind: &Kind, path: &[&'p str]) -> Option<(&'static str, &'p str)> {
    let types = Types::get();
    let mut owner = types.root(kind)?;
    let (last, before) = path.split_last()?;
    for name in before {
        let mut shape = owner.field(name)?;
        while let Shape::List(inner) | Shape::Map(inner) = shape {
            shape = inner;
        }
        let Shape::Of(index) = shape else { return None };
        owner = types.at(*index);
    }
    Some((&owner.name, last))
}
