//! Bootstrap tokens end at their `expiration`, and are deleted then. One whose expiration cannot be read has ended.

use crate::{Controller, Cx, Outcome};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use state::{Change, Event, Key, Object, World, Write};

/// Namespace of bootstrap tokens.
const NAMESPACE: &str = "kube-system";
/// Type of their Secrets.
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Key of the time of their end, RFC 3339.
const EXPIRATION: &str = "expiration";

/// The controller.
pub struct TokenCleaner;

impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        "tokencleaner"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let key = event.key();
        let near = event.change != Change::Deleted && key.is::<Secret>() && &*key.namespace == NAMESPACE;
        if near && ends(&event.object).is_some() { vec![key.clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|object| !object.is_deleting()) else { return Outcome::default() };
        match ends(object) {
            Some(at) if at > cx.now => Outcome { writes: Vec::new(), again_at: Some(at) },
            Some(_) => Outcome { writes: vec![Write::delete(object)], again_at: None },
            None => Outcome::default(),
        }
    }
}

/// When a token ends; `None` for one without end, and for what is none.
fn ends(object: &Object) -> Option<Timestamp> {
    let secret = object.view::<Secret>().filter(|secret| secret.type_.as_deref() == Some(TYPE))?;
    let text = secret.data.as_ref()?.get(EXPIRATION).filter(|text| !text.0.is_empty())?;
    let parsed = std::str::from_utf8(&text.0).ok().and_then(|text| text.parse().ok());
    Some(parsed.unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;
    use k8s_openapi::ByteString;

    fn token(name: &str, kind: &str, expiration: &str) -> String {
        let text = serde_json::to_value(ByteString(expiration.as_bytes().to_vec())).unwrap();
        format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}, namespace: kube-system}}, type: {kind}, data: {{expiration: {text}}}}}"
        )
    }

    #[test]
    fn a_token_ends_in_time() {
        let mut sandbox = Sandbox::new(vec![Box::new(TokenCleaner)]);
        sandbox.apply(&token("hour", TYPE, "2026-01-01T01:00:00Z"));
        sandbox.apply(&token("zone", TYPE, "2026-01-01T03:00:00+01:00"));
        sandbox.apply(&token("past", TYPE, "2025-12-31T23:59:59Z"));
        sandbox.apply(&token("junk", TYPE, "tomorrow"));
        sandbox.apply(&token("ever", TYPE, ""));
        sandbox.apply(&token("other", "Opaque", "2025-12-31T23:59:59Z"));
        let names = |sandbox: &Sandbox| -> Vec<String> {
            sandbox.world.all::<Secret>(None).map(|secret| secret.meta().name.clone()).collect()
        };
        sandbox.settle();
        assert_eq!(names(&sandbox), ["ever", "hour", "other", "zone"]);
        sandbox.pass(3600);
        assert_eq!(names(&sandbox), ["ever", "other", "zone"]);
        sandbox.pass(3600);
        assert_eq!(names(&sandbox), ["ever", "other"]);
    }
}
