//! One row of the table of kinds, and the ways to find one.

use crate::Resource;
use crate::field::FieldError;
use crate::kinds::kinds;
use jiff::Timestamp;
use schemars::{Schema, SchemaGenerator};
use serde_json::Value;
use std::fmt;

/// A built-in kind: everything that is Kubernetes' knowledge about it and not a controller's. A plain static.
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version within the group: `v1`.
    pub version: &'static str,
    /// Name of the kind: `Pod`.
    pub kind: &'static str,
    /// As in a URL: `pods`.
    pub plural: &'static str,
    /// Lower-case singular: `pod`.
    pub singular: &'static str,
    /// Other words for it on a command line.
    pub short_names: &'static [&'static str],
    /// Sets of kinds it belongs to: `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Subresources that are served: `status`, `scale`, `log`, ...
    pub subresources: &'static [&'static str],
    /// Kept in memory only, never written to disk: heartbeats.
    pub volatile: bool,
    /// Whether `metadata.generation` counts changes of the desired state.
    pub counts_generation: bool,
    /// What `kubectl get` prints.
    pub columns: &'static [Column],
    /// Fields that a field selector may name, beside `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// Fills in what was left out, as Kubernetes does. Doing it again changes nothing.
    pub default: fn(&mut Value),
    /// Everything wrong with a new object, or with `new` in place of `old`. Expects defaulted objects that passed
    /// [`crate::schema::check`].
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<FieldError>,
    /// Its JSON schema, whose references land in the generator.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

/// One column of `kubectl get`.
pub struct Column {
    /// Head of the column.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date`.
    pub format: &'static str,
    /// What it says.
    pub description: &'static str,
    /// 0 for always, 1 for `-o wide`.
    pub priority: i32,
    /// The cell of an object, at a time.
    pub cell: fn(&Value, Timestamp) -> Value,
}

impl Kind {
    /// Its address: group and plural.
    pub fn resource(&self) -> Resource {
        Resource { group: self.group.into(), plural: self.plural.into() }
    }

    /// As in an object's `apiVersion`: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.kind)
    }
}

/// The kind with this address.
pub fn by_resource(resource: &Resource) -> Option<&'static Kind> {
    kinds().iter().find(|kind| kind.plural == resource.plural && kind.group == resource.group)
}

/// The kind of an object that says these.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    kinds().iter().find(|row| row.kind == kind && row.group == group && row.version == version)
}
