//! Containers, volumes and tolerations: the parts that pages of pods and of pod templates share.

use serde_json::Value;

use super::super::duration::rfc1123z;
use super::page::{Page, each, or_none, scalar, text};

/// All containers of a list. `space` is the indent of a template's page; statuses are a pod's.
pub fn containers(page: &mut Page, label: &str, list: &Value, statuses: &Value, space: &str) {
    let none = if each(list).next().is_none() { " <none>" } else { "" };
    page.line(0, format!("{space}{label}:{none}"));
    let name_indent = if space.is_empty() { "" } else { " " };
    for container in each(list) {
        let status = each(statuses).find(|status| status["name"] == container["name"]);
        page.line(1, format!("{name_indent}{}:", text(&container["name"])));
        basics(page, container, status);
        command(page, container);
        if let Some(status) = status {
            state(page, "State", &status["state"]);
            if !status["lastState"]["terminated"].is_null() {
                state(page, "Last State", &status["lastState"]);
            }
            page.field(2, "Ready", if status["ready"] == true { "True" } else { "False" });
            page.field(2, "Restart Count", status["restartCount"].as_i64().unwrap_or(0).to_string());
        }
        for (title, field) in [("Limits", "limits"), ("Requests", "requests")] {
            quantities(page, 2, title, &container["resources"][field]);
        }
        for (title, field) in
            [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
        {
            if !container[field].is_null() {
                page.field(2, title, probe(&container[field]));
            }
        }
        environment(page, container);
        mounts(page, container);
    }
}

fn basics(page: &mut Page, container: &Value, status: Option<&Value>) {
    if let Some(status) = status {
        page.field(2, "Container ID", text(&status["containerID"]));
    }
    page.field(2, "Image", text(&container["image"]));
    if let Some(status) = status {
        page.field(2, "Image ID", text(&status["imageID"]));
    }
    let ports = |field: &str| {
        let list: Vec<String> = each(&container["ports"])
            .map(|port| format!("{}/{}", port[field].as_i64().unwrap_or(0), port["protocol"].as_str().unwrap_or("TCP")))
            .collect();
        list.join(", ")
    };
    for (title, field) in [("Port", "containerPort"), ("Host Port", "hostPort")] {
        let list = ports(field);
        let title = if list.contains(',') { format!("{title}s") } else { title.to_string() };
        page.field(2, &title, or_none(&list));
    }
}

fn command(page: &mut Page, container: &Value) {
    for (title, field) in [("Command", "command"), ("Args", "args")] {
        if each(&container[field]).next().is_some() {
            page.line(2, format!("{title}:"));
            for argument in each(&container[field]) {
                text(argument).split('\n').for_each(|line| page.line(3, line));
            }
        }
    }
}

fn state(page: &mut Page, title: &str, state: &Value) {
    if let Some(started) = state.get("running") {
        page.field(2, title, "Running");
        return page.field(3, "Started", rfc1123z(text(&started["startedAt"])));
    }
    let Some(end) = state.get("terminated") else {
        page.field(2, title, "Waiting");
        let reason = text(&state["waiting"]["reason"]);
        if !reason.is_empty() {
            page.field(3, "Reason", reason);
        }
        return;
    };
    page.field(2, title, "Terminated");
    for (title, field) in [("Reason", "reason"), ("Message", "message")] {
        if !text(&end[field]).is_empty() {
            page.field(3, title, text(&end[field]));
        }
    }
    page.field(3, "Exit Code", end["exitCode"].as_i64().unwrap_or(0).to_string());
    if let Some(signal) = end["signal"].as_i64().filter(|signal| *signal > 0) {
        page.field(3, "Signal", signal.to_string());
    }
    page.field(3, "Started", rfc1123z(text(&end["startedAt"])));
    page.field(3, "Finished", rfc1123z(text(&end["finishedAt"])));
}

/// A heading and resource names with quantities below it; nothing if there are none.
pub fn quantities(page: &mut Page, level: usize, title: &str, list: &Value) {
    let Some(map) = list.as_object().filter(|map| !map.is_empty()) else { return };
    let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
    pairs.sort_by_key(|(name, _)| name.as_str());
    page.line(level, format!("{title}:"));
    for (name, quantity) in pairs {
        let written = scalar(quantity);
        page.field(level + 1, name, manifests::quantity::canonical(&written).unwrap_or(written));
    }
}

fn probe(probe: &Value) -> String {
    let number = |field: &str| probe[field].as_i64().unwrap_or(0);
    let settings = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds"),
        number("timeoutSeconds"),
        number("periodSeconds"),
        number("successThreshold"),
        number("failureThreshold")
    );
    let (exec, http, tcp, grpc) = (&probe["exec"], &probe["httpGet"], &probe["tcpSocket"], &probe["grpc"]);
    if !exec.is_null() {
        let command: Vec<&str> = each(&exec["command"]).map(text).collect();
        return format!("exec [{}] {settings}", command.join(" "));
    }
    if !http.is_null() {
        let scheme = http["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        let path = text(&http["path"]);
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        return format!(
            "http-get {scheme}://{}:{}{slash}{path} {settings}",
            text(&http["host"]),
            scalar(&http["port"])
        );
    }
    if !tcp.is_null() {
        return format!("tcp-socket {}:{} {settings}", text(&tcp["host"]), scalar(&tcp["port"]));
    }
    if !grpc.is_null() {
        return format!("grpc <pod>:{} {} {settings}", scalar(&grpc["port"]), text(&grpc["service"]));
    }
    format!("unknown {settings}")
}

fn environment(page: &mut Page, container: &Value) {
    if each(&container["envFrom"]).next().is_some() {
        page.line(2, "Environment Variables from:");
        for source in each(&container["envFrom"]) {
            let (kind, reference) = match source.get("configMapRef") {
                Some(reference) => ("ConfigMap", reference),
                None => ("Secret", &source["secretRef"]),
            };
            let prefix = text(&source["prefix"]);
            let with = if prefix.is_empty() { String::new() } else { format!(" with prefix '{prefix}'") };
            let optional = reference["optional"] == true;
            page.line(3, format!("{}\t{kind}{with}\tOptional: {optional}", text(&reference["name"])));
        }
    }
    if each(&container["env"]).next().is_none() {
        return page.field(2, "Environment", "<none>");
    }
    page.line(2, "Environment:");
    for entry in each(&container["env"]) {
        let name = text(&entry["name"]);
        let from = &entry["valueFrom"];
        if let Some(field) = from.get("fieldRef") {
            let version = field["apiVersion"].as_str().unwrap_or("v1");
            page.line(3, format!("{name}:\t ({version}:{})", text(&field["fieldPath"])));
        } else if let Some(resource) = from.get("resourceFieldRef") {
            page.line(3, format!("{name}:\t ({})", text(&resource["resource"])));
        } else if let Some(key) = from.get("secretKeyRef") {
            let optional = key["optional"] == true;
            page.line(
                3,
                format!(
                    "{name}:\t<set to the key '{}' in secret '{}'>\tOptional: {optional}",
                    text(&key["key"]),
                    text(&key["name"])
                ),
            );
        } else if let Some(key) = from.get("configMapKeyRef") {
            let optional = key["optional"] == true;
            page.line(
                3,
                format!(
                    "{name}:\t<set to the key '{}' of config map '{}'>\tOptional: {optional}",
                    text(&key["key"]),
                    text(&key["name"])
                ),
            );
        } else {
            for (at, line) in text(&entry["value"]).split('\n').enumerate() {
                page.line(3, if at == 0 { format!("{name}:\t{line}") } else { format!("\t{line}") });
            }
        }
    }
}

fn mounts(page: &mut Page, container: &Value) {
    let mut list: Vec<&Value> = each(&container["volumeMounts"]).collect();
    if list.is_empty() {
        return page.field(2, "Mounts", "<none>");
    }
    list.sort_by_key(|mount| text(&mount["mountPath"]));
    page.line(2, "Mounts:");
    for mount in list {
        let mut flags = if mount["readOnly"] == true { "ro" } else { "rw" }.to_string();
        if !text(&mount["subPath"]).is_empty() {
            flags += &format!(",path={:?}", text(&mount["subPath"]));
        }
        page.line(3, format!("{} from {} ({flags})", text(&mount["mountPath"]), text(&mount["name"])));
    }
}

/// All volumes of a list.
pub fn volumes(page: &mut Page, list: &Value, space: &str) {
    if each(list).next().is_none() {
        return page.line(0, format!("{space}Volumes:\t<none>"));
    }
    page.line(0, format!("{space}Volumes:"));
    let name_indent = if space.is_empty() { "" } else { " " };
    for volume in each(list) {
        page.line(1, format!("{name_indent}{}:", text(&volume["name"])));
        source(page, volume);
    }
}

fn source(page: &mut Page, volume: &Value) {
    let is_optional = |source: &Value| (source["optional"] == true).to_string();
    if let Some(source) = volume.get("emptyDir") {
        page.field(2, "Type", "EmptyDir (a temporary directory that shares a pod's lifetime)");
        page.field(2, "Medium", text(&source["medium"]));
        let limit = scalar(&source["sizeLimit"]);
        page.field(2, "SizeLimit", if limit.is_empty() { "<unset>" } else { &limit });
    } else if let Some(source) = volume.get("hostPath") {
        page.field(2, "Type", "HostPath (bare host directory volume)");
        page.field(2, "Path", text(&source["path"]));
        page.field(2, "HostPathType", text(&source["type"]));
    } else if let Some(source) = volume.get("configMap") {
        page.field(2, "Type", "ConfigMap (a volume populated by a ConfigMap)");
        page.field(2, "Name", text(&source["name"]));
        page.field(2, "Optional", is_optional(source));
    } else if let Some(source) = volume.get("secret") {
        page.field(2, "Type", "Secret (a volume populated by a Secret)");
        page.field(2, "SecretName", text(&source["secretName"]));
        page.field(2, "Optional", is_optional(source));
    } else if let Some(source) = volume.get("persistentVolumeClaim") {
        page.field(2, "Type", "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)");
        page.field(2, "ClaimName", text(&source["claimName"]));
        page.field(2, "ReadOnly", (source["readOnly"] == true).to_string());
    } else if let Some(source) = volume.get("downwardAPI") {
        page.field(2, "Type", "DownwardAPI (a volume populated by information about the pod)");
        page.line(2, "Items:");
        for item in each(&source["items"]) {
            page.line(3, format!("{} -> {}", text(&item["fieldRef"]["fieldPath"]), text(&item["path"])));
        }
    } else if let Some(source) = volume.get("projected") {
        page.field(2, "Type", "Projected (a volume that contains injected data from multiple sources)");
        for source in each(&source["sources"]) {
            projection(page, source);
        }
    } else {
        page.line(2, "<unknown>");
    }
}

fn projection(page: &mut Page, source: &Value) {
    if let Some(secret) = source.get("secret") {
        page.field(2, "SecretName", text(&secret["name"]));
        page.field(2, "Optional", (secret["optional"] == true).to_string());
    } else if source.get("downwardAPI").is_some() {
        page.field(2, "DownwardAPI", "true");
    } else if let Some(config) = source.get("configMap") {
        page.field(2, "ConfigMapName", text(&config["name"]));
        page.field(2, "Optional", (config["optional"] == true).to_string());
    } else if let Some(token) = source.get("serviceAccountToken") {
        page.field(2, "TokenExpirationSeconds", token["expirationSeconds"].as_i64().unwrap_or(3600).to_string());
    }
}

/// Tolerations over several lines.
pub fn tolerations(page: &mut Page, title: &str, list: &Value) {
    if each(list).next().is_none() {
        return page.field(0, title, "<none>");
    }
    for (at, toleration) in each(list).enumerate() {
        let part = |field: &str| text(&toleration[field]).to_string();
        let mut line = part("key");
        if !part("value").is_empty() {
            line += &format!("={}", part("value"));
        }
        if !part("effect").is_empty() {
            line += &format!(":{}", part("effect"));
        }
        if part("operator") == "Exists" && part("value").is_empty() {
            line += if line.is_empty() { "op=Exists" } else { " op=Exists" };
        }
        if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
            line += &format!(" for {seconds}s");
        }
        let head = if at == 0 { format!("{title}:") } else { String::new() };
        page.line(0, format!("{head}\t{line}"));
    }
}
