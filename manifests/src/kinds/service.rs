//! Services.

use super::cells::{AGE, NAME, NONE, column, items, labels, number, text, text_or, wide};
use crate::field::{At, Fault, FieldError, invalid_by};
use crate::{Column, Kind, fill, meta, names, pods};
use schemars::SchemaGenerator;
use serde_json::Value;
use serde_json::json;
use std::collections::HashSet;

/// How long a client may stick to an endpoint.
const AFFINITY_SECONDS_MAX: i64 = 86_400;

/// `Service`.
pub(super) const SERVICE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: false,
    columns: &[NAME, TYPE, CLUSTER_IP, EXTERNAL_IP, PORTS, AGE, CHOOSES],
    selectable: &["spec.clusterIP", "spec.type"],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Service>,
};

const TYPE: Column =
    column("Type", "string", "How the service is exposed.", |object, _| text(&object["spec"]["type"]).into());
const CLUSTER_IP: Column = column("Cluster-IP", "string", "Address inside the cluster.", |object, _| {
    let first = &object["spec"]["clusterIPs"][0];
    text_or(if first.is_null() { &object["spec"]["clusterIP"] } else { first }, NONE).into()
});
const EXTERNAL_IP: Column =
    column("External-IP", "string", "Address outside the cluster.", |object, _| external(object).into());
const PORTS: Column = column("Port(s)", "string", "Ports the service has.", |object, _| {
    let port = |port: &Value| match number(&port["nodePort"]) {
        0 => format!("{}/{}", number(&port["port"]), text(&port["protocol"])),
        node => format!("{}:{node}/{}", number(&port["port"]), text(&port["protocol"])),
    };
    let ports: Vec<String> = items(&object["spec"]["ports"]).iter().map(port).collect();
    if ports.is_empty() { NONE.into() } else { ports.join(",").into() }
});
const CHOOSES: Column = wide("Selector", "string", "Labels of the pods behind the service.", |object, _| {
    labels(&object["spec"]["selector"]).into()
});

fn external(object: &Value) -> String {
    let spec = &object["spec"];
    let mut addresses: Vec<&str> = items(&spec["externalIPs"]).iter().map(text).collect();
    match text(&spec["type"]) {
        "ExternalName" => return text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let given = items(&object["status"]["loadBalancer"]["ingress"]);
            let given =
                given.iter().map(|one| text_or(&one["ip"], text(&one["hostname"]))).filter(|one| !one.is_empty());
            addresses.splice(0..0, given);
            if addresses.is_empty() {
                return "<pending>".to_owned();
            }
        }
        _ => {}
    }
    if addresses.is_empty() { NONE.to_owned() } else { addresses.join(",") }
}

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(spec) = value.as_object_mut().and_then(|object| fill::object(object, "spec")) else { return };
    fill::missing(spec, "type", "ClusterIP");
    fill::missing(spec, "sessionAffinity", "None");
    if fill::says(spec, "sessionAffinity", "None") {
        spec.remove("sessionAffinityConfig");
    } else if let Some(config) =
        fill::object(spec, "sessionAffinityConfig").and_then(|config| fill::object(config, "clientIP"))
    {
        fill::missing(config, "timeoutSeconds", 10_800);
    }
    for port in fill::objects(spec, "ports") {
        fill::missing(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        let is_unset = port.get("targetPort").is_none_or(|target| *target == json!(0) || *target == json!(""));
        if is_unset && !number.is_null() {
            port.insert("targetPort".into(), number);
        }
    }
    let service_type = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if is_externally_accessible(&Value::Object(spec.clone())) {
        fill::missing(spec, "externalTrafficPolicy", "Cluster");
    }
    if service_type != "ExternalName" {
        fill::missing(spec, "internalTrafficPolicy", "Cluster");
    }
    if service_type == "LoadBalancer" {
        fill::missing(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// Whether a Service's spec lets clients outside the cluster in.
pub fn is_externally_accessible(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort" | "LoadBalancer") => true,
        None | Some("ClusterIP") => !items(&spec["externalIPs"]).is_empty(),
        Some(_) => false,
    }
}

/// Whether a load balancer outside must ask the nodes which of them have endpoints.
pub fn needs_health_check(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_label_1035);
    let spec = At::root(new).field("spec");
    let (service_type, cluster_ip) = (spec.field("type"), spec.field("clusterIP"));
    let is_external = service_type.text() == "ExternalName";
    if spec.field("ports").is_empty() && cluster_ip.text() != "None" && !is_external {
        errors.push(spec.field("ports").required(""));
    }
    if is_external {
        let name = spec.field("externalName");
        if name.text().is_empty() {
            errors.push(name.required(""));
        } else {
            errors.extend(invalid_by(&name, names::dns_subdomain(name.text().trim_end_matches('.'))));
        }
        if !cluster_ip.text().is_empty() {
            errors.push(cluster_ip.forbidden("may not be set when `type` is 'ExternalName'"));
        }
    } else if !matches!(cluster_ip.text(), "" | "None") && !pods::spec::is_ip(cluster_ip.text()) {
        errors.push(cluster_ip.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
    errors.extend(service_type.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    if cluster_ip.text() == "None" && matches!(service_type.text(), "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {} services", service_type.text());
        errors.push(spec.field("clusterIPs").fault(Fault::Invalid(json!(["None"]), why)));
    }
    errors.extend(ports(&spec.field("ports"), service_type.text()));
    errors.extend(affinity(&spec));
    errors.extend(meta::labels(&spec.field("selector")));
    errors.extend(traffic(&spec));
    errors.extend(balancer(&spec));
    if let Some(old) = old {
        let old = At::root(old).field("spec");
        errors.extend(address_kept(&spec, &old));
        errors.extend(balancer_kept(&spec, &old));
    }
    errors
}

/// Which endpoints are for whom.
fn traffic(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (external, internal) = (spec.field("externalTrafficPolicy"), spec.field("internalTrafficPolicy"));
    if internal.is_set() {
        errors.extend(internal.one_of(&["Cluster", "Local"]));
    }
    if is_externally_accessible(spec.value) {
        errors.extend(external.one_of(&["Cluster", "Local"]));
    } else if !external.text().is_empty() {
        errors.push(external.invalid("may only be set for externally-accessible services"));
    }
    let distribution = spec.field("trafficDistribution");
    if distribution.is_set() {
        errors.extend(distribution.one_of(&["PreferClose", "PreferSameNode", "PreferSameZone"]));
    }
    errors
}

/// What only load balancers have.
fn balancer(spec: &At<'_>) -> Vec<FieldError> {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let mut errors = Vec::new();
    let is_balancer = spec.field("type").text() == "LoadBalancer";
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if spec.field(field).is_set() && !is_balancer {
            errors.push(spec.field(field).forbidden(ONLY));
        }
    }
    let ranges = spec.field("loadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer {
        errors.push(ranges.forbidden(ONLY));
    }
    for range in ranges.items().filter(|range| !is_cidr(range.text().trim())) {
        errors.push(range.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
    }
    let check = spec.field("healthCheckNodePort");
    let number = check.int().unwrap_or_default();
    if needs_health_check(spec.value) {
        errors.extend(invalid_by(&check, names::port_number(number)));
    } else if number != 0 {
        errors.push(
            check.invalid("may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"),
        );
    }
    errors
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let is_plain = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
    let bits_max = match address.parse::<std::net::IpAddr>() {
        Ok(address) if address.is_ipv4() => 32,
        Ok(_) => 128,
        Err(_) => return false,
    };
    is_plain && bits.parse::<u8>().is_ok_and(|bits| bits <= bits_max)
}

/// What a load balancer outside relies on while the Service is one.
fn balancer_kept(new: &At<'_>, old: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (class, old_class) = (new.field("loadBalancerClass"), old.field("loadBalancerClass"));
    let are_balancers = [new, old].iter().all(|spec| spec.field("type").text() == "LoadBalancer");
    if are_balancers && class.value != old_class.value {
        errors.push(class.invalid("may not change once set"));
    }
    let (check, old_check) = (new.field("healthCheckNodePort"), old.field("healthCheckNodePort"));
    if needs_health_check(new.value) && needs_health_check(old.value) && check.int() != old_check.int() {
        let why = "cannot change healthCheckNodePort on loadBalancer service with externalTraffic=Local during update";
        errors.push(check.invalid(why));
    }
    errors
}

fn ports(ports: &At<'_>, service_type: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut seen_names, mut seen_ports, mut seen_nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for port in ports.items() {
        let (name, number, node) = (port.field("name"), port.field("port"), port.field("nodePort"));
        let protocol = port.field("protocol");
        if name.text().is_empty() {
            if ports.len() > 1 {
                errors.push(name.required(""));
            }
        } else {
            let faults = names::dns_label(name.text());
            if faults.is_empty() && !seen_names.insert(name.text()) {
                errors.push(name.duplicate());
            }
            errors.extend(invalid_by(&name, faults));
        }
        errors.extend(invalid_by(&number, names::port_number(number.int().unwrap_or_default())));
        // SCTP, which no node here would carry, is not among them.
        errors.extend(protocol.one_of(&["TCP", "UDP"]));
        errors.extend(pods::probes::port(&port.field("targetPort")));
        if !seen_ports.insert((protocol.text(), number.int())) {
            let key = json!({"port": number.value, "protocol": protocol.value});
            errors.push(port.fault(Fault::Duplicate(key)));
        }
        let Some(node_port) = node.int().filter(|number| *number != 0) else { continue };
        if !matches!(service_type, "NodePort" | "LoadBalancer") {
            errors.push(node.forbidden(&format!("may not be used when `type` is '{service_type}'")));
        } else if !seen_nodes.insert((protocol.text(), node_port)) {
            errors.push(node.duplicate());
        }
    }
    errors
}

fn affinity(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = spec.field("sessionAffinity").one_of(&["ClientIP", "None"]).into_iter().collect();
    let seconds = spec.fields(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
    if seconds.int().is_some_and(|seconds| seconds <= 0 || seconds > AFFINITY_SECONDS_MAX) {
        errors.push(seconds.invalid(format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}")));
    }
    errors
}

/// An address once given stays, unless the service stops or starts having one.
fn address_kept(new: &At<'_>, old: &At<'_>) -> Option<FieldError> {
    let (after, before) = (new.field("clusterIP"), old.field("clusterIP"));
    let has_no_address = |spec: &At<'_>| spec.field("type").text() == "ExternalName";
    if has_no_address(new) || has_no_address(old) || before.text().is_empty() || after.value == before.value {
        return None;
    }
    let shown = json!([after.text()]);
    Some(FieldError {
        path: "spec.clusterIPs[0]".into(),
        fault: Fault::Invalid(shown, "may not change once set".into()),
    })
}
