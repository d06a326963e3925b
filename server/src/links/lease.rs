//! The heartbeat of a node as Kubernetes keeps it: a Lease, renewed with the master's clock whatever the node's says.

use crate::entropy::{Entropy, now};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use state::{Expect, Key, Stamp, World, Write};

/// Kubernetes' namespace of node leases.
const NAMESPACE: &str = "kube-node-lease";
/// A lease that is not renewed for this long means a node that is not there.
const SECONDS: i64 = 40;

/// The write that renews a node's lease now; `None` for a node that is not registered.
pub fn renewal(world: &World, node: &str) -> Option<Write> {
    let owner = world.get(&Key::of::<Node>("", node))?;
    let now = now();
    let key = Key::of::<Lease>(NAMESPACE, node);
    let renewed = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner.meta().uid}]);
    if let Some(old) = world.get(&key) {
        let mut value = old.value();
        value["spec"]["renewTime"] = renewed.into();
        value["metadata"]["ownerReferences"] = owners;
        // the master alone writes leases of nodes
        return Some(Write { key, value: Some(value), expect: Expect::Uid(old.meta().uid.clone()) });
    }
    let mut value = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": NAMESPACE, "ownerReferences": owners},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": SECONDS, "renewTime": renewed},
    });
    Stamp { now, identities: &mut Entropy }.complete(&mut value, false);
    Some(Write::create(key, value))
}
