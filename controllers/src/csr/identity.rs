//! Whose a node's name is: Secret `kube-system/<node>.node-identity` keeps the hash of the public key that was approved for it
//! first. When the Node is deleted the name is free, and the Secret stays for as long as a certificate may be shown that was
//! made for it: so that who has been taken out can be told from who is not known.

use crate::Cx;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use serde_json::json;
use state::{Key, Object, World, Write, rfc3339};

/// Type of these Secrets.
pub const TYPE: &str = "coracle.dev/node-identity";
/// Its key: SHA-256 of the node's SubjectPublicKeyInfo (DER), lower-case hex.
pub const PUBLIC_KEY: &str = "public-key-sha256";
/// Annotation: since when the name is free.
const RELEASED: &str = "coracle.dev/released-at";
/// No certificate of a node is valid for longer.
const RELEASED_HOURS: i64 = 366 * 24;
/// Namespace of these Secrets.
const NAMESPACE: &str = "kube-system";
/// A name that was given but never used, since no Node came, is free again after this.
const UNUSED_SECONDS: i64 = 3600;

/// The name is another key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken;

/// Where the identity of a node is kept.
pub fn key(node: &str) -> Key {
    Key::of::<Secret>(NAMESPACE, &format!("{node}.node-identity"))
}

/// Whether a Secret is a node's identity.
pub fn is_one(secret: &Object) -> bool {
    secret.view::<Secret>().is_some_and(|secret| secret.type_.as_deref() == Some(TYPE))
}

/// The hash of the key that has a node's name, if one has.
pub fn of<'w>(world: &'w World, node: &str) -> Option<&'w str> {
    let secret = world.get(&key(node)).filter(|secret| !is_released(secret))?.view::<Secret>()?;
    let hash = secret.data.as_ref()?.get(PUBLIC_KEY)?;
    std::str::from_utf8(&hash.0).ok()
}

/// Whether the name was given and is free again.
pub fn is_released(secret: &Object) -> bool {
    secret.meta().annotations.contains_key(RELEASED)
}

/// The identity of a node that is no more, with the name free.
pub(crate) fn release(secret: &Object, now: Timestamp) -> Write {
    let mut value = secret.value();
    value["metadata"]["annotations"][RELEASED] = rfc3339(now).into();
    Write::update(secret, value)
}

/// When nobody can have a certificate any more that was made for a name that is free.
pub(crate) fn forgotten_at(secret: &Object) -> Option<Timestamp> {
    let released: Timestamp = secret.meta().annotations.get(RELEASED)?.parse().unwrap_or(Timestamp::MIN);
    Some(released.checked_add(SignedDuration::from_hours(RELEASED_HOURS)).unwrap_or(Timestamp::MAX))
}

/// Reserves a name for a key: the write that is needed, if one is.
pub(super) fn reserve(cx: &mut Cx<'_>, node: &str, public_key_sha256: &str) -> Result<Option<Write>, Taken> {
    let key = key(node);
    let old = cx.world.get(&key).cloned();
    let known = of(cx.world, node);
    if known == Some(public_key_sha256) {
        return Ok(None);
    }
    let mut value = json!({
        "apiVersion": "v1", "kind": "Secret", "type": TYPE,
        "metadata": {"name": &*key.name, "namespace": NAMESPACE},
        "data": {PUBLIC_KEY: ByteString(public_key_sha256.as_bytes().to_vec())},
    });
    let Some(old) = old else {
        cx.stamp.complete(&mut value, false);
        return Ok(Some(Write::create(key, value)));
    };
    let unused = SignedDuration::from_secs(UNUSED_SECONDS);
    let until = old.meta().creation_timestamp.and_then(|created| created.checked_add(unused).ok());
    let is_used = cx.world.get(&Key::of::<Node>("", node)).is_some();
    if known.is_some() && (is_used || until.is_none_or(|until| until > cx.now)) {
        return Err(Taken);
    }
    // created anew, so that the name is kept for its new owner as long as it was for the old
    value["metadata"]["uid"] = old.meta().uid.clone().into();
    value["metadata"]["creationTimestamp"] = rfc3339(cx.now).into();
    Ok(Some(Write::update(&old, value)))
}
