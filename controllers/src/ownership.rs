//! Owners and what they own: the controller reference, adoption and release.
//!
//! A controller's children carry a controller reference; a child that no longer matches the selector is released, one
//! that matches and has no controller is adopted. Deliberately absent: deletion of dependents (that is `garbage`).

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use state::{Event, Key, Object, World, Write};
use std::sync::Arc;

/// The controller reference of an owner, as its children carry it.
pub(crate) fn reference<T: k8s_openapi::Resource>(owner: &Object) -> Value {
    json!({
        "apiVersion": T::API_VERSION, "kind": T::KIND, "name": owner.meta().name, "uid": owner.meta().uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The key of the `T` that controls an object, if a `T` does.
pub(crate) fn controller_key<T: k8s_openapi::Resource>(object: &Object) -> Option<Key> {
    let owner = object.controller().filter(|owner| owner.kind == T::KIND && owner.api_version == T::API_VERSION)?;
    Some(Key::of::<T>(object.meta().namespace.as_deref().unwrap_or(""), &owner.name))
}

/// The `T`s that an event about a child concerns: its controller, and the one it had before.
pub(crate) fn controllers_of<T: k8s_openapi::Resource>(event: &Event) -> Vec<Key> {
    let now = controller_key::<T>(&event.object);
    let before = event.previous.as_ref().and_then(|previous| controller_key::<T>(previous));
    let before = before.filter(|before| now.as_ref() != Some(before));
    now.into_iter().chain(before).collect()
}

/// The `C`s that an owner controls, by name.
pub(crate) fn children<'a, C>(world: &'a World, owner: &Object) -> Vec<&'a Arc<Object>>
where
    C: k8s_openapi::Resource + DeserializeOwned + Send + Sync + 'static,
{
    let uid = &owner.meta().uid;
    let mut children: Vec<_> = world
        .owned_by(uid)
        .filter(|child| child.key().is::<C>() && child.controller().is_some_and(|owner| owner.uid == *uid))
        .collect();
    children.sort_by(|a, b| a.key().cmp(b.key()));
    children
}

/// The `C`s of a namespace that nobody controls.
pub(crate) fn orphans<'a, C: k8s_openapi::Resource>(
    world: &'a World,
    namespace: &str,
) -> impl Iterator<Item = &'a Arc<Object>> + use<'a, C> {
    world.all::<C>(Some(namespace)).filter(|child| child.controller().is_none() && !child.is_deleting())
}

/// Makes an owner the controller of a child.
pub(crate) fn adopt<T: k8s_openapi::Resource>(child: &Object, owner: &Object) -> Write {
    let mut value = child.value();
    if let Value::Array(owners) = &mut value["metadata"]["ownerReferences"] {
        owners.push(reference::<T>(owner));
    } else {
        value["metadata"]["ownerReferences"] = json!([reference::<T>(owner)]);
    }
    Write::update(child, value)
}

/// Ends an owner's control of a child.
pub(crate) fn release(child: &Object, owner_uid: &str) -> Write {
    let mut value = child.value();
    drop_owner(&mut value, owner_uid);
    Write::update(child, value)
}

/// Takes an owner out of a value's owner references.
pub(crate) fn drop_owner(value: &mut Value, owner_uid: &str) {
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    let Some(owners) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) else { return };
    owners.retain(|owner| owner["uid"] != owner_uid);
    if owners.is_empty() {
        metadata.remove("ownerReferences");
    }
}
