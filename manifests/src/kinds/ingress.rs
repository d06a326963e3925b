//! Ingresses and their classes: how HTTP from outside reaches Services.

use super::cells::{AGE, NAME, NONE, column, items, text, text_or};
use crate::field::{At, Fault, FieldError, invalid_by};
use crate::{Column, Kind, fill, meta, names, pods};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `IngressClass`.
pub(super) const INGRESS_CLASS: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    subresources: &[],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, CONTROLLER, PARAMETERS, AGE],
    selectable: &[],
    default: default_class,
    validate: validate_class,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::networking::v1::IngressClass>,
};

/// `Ingress`.
pub(super) const INGRESS: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    categories: &[],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, CLASS, HOSTS, ADDRESS, PORTS, AGE],
    selectable: &[],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::networking::v1::Ingress>,
};

const CONTROLLER: Column =
    column("Controller", "string", "Controller of the class.", |object, _| text(&object["spec"]["controller"]).into());
const PARAMETERS: Column = column("Parameters", "string", "Parameters of the class.", |object, _| {
    let parameters = &object["spec"]["parameters"];
    let kind = match text(&parameters["apiGroup"]) {
        "" => text(&parameters["kind"]).to_owned(),
        group => format!("{}.{group}", text(&parameters["kind"])),
    };
    if parameters.is_null() { NONE.into() } else { format!("{kind}/{}", text(&parameters["name"])).into() }
});
const CLASS: Column =
    column("Class", "string", "The class.", |object, _| text_or(&object["spec"]["ingressClassName"], NONE).into());
const HOSTS: Column = column("Hosts", "string", "Hosts it answers for.", |object, _| {
    let hosts = items(&object["spec"]["rules"]).iter().map(|rule| text(&rule["host"])).filter(|host| !host.is_empty());
    let hosts: Vec<String> = hosts.map(str::to_owned).collect();
    super::cells::first_few(&hosts, "*").into()
});
const ADDRESS: Column = column("Address", "string", "Where it is reached.", |object, _| {
    let given = items(&object["status"]["loadBalancer"]["ingress"]).iter();
    given.map(|one| text_or(&one["ip"], text(&one["hostname"]))).collect::<Vec<_>>().join(",").into()
});
const PORTS: Column = column("Ports", "string", "Ports it is reached at.", |object, _| {
    if items(&object["spec"]["tls"]).is_empty() { "80".into() } else { "80, 443".into() }
});

fn default_class(value: &mut Value) {
    fill::prune(value);
    let spec = value.get_mut("spec").and_then(Value::as_object_mut);
    if let Some(parameters) = spec.and_then(|spec| fill::fields(spec, "parameters")) {
        fill::missing(parameters, "scope", "Cluster");
    }
}

fn validate_class(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let controller = At::root(new).fields(&["spec", "controller"]);
    if controller.text().is_empty() {
        errors.push(controller.required(""));
    } else if controller.text().len() > 250 {
        errors.push(controller.fault(Fault::TooLong(250)));
    } else if !controller.text().contains('/') {
        errors.push(controller.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
    }
    if let Some(old) = old {
        errors.extend(meta::immutable(&controller, &At::root(old).fields(&["spec", "controller"])));
    }
    errors
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    let (rules, backend) = (spec.field("rules"), spec.field("defaultBackend"));
    if rules.is_empty() && !backend.is_set() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(spec.fault(Fault::Invalid(spec.value.clone(), why.into())));
    }
    if backend.is_set() {
        errors.extend(self::backend(&backend));
    }
    for tls in spec.field("tls").items() {
        errors.extend(tls.field("hosts").items().flat_map(|host| self::host(&host)));
        let secret = tls.field("secretName");
        if !secret.text().is_empty() {
            errors.extend(invalid_by(&secret, names::dns_subdomain(secret.text())));
        }
    }
    for rule in rules.items() {
        errors.extend(host(&rule.field("host")));
        let http = rule.field("http");
        if !http.is_set() {
            continue;
        }
        if http.field("paths").is_empty() {
            errors.push(http.field("paths").required(""));
        }
        errors.extend(http.field("paths").items().flat_map(|path| self::path(&path)));
    }
    let class = spec.field("ingressClassName");
    if !class.text().is_empty() {
        errors.extend(invalid_by(&class, names::dns_subdomain(class.text())));
    }
    let annotation = &new["metadata"]["annotations"]["kubernetes.io/ingress.class"];
    if old.is_none() && !text(annotation).is_empty() && !class.text().is_empty() {
        let at = At::root(new).fields(&["metadata", "annotations"]).field("kubernetes.io/ingress.class");
        errors.push(at.invalid("can not be set when the class field is also set"));
    }
    errors
}

fn host(host: &At<'_>) -> Vec<FieldError> {
    match host.text() {
        "" => Vec::new(),
        name if pods::spec::is_ip(name) => vec![host.invalid("must be a DNS name, not an IP address")],
        name if name.contains('*') => invalid_by(host, names::wildcard_subdomain(name)).collect(),
        name => invalid_by(host, names::dns_subdomain(name)).collect(),
    }
}

fn path(rule: &At<'_>) -> Vec<FieldError> {
    let (path, path_type) = (rule.field("path"), rule.field("pathType"));
    let mut errors = Vec::new();
    match path_type.text() {
        "" => errors.push(path_type.required("pathType must be specified")),
        "Exact" | "Prefix" => {
            if !path.text().starts_with('/') {
                errors.push(path.fault(Fault::Invalid(path.text().into(), "must be an absolute path".into())));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|bad| path.text().contains(bad)) {
                errors.push(path.invalid(format!("must not contain '{sequence}'")));
            }
            for suffix in ["/..", "/."].into_iter().filter(|bad| path.text().ends_with(bad)) {
                errors.push(path.invalid(format!("cannot end with '{suffix}'")));
            }
        }
        "ImplementationSpecific" => {
            if !path.text().is_empty() && !path.text().starts_with('/') {
                errors.push(path.invalid("must be an absolute path"));
            }
        }
        _ => errors.push(path_type.not_supported(&["Exact", "ImplementationSpecific", "Prefix"])),
    }
    errors.extend(backend(&rule.field("backend")));
    errors
}

fn backend(backend: &At<'_>) -> Vec<FieldError> {
    let (service, resource) = (backend.field("service"), backend.field("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => {
            vec![backend.fault(Fault::Invalid("".into(), "cannot set both resource and service backends".into()))]
        }
        (false, false) => vec![backend.required("must specify either a resource or service backend")],
        (false, true) => Vec::new(),
        (true, false) => backend_service(&service),
    }
}

fn backend_service(service: &At<'_>) -> Vec<FieldError> {
    let (name, port) = (service.field("name"), service.field("port"));
    let mut errors = Vec::new();
    if name.text().is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(invalid_by(&name, names::dns_label_1035(name.text())));
    }
    let (number, named) = (port.field("number"), port.field("name"));
    match (number.int().filter(|number| *number != 0), named.text()) {
        (None, "") => errors.push(port.required("port name or number is required")),
        (Some(_), name) if !name.is_empty() => {
            errors.push(port.fault(Fault::Invalid("".into(), "cannot set both port name & port number".into())));
        }
        (Some(value), _) => errors.extend(invalid_by(&number, names::port_number(value))),
        (None, name) => errors.extend(invalid_by(&named, names::port(name))),
    }
    errors
}
