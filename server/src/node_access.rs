//! What a node may do at the HTTP API: read itself, its pods and what they name, and ask for its next certificate.
//!
//! Nodes get what they need over their links; this is what is left for a node's certificate in other hands. Kubernetes'
//! node authorizer.

use api::{ResourceRoute, Route, User, is_own_request, is_question_about_oneself};
use controllers::csr::identity;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret};
use manifests::Resource;
use state::{Key, World};
use sync::slice;

/// Group of nodes, which their certificates say.
const NODES: &str = "system:nodes";
/// What a node's user name begins with.
const NODE_USER: &str = "system:node:";

/// Decides about the users that are nodes.
pub struct NodeAccess;

impl api::Authorizer for NodeAccess {
    fn allows(&self, user: &User, route: &Route, world: &World) -> Option<bool> {
        if !user.is_of(NODES) {
            return None;
        }
        let Some(at) = &route.resource else { return Some(matches!(route.verb, "get" | "head")) };
        if is_question_about_oneself(route.verb, at) {
            return Some(true);
        }
        let Some(node) = user.name.strip_prefix(NODE_USER) else { return Some(false) };
        // a certificate whose key has lost the name is nobody's
        let is_known = user.key_sha256.is_empty() || identity::of(world, node) == Some(&user.key_sha256);
        Some(is_known && (is_own_request(user, route.verb, at, world) || may_read(node, route.verb, at, world)))
    }
}

fn may_read(node: &str, verb: &str, at: &ResourceRoute, world: &World) -> bool {
    let key = Key::new(Resource::new(at.group.clone(), at.plural.clone()), &at.namespace, &at.name);
    let plain = at.subresource.is_empty() || at.subresource == "status";
    if verb != "get" || at.name.is_empty() || at.rest || !plain {
        return false;
    }
    if key.is::<Node>() {
        return at.name == node;
    }
    if key.is::<Pod>() {
        let pod = world.get(&key).and_then(|pod| pod.view::<Pod>()?.spec.as_ref()?.node_name.as_deref());
        return pod == Some(node);
    }
    let is_named = key.is::<ConfigMap>() || key.is::<Secret>() || key.is::<PersistentVolumeClaim>();
    is_named
        && world
            .pods_on(node)
            .any(|pod| *pod.key().namespace == *key.namespace && slice::references(pod).contains(&key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Authorizer;
    use serde_json::{Value, json};
    use state::{Object, Revision};
    use std::sync::Arc;

    fn world() -> World {
        let mut world = World::default();
        let mut put = |kind: &str, namespace: &str, name: &str, mut value: Value| {
            let version = if kind == "CertificateSigningRequest" { "certificates.k8s.io/v1" } else { "v1" };
            let kind = manifests::by_kind(version, kind).unwrap();
            value["metadata"] = json!({"name": name});
            if !namespace.is_empty() {
                value["metadata"]["namespace"] = namespace.into();
            }
            world.put(Arc::new(Object::encode(kind.resource(), Revision(1), value).unwrap()));
        };
        let pod = |node: &str, secret: &str| {
            json!({"spec": {"nodeName": node, "containers": [], "imagePullSecrets": [{"name": secret}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": secret}}]}})
        };
        put("Pod", "n", "mine", pod("a", "mine"));
        put("Pod", "n", "theirs", pod("b", "theirs"));
        let csr = |user: &str| json!({"spec": {"username": user, "request": "", "signerName": "s", "usages": []}});
        put("CertificateSigningRequest", "", "mine", csr("system:node:a"));
        put("CertificateSigningRequest", "", "theirs", csr("system:node:b"));
        let key = json!({"type": identity::TYPE, "data": {identity::PUBLIC_KEY: "Y2FmZQ=="}});
        put("Secret", "kube-system", "a.node-identity", key);
        world
    }

    fn may(key: &str, verb: &'static str, what: &str) -> Option<bool> {
        let mut parts = what.split(' ');
        let (group, plural) = match parts.next().unwrap().split_once('/') {
            Some((group, plural)) => (group.to_owned(), plural.to_owned()),
            None => (String::new(), what.split(' ').next().unwrap().to_owned()),
        };
        let (namespace, name) = (parts.next().unwrap().to_owned(), parts.next().unwrap_or_default().to_owned());
        let at = ResourceRoute { group, version: "v1".into(), plural, namespace, name, ..ResourceRoute::default() };
        let route = Route { path: String::new(), verb, resource: Some(at) };
        let user = User { key_sha256: key.into(), ..User::new("system:node:a", [NODES.to_owned()]) };
        NodeAccess.allows(&user, &route, &world())
    }

    #[test]
    fn a_node_reads_what_is_its_own_and_nothing_else() {
        let cases = [
            ("get", "nodes  a", true),
            ("get", "nodes  b", false),
            ("list", "nodes  ", false),
            ("delete", "nodes  a", false),
            ("get", "pods n mine", true),
            ("get", "pods n theirs", false),
            ("create", "pods n more", false),
            ("get", "secrets n mine", true),
            ("get", "secrets n theirs", false),
            ("get", "secrets kube-system a.node-identity", false),
            ("list", "secrets n ", false),
            ("watch", "secrets n ", false),
            ("get", "configmaps n kube-root-ca.crt", true),
            ("get", "persistentvolumeclaims n mine", true),
            ("get", "persistentvolumeclaims n theirs", false),
            ("create", "certificates.k8s.io/certificatesigningrequests  ", true),
            ("get", "certificates.k8s.io/certificatesigningrequests  mine", true),
            ("get", "certificates.k8s.io/certificatesigningrequests  theirs", false),
            ("list", "certificates.k8s.io/certificatesigningrequests  ", false),
            ("create", "authorization.k8s.io/selfsubjectaccessreviews  ", true),
            ("create", "authorization.k8s.io/subjectaccessreviews  ", false),
        ];
        for (verb, what, allowed) in cases {
            assert_eq!(may("cafe", verb, what), Some(allowed), "{verb} {what}");
        }
        assert_eq!(may("beef", "get", "nodes  a"), Some(false), "the name is another key's");
        let alice = User::new("alice", []);
        let discovery = Route { path: "/api".into(), verb: "get", resource: None };
        assert_eq!(NodeAccess.allows(&alice, &discovery, &world()), None);
    }
}
