//! The cluster at one revision: an immutable snapshot with the indexes that every mind needs.
//!
//! Cloning is cheap (persistent maps share what did not change), so a snapshot is taken by cloning. Watch cache,
//! informer and a node's replica are all this type. Deliberately absent: IO, history (that is `store`), policy.

use crate::{Change, Event, Key, Object, Revision};
use k8s_openapi::api::core::v1::Pod;
use manifests::Resource;
use rpds::{HashTrieMapSync, HashTrieSetSync, RedBlackTreeMapSync};
use serde::de::DeserializeOwned;
use std::ops::Bound;
use std::sync::Arc;

type Name = (Arc<str>, Arc<str>);
type Shelf = RedBlackTreeMapSync<Name, Arc<Object>>;
type Keys = HashTrieSetSync<Key>;

/// An immutable snapshot of the cluster.
#[derive(Clone, Default)]
pub struct World {
    revision: Revision,
    shelves: HashTrieMapSync<Resource, Shelf>,
    by_uid: HashTrieMapSync<String, Key>,
    by_owner: HashTrieMapSync<String, Keys>,
    by_node: HashTrieMapSync<String, Keys>,
}

impl World {
    /// The last revision folded in.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        let shelf = self.shelves.get(&key.resource)?;
        shelf.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// The typed view of one object.
    pub fn view<T>(&self, namespace: &str, name: &str) -> Option<&T>
    where
        T: k8s_openapi::Resource + DeserializeOwned + Send + Sync + 'static,
    {
        self.get(&Key::of::<T>(namespace, name))?.view()
    }

    /// All objects of a resource, in a namespace or (`None`) in all, ordered by namespace and name.
    pub fn list<'a>(
        &'a self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let wanted: Option<Arc<str>> = namespace.map(Into::into);
        let from: Bound<Name> = match &wanted {
            Some(namespace) => Bound::Included((namespace.clone(), "".into())),
            None => Bound::Unbounded,
        };
        self.shelves
            .get(resource)
            .into_iter()
            .flat_map(move |shelf| shelf.range((from.clone(), Bound::Unbounded)))
            .take_while(move |(name, _)| wanted.as_ref().is_none_or(|namespace| *namespace == name.0))
            .map(|(_, object)| object)
    }

    /// As [`World::list`], for the kind of a Rust type.
    pub fn all<'a, T: k8s_openapi::Resource>(
        &'a self,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a, T> {
        self.list(&Resource::of::<T>(), namespace)
    }

    /// How many objects of a resource there are.
    pub fn count(&self, resource: &Resource) -> usize {
        self.shelves.get(resource).map_or(0, RedBlackTreeMapSync::size)
    }

    /// The resources of which there is at least one object.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.shelves.keys()
    }

    /// Every object, ordered within each resource.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.shelves.values().flat_map(RedBlackTreeMapSync::values)
    }

    /// The object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Object>> {
        self.get(self.by_uid.get(uid)?)
    }

    /// The objects that name this uid among their owners.
    pub fn owned_by<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.of(self.by_owner.get(uid))
    }

    /// The pods bound to a node.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.of(self.by_node.get(node))
    }

    fn of<'a>(&'a self, keys: Option<&'a Keys>) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        keys.into_iter().flat_map(HashTrieSetSync::iter).filter_map(|key| self.get(key))
    }

    /// Folds one event in. Events must come in the order of their revisions.
    pub fn fold(&mut self, event: &Event) {
        self.revision = event.revision;
        match event.change {
            Change::Added | Change::Modified => self.put(event.object.clone()),
            Change::Deleted => self.remove(event.key()),
        }
    }

    /// Says that nothing else happened up to `revision`.
    pub fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// Puts an object in place of what had its name; for filling a world from a listing.
    pub fn put(&mut self, object: Arc<Object>) {
        self.remove(object.key());
        self.index(&object);
        let key = object.key();
        let name = (key.namespace.clone(), key.name.clone());
        let resource = key.resource.clone();
        match self.shelves.get_mut(&resource) {
            Some(shelf) => {
                shelf.insert_mut(name, object);
            }
            None => {
                let mut shelf = Shelf::new_sync();
                shelf.insert_mut(name, object);
                self.shelves.insert_mut(resource, shelf);
            }
        }
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) {
        let Some(old) = self.get(key).cloned() else { return };
        self.unindex(&old);
        if let Some(shelf) = self.shelves.get_mut(&key.resource) {
            shelf.remove_mut(&(key.namespace.clone(), key.name.clone()));
            if shelf.is_empty() {
                self.shelves.remove_mut(&key.resource);
            }
        }
    }

    fn index(&mut self, object: &Object) {
        let meta = object.meta();
        self.by_uid.insert_mut(meta.uid.clone(), object.key().clone());
        for owner in &meta.owner_references {
            link(&mut self.by_owner, &owner.uid, object.key());
        }
        if let Some(node) = node_of(object) {
            link(&mut self.by_node, node, object.key());
        }
    }

    fn unindex(&mut self, object: &Object) {
        let meta = object.meta();
        self.by_uid.remove_mut(&meta.uid);
        for owner in &meta.owner_references {
            unlink(&mut self.by_owner, &owner.uid, object.key());
        }
        if let Some(node) = node_of(object) {
            unlink(&mut self.by_node, node, object.key());
        }
    }
}

fn node_of(object: &Object) -> Option<&str> {
    let node = object.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty()).then_some(node)
}

fn link(index: &mut HashTrieMapSync<String, Keys>, to: &str, key: &Key) {
    match index.get_mut(to) {
        Some(keys) => keys.insert_mut(key.clone()),
        None => {
            let mut keys = Keys::new_sync();
            keys.insert_mut(key.clone());
            index.insert_mut(to.to_owned(), keys);
        }
    }
}

fn unlink(index: &mut HashTrieMapSync<String, Keys>, from: &str, key: &Key) {
    let Some(keys) = index.get_mut(from) else { return };
    keys.remove_mut(key);
    if keys.is_empty() {
        index.remove_mut(from);
    }
}
