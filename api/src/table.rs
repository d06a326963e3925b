//! `Table`s: what `kubectl get` prints, from the columns of the kind's row.

use crate::query::{Query, invalid_option};
use crate::render::metadata_only;
use crate::status::Status;
use jiff::Timestamp;
use manifests::Kind;
use serde_json::{Value, json};

/// What of the object each row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// As the option `includeObject` says.
    ///
    /// # Errors
    /// 422 for a word it does not have.
    pub fn of(query: &Query) -> Result<Self, Status> {
        match query.get("includeObject") {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => {
                let why = format!(r#"Unsupported value: {other:?}: supported values: "Metadata", "None", "Object""#);
                Err(invalid_option("TableOptions", "includeObject", "FieldValueNotSupported", &why))
            }
        }
    }
}

/// A table of objects. `meta` is its list metadata; `columns` says whether the column definitions come along (a watch
/// sends them once).
pub fn table(kind: &Kind, objects: &[Value], meta: Value, include: Include, columns: bool, now: Timestamp) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(kind, object, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": if columns { definitions(kind) } else { Value::Null },
        "rows": rows,
    })
}

fn definitions(kind: &Kind) -> Value {
    let definition = |column: &manifests::Column| {
        json!({
            "name": column.name,
            "type": column.format,
            "format": if column.name == "Name" { "name" } else { "" },
            "description": column.description,
            "priority": column.priority,
        })
    };
    kind.columns.iter().map(definition).collect()
}

fn row(kind: &Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells: Vec<Value> = kind.columns.iter().map(|column| (column.cell)(object, now)).collect();
    let mut row = json!({"cells": cells});
    match include {
        Include::None => row["object"] = Value::Null,
        Include::Metadata => row["object"] = metadata_only(object),
        Include::Object => row["object"] = object.clone(),
    }
    row
}
