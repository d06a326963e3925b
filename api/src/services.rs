//! Addresses and node ports of Services, given out at creation as Kubernetes' registry does.
//!
//! What is taken is what the Services of the `World` have; allocations take turns, and a turn ends when its commit is
//! in the world. So there is no second book of what is taken, and nothing to repair after a crash.

use crate::status::Status;
use k8s_openapi::api::core::v1::Service;
use manifests::{Kind, is_externally_accessible, needs_health_check};
use serde_json::{Map, Value, json};
use state::World;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Node ports; Kubernetes' default range.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// A turn to allocate; kept until the commit is done.
pub type Turn = OwnedMutexGuard<()>;

/// Gives out addresses and ports.
pub struct Allocator {
    network: u32,
    prefix_bits: u8,
    reserved: Vec<Ipv4Addr>,
    turn: Arc<Mutex<()>>,
}

/// What the Services of a world have, but for one of them.
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    ports: Ports,
}

/// Port and protocol.
type Ports = BTreeSet<(u16, String)>;

impl Allocator {
    /// For the range of `cidr`; `reserved` addresses are given only to those who ask for them.
    pub fn new(cidr: (Ipv4Addr, u8), reserved: &[Ipv4Addr]) -> Self {
        let prefix_bits = cidr.1.min(30);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
        let network = u32::from(cidr.0) & mask;
        // .1 is kubernetes.default
        let mut reserved = reserved.to_vec();
        reserved.push(Ipv4Addr::from(network + 1));
        Self { network, prefix_bits, reserved, turn: Arc::default() }
    }

    /// Completes a Service: addresses, families, policies, node ports. The answer must be kept until the commit.
    ///
    /// # Errors
    /// 422 for what was asked for and cannot be had, 500 when a range is used up.
    pub async fn complete(
        &self,
        kind: &Kind,
        world: impl FnOnce() -> Arc<World>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Turn, Status> {
        let turn = self.turn.clone().lock_owned().await;
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let refuse = |path: &str, why: String| Status::invalid_field(kind, &name, path, "FieldValueInvalid", why);
        let seed = seed(service["metadata"]["uid"].as_str().unwrap_or_default());
        let uid = service["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(turn) };
        let old_spec = old.and_then(|old| old.get("spec")).and_then(Value::as_object);
        if let Some(old_spec) = old_spec {
            carry_over(spec, old_spec);
        }
        let taken = taken(&world(), &uid);
        if wants_address(spec) {
            self.address(spec, &taken, old_spec, seed).map_err(|(path, why)| refuse(path, why))?;
            families(spec).map_err(|(path, why)| refuse(path, why))?;
            spec.entry("internalTrafficPolicy").or_insert_with(|| "Cluster".into());
        }
        let mut ports = taken.ports;
        if wants_node_ports(spec) {
            node_ports(spec, &mut ports, seed).map_err(|(path, why)| refuse(&path, why))?;
        }
        let whole = Value::Object(spec.clone());
        if is_externally_accessible(&whole) {
            spec.entry("externalTrafficPolicy").or_insert_with(|| "Cluster".into());
        }
        if needs_health_check(&whole) {
            health_check_port(spec, &mut ports, seed).map_err(|why| refuse("spec.healthCheckNodePort", why))?;
        }
        if old.is_none() {
            service["status"] = json!({"loadBalancer": {}});
        }
        Ok(turn)
    }

    fn address(
        &self,
        spec: &mut Map<String, Value>,
        taken: &Taken,
        old: Option<&Map<String, Value>>,
        seed: u64,
    ) -> Result<(), (&'static str, String)> {
        let first = spec.get("clusterIPs").and_then(|list| list.get(0)).and_then(Value::as_str);
        let asked = spec.get("clusterIP").and_then(Value::as_str).filter(|text| !text.is_empty()).or(first);
        let address = match asked {
            Some("None") => "None".to_owned(),
            Some(asked) => {
                let is_kept = old.and_then(|old| old.get("clusterIP")).and_then(Value::as_str) == Some(asked);
                // what is no address at all is the validation's to refuse
                if let (false, Ok(address)) = (is_kept, asked.parse::<Ipv4Addr>()) {
                    let given = format!("Invalid value: [{asked:?}]: failed to allocate IP {asked}");
                    if !self.contains(address) {
                        let range = format!("{}/{}", Ipv4Addr::from(self.network), self.prefix_bits);
                        let why = format!(
                            "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
                        );
                        return Err(("spec.clusterIPs", format!("{given}: {why}")));
                    }
                    if taken.addresses.contains(&address) {
                        return Err(("spec.clusterIPs", format!("{given}: provided IP is already allocated")));
                    }
                }
                asked.to_owned()
            }
            None => self
                .free(taken, seed)
                .ok_or_else(|| {
                    let why = "failed to allocate a serviceIP: range is full";
                    ("spec.clusterIPs", format!("Invalid value: []: {why}"))
                })?
                .to_string(),
        };
        spec.insert("clusterIP".into(), address.clone().into());
        spec.insert("clusterIPs".into(), json!([address]));
        Ok(())
    }

    /// Usable addresses of the range: without the first (the network) and the last (its broadcast address).
    fn usable(&self) -> u64 {
        (1u64 << (32 - u32::from(self.prefix_bits))).saturating_sub(2)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let offset = u64::from(u32::from(address).wrapping_sub(self.network));
        (1..=self.usable()).contains(&offset)
    }

    /// A free address. Begins anywhere, so that a freed one is not given to somebody else at once.
    fn free(&self, taken: &Taken, seed: u64) -> Option<Ipv4Addr> {
        let usable = self.usable();
        let at = |step: u64| Ipv4Addr::from(self.network + 1 + ((seed + step) % usable) as u32);
        let seed_max = usable.min(taken.addresses.len() as u64 + self.reserved.len() as u64 + 1);
        (0..seed_max).map(at).find(|address| !taken.addresses.contains(address) && !self.reserved.contains(address))
    }
}

fn wants_address(spec: &Map<String, Value>) -> bool {
    spec.get("type").and_then(Value::as_str) != Some("ExternalName")
}

fn wants_node_ports(spec: &Map<String, Value>) -> bool {
    match spec.get("type").and_then(Value::as_str) {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn taken(world: &World, but_uid: &str) -> Taken {
    let mut taken = Taken { addresses: BTreeSet::new(), ports: BTreeSet::new() };
    for object in world.all::<Service>(None) {
        if object.meta().uid == but_uid {
            continue;
        }
        let Some(spec) = object.view::<Service>().and_then(|service| service.spec.as_ref()) else { continue };
        for address in spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip) {
            taken.addresses.extend(address.parse::<Ipv4Addr>());
        }
        for port in spec.ports.iter().flatten() {
            if let Some(number) = port.node_port.and_then(|number| u16::try_from(number).ok()) {
                taken.ports.insert((number, port.protocol.clone().unwrap_or_else(|| "TCP".into())));
            }
        }
        if let Some(number) = spec.health_check_node_port.and_then(|number| u16::try_from(number).ok()) {
            taken.ports.insert((number, "TCP".into()));
        }
    }
    taken
}

/// An update that says nothing about what was allocated keeps it; one that makes it needless drops it.
fn carry_over(spec: &mut Map<String, Value>, old: &Map<String, Value>) {
    let is_unset = |spec: &Map<String, Value>, field: &str| match spec.get(field) {
        None | Some(Value::Null) => true,
        Some(value) => value == "" || value == 0 || value.as_array().is_some_and(Vec::is_empty),
    };
    if wants_address(spec) && wants_address(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if is_unset(spec, field)
                && let Some(value) = old.get(field)
            {
                spec.insert(field.into(), value.clone());
            }
        }
    } else if !wants_address(spec) && wants_address(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec.get(field) == old.get(field) {
                spec.remove(field);
            }
        }
    }
    let old_ports = old.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let (had, wants) = (wants_node_ports(old), wants_node_ports(spec));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = old_ports.iter().find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
        let Some(old_number) = same.map(|old| old["nodePort"].clone()).filter(Value::is_number) else { continue };
        let Some(port) = port.as_object_mut() else { continue };
        if had && wants && is_unset(port, "nodePort") {
            port.insert("nodePort".into(), old_number);
        } else if had && !wants && port.get("nodePort") == Some(&old_number) {
            port.remove("nodePort");
        }
    }
    let whole = |spec: &Map<String, Value>| Value::Object(spec.clone());
    let drop_kept = |spec: &mut Map<String, Value>, fields: &[&str]| {
        for field in fields {
            if spec.get(*field) == old.get(*field) {
                spec.remove(*field);
            }
        }
    };
    if is_externally_accessible(&whole(old)) && !is_externally_accessible(&whole(spec)) {
        drop_kept(spec, &["externalTrafficPolicy"]);
    }
    let is_balancer = |spec: &Map<String, Value>| spec.get("type").is_some_and(|kind| kind == "LoadBalancer");
    if is_balancer(old) && !is_balancer(spec) {
        drop_kept(spec, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    match (needs_health_check(&whole(old)), needs_health_check(&whole(spec))) {
        (true, true) if is_unset(spec, "healthCheckNodePort") => {
            spec.extend(old.get("healthCheckNodePort").map(|port| ("healthCheckNodePort".to_owned(), port.clone())));
        }
        (true, false) => drop_kept(spec, &["healthCheckNodePort"]),
        _ => {}
    }
}

/// One family, IPv4.
fn families(spec: &mut Map<String, Value>) -> Result<(), (&'static str, String)> {
    let is_headless = spec.get("clusterIP").and_then(Value::as_str) == Some("None");
    let selects = spec.get("selector").and_then(Value::as_object).is_some_and(|selector| !selector.is_empty());
    if is_headless && !selects {
        // nothing is allocated for it, so both families are right, as in Kubernetes
        spec.entry("ipFamilyPolicy").or_insert_with(|| "RequireDualStack".into());
        spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4", "IPv6"]));
        return Ok(());
    }
    if spec.get("ipFamilyPolicy").and_then(Value::as_str) == Some("RequireDualStack") {
        let why = r#"Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#;
        return Err(("spec.ipFamilyPolicy", why.into()));
    }
    let asked = spec.get("ipFamilies").and_then(Value::as_array);
    if asked.is_some_and(|asked| asked.first().is_some_and(|family| family == "IPv6")) {
        return Err(("spec.ipFamilies[0]", r#"Invalid value: "IPv6": not configured on this cluster"#.into()));
    }
    spec.insert("ipFamilies".into(), json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| "SingleStack".into());
    Ok(())
}

/// The port at which nodes say whether they have endpoints: the one that is asked for, or a free one.
fn health_check_port(spec: &mut Map<String, Value>, taken: &mut Ports, seed: u64) -> Result<(), String> {
    let asked = spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0);
    let number = match asked {
        0 => free_port(taken, seed).ok_or("Internal error: failed to allocate a nodePort: range is full")?,
        asked => node_port(asked).map_err(|why| format!("Invalid value: {asked}: {why}"))?,
    };
    if !taken.insert((number, "TCP".into())) {
        return Err(format!("Invalid value: {asked}: provided port is already allocated"));
    }
    spec.insert("healthCheckNodePort".into(), number.into());
    Ok(())
}

fn node_port(asked: i64) -> Result<u16, String> {
    u16::try_from(asked).ok().filter(|number| NODE_PORTS.contains(number)).ok_or_else(|| {
        let range = format!("{}-{}", NODE_PORTS.start(), NODE_PORTS.end());
        format!("provided port is not in the valid range. The range of valid ports is {range}")
    })
}

/// A port that nobody has for any protocol. Begins anywhere.
fn free_port(taken: &Ports, seed: u64) -> Option<u16> {
    let many = NODE_PORTS.len() as u64;
    let at = |step: u64| NODE_PORTS.start() + ((seed + step) % many) as u16;
    (0..many).map(at).find(|number| !taken.iter().any(|(known, _)| known == number))
}

fn node_ports(spec: &mut Map<String, Value>, taken: &mut Ports, seed: u64) -> Result<(), (String, String)> {
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let Some(ports) = ports else { return Ok(()) };
    // what is asked for goes before what is free to choose
    for (index, port) in ports.iter().enumerate() {
        let Some(asked) = port["nodePort"].as_i64().filter(|asked| *asked != 0) else { continue };
        let path = || format!("spec.ports[{index}].nodePort");
        let number = node_port(asked).map_err(|why| (path(), format!("Invalid value: {asked}: {why}")))?;
        if !taken.insert((number, protocol(port))) {
            return Err((path(), format!("Invalid value: {asked}: provided port is already allocated")));
        }
    }
    for (index, port) in ports.iter_mut().enumerate() {
        if port["nodePort"].as_i64().unwrap_or(0) != 0 {
            continue;
        }
        let number = free_port(taken, seed + index as u64).ok_or_else(|| {
            let why = "failed to allocate a nodePort: range is full";
            (format!("spec.ports[{index}].nodePort"), format!("Internal error: {why}"))
        })?;
        taken.insert((number, protocol(port)));
        port["nodePort"] = number.into();
    }
    Ok(())
}

/// A number that is another one for every uid (FNV-1a).
fn seed(uid: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    // shifted so that adding a step cannot overflow
    uid.bytes().fold(0xcbf2_9ce4_8422_2325, mix) >> 8
}
