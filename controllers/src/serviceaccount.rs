//! Every namespace has a ServiceAccount `default` for pods that name none, and a ConfigMap `kube-root-ca.crt` with which
//! they can trust the API.

use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use serde_json::{Value, json};
use state::{Change, Event, Key, World, Write};

/// Name of the ConfigMap.
const ROOT_CA: &str = "kube-root-ca.crt";
/// Says on the ConfigMap what it is for; Kubernetes' words.
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
     endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
     distributions of Kubernetes clusters.";

/// The controller.
pub struct Belongings {
    /// PEM of the cluster's CA.
    pub root_ca_pem: String,
}

impl Controller for Belongings {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<Namespace>() {
            return vec![key.clone()];
        }
        let account = key.is::<ServiceAccount>() && &*key.name == "default" && event.change == Change::Deleted;
        let certificate = key.is::<ConfigMap>() && &*key.name == ROOT_CA;
        if account || certificate { vec![Key::of::<Namespace>("", &key.namespace)] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let alive = cx.world.get(key).is_some_and(|namespace| !namespace.is_deleting());
        if !alive {
            return Outcome::default();
        }
        let writes = [self.account(cx, &key.name), self.certificate(cx, &key.name)];
        Outcome { writes: writes.into_iter().flatten().collect(), again_at: None }
    }
}

impl Belongings {
    fn account(&self, cx: &mut Cx<'_>, namespace: &str) -> Option<Write> {
        let key = Key::of::<ServiceAccount>(namespace, "default");
        if cx.world.get(&key).is_some() {
            return None;
        }
        let mut value = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
        });
        cx.stamp.complete(&mut value, false);
        Some(Write::create(key, value))
    }

    fn certificate(&self, cx: &mut Cx<'_>, namespace: &str) -> Option<Write> {
        let key = Key::of::<ConfigMap>(namespace, ROOT_CA);
        let data = json!({"ca.crt": self.root_ca_pem});
        if let Some(old) = cx.world.get(&key) {
            let mut value: Value = old.value();
            if value["data"] == data {
                return None;
            }
            value["data"] = data;
            return Some(Write::update(old, value));
        }
        let mut value = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": ROOT_CA, "namespace": namespace,
                "annotations": {"kubernetes.io/description": DESCRIPTION},
            },
            "data": data,
        });
        cx.stamp.complete(&mut value, false);
        Some(Write::create(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;
    use state::Deletion;

    #[test]
    fn a_namespace_gets_its_belongings_and_gets_them_back() {
        let mut sandbox = Sandbox::new(vec![Box::new(Belongings { root_ca_pem: "PEM".into() })]);
        sandbox.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").settle();
        let (account, ca) = (Key::of::<ServiceAccount>("shop", "default"), Key::of::<ConfigMap>("shop", ROOT_CA));
        sandbox.delete(&account, Deletion::default()).settle();
        sandbox.edit(&ca, |value| value["data"] = json!({})).settle();
        assert!(sandbox.world.get(&account).is_some());
        assert_eq!(sandbox.world.get(&ca).unwrap().value()["data"]["ca.crt"], "PEM");
    }
}
