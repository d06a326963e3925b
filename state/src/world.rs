//! The cluster at one revision: an immutable snapshot with the indexes that every mind needs.
//!
//! Cloning is cheap (persistent maps share what did not change), so a snapshot is taken by cloning. Watch cache,
//! informer and a node's replica are all this type. Deliberately absent: IO, history (that is `store`), policy.

use crate::{Change, Event, Key, Object, Revision};
use k8s_openapi::api::core::v1::Pod;
use manifests::Resource;
use rpds::{HashTrieMapSync, HashTrieSetSync, RedBlackTreeMapSync};
use serde::de::DeserializeOwned;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::hash::Hash;
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
    /// Pods by each of their labels.
    by_label: HashTrieMapSync<Label, Keys>,
}

/// A label of pods of a namespace: that, its key, its value.
type Label = (Arc<str>, String, String);

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

    /// The pods of a namespace that have all these labels, in no order; all of its pods when there are none.
    pub fn pods_labelled<'a>(
        &'a self,
        namespace: &str,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let namespace: Arc<str> = namespace.into();
        let label = |(key, value): (&String, &String)| (namespace.clone(), key.clone(), value.clone());
        let sets: Option<Vec<&Keys>> = labels.iter().map(|each| self.by_label.get(&label(each))).collect();
        let rarest = sets.and_then(|sets| sets.into_iter().min_by_key(|keys| keys.size()));
        let everything = labels.is_empty().then(|| self.all::<Pod>(Some(&namespace)));
        let has_all = |pod: &&Arc<Object>| labels.iter().all(|(key, value)| pod.meta().labels.get(key) == Some(value));
        everything.into_iter().flatten().chain(self.of(rarest).filter(has_all))
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
        let key = object.key().clone();
        let old = self.get(&key).cloned();
        if !old.as_ref().is_some_and(|old| self.is_indexed_as(old, &object)) {
            if let Some(old) = old {
                self.unindex(&old);
            }
            self.index(&object);
        }
        let name = (key.namespace, key.name);
        match self.shelves.get_mut(&key.resource) {
            Some(shelf) => {
                shelf.insert_mut(name, object);
            }
            None => {
                let mut shelf = Shelf::new_sync();
                shelf.insert_mut(name, object);
                self.shelves.insert_mut(key.resource, shelf);
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

    /// Drops the typed views that nobody asked for since this was asked before. They are decoded again when they are.
    pub fn rest(&mut self) {
        let resources: Vec<Resource> = self.shelves.keys().cloned().collect();
        for resource in resources {
            let Some(shelf) = self.shelves.get_mut(&resource) else { continue };
            let rested: Vec<Object> = shelf.values().filter_map(|object| object.rested()).collect();
            for object in rested {
                let name = (object.key().namespace.clone(), object.key().name.clone());
                shelf.insert_mut(name, Arc::new(object));
            }
        }
    }

    /// Whether nothing differs that an index is made of.
    fn is_indexed_as(&self, old: &Object, new: &Object) -> bool {
        // the old one's view may have been dropped
        let is_at_its_node = || match node_of(new) {
            Some(node) => self.by_node.get(node).is_some_and(|keys| keys.contains(new.key())),
            None => node_of(old).is_none(),
        };
        old.meta().uid == new.meta().uid
            && owners_of(old).eq(owners_of(new))
            && (!new.key().is::<Pod>() || (old.meta().labels == new.meta().labels && is_at_its_node()))
    }

    fn index(&mut self, object: &Object) {
        let meta = object.meta();
        self.by_uid.insert_mut(meta.uid.clone(), object.key().clone());
        for owner in owners_of(object) {
            link(&mut self.by_owner, owner.to_owned(), object.key());
        }
        if let Some(node) = node_of(object) {
            link(&mut self.by_node, node.to_owned(), object.key());
        }
        for label in labels_of(object) {
            link(&mut self.by_label, label, object.key());
        }
    }

    fn unindex(&mut self, object: &Object) {
        let meta = object.meta();
        self.by_uid.remove_mut(&meta.uid);
        for owner in owners_of(object) {
            unlink(&mut self.by_owner, owner, object.key());
        }
        if let Some(node) = node_of(object) {
            unlink(&mut self.by_node, node, object.key());
        }
        for label in labels_of(object) {
            unlink(&mut self.by_label, &label, object.key());
        }
    }
}

fn owners_of(object: &Object) -> impl Iterator<Item = &str> {
    object.meta().owner_references.iter().map(|owner| owner.uid.as_str())
}

fn labels_of(object: &Object) -> impl Iterator<Item = Label> {
    let labels = object.key().is::<Pod>().then(|| &object.meta().labels).into_iter().flatten();
    labels.map(|(key, value)| (object.key().namespace.clone(), key.clone(), value.clone()))
}

fn node_of(object: &Object) -> Option<&str> {
    let node = object.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty()).then_some(node)
}

fn link<K: Clone + Eq + Hash>(index: &mut HashTrieMapSync<K, Keys>, to: K, key: &Key) {
    match index.get_mut(&to) {
        Some(keys) => keys.insert_mut(key.clone()),
        None => {
            let mut keys = Keys::new_sync();
            keys.insert_mut(key.clone());
            index.insert_mut(to, keys);
        }
    }
}

fn unlink<K, Q>(index: &mut HashTrieMapSync<K, Keys>, from: &Q, key: &Key)
where
    K: Clone + Eq + Hash + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    let Some(keys) = index.get_mut(from) else { return };
    keys.remove_mut(key);
    if keys.is_empty() {
        index.remove_mut(from);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test says what is wrong by panicking
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(revision: u64, name: &str, labels: &[(&str, &str)]) -> Arc<Object> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels},
            "spec": {"nodeName": "node", "containers": []},
        });
        Arc::new(Object::encode(Resource::of::<Pod>(), Revision(revision), value).unwrap())
    }

    #[test]
    fn pods_are_found_by_the_labels_they_have_now() {
        let mut world = World::default();
        world.put(pod(1, "a", &[("app", "web"), ("track", "new")]));
        world.put(pod(2, "b", &[("app", "web")]));
        world.put(pod(3, "c", &[("app", "db")]));
        let names = |world: &World, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let mut names: Vec<_> =
                world.pods_labelled("default", &labels).map(|pod| pod.key().name.to_string()).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names(&world, &[("app", "web")]), "a b");
        assert_eq!(names(&world, &[("app", "web"), ("track", "new")]), "a");
        assert_eq!(names(&world, &[("app", "db"), ("track", "new")]), "");
        assert_eq!(names(&world, &[]), "a b c");
        world.put(pod(4, "b", &[("app", "db")]));
        world.remove(pod(0, "c", &[]).key());
        assert_eq!(names(&world, &[("app", "web")]), "a");
        assert_eq!(names(&world, &[("app", "db")]), "b");
    }

    #[test]
    fn views_that_nobody_asks_for_are_dropped_and_come_again() {
        let mut world = World::default();
        world.put(pod(1, "a", &[]));
        let key = pod(0, "a", &[]).key().clone();
        let first = world.get(&key).unwrap().clone();
        world.rest();
        assert!(Arc::ptr_eq(&first, world.get(&key).unwrap()), "its view was made just now, for the index");
        world.rest();
        let rested = world.get(&key).unwrap().clone();
        assert!(!Arc::ptr_eq(&first, &rested) && rested.rested().is_none());
        assert_eq!((rested.revision(), rested.json()), (first.revision(), first.json()));
        assert_eq!(rested.view::<Pod>(), first.view::<Pod>());
        assert_eq!(world.pods_on("node").count(), 1);
        world.put(pod(2, "a", &[]));
        assert_eq!(world.pods_on("node").count(), 1);
    }
}
