//! Validation of a pod's spec, wherever it stands: in a pod or in a template.

use super::{containers, volumes};
use crate::field::{At, FieldError, invalid_by};
use crate::{labels, names};

/// A check of a name.
type Check = fn(&str) -> Vec<String>;

const I32_MAX: i64 = i32::MAX as i64;
const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// What is wrong with a template: its labels, annotations and spec.
pub fn template(template: &At<'_>) -> Vec<FieldError> {
    let mut errors = crate::meta::labels(&template.fields(&["metadata", "labels"]));
    errors.extend(crate::meta::annotations(&template.fields(&["metadata", "annotations"])));
    errors.extend(validate(&template.field("spec")));
    errors
}

/// What is wrong with a spec.
pub fn validate(spec: &At<'_>) -> Vec<FieldError> {
    let (volumes, mut errors) = volumes::validate(&spec.field("volumes"));
    errors.extend(containers::validate(spec, &volumes));
    errors.extend(spec.field("restartPolicy").one_of(&["Always", "Never", "OnFailure"]));
    errors.extend(dns(spec));
    errors.extend(spec.field("terminationGracePeriodSeconds").non_negative());
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.int().is_some_and(|seconds| !(1..=I32_MAX).contains(&seconds)) {
        errors.push(deadline.invalid(format!("must be between 1 and {I32_MAX}, inclusive")));
    }
    errors.extend(crate::meta::labels(&spec.field("nodeSelector")));
    let named: [(&str, Check); 7] = [
        ("serviceAccountName", names::dns_subdomain),
        ("nodeName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("schedulerName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ];
    for (field, check) in named {
        let field = spec.field(field);
        if !field.text().is_empty() {
            errors.extend(invalid_by(&field, check(field.text())));
        }
    }
    for secret in spec.field("imagePullSecrets").items().filter(|secret| secret.field("name").text().is_empty()) {
        errors.push(secret.field("name").required(""));
    }
    errors.extend(spec.field("tolerations").items().flat_map(|toleration| self::toleration(&toleration)));
    errors.extend(spec.field("hostAliases").items().flat_map(|alias| host_alias(&alias)));
    errors.extend(spec.field("topologySpreadConstraints").items().flat_map(|constraint| spread(&constraint)));
    errors.extend(affinity(&spec.field("affinity")));
    errors
}

fn dns(spec: &At<'_>) -> Vec<FieldError> {
    let policy = spec.field("dnsPolicy");
    let mut errors: Vec<FieldError> =
        policy.one_of(&["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]).into_iter().collect();
    let servers = spec.fields(&["dnsConfig", "nameservers"]);
    if policy.text() == "None" && servers.is_empty() {
        errors.push(servers.required("must provide at least one DNS nameserver when `dnsPolicy` is None"));
    }
    if servers.len() > 3 {
        errors.push(servers.invalid("must not have more than 3 nameservers"));
    }
    errors.extend(servers.items().filter(|server| !is_ip(server.text())).map(|server| server.invalid(BAD_IP)));
    errors
}

/// Whether a text is an IP address.
pub fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

fn toleration(toleration: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (key, value) = (toleration.field("key"), toleration.field("value"));
    let (operator, effect) = (toleration.field("operator"), toleration.field("effect"));
    if !key.text().is_empty() {
        errors.extend(invalid_by(&key, names::qualified(key.text())));
    } else if operator.text() != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(operator.fault(crate::field::Fault::Invalid(operator.text().into(), why.into())));
    }
    if toleration.field("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(effect.fault(crate::field::Fault::Invalid(effect.text().into(), why.into())));
    }
    match operator.text() {
        "" | "Equal" => errors.extend(invalid_by(&value, names::label_value(value.text()))),
        "Exists" if !value.text().is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.push(operator.fault(crate::field::Fault::Invalid(value.value.clone(), why.into())));
        }
        "Exists" => {}
        _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
    }
    if !effect.text().is_empty() {
        errors.extend(effect.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]));
    }
    errors
}

fn host_alias(alias: &At<'_>) -> Vec<FieldError> {
    let ip = alias.field("ip");
    let mut errors = Vec::new();
    if !is_ip(ip.text()) {
        errors.push(ip.invalid(BAD_IP));
    }
    for name in alias.field("hostnames").items() {
        errors.extend(invalid_by(&name, names::dns_subdomain(name.text())));
    }
    errors
}

fn spread(constraint: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let skew = constraint.field("maxSkew");
    if skew.int().is_none_or(|skew| skew <= 0) {
        errors.push(skew.invalid("must be greater than zero"));
    }
    if constraint.field("topologyKey").text().is_empty() {
        errors.push(constraint.field("topologyKey").required("can not be empty"));
    }
    errors.extend(constraint.field("whenUnsatisfiable").one_of(&["DoNotSchedule", "ScheduleAnyway"]));
    let selector = constraint.field("labelSelector");
    if selector.is_set() {
        errors.extend(labels::selector(&selector));
    }
    errors
}

fn affinity(affinity: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let required = affinity.fields(&["nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
    if required.is_set() && required.field("nodeSelectorTerms").is_empty() {
        errors.push(required.field("nodeSelectorTerms").required("must have at least one node selector term"));
    }
    for term in required.field("nodeSelectorTerms").items() {
        errors.extend(term.field("matchExpressions").items().flat_map(|expression| node_expression(&expression)));
    }
    for weighted in affinity.fields(&["nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"]).items() {
        errors.extend(weight(&weighted));
        let expressions = weighted.fields(&["preference", "matchExpressions"]);
        errors.extend(expressions.items().flat_map(|expression| node_expression(&expression)));
    }
    for side in ["podAffinity", "podAntiAffinity"] {
        let side = affinity.field(side);
        for term in side.field("requiredDuringSchedulingIgnoredDuringExecution").items() {
            errors.extend(pod_term(&term));
        }
        for weighted in side.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
            errors.extend(weight(&weighted));
            errors.extend(pod_term(&weighted.field("podAffinityTerm")));
        }
    }
    errors
}

fn weight(weighted: &At<'_>) -> Option<FieldError> {
    let weight = weighted.field("weight");
    let is_good = weight.int().is_some_and(|weight| (1..=100).contains(&weight));
    (!is_good).then(|| weight.invalid("must be in the range 1-100"))
}

fn pod_term(term: &At<'_>) -> Vec<FieldError> {
    let mut errors = labels::selector(&term.field("labelSelector"));
    let key = term.field("topologyKey");
    if key.text().is_empty() {
        errors.push(key.required("can not be empty"));
    } else {
        errors.extend(invalid_by(&key, names::qualified(key.text())));
    }
    errors
}

fn node_expression(expression: &At<'_>) -> Vec<FieldError> {
    let values = expression.field("values");
    let mut errors = Vec::new();
    match expression.field("operator").text() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => errors.push(expression.field("operator").invalid("not a valid selector operator")),
    }
    let key = expression.field("key");
    errors.extend(invalid_by(&key, names::qualified(key.text())));
    errors
}
