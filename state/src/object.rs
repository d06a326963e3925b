//! One object at one revision: its JSON kept whole, its metadata decoded at once, its typed view decoded on demand.

use crate::{Key, Revision};
use bytes::Bytes;
use jiff::Timestamp;
use manifests::Resource;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Why stored or received JSON is not the object it should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or not the shape of the kind.
    #[error("decode {what}")]
    Json {
        /// What was being decoded.
        what: String,
        /// The parser's word.
        #[source]
        source: serde_json::Error,
    },
    /// An object without a name cannot be kept.
    #[error("decode object: metadata.name is missing")]
    Nameless,
}

/// The part of `metadata` that everybody needs, decoded once.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name.
    pub name: String,
    /// Namespace, if the kind has one.
    pub namespace: Option<String>,
    /// Identity over time.
    pub uid: String,
    /// Counts changes of the desired state.
    pub generation: Option<i64>,
    /// When it was created.
    pub creation_timestamp: Option<Timestamp>,
    /// When it was asked to go.
    pub deletion_timestamp: Option<Timestamp>,
    /// Seconds it was given to go.
    pub deletion_grace_period_seconds: Option<i64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    pub owner_references: Vec<OwnerRef>,
    /// What must happen before it may vanish.
    pub finalizers: Vec<String>,
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerRef {
    /// `apps/v1`.
    pub api_version: String,
    /// `ReplicaSet`.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Identity of the owner.
    pub uid: String,
    /// Whether this owner is the managing controller.
    pub controller: Option<bool>,
    /// Whether a foreground deletion of the owner waits for this object.
    pub block_owner_deletion: Option<bool>,
}

/// An object at a revision. Immutable; shared as `Arc<Object>`.
pub struct Object {
    key: Key,
    revision: Revision,
    meta: Arc<Meta>,
    json: Bytes,
    view: OnceLock<Option<Box<dyn Any + Send + Sync>>>,
    /// Whether the view was asked for since [`Object::rested`] last looked.
    viewed: AtomicBool,
}

impl Object {
    /// Decodes an object from its JSON, `metadata.resourceVersion` included in the bytes as `revision`.
    ///
    /// # Errors
    /// When the bytes are no JSON object with a `metadata.name`.
    pub fn decode(resource: Resource, revision: Revision, json: Bytes) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: Option<Meta>,
        }
        let head: Head =
            serde_json::from_slice(&json).map_err(|source| DecodeError::Json { what: resource.to_string(), source })?;
        let meta = head.metadata.unwrap_or_default();
        if meta.name.is_empty() {
            return Err(DecodeError::Nameless);
        }
        let key = Key::new(resource, meta.namespace.as_deref().unwrap_or(""), &meta.name);
        Ok(Self::new(key, revision, Arc::new(meta), json))
    }

    fn new(key: Key, revision: Revision, meta: Arc<Meta>, json: Bytes) -> Self {
        Self { key, revision, meta, json, view: OnceLock::new(), viewed: AtomicBool::new(false) }
    }

    /// Makes an object of a JSON value, writing `revision` into its `metadata.resourceVersion`.
    ///
    /// # Errors
    /// As [`Object::decode`].
    pub fn encode(resource: Resource, revision: Revision, mut value: Value) -> Result<Self, DecodeError> {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
        }
        let json =
            serde_json::to_vec(&value).map_err(|source| DecodeError::Json { what: resource.to_string(), source })?;
        // without the room that the vector grew for
        Self::decode(resource, revision, json.into_boxed_slice().into())
    }

    /// Its name in the world.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The revision that wrote it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Its decoded metadata.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its JSON, whole, as it is served.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// Its JSON as a value to edit. Cannot fail: the bytes were parsed when the object was made.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }

    /// The typed view, decoded at the first call and shared by all later ones. `None` when `T` is not this object's
    /// kind, or the stored JSON does not fit it (which validation keeps out).
    pub fn view<T>(&self) -> Option<&T>
    where
        T: k8s_openapi::Resource + DeserializeOwned + Send + Sync + 'static,
    {
        if !self.key.is::<T>() {
            return None;
        }
        if !self.viewed.load(Ordering::Relaxed) {
            self.viewed.store(true, Ordering::Relaxed);
        }
        self.view
            .get_or_init(|| {
                let typed: T = serde_json::from_slice(&self.json).ok()?;
                Some(Box::new(typed))
            })
            .as_ref()?
            .downcast_ref()
    }

    /// The same object without its typed view, where it has one that nobody asked for since this was asked before: a view takes
    /// several times the room of the JSON.
    pub fn rested(&self) -> Option<Self> {
        let is_idle = self.view.get().is_some() && !self.viewed.swap(false, Ordering::Relaxed);
        is_idle.then(|| Self::new(self.key.clone(), self.revision, self.meta.clone(), self.json.clone()))
    }

    /// The managing controller, if there is one.
    pub fn controller(&self) -> Option<&OwnerRef> {
        self.meta.owner_references.iter().find(|owner| owner.controller == Some(true))
    }

    /// Whether it was asked to go.
    pub fn is_deleting(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    /// The same object as its deletion event shows it: at the revision of the deletion.
    pub fn at(self: &Arc<Self>, revision: Revision) -> Arc<Self> {
        Self::encode(self.key.resource.clone(), revision, self.value()).map_or_else(|_| self.clone(), Arc::new)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.key, self.revision)
    }
}
