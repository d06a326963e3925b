//! Defaults of pods and of pod templates.

use crate::fill::{self, canonical, fields, missing, object, objects};
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// Mode of files of ConfigMaps and Secrets: 0644.
const FILE_MODE: i64 = 420;

/// Fills in what a pod leaves out: what its template would have filled in, and what only a pod has. Whoever makes pods
/// without asking the API calls this first.
pub fn pod(value: &mut Value) {
    fill::prune(value);
    let Some(spec) = value.as_object_mut().and_then(|pod| object(pod, "spec")) else { return };
    self::spec(spec);
    missing(spec, "enableServiceLinks", true);
    for list in ["containers", "initContainers"] {
        for container in objects(spec, list) {
            requests_from_limits(container);
        }
    }
}

/// Defaults of the pod template in `spec.template` of another kind.
pub fn template(parent: &mut Fields) {
    if let Some(spec) = object(parent, "template").and_then(|template| object(template, "spec")) {
        self::spec(spec);
    }
}

/// A container asks for what it is limited to, if it does not say.
fn requests_from_limits(container: &mut Fields) {
    let Some(resources) = fields(container, "resources") else { return };
    let Some(limits) = fields(resources, "limits").map(|limits| limits.clone()) else { return };
    if let Some(requests) = object(resources, "requests").filter(|_| !limits.is_empty()) {
        for (name, limit) in limits {
            missing(requests, &name, limit);
        }
    }
}

fn spec(spec: &mut Fields) {
    missing(spec, "restartPolicy", "Always");
    missing(spec, "dnsPolicy", "ClusterFirst");
    missing(spec, "terminationGracePeriodSeconds", 30);
    missing(spec, "schedulerName", "default-scheduler");
    missing(spec, "securityContext", json!({}));
    service_account(spec);
    let is_host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for one in objects(spec, list) {
            container(one, is_host_network);
        }
    }
    for one in objects(spec, "volumes") {
        volume(one);
    }
    if let Some(overhead) = fields(spec, "overhead") {
        overhead.values_mut().for_each(canonical);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`: both say the same.
fn service_account(spec: &mut Fields) {
    let said = |name: &str| spec.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    if let Some(account) = said("serviceAccountName").or_else(|| said("serviceAccount")) {
        spec.insert("serviceAccountName".into(), account.clone().into());
        spec.insert("serviceAccount".into(), account.into());
    }
}

fn container(container: &mut Fields, is_host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    missing(container, "imagePullPolicy", policy);
    missing(container, "terminationMessagePath", "/dev/termination-log");
    missing(container, "terminationMessagePolicy", "File");
    for port in objects(container, "ports") {
        missing(port, "protocol", "TCP");
        if let Some(number) = port.get("containerPort").cloned().filter(|_| is_host_network) {
            missing(port, "hostPort", number);
        }
    }
    for env in objects(container, "env") {
        if let Some(source) = fields(env, "valueFrom") {
            field_source(source);
        }
    }
    if let Some(resources) = object(container, "resources") {
        for side in ["limits", "requests"] {
            fields(resources, side).into_iter().flat_map(Map::values_mut).for_each(canonical);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = fields(container, name) {
            missing(probe, "timeoutSeconds", 1);
            missing(probe, "periodSeconds", 10);
            missing(probe, "successThreshold", 1);
            missing(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    if let Some(lifecycle) = fields(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            fields(lifecycle, name).into_iter().for_each(handler);
        }
    }
}

fn handler(handler: &mut Fields) {
    if let Some(http) = fields(handler, "httpGet") {
        missing(http, "path", "/");
        missing(http, "scheme", "HTTP");
    }
    if let Some(grpc) = fields(handler, "grpc") {
        missing(grpc, "service", "");
    }
}

/// The downward API, in the environment and in volumes.
fn field_source(source: &mut Fields) {
    if let Some(field) = fields(source, "fieldRef") {
        missing(field, "apiVersion", "v1");
    }
    if let Some(field) = fields(source, "resourceFieldRef") {
        missing(field, "divisor", "0");
        field.get_mut("divisor").into_iter().for_each(canonical);
    }
}

fn volume(volume: &mut Fields) {
    if volume.keys().all(|name| name == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for name in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = fields(volume, name) {
            missing(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(source) = fields(volume, "downwardAPI") {
        objects(source, "items").for_each(field_source);
    }
    if let Some(projected) = fields(volume, "projected") {
        for source in objects(projected, "sources") {
            if let Some(token) = fields(source, "serviceAccountToken") {
                missing(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = fields(source, "downwardAPI") {
                objects(downward, "items").for_each(field_source);
            }
        }
    }
    if let Some(path) = fields(volume, "hostPath") {
        missing(path, "type", "");
    }
    if let Some(size) = fields(volume, "emptyDir").and_then(|empty| empty.get_mut("sizeLimit")) {
        canonical(size);
    }
}

/// Whether an image's tag is `latest`, said or meant: then it is always pulled. References that are no image names
/// (`file://...`) have no tag.
fn is_latest(image: &str) -> bool {
    if image.is_empty() || image.contains("://") || image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}
