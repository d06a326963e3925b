//! NetworkPolicies: who may connect to pods, and where pods may connect to.

use super::cells::{AGE, NAME, column, selector};
use crate::field::{At, Fault, FieldError, invalid_by};
use crate::{Column, Kind, fill, labels, meta, names};
use schemars::SchemaGenerator;
use serde_json::{Value, json};
use std::net::IpAddr;

/// The values of `policyTypes`.
const TYPES: [&str; 2] = ["Egress", "Ingress"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// `NetworkPolicy`.
pub(super) const NETWORK_POLICY: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, POD_SELECTOR, AGE],
    selectable: &[],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::networking::v1::NetworkPolicy>,
};

const POD_SELECTOR: Column =
    column("Pod-Selector", "string", "Selects the pods to which the policy applies.", |object, _| {
        selector(&object["spec"]["podSelector"]).into()
    });

/// A policy without types isolates for ingress, and for egress only if it has rules for that.
fn default(value: &mut Value) {
    fill::prune(value);
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for direction in ["ingress", "egress"] {
        let rules = spec.get_mut(direction).and_then(Value::as_array_mut);
        let ports = rules.into_iter().flatten().filter_map(|rule| rule.get_mut("ports")?.as_array_mut());
        for port in ports.flatten().filter_map(Value::as_object_mut) {
            fill::missing(port, "protocol", "TCP");
        }
    }
    let has_egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), types);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    errors.extend(labels::selector(&spec.field("podSelector")));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(direction).items() {
            errors.extend(rule.field("ports").items().flat_map(|port| self::port(&port)));
            errors.extend(rule.field(peers).items().flat_map(|peer| self::peer(&peer)));
        }
    }
    let types = spec.field("policyTypes");
    if types.len() > TYPES.len() {
        errors.push(types.invalid("may not specify more than two policyTypes"));
        return errors;
    }
    errors.extend(types.items().filter(|one| !TYPES.contains(&one.text())).map(|one| one.not_supported(&TYPES)));
    errors
}

fn port(rule: &At<'_>) -> Vec<FieldError> {
    let (protocol, port, end) = (rule.field("protocol"), rule.field("port"), rule.field("endPort"));
    let mut errors = Vec::new();
    if protocol.is_set() && !PROTOCOLS.contains(&protocol.text()) {
        errors.push(protocol.not_supported(&PROTOCOLS));
    }
    match (port.value, port.int()) {
        (Value::Null, _) if end.is_set() => {
            errors.push(end.invalid("may not be specified when `port` is not specified"))
        }
        (Value::Null, _) => {}
        (_, Some(number)) => {
            errors.extend(invalid_by(&port, names::port_number(number)));
            if let Some(last) = end.int() {
                if last < number {
                    errors.push(end.invalid("must be greater than or equal to `port`"));
                }
                errors.extend(invalid_by(&end, names::port_number(last)));
            }
        }
        (_, None) => {
            if end.is_set() {
                errors.push(end.invalid("may not be specified when `port` is non-numeric"));
            }
            errors.extend(invalid_by(&port, names::port(port.text())));
        }
    }
    errors
}

fn peer(peer: &At<'_>) -> Vec<FieldError> {
    let (pods, namespaces, block) = (peer.field("podSelector"), peer.field("namespaceSelector"), peer.field("ipBlock"));
    let mut errors = labels::selector(&pods);
    errors.extend(labels::selector(&namespaces));
    if block.is_set() {
        errors.extend(self::block(&block));
    }
    let selects = pods.is_set() || namespaces.is_set();
    match (selects, block.is_set()) {
        (false, false) => errors.push(peer.required("must specify a peer")),
        (true, true) => errors.push(peer.forbidden("may not specify both ipBlock and another peer")),
        _ => {}
    }
    errors
}

fn block(block: &At<'_>) -> Vec<FieldError> {
    let cidr = block.field("cidr");
    if cidr.text().is_empty() {
        return vec![cidr.required("")];
    }
    let Some(whole) = network(cidr.text()) else { return vec![cidr.invalid(CIDR)] };
    let except = block.field("except");
    let faults = except.items().filter_map(|part| match network(part.text()) {
        None => Some(part.invalid(CIDR)),
        Some(inner) if is_strictly_within(inner, whole) => None,
        Some(_) => Some(part.fault(Fault::Invalid(part.value.clone(), "must be a strict subset of `cidr`".into()))),
    });
    faults.collect()
}

/// An address and how many of its bits name the network.
fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix: u32 = is_number.then(|| prefix.parse().ok()).flatten()?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

fn is_strictly_within((inner, longer): (IpAddr, u32), (whole, shorter): (IpAddr, u32)) -> bool {
    let differing = match (inner, whole) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    longer > shorter && differing >= shorter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "n"}, "spec": spec})
    }

    #[test]
    fn types_follow_from_the_rules() {
        let types = |mut spec: Value| {
            spec["podSelector"] = json!({});
            let mut value = policy(spec);
            default(&mut value);
            let once = value.clone();
            default(&mut value);
            assert_eq!(value, once);
            value["spec"]["policyTypes"].clone()
        };
        assert_eq!(types(json!({})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": []})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"policyTypes": ["Egress"]})), json!(["Egress"]));
        let mut value = policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"protocol": "UDP"}]}]}));
        default(&mut value);
        let ports = &value["spec"]["ingress"][0]["ports"];
        assert_eq!(*ports, json!([{"port": 80, "protocol": "TCP"}, {"protocol": "UDP"}]));
    }

    #[test]
    fn what_is_no_policy_is_refused_in_kubernetes_words() {
        let faults = |spec: Value| -> Vec<String> {
            let errors = validate(&policy(spec), None);
            errors.into_iter().map(|error| format!("{}: {}", error.path, error.body())).collect()
        };
        let rule = |rule: Value| faults(json!({"podSelector": {}, "ingress": [rule]}));
        assert_eq!(rule(json!({"from": [{"podSelector": {}}, {"namespaceSelector": {}}]})), [""; 0]);
        assert_eq!(
            rule(json!({"ports": [{"port": 80, "endPort": 90}, {"port": "web"}, {"protocol": "SCTP"}]})),
            [""; 0]
        );
        for (given, path, words) in [
            (json!({"from": [{}]}), "from[0]", "must specify a peer"),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
                "from[0]",
                "may not specify both ipBlock and another peer",
            ),
            (json!({"from": [{"ipBlock": {"cidr": ""}}]}), "from[0].ipBlock.cidr", "Required value"),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}),
                "from[0].ipBlock.cidr",
                "must be a valid CIDR value",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}}]}),
                "from[0].ipBlock.except[1]",
                "must be a strict subset of `cidr`",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}),
                "from[0].ipBlock.except[0]",
                "must be a strict subset of `cidr`",
            ),
            (json!({"ports": [{"port": 0}]}), "ports[0].port", "must be between 1 and 65535, inclusive"),
            (json!({"ports": [{"port": "we_b"}]}), "ports[0].port", "must contain only"),
            (json!({"ports": [{"protocol": "ICMP"}]}), "ports[0].protocol", "Unsupported value: \"ICMP\""),
            (
                json!({"ports": [{"port": 80, "endPort": 79}]}),
                "ports[0].endPort",
                "must be greater than or equal to `port`",
            ),
            (
                json!({"ports": [{"port": "web", "endPort": 79}]}),
                "ports[0].endPort",
                "may not be specified when `port` is non-numeric",
            ),
            (
                json!({"ports": [{"endPort": 79}]}),
                "ports[0].endPort",
                "may not be specified when `port` is not specified",
            ),
        ] {
            let said = rule(given);
            let at = format!("spec.ingress[0].{path}: ");
            assert!(
                said.len() == 1 && said[0].starts_with(&at) && said[0].contains(words),
                "{said:?}, not {at}{words}"
            );
        }
        let said = faults(json!({"podSelector": {}, "policyTypes": ["Both"]}));
        assert!(said[0].starts_with("spec.policyTypes[0]: Unsupported value: \"Both\""), "{said:?}");
        assert_eq!(faults(json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress", "Egress"]})).len(), 1);
        let said = faults(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}));
        assert!(said[0].starts_with("spec.podSelector.matchExpressions[0].values"), "{said:?}");
    }
}
