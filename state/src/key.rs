//! Names of objects and of moments.

use manifests::Resource;
use std::fmt;
use std::sync::Arc;

/// A moment of the cluster: the number of changes so far. What Kubernetes calls `resourceVersion`; 0 is before all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of one object. Orders by resource, then namespace, then name, so a list is a range.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What it is.
    pub resource: Resource,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name, unique in its resource and namespace.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its parts; `namespace` is empty for cluster-scoped kinds.
    pub fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object of Rust type `T`.
    pub fn of<T: k8s_openapi::Resource>(namespace: &str, name: &str) -> Self {
        Self::new(Resource::of::<T>(), namespace, name)
    }

    /// Whether this names an object of Rust type `T`.
    pub fn is<T: k8s_openapi::Resource>(&self) -> bool {
        self.resource.plural == T::URL_PATH_SEGMENT && self.resource.group == T::GROUP
    }
}

impl fmt::Display for Key {
    /// `deployments.apps default/web`, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.resource, self.name)
        } else {
            write!(f, "{} {}/{}", self.resource, self.namespace, self.name)
        }
    }
}
