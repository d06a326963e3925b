//! A pod that wants a node, prepared once so that looking at a node is cheap.

use crate::amounts::{self, Amounts};
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use state::{Object, World};

/// A port of the node that a pod takes for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    number: i32,
    protocol: String,
    /// `0.0.0.0` is every address.
    address: String,
}

impl Port {
    /// The node's ports that a pod takes.
    pub(crate) fn of(spec: &PodSpec) -> Vec<Self> {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        let own = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            let number = if spec.host_network == Some(true) {
                port.host_port.or(port.container_port.into())
            } else {
                port.host_port
            };
            Some(Self {
                number: number.filter(|number| *number > 0)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                address: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
            })
        };
        ports.filter_map(own).collect()
    }

    /// Whether two pods cannot both have theirs.
    pub(crate) fn clashes(&self, other: &Self) -> bool {
        let any = |address: &str| matches!(address, "0.0.0.0" | "::");
        self.number == other.number
            && self.protocol == other.protocol
            && (self.address == other.address || any(&self.address) || any(&other.address))
    }
}

/// A pod that wants a node.
pub(crate) struct Wanted<'a> {
    pub(crate) object: &'a Object,
    pub(crate) spec: &'a PodSpec,
    pub(crate) world: &'a World,
    pub(crate) request: Amounts,
    pub(crate) usual: (i64, i64),
    pub(crate) ports: Vec<Port>,
    pub(crate) owner: Option<&'a str>,
    /// The handler of its runtime class.
    pub(crate) handler: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// Prepares a pod. `None` when it is no pod.
    pub(crate) fn new(object: &'a Object, world: &'a World) -> Option<Self> {
        let spec = object.view::<Pod>()?.spec.as_ref()?;
        let usual = amounts::request(spec, true);
        let class = spec.runtime_class_name.as_deref();
        let class = class.and_then(|class| world.view::<k8s_openapi::api::node::v1::RuntimeClass>("", class));
        Some(Self {
            object,
            spec,
            world,
            request: amounts::request(spec, false),
            usual: (usual.cpu, usual.memory),
            ports: Port::of(spec),
            owner: object.controller().map(|owner| owner.uid.as_str()),
            handler: class.map(|class| class.handler.as_str()),
        })
    }

    pub(crate) fn tolerations(&self) -> impl Iterator<Item = &'a Toleration> + use<'a> {
        self.spec.tolerations.iter().flatten()
    }
}
