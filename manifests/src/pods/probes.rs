//! Validation of probes and lifecycle hooks.

use crate::field::{At, FieldError, invalid_by};
use crate::names;
use serde_json::Value;

/// What a probe can do.
const PROBE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
/// What a hook can do.
const HOOK_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

/// What is wrong with the probes and hooks of a container.
pub fn of_container(container: &At<'_>, is_init: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let is_sidecar = container.field("restartPolicy").text() == "Always";
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.field(name);
        if !probe.is_set() {
            continue;
        }
        if is_init && !is_sidecar {
            errors.push(probe.forbidden("may not be set for init containers without restartPolicy=Always"));
            continue;
        }
        errors.extend(self::probe(&probe));
        let successes = probe.field("successThreshold");
        if name != "readinessProbe" && successes.int().is_some_and(|count| count != 1) {
            errors.push(successes.invalid("must be 1"));
        }
        let grace = probe.field("terminationGracePeriodSeconds");
        if name == "readinessProbe" && grace.is_set() {
            errors.push(grace.invalid("must not be set for readinessProbes"));
        } else if grace.int().is_some_and(|seconds| seconds <= 0) {
            errors.push(grace.invalid("must be greater than 0"));
        }
    }
    let lifecycle = container.field("lifecycle");
    if is_init && !is_sidecar && lifecycle.is_set() {
        errors.push(lifecycle.forbidden("may not be set for init containers without restartPolicy=Always"));
        return errors;
    }
    for name in ["postStart", "preStop"] {
        let hook = lifecycle.field(name);
        if hook.is_set() {
            errors.extend(handler(&hook, &HOOK_HANDLERS));
        }
    }
    errors
}

fn probe(probe: &At<'_>) -> Vec<FieldError> {
    let mut errors = handler(probe, &PROBE_HANDLERS);
    for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.extend(probe.field(number).non_negative());
    }
    errors
}

fn handler(at: &At<'_>, kinds: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let given: Vec<At<'_>> = kinds.iter().map(|kind| at.field(kind)).filter(At::is_set).collect();
    if given.is_empty() {
        errors.push(at.required("must specify a handler type"));
    }
    for more in given.iter().skip(1) {
        errors.push(more.forbidden("may not specify more than 1 handler type"));
    }
    let Some(handler) = given.first() else { return errors };
    match handler.path().rsplit('.').next().unwrap_or_default() {
        "exec" if handler.field("command").is_empty() => errors.push(handler.field("command").required("")),
        "httpGet" => {
            if handler.field("path").text().is_empty() {
                errors.push(handler.field("path").required(""));
            }
            errors.extend(port(&handler.field("port")));
            errors.extend(handler.field("scheme").one_of(&["HTTP", "HTTPS"]));
            for header in handler.field("httpHeaders").items() {
                errors.extend(header_name(&header.field("name")));
            }
        }
        "tcpSocket" => errors.extend(port(&handler.field("port"))),
        "grpc" => {
            let number = handler.field("port");
            errors.extend(invalid_by(&number, names::port_number(number.int().unwrap_or_default())));
        }
        "sleep" => errors.extend(handler.field("seconds").non_negative()),
        _ => {}
    }
    errors
}

/// A port by number or by name.
pub fn port(port: &At<'_>) -> Vec<FieldError> {
    let faults = match port.value {
        Value::String(name) => names::port(name),
        other => names::port_number(other.as_i64().unwrap_or_default()),
    };
    invalid_by(port, faults).collect()
}

fn header_name(name: &At<'_>) -> Option<FieldError> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
        validation is '[-A-Za-z0-9]+')";
    (name.text().is_empty() || !name.text().bytes().all(is_good)).then(|| name.invalid(why))
}
