//! What a node may write over its link: what it says of itself, of its pods and of its own directories, Events, and what the
//! CronJobs that belong to it have made.
//!
//! Pure. A change is judged on the object it replaces, which must be the current one, so that nothing can come between the
//! verdict and the commit. Kubernetes has this as the admission plugin NodeRestriction; here it is the door itself.

mod duties;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{self, Node, PersistentVolume, Pod};
use serde_json::{Map, Value};
use state::{Expect, Object, World, Write, storage};
use std::net::Ipv4Addr;
use sync::Rejected;

/// Labels that a node may not give itself, and annotations likewise.
const RESERVED_LABELS: [&str; 2] = ["node-restriction.kubernetes.io/", "node-role.kubernetes.io/"];
/// Fields of a Node's spec that are the cluster's to decide once the Node is there.
const DECIDED: [&str; 4] = ["taints", "unschedulable", "podCIDR", "podCIDRs"];

/// The networks that agents' pods may have.
#[derive(Clone, Copy, Debug)]
pub struct PodNetworks {
    /// First address and prefix length of the cluster's network.
    pub cluster: (Ipv4Addr, u8),
    /// Prefix length of each node's part.
    pub mask: u8,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// What a node may say that its pods' network is.
    pub networks: PodNetworks,
    /// Name of the node.
    pub node: &'a str,
    /// It is the node in the master's own process: it may say that it runs the control plane.
    pub is_master: bool,
}

/// Whether a node may make these writes, decided on `world`.
///
/// # Errors
/// [`Rejected::Failed`] names what is forbidden; [`Rejected::Conflict`] when a write was decided on what is not true any
/// more.
pub fn all(writes: &[Write], world: &World, writer: Writer<'_>) -> Result<(), Rejected> {
    writes.iter().try_for_each(|write| one(write, writes, world, writer))
}

fn one(write: &Write, batch: &[Write], world: &World, writer: Writer<'_>) -> Result<(), Rejected> {
    let current = world.get(&write.key);
    let current = match (&write.expect, current) {
        (Expect::Absent, None) => None,
        (Expect::At(revision), Some(current)) if current.revision() == *revision => Some(&**current),
        // what does not say on which state it was decided may take away, and not replace
        (Expect::Uid(uid), Some(current)) if current.meta().uid == *uid && write.value.is_none() => Some(&**current),
        _ => return Err(Rejected::Conflict(format!("{}: it is another now", write.key))),
    };
    let verdict = if write.key.is::<Node>() {
        node(write, current, world, writer)
    } else if write.key.is::<Pod>() && current.is_none() {
        duties::pod(write, batch, world, writer.node)
    } else if write.key.is::<Pod>() {
        pod(write, current, writer)
    } else if write.key.is::<Job>() {
        duties::job(write, current, world, writer.node)
    } else if write.key.is::<v1::Event>() {
        write.value.is_some().then_some(()).ok_or("Events are not deleted by nodes")
    } else if write.key.is::<PersistentVolume>() {
        volume(write, current, writer)
    } else {
        Err("nodes do not write such objects")
    };
    verdict.map_err(|why| forbidden(write, writer, why))?;
    match &write.value {
        Some(value) => well_formed(write, value, current, world),
        None => Ok(()),
    }
}

fn forbidden(write: &Write, writer: Writer<'_>, why: &str) -> Rejected {
    Rejected::Failed(format!("forbidden: node {:?} may not write {}: {why}", writer.node, write.key))
}

/// What is stored must be an object of its kind, with an identity of its own, or other clients could not read it.
fn well_formed(write: &Write, value: &Value, current: Option<&Object>, world: &World) -> Result<(), Rejected> {
    let refused = |why: String| Rejected::Failed(format!("{}: {why}", write.key));
    let kind = manifests::by_resource(&write.key.resource).ok_or_else(|| refused("no such kind".into()))?;
    if value["apiVersion"] != kind.api_version() || value["kind"] != kind.kind {
        return Err(refused("its apiVersion and kind are others".into()));
    }
    let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
    match current {
        Some(current) if current.meta().uid != uid => return Err(refused("its uid is another".into())),
        None if uid.is_empty() || world.by_uid(uid).is_some() => return Err(refused("its uid is not its own".into())),
        _ => {}
    }
    if let Some(wrong) = manifests::schema::check(kind, value).wrong.first() {
        return Err(refused(wrong.to_string()));
    }
    // of pods only the status is written, which has no rules beyond its shape
    let errors = match current {
        None => (kind.validate)(value, None),
        Some(current) if write.key.is::<Node>() => (kind.validate)(value, Some(&current.value())),
        Some(_) => Vec::new(),
    };
    if let Some(error) = errors.first() {
        return Err(refused(format!("{}: {}", error.path, error.body())));
    }
    Ok(())
}

fn node(write: &Write, current: Option<&Object>, world: &World, writer: Writer<'_>) -> Result<(), &'static str> {
    if *write.key.name != *writer.node {
        return Err("it is another node");
    }
    let Some(value) = &write.value else { return Err("a node does not delete itself") };
    let old = current.map(Object::value).unwrap_or_default();
    for part in ["labels", "annotations"] {
        for name in changed(&old["metadata"][part], &value["metadata"][part]) {
            let is_role = name.starts_with("node-role.kubernetes.io/") && writer.is_master;
            if !is_role && RESERVED_LABELS.iter().any(|reserved| name.starts_with(reserved)) {
                return Err(
                    "labels of node-role.kubernetes.io and node-restriction.kubernetes.io are not its own to set",
                );
            }
        }
    }
    for field in ["ownerReferences", "finalizers", "deletionTimestamp"] {
        if old["metadata"][field] != value["metadata"][field] {
            return Err("owners, finalizers and deletion are not its own to decide");
        }
    }
    if current.is_none() {
        return writer.networks.allow(&value["spec"], world, writer.is_master);
    }
    for field in &DECIDED {
        if old["spec"][*field] != value["spec"][*field] {
            return Err("taints, unschedulable and podCIDR are not its own to decide");
        }
    }
    Ok(())
}

impl PodNetworks {
    /// A Node that was lost comes back with the network that its pods have: one that agents get, and nobody has by now.
    fn allow(self, spec: &Value, world: &World, is_master: bool) -> Result<(), &'static str> {
        if spec["podCIDR"].is_null() && spec["podCIDRs"].is_null() {
            return Ok(());
        }
        let claimed = spec["podCIDR"].as_str().and_then(network);
        let is_said_once = spec["podCIDRs"].as_array().is_some_and(|all| all.len() == 1 && all[0] == spec["podCIDR"]);
        let Some((address, prefix)) = claimed.filter(|_| is_said_once) else { return Err("its podCIDR is none") };
        let (cluster, bits) = self.cluster;
        let upper_half = (cluster.to_bits() | 1 << (31 - u32::from(bits.min(30))), bits.min(30) + 1);
        // the master's own node has the lower half; a node that joined under another mask keeps what it got
        if !is_master && (prefix < self.mask.min(24) || !overlap((address, prefix), upper_half)) {
            return Err("its podCIDR is not one that agents get");
        }
        let others = world.all::<Node>(None).filter_map(|node| node.view::<Node>()?.spec.as_ref()?.pod_cidr.as_deref());
        let is_taken = others.filter_map(network).any(|other| overlap(other, (address, prefix)));
        if is_taken { Err("its podCIDR is another node's") } else { Ok(()) }
    }
}

/// `10.42.1.0/24`
fn network(text: &str) -> Option<(u32, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?.to_bits(), prefix.parse::<u8>().ok()?);
    (prefix <= 32 && start(address, prefix) == address).then_some((address, prefix))
}

fn start(address: u32, prefix: u8) -> u32 {
    address & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn overlap(one: (u32, u8), other: (u32, u8)) -> bool {
    let prefix = one.1.min(other.1);
    start(one.0, prefix) == start(other.0, prefix)
}

fn pod(write: &Write, current: Option<&Object>, writer: Writer<'_>) -> Result<(), &'static str> {
    let Some(current) = current else { return Err("nodes make no pods") };
    let spec = current.view::<Pod>().and_then(|pod| pod.spec.as_ref());
    if spec.and_then(|spec| spec.node_name.as_deref()) != Some(writer.node) {
        return Err("it is not bound to this node");
    }
    let Some(value) = &write.value else {
        let may_go = current.is_deleting() && current.meta().finalizers.is_empty();
        return may_go.then_some(()).ok_or("nobody has asked it to go");
    };
    let mut old = current.value();
    let mut new = value.clone();
    for value in [&mut old, &mut new] {
        if let Some(value) = value.as_object_mut() {
            value.remove("status");
        }
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
            // a pod that is going may be said to need no more time
            if current.is_deleting() {
                metadata.remove("deletionGracePeriodSeconds");
            }
        }
    }
    (old == new).then_some(()).ok_or("of a pod a node writes the status")
}

/// A directory that this node has removed, or is done with: its volume is let go.
fn volume(write: &Write, current: Option<&Object>, writer: Writer<'_>) -> Result<(), &'static str> {
    let here =
        |volume: &Object| volume.view::<PersistentVolume>().is_some_and(|typed| storage::lives_on(typed, writer.node));
    let Some(current) = current.filter(|volume| here(volume)) else { return Err("it does not lie on this node") };
    let is_released = || {
        let status = current.view::<PersistentVolume>().and_then(|volume| volume.status.as_ref());
        let phase = status.and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Released" | "Failed"))
    };
    if !current.is_deleting() && !is_released() {
        return Err("it is in use");
    }
    let Some(value) = &write.value else { return Ok(()) };
    let mut old = current.value();
    let mut new = value.clone();
    for value in [&mut old, &mut new] {
        if let Some(metadata) = value["metadata"].as_object_mut() {
            for field in ["resourceVersion", "finalizers", "deletionTimestamp"] {
                metadata.remove(field);
            }
        }
    }
    (old == new).then_some(()).ok_or("of a volume a node takes away what holds it, and no more")
}

/// The names whose values differ between two maps.
fn changed<'v>(old: &'v Value, new: &'v Value) -> impl Iterator<Item = &'v str> {
    let map = |value: &'v Value| value.as_object().into_iter().flat_map(Map::keys);
    let differing = map(old).chain(map(new)).filter(move |name| old.get(name) != new.get(name));
    differing.map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use state::{Key, Revision};
    use std::sync::Arc;

    fn world() -> World {
        let mut world = World::default();
        let mut put = |kind: &str, namespace: &str, name: &str, mut value: Value| {
            let kind = manifests::by_kind("v1", kind).unwrap();
            value["apiVersion"] = kind.api_version().into();
            value["kind"] = kind.kind.into();
            value["metadata"]["name"] = name.into();
            value["metadata"]["uid"] = format!("uid-{name}").into();
            if !namespace.is_empty() {
                value["metadata"]["namespace"] = namespace.into();
            }
            world.put(Arc::new(Object::encode(kind.resource(), Revision(7), value).unwrap()));
        };
        let pod = |node: &str| json!({"spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        put("Node", "", "a", json!({"metadata": {"labels": {"x": "1"}}, "spec": {"podCIDR": "10.42.0.0/24"}}));
        put("Node", "", "b", json!({"spec": {}}));
        put("Pod", "n", "mine", pod("a"));
        put("Pod", "n", "theirs", pod("b"));
        let mut going = pod("a");
        going["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30});
        put("Pod", "n", "going", going);
        put("Secret", "n", "s", json!({"data": {}}));
        put("ConfigMap", "n", "c", json!({"data": {}}));
        for (name, node, phase) in
            [("bound", "a", "Bound"), ("released", "a", "Released"), ("elsewhere", "b", "Released")]
        {
            let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
            put(
                "PersistentVolume",
                "",
                name,
                json!({
                    "metadata": {"annotations": {storage::PROVISIONED_BY: storage::LOCAL_PATH}, "finalizers": ["f"]},
                    "spec": {"local": {"path": "/x"}, "nodeAffinity": affinity, "capacity": {"storage": "1Gi"}},
                    "status": {"phase": phase},
                }),
            );
        }
        world
    }

    fn writer(node: &str, is_master: bool) -> Writer<'_> {
        Writer { networks: PodNetworks { cluster: ([10, 42, 0, 0].into(), 16), mask: 24 }, node, is_master }
    }

    fn key(kind: &str, namespace: &str, name: &str) -> Key {
        Key::new(manifests::by_kind("v1", kind).unwrap().resource(), namespace, name)
    }

    /// What becomes of a change that node `a` wants to make to an object.
    fn change(kind: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> &'static str {
        let world = world();
        let object = world.get(&key(kind, namespace, name)).unwrap();
        let mut value = object.value();
        change(&mut value);
        verdict(Write { key: object.key().clone(), value: Some(value), expect: Expect::At(object.revision()) })
    }

    fn remove(kind: &str, namespace: &str, name: &str) -> &'static str {
        let expect = Expect::Uid(format!("uid-{name}"));
        verdict(Write { key: key(kind, namespace, name), value: None, expect })
    }

    fn verdict(write: Write) -> &'static str {
        match all(&[write], &world(), writer("a", false)) {
            Ok(()) => "done",
            Err(Rejected::Failed(why)) if why.starts_with("forbidden: node \"a\" may not write") => "forbidden",
            Err(Rejected::Conflict(_)) => "conflict",
            Err(_) => "malformed",
        }
    }

    #[test]
    fn a_node_writes_its_own_node() {
        assert_eq!(change("Node", "", "a", |node| node["status"]["capacity"] = json!({"cpu": "2"})), "done");
        assert_eq!(change("Node", "", "a", |node| node["metadata"]["labels"]["y"] = "1".into()), "done");
        assert_eq!(change("Node", "", "b", |node| node["status"]["capacity"] = json!({"cpu": "2"})), "forbidden");
        assert_eq!(change("Node", "", "a", |node| node["spec"]["podCIDR"] = "10.0.0.0/8".into()), "forbidden");
        assert_eq!(change("Node", "", "a", |node| node["spec"]["unschedulable"] = true.into()), "forbidden");
        assert_eq!(change("Node", "", "a", |node| node["spec"]["taints"] = json!([])), "forbidden");
        assert_eq!(change("Node", "", "a", |node| node["metadata"]["finalizers"] = json!(["x"])), "forbidden");
        for label in ["node-role.kubernetes.io/control-plane", "node-restriction.kubernetes.io/pci"] {
            assert_eq!(change("Node", "", "a", |node| node["metadata"]["labels"][label] = "true".into()), "forbidden");
        }
        assert_eq!(change("Node", "", "a", |node| node["metadata"]["uid"] = "uid-b".into()), "malformed");
        assert_eq!(change("Node", "", "a", |node| node["status"]["capacity"] = 7.into()), "malformed");
        assert_eq!(change("Node", "", "a", |node| node["metadata"]["labels"]["y"] = "no label".into()), "malformed");
        assert_eq!(remove("Node", "", "a"), "forbidden");
        let role =
            |node: &mut Value| node["metadata"]["labels"] = json!({"node-role.kubernetes.io/control-plane": "true"});
        let world = world();
        let mut value = world.get(&key("Node", "", "a")).unwrap().value();
        role(&mut value);
        let write = Write { key: key("Node", "", "a"), value: Some(value), expect: Expect::At(Revision(7)) };
        assert!(all(&[write], &world, writer("a", true)).is_ok());
    }

    #[test]
    fn a_node_joins_with_taints_and_labels_but_without_an_identity_or_a_network_of_others() {
        let join = |name: &str, edit: fn(&mut Value)| {
            let mut value =
                json!({"apiVersion": "v1", "kind": "Node", "spec": {}, "metadata": {"name": name, "uid": "fresh"}});
            edit(&mut value);
            let write = Write::create(key("Node", "", name), value);
            match all(&[write], &world(), writer("new", false)) {
                Ok(()) => "done",
                Err(Rejected::Failed(why)) if why.starts_with("forbidden") => "forbidden",
                Err(Rejected::Conflict(_)) => "conflict",
                Err(_) => "malformed",
            }
        };
        assert_eq!(join("new", |_| {}), "done");
        assert_eq!(join("new", |node| node["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}])), "done");
        assert_eq!(
            join("new", |node| node["spec"]["taints"] = json!([{"key": "k", "effect": "Perhaps"}])),
            "malformed"
        );
        assert_eq!(join("new", |node| node["spec"]["podCIDR"] = "10.42.0.0/16".into()), "forbidden");
        assert_eq!(join("other", |_| {}), "forbidden");
        let back = |cidr: &'static str| {
            let mut value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "new", "uid": "fresh"}});
            value["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
            let mut world = world();
            let other = json!({"metadata": {"name": "c"}, "spec": {"podCIDR": "10.42.129.0/24"}});
            world.put(Arc::new(Object::encode(key("Node", "", "c").resource, Revision(8), other).unwrap()));
            all(&[Write::create(key("Node", "", "new"), value)], &world, writer("new", false)).is_ok()
        };
        assert!(back("10.42.130.0/24"), "a node that was lost comes back with its network");
        for cidr in ["10.42.129.0/24", "10.42.1.0/24", "10.42.128.0/17", "10.43.130.0/24", "10.42.130.1/24", "all"] {
            assert!(!back(cidr), "{cidr}");
        }
        assert_eq!(join("a", |_| {}), "conflict");
        assert_eq!(join("new", |node| node["metadata"]["uid"] = "uid-s".into()), "malformed");
        assert_eq!(join("new", |node| node["kind"] = "Pod".into()), "malformed");
    }

    #[test]
    fn of_its_pods_a_node_writes_the_status_and_the_end() {
        assert_eq!(change("Pod", "n", "mine", |pod| pod["status"]["phase"] = "Running".into()), "done");
        assert_eq!(change("Pod", "n", "theirs", |pod| pod["status"]["phase"] = "Running".into()), "forbidden");
        assert_eq!(change("Pod", "n", "mine", |pod| pod["spec"]["nodeName"] = "b".into()), "forbidden");
        assert_eq!(change("Pod", "n", "mine", |pod| pod["metadata"]["labels"] = json!({"x": "y"})), "forbidden");
        assert_eq!(change("Pod", "n", "mine", |pod| pod["status"] = "fine".into()), "malformed");
        assert_eq!(remove("Pod", "n", "mine"), "forbidden");
        assert_eq!(remove("Pod", "n", "going"), "done");
        assert_eq!(change("Pod", "n", "going", |pod| pod["metadata"]["deletionGracePeriodSeconds"] = 0.into()), "done");
        assert_eq!(
            change("Pod", "n", "mine", |pod| pod["metadata"]["deletionGracePeriodSeconds"] = 0.into()),
            "forbidden"
        );
        let mut value = world().get(&key("Pod", "n", "mine")).unwrap().value();
        value["metadata"]["uid"] = "fresh".into();
        value["metadata"]["name"] = "more".into();
        assert_eq!(verdict(Write::create(key("Pod", "n", "more"), value.clone())), "forbidden");
        let blind = Write { key: key("Pod", "n", "mine"), value: Some(value), expect: Expect::Uid("uid-mine".into()) };
        assert_eq!(verdict(blind), "conflict", "nothing is replaced that was not seen");
    }

    #[test]
    fn everything_else_is_not_a_nodes_to_write() {
        assert_eq!(change("Secret", "n", "s", |secret| secret["data"]["k"] = "eA==".into()), "forbidden");
        assert_eq!(remove("ConfigMap", "n", "c"), "forbidden");
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n", "uid": "fresh"},
            "involvedObject": {"kind": "Pod", "name": "mine", "namespace": "n"}, "reason": "R", "type": "Normal",
        });
        assert_eq!(verdict(Write::create(key("Event", "n", "e"), event)), "done");
    }

    #[test]
    fn a_node_lets_go_what_lies_on_it() {
        let let_go = |volume: &mut Value| {
            volume["metadata"]["finalizers"] = json!([]);
            volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        };
        assert_eq!(change("PersistentVolume", "", "released", let_go), "done");
        assert_eq!(change("PersistentVolume", "", "bound", let_go), "forbidden");
        assert_eq!(change("PersistentVolume", "", "elsewhere", let_go), "forbidden");
        assert_eq!(
            change("PersistentVolume", "", "released", |pv| pv["spec"]["local"]["path"] = "/etc".into()),
            "forbidden"
        );
        assert_eq!(remove("PersistentVolume", "", "released"), "done");
        assert_eq!(remove("PersistentVolume", "", "elsewhere"), "forbidden");
    }
}
