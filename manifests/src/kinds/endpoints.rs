//! Endpoints and EndpointSlices: where a Service leads.

use super::cells::{AGE, NAME, NONE, column, first_few, items, number, text};
use crate::field::{At, FieldError, invalid_by};
use crate::{Column, Kind, fill, meta, names, pods};
use schemars::SchemaGenerator;
use serde_json::Value;
use std::collections::HashSet;

/// Addresses of one endpoint, endpoints and ports of one slice: Kubernetes' bounds.
const ADDRESSES_MAX: usize = 100;
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;

/// `Endpoints`.
pub(super) const ENDPOINTS: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[NAME, ADDRESSES, AGE],
    selectable: &[],
    default: default_endpoints,
    validate: validate_endpoints,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Endpoints>,
};

/// `EndpointSlice`.
pub(super) const ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, ADDRESS_TYPE, PORTS, SLICE_ENDPOINTS, AGE],
    selectable: &[],
    default: default_slice,
    validate: validate_slice,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::discovery::v1::EndpointSlice>,
};

const ADDRESSES: Column = column("Endpoints", "string", "Addresses and ports behind the service.", |object, _| {
    first_few(&addresses(object), NONE).into()
});
const ADDRESS_TYPE: Column =
    column("AddressType", "string", "What the addresses are.", |object, _| text(&object["addressType"]).into());
const PORTS: Column = column("Ports", "string", "Ports behind the service.", |object, _| {
    let port = |port: &Value| port["port"].as_i64().map_or_else(|| "*".to_owned(), |port| port.to_string());
    let ports: Vec<String> = items(&object["ports"]).iter().map(port).collect();
    first_few(&ports, "<unset>").into()
});
const SLICE_ENDPOINTS: Column = column("Endpoints", "string", "Addresses behind the service.", |object, _| {
    let all = items(&object["endpoints"]).iter().flat_map(|endpoint| items(&endpoint["addresses"]));
    let all: Vec<String> = all.map(|address| text(address).to_owned()).collect();
    first_few(&all, "<unset>").into()
});

fn addresses(object: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for subset in items(&object["subsets"]) {
        let ips = || items(&subset["addresses"]).iter().map(|address| text(&address["ip"]));
        let ports = items(&subset["ports"]);
        if ports.is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in ports {
            let number = number(&port["port"]);
            all.extend(
                ips().map(|ip| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }),
            );
        }
    }
    all
}

fn default_endpoints(value: &mut Value) {
    fill::prune(value);
    let Some(endpoints) = value.as_object_mut() else { return };
    for subset in fill::objects(endpoints, "subsets") {
        for port in fill::objects(subset, "ports") {
            fill::missing(port, "protocol", "TCP");
        }
    }
}

fn validate_endpoints(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    for subset in At::root(new).field("subsets").items() {
        let (ready, not_ready) = (subset.field("addresses"), subset.field("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for address in ready.items().chain(not_ready.items()) {
            errors.extend(ip(&address.field("ip")));
        }
        for port in subset.field("ports").items() {
            let number = port.field("port");
            errors.extend(invalid_by(&number, names::port_number(number.int().unwrap_or_default())));
            errors.extend(port.field("protocol").one_of(&["SCTP", "TCP", "UDP"]));
        }
    }
    errors
}

fn ip(at: &At<'_>) -> Option<FieldError> {
    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    (!pods::spec::is_ip(at.text())).then(|| at.invalid(why))
}

fn default_slice(value: &mut Value) {
    fill::prune(value);
    let Some(slice) = value.as_object_mut() else { return };
    for port in fill::objects(slice, "ports") {
        fill::missing(port, "name", "");
        fill::missing(port, "protocol", "TCP");
    }
}

fn validate_slice(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let address_type = root.field("addressType");
    errors.extend(address_type.one_of(&["FQDN", "IPv4", "IPv6"]));
    let (endpoints, ports) = (root.field("endpoints"), root.field("ports"));
    for (list, max) in [(&endpoints, ENDPOINTS_MAX), (&ports, PORTS_MAX)] {
        if list.len() > max {
            errors.push(list.fault(crate::field::Fault::TooMany(list.len(), max)));
            return errors;
        }
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.field("addresses");
        if addresses.is_empty() {
            errors.push(addresses.required("must contain at least 1 address"));
        }
        if addresses.len() > ADDRESSES_MAX {
            errors.push(addresses.fault(crate::field::Fault::TooMany(addresses.len(), ADDRESSES_MAX)));
            continue;
        }
        for address in addresses.items() {
            match address_type.text() {
                "FQDN" => errors.extend(invalid_by(&address, names::dns_subdomain(address.text()))),
                _ => errors.extend(ip(&address)),
            }
        }
    }
    let mut seen = HashSet::new();
    for port in ports.items() {
        let name = port.field("name");
        if !name.text().is_empty() {
            errors.extend(invalid_by(&name, names::dns_label(name.text())));
        }
        if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
        errors.extend(port.field("protocol").one_of(&["SCTP", "TCP", "UDP"]));
    }
    if let Some(old) = old {
        errors.extend(meta::immutable(&address_type, &At::root(old).field("addressType")));
    }
    errors
}
