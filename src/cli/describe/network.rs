//! Services, Ingresses, Endpoints, EndpointSlices.

use serde_json::Value;

use super::page::{Page, each, or_none, scalar, text};

/// How many endpoints a line shows before it only counts them.
const SHOWN_ENDPOINTS_MAX: usize = 3;

/// A Service's page; `slices` are its EndpointSlices.
pub fn service(page: &mut Page, object: &Value, slices: &[Value]) {
    let spec = &object["spec"];
    page.head(object);
    page.labels_line("Selector", &spec["selector"]);
    page.field(0, "Type", text(&spec["type"]));
    let list = |value: &Value| each(value).map(text).collect::<Vec<_>>().join(",");
    if !spec["ipFamilyPolicy"].is_null() {
        page.field(0, "IP Family Policy", text(&spec["ipFamilyPolicy"]));
    }
    page.field(0, "IP Families", or_none(&list(&spec["ipFamilies"])));
    page.field(0, "IP", text(&spec["clusterIP"]));
    page.field(0, "IPs", or_none(&list(&spec["clusterIPs"])));
    if each(&spec["externalIPs"]).next().is_some() {
        page.field(0, "External IPs", list(&spec["externalIPs"]));
    }
    if !text(&spec["loadBalancerIP"]).is_empty() {
        page.field(0, "Desired LoadBalancer IP", text(&spec["loadBalancerIP"]));
    }
    if !text(&spec["externalName"]).is_empty() {
        page.field(0, "External Name", text(&spec["externalName"]));
    }
    let ingress = addresses_of(&object["status"]["loadBalancer"]["ingress"]);
    if !ingress.is_empty() {
        page.field(0, "LoadBalancer Ingress", ingress);
    }
    for port in each(&spec["ports"]) {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let name = port["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("<unset>");
        page.line(0, format!("Port:\t{name}\t{}/{protocol}", scalar(&port["port"])));
        page.field(0, "TargetPort", format!("{}/{protocol}", scalar(&port["targetPort"])));
        if let Some(node_port) = port["nodePort"].as_i64().filter(|port| *port != 0) {
            page.line(0, format!("NodePort:\t{name}\t{node_port}/{protocol}"));
        }
        page.field(0, "Endpoints", endpoints_text(slices, port));
    }
    page.field(0, "Session Affinity", text(&spec["sessionAffinity"]));
    let policies =
        [("External Traffic Policy", "externalTrafficPolicy"), ("Internal Traffic Policy", "internalTrafficPolicy")];
    for (title, field) in policies {
        if !text(&spec[field]).is_empty() {
            page.field(0, title, text(&spec[field]));
        }
    }
}

/// `10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...` for one port of a Service.
fn endpoints_text(slices: &[Value], service_port: &Value) -> String {
    let mut list = Vec::new();
    for slice in slices.iter().filter(|slice| slice["kind"] == "EndpointSlice") {
        for port in each(&slice["ports"]).filter(|port| text(&port["name"]) == text(&service_port["name"])) {
            for endpoint in each(&slice["endpoints"]).filter(|endpoint| endpoint["conditions"]["ready"] != false) {
                list.extend(
                    each(&endpoint["addresses"]).map(|address| format!("{}:{}", text(address), scalar(&port["port"]))),
                );
            }
        }
    }
    if list.len() <= SHOWN_ENDPOINTS_MAX {
        return list.join(",");
    }
    format!("{} + {} more...", list[..SHOWN_ENDPOINTS_MAX].join(","), list.len() - SHOWN_ENDPOINTS_MAX)
}

fn addresses_of(ingress: &Value) -> String {
    let one = |entry: &Value| match text(&entry["ip"]) {
        "" => text(&entry["hostname"]).to_string(),
        address => address.to_string(),
    };
    each(ingress).map(one).collect::<Vec<_>>().join(",")
}

/// The names of the Services that an Ingress sends requests to.
pub fn services_of(ingress: &Value) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |backend: &Value| {
        let name = text(&backend["service"]["name"]).to_string();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    };
    add(&ingress["spec"]["defaultBackend"]);
    for rule in each(&ingress["spec"]["rules"]) {
        each(&rule["http"]["paths"]).for_each(|path| add(&path["backend"]));
    }
    names
}

fn backend_text(backend: &Value, related: &[Value]) -> String {
    let wanted = &backend["service"];
    let (name, port) = (text(&wanted["name"]), &wanted["port"]);
    let shown = match port["name"].as_str() {
        Some(name) if !name.is_empty() => name.to_string(),
        _ => scalar(&port["number"]),
    };
    let Some(service) = related.iter().find(|object| object["kind"] == "Service" && object["metadata"]["name"] == name)
    else {
        return format!("{name}:{shown} (<error: services {name:?} not found>)");
    };
    let matches = |known: &&Value| scalar(&known["port"]) == shown || text(&known["name"]) == shown;
    let Some(service_port) = each(&service["spec"]["ports"]).find(matches) else { return format!("{name}:{shown} ()") };
    let slices: Vec<Value> = related
        .iter()
        .filter(|object| object["metadata"]["labels"]["kubernetes.io/service-name"] == name)
        .cloned()
        .collect();
    format!("{name}:{shown} ({})", endpoints_text(&slices, service_port))
}

/// An Ingress's page; `related` are its Services and their EndpointSlices.
pub fn ingress(page: &mut Page, object: &Value, related: &[Value]) {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.labels("Labels", &metadata["labels"]);
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.field(0, "Address", addresses_of(&object["status"]["loadBalancer"]["ingress"]));
    page.field(0, "Ingress Class", or_none(text(&spec["ingressClassName"])));
    match spec.get("defaultBackend") {
        Some(backend) => page.field(0, "Default backend", backend_text(backend, related)),
        None => page.field(0, "Default backend", "<default>"),
    }
    if each(&spec["tls"]).next().is_some() {
        page.line(0, "TLS:");
        for entry in each(&spec["tls"]) {
            let hosts = each(&entry["hosts"]).map(text).collect::<Vec<_>>().join(",");
            match text(&entry["secretName"]) {
                "" => page.line(1, format!("SNI routes {hosts}")),
                secret => page.line(1, format!("{secret} terminates {hosts}")),
            }
        }
    }
    page.line(0, "Rules:");
    page.line(1, "Host\tPath\tBackends");
    page.line(1, "----\t----\t--------");
    let mut is_empty = true;
    for rule in each(&spec["rules"]).filter(|rule| !rule["http"].is_null()) {
        is_empty = false;
        page.line(1, format!("{}\t", rule["host"].as_str().filter(|host| !host.is_empty()).unwrap_or("*")));
        for path in each(&rule["http"]["paths"]) {
            page.line(2, format!("\t{} \t{}", text(&path["path"]), backend_text(&path["backend"], related)));
        }
    }
    if is_empty {
        let backend =
            spec.get("defaultBackend").map_or("<default>".to_string(), |backend| backend_text(backend, related));
        page.line(1, format!("*\t* \t{backend}"));
    }
    page.annotations("Annotations", &metadata["annotations"]);
}

fn ports(page: &mut Page, level: usize, list: &Value) {
    page.line(level, "Ports:");
    page.line(level + 1, "Name\tPort\tProtocol");
    page.line(level + 1, "----\t----\t--------");
    for port in each(list) {
        let name = port["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("<unset>");
        page.line(
            level + 1,
            format!("{name}\t{}\t{}", scalar(&port["port"]), port["protocol"].as_str().unwrap_or("TCP")),
        );
    }
}

/// An Endpoints' page.
pub fn endpoints(page: &mut Page, object: &Value) {
    page.head(object);
    page.line(0, "Subsets:");
    for subset in each(&object["subsets"]) {
        let list = |field: &str| each(&subset[field]).map(|address| text(&address["ip"])).collect::<Vec<_>>().join(",");
        page.field(1, "Addresses", or_none(&list("addresses")));
        page.field(1, "NotReadyAddresses", or_none(&list("notReadyAddresses")));
        if each(&subset["ports"]).next().is_some() {
            ports(page, 1, &subset["ports"]);
        }
        page.raw("\n");
    }
}

/// An EndpointSlice's page.
pub fn endpoint_slice(page: &mut Page, object: &Value) {
    page.head(object);
    page.field(0, "AddressType", text(&object["addressType"]));
    match each(&object["ports"]).next() {
        None => page.line(0, "Ports: <unset>"),
        Some(_) => ports(page, 0, &object["ports"]),
    }
    if each(&object["endpoints"]).next().is_none() {
        return page.line(0, "Endpoints: <none>");
    }
    page.line(0, "Endpoints:");
    for endpoint in each(&object["endpoints"]) {
        let addresses = each(&endpoint["addresses"]).map(text).collect::<Vec<_>>().join(", ");
        page.field(1, "- Addresses", or_none(&addresses));
        page.line(2, "Conditions:");
        let ready = endpoint["conditions"]["ready"].as_bool().map_or("<unset>".to_string(), |ready| ready.to_string());
        page.field(3, "Ready", ready);
        page.field(2, "Hostname", endpoint["hostname"].as_str().unwrap_or("<unset>"));
        let target = &endpoint["targetRef"];
        if !target.is_null() {
            page.field(2, "TargetRef", format!("{}/{}", text(&target["kind"]), text(&target["name"])));
        }
        page.field(2, "NodeName", endpoint["nodeName"].as_str().unwrap_or("<unset>"));
        page.field(2, "Zone", endpoint["zone"].as_str().unwrap_or("<unset>"));
    }
}
