//! Bootstrap tokens as bearer tokens: `<id>.<secret>`, each a Secret of `kube-system` with kubeadm's keys.

use super::{BOOTSTRAPPERS, User, same};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use state::{Key, World};

/// Type of the Secrets that are bootstrap tokens.
const TYPE: &str = "bootstrap.kubernetes.io/token";
const ID_CHARS: usize = 6;
const SECRET_CHARS: usize = 16;
/// Longest rest of a group's name.
const GROUP_CHARS_MAX: usize = 256;

/// Whose token this is, if it is one of the world's and good at `now`.
pub(super) fn user(token: &str, world: &World, now: Timestamp) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    if !is_word(id, ID_CHARS) || !is_word(secret, SECRET_CHARS) {
        return None;
    }
    let object = world.get(&Key::of::<Secret>("kube-system", &format!("bootstrap-token-{id}")))?;
    let kept = object.view::<Secret>()?;
    let text = |key: &str| std::str::from_utf8(&kept.data.as_ref()?.get(key)?.0).ok();
    let is_right = same(text("token-secret")?.as_bytes(), secret.as_bytes());
    let lasts = match text("expiration") {
        None => true,
        // one that cannot be read is over
        Some(expiration) => expiration.parse::<Timestamp>().is_ok_and(|end| now < end),
    };
    let is_good = is_right
        && lasts
        && kept.type_.as_deref() == Some(TYPE)
        && !object.is_deleting()
        && text("token-id") == Some(id)
        && text("usage-bootstrap-authentication") == Some("true");
    let more = text("auth-extra-groups").unwrap_or_default();
    let more: Vec<&str> = more.split(',').map(str::trim).filter(|group| !group.is_empty()).collect();
    if !is_good || !more.iter().all(|group| is_bootstrappers(group)) {
        return None;
    }
    let groups = [BOOTSTRAPPERS].into_iter().chain(more).map(str::to_owned);
    Some(User::new(format!("system:bootstrap:{id}"), groups))
}

fn is_word(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`
fn is_bootstrappers(group: &str) -> bool {
    let Some(rest) = group.strip_prefix(BOOTSTRAPPERS).and_then(|rest| rest.strip_prefix(':')) else { return false };
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    rest.len() <= GROUP_CHARS_MAX
        && rest.bytes().all(|byte| is_plain(byte) || byte == b':' || byte == b'-')
        && rest.bytes().last().is_some_and(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value, json};
    use state::{Object, Revision};
    use std::sync::Arc;

    const NOW: &str = "2026-01-01T00:00:00Z";
    const TOKEN: &str = "abcdef.0123456789abcdef";

    /// A world with the token, some keys of its Secret being others.
    fn world(changes: Value) -> World {
        use base64::Engine;
        let mut keys: Map<String, Value> = serde_json::from_value(json!({
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "expiration": "2026-01-02T00:00:00Z",
        }))
        .unwrap();
        let mut kind = json!(TYPE);
        for (key, value) in changes.as_object().unwrap() {
            match (key.as_str(), value) {
                ("type", value) => kind = value.clone(),
                (_, Value::Null) => drop(keys.remove(key)),
                (_, value) => drop(keys.insert(key.clone(), value.clone())),
            }
        }
        for value in keys.values_mut() {
            *value = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap()).into();
        }
        let secret = json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}, "type": kind, "data": keys,
        });
        let resource = manifests::Resource::of::<Secret>();
        let mut world = World::default();
        world.put(Arc::new(Object::encode(resource, Revision(1), secret).unwrap()));
        world
    }

    #[test]
    fn a_token_is_good_while_its_secret_says_so() {
        let good = |token: &str, changes: Value| user(token, &world(changes), NOW.parse().unwrap()).is_some();
        assert!(good(TOKEN, json!({})));
        assert!(good(TOKEN, json!({"expiration": null})));
        assert!(!good("abcdef.0123456789abcdee", json!({})));
        assert!(!good("abcdeg.0123456789abcdef", json!({})));
        assert!(!good("abcdef", json!({})));
        assert!(!good(TOKEN, json!({"expiration": NOW})));
        assert!(!good(TOKEN, json!({"expiration": "tomorrow"})));
        assert!(!good(TOKEN, json!({"usage-bootstrap-authentication": "false"})));
        assert!(!good(TOKEN, json!({"usage-bootstrap-authentication": null})));
        assert!(!good(TOKEN, json!({"token-id": "abcdeg"})));
        assert!(!good(TOKEN, json!({"type": "Opaque"})));
        assert!(!good(TOKEN, json!({"auth-extra-groups": "system:masters"})));
        assert!(!good(TOKEN, json!({"auth-extra-groups": "system:bootstrappers:a,system:masters"})));
    }

    #[test]
    fn its_user_is_named_after_it() {
        let found =
            user(TOKEN, &world(json!({"auth-extra-groups": "system:bootstrappers:edge"})), NOW.parse().unwrap());
        let found = found.unwrap();
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert_eq!(found.groups, [BOOTSTRAPPERS, "system:bootstrappers:edge", super::super::AUTHENTICATED]);
    }
}
