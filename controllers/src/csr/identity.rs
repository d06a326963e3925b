//! Whose a node's name is: Secret `kube-system/<node>.node-identity` keeps the hash of the public key that was approved for it
//! first.

use crate::Cx;
use jiff::SignedDuration;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use serde_json::json;
use state::{Key, Object, World, Write};

/// Type of these Secrets.
pub const TYPE: &str = "coracle.dev/node-identity";
/// Its key: SHA-256 of the node's SubjectPublicKeyInfo (DER), lower-case hex.
pub const PUBLIC_KEY: &str = "public-key-sha256";
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
    let secret = world.get(&key(node))?.view::<Secret>()?;
    let hash = secret.data.as_ref()?.get(PUBLIC_KEY)?;
    std::str::from_utf8(&hash.0).ok()
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
    value["metadata"]["creationTimestamp"] = state::rfc3339(cx.now).into();
    Ok(Some(Write::update(&old, value)))
}
