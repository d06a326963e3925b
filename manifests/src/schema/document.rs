//! The OpenAPI v3 document of a group and version, as kube-apiserver serves it: what `kubectl explain`, client-side apply and
//! editors read.

use super::paths::paths;
use super::types::{SCHEMAS, definitions};
use crate::{kinds, merge};
use serde_json::{Map, Value, json};

/// Lists whose elements are named by more than the key they are merged by.
const LIST_MAP_KEYS: &[(&str, &str, &[&str])] = &[
    ("io.k8s.api.core.v1.Container", "ports", &["containerPort", "protocol"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("io.k8s.api.core.v1.ServiceSpec", "ports", &["port", "protocol"]),
    ("io.k8s.api.core.v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
];
/// Maps that are one value.
const ATOMIC: &[&str] = &[
    "ConfigMapKeySelector",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ResourceFieldSelector",
    "SecretKeySelector",
    "SecretReference",
    "TypedLocalObjectReference",
];

/// The whole document. A few hundred kilobytes: ask for it when a client does, and let it go.
pub fn openapi_v3(group: &str, version: &str) -> Value {
    let of = || kinds().iter().filter(move |kind| kind.group == group && kind.version == version);
    let (mut schemas, names) = definitions(of());
    let owners: Vec<String> = schemas.keys().cloned().collect();
    for name in &owners {
        if let Some(schema) = schemas.get_mut(name) {
            complete(name, schema);
        }
    }
    for (kind, name) in of().zip(&names) {
        let gvk = json!({"group": group, "version": version, "kind": kind.kind});
        if let Some(schema) = schemas.get_mut(name) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        }
        schemas.insert(format!("{name}List"), list_of(name, kind.kind, &gvk));
    }
    if !schemas.contains_key(LIST_META) {
        schemas.insert(LIST_META.into(), list_meta());
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36"},
        "paths": paths(of().zip(names.iter().map(String::as_str))),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "BearerToken": {
                    "description": "Bearer Token authentication",
                    "type": "apiKey",
                    "name": "authorization",
                    "in": "header",
                },
            },
        },
    })
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

fn list_meta() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "ListMeta describes metadata that synthetic resources must have, including lists and various status objects.",
        "properties": {
            "continue": text("continue may be set if the user set a limit on the number of items returned."),
            "remainingItemCount": {"type": "integer", "format": "int64"},
            "resourceVersion": text("String that identifies the server's internal version of this object."),
            "selfLink": text("Deprecated: selfLink is a legacy read-only field that is no longer populated by the system."),
        },
    })
}

fn list_of(name: &str, kind: &str, gvk: &Value) -> Value {
    let mut gvk = gvk.clone();
    gvk["kind"] = format!("{kind}List").into();
    json!({
        "type": "object",
        "description": format!("{kind}List is a list of {kind}s."),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [{"$ref": format!("{SCHEMAS}{LIST_META}")}]},
            "items": {"type": "array", "items": {"allOf": [{"$ref": format!("{SCHEMAS}{name}")}]}},
        },
        "x-kubernetes-group-version-kind": [gvk],
    })
}

/// Gives a generated schema what Kubernetes' has and the generator does not know.
fn complete(name: &str, schema: &mut Value) {
    let short = name.rsplit('.').next().unwrap_or_default();
    match short {
        "Quantity" => {
            schema["oneOf"] = json!([{"type": "string"}, {"type": "number"}]);
        }
        "IntOrString" => {
            schema["format"] = "int-or-string".into();
            schema["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]);
        }
        _ if ATOMIC.contains(&short) => schema["x-kubernetes-map-type"] = "atomic".into(),
        _ => {}
    }
    if let Some(fields) = schema.as_object_mut().filter(|_| matches!(short, "Quantity" | "IntOrString")) {
        fields.remove("x-kubernetes-int-or-string");
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (field, property) in properties {
        let Some(property) = property.as_object_mut() else { continue };
        wrap_references(property);
        merging(name, field, property);
    }
}

/// A reference may have no siblings in OpenAPI 3.0, so Kubernetes wraps it where a description stands beside it.
fn wrap_references(property: &mut Map<String, Value>) {
    if property.len() > 1
        && let Some(reference) = property.remove("$ref")
    {
        property.insert("allOf".into(), json!([{"$ref": reference}]));
    }
}

fn merging(owner: &str, field: &str, property: &mut Map<String, Value>) {
    let is_list = property.get("type").is_some_and(|word| word == "array");
    let row = merge::row(owner, field);
    if let Some((_, _, key, strategy)) = row {
        property.insert("x-kubernetes-patch-strategy".into(), (*strategy).into());
        if !key.is_empty() {
            property.insert("x-kubernetes-patch-merge-key".into(), (*key).into());
        }
    }
    if !is_list {
        return;
    }
    let wider = LIST_MAP_KEYS.iter().find(|(of, name, _)| *of == owner && *name == field);
    let keys = match (wider, row) {
        (Some((_, _, keys)), _) => keys.to_vec(),
        (None, Some((_, _, key, _))) if !key.is_empty() => vec![*key],
        _ => Vec::new(),
    };
    let list_type = match (keys.is_empty(), row) {
        (false, _) => "map",
        (true, Some(_)) => "set",
        (true, None) => "atomic",
    };
    property.insert("x-kubernetes-list-type".into(), list_type.into());
    if !keys.is_empty() {
        property.insert("x-kubernetes-list-map-keys".into(), json!(keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_document_holds_what_clients_read() {
        let document = openapi_v3("apps", "v1");
        let schemas = &document["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        let mut strategy = schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"].clone();
        strategy["description"] = Value::Null;
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let parameters: Vec<&Value> =
            patch["parameters"].as_array().unwrap().iter().map(|parameter| &parameter["name"]).collect();
        let content: Vec<&String> = patch["requestBody"]["content"].as_object().unwrap().keys().collect();
        expect![[r##"
            {"group":"apps","kind":"Deployment","version":"v1"}
            {"allOf":[{"$ref":"#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"}],"description":null,"x-kubernetes-patch-strategy":"retainKeys"}
            "name" "merge" ["name"]
            [String("dryRun"), String("fieldManager"), String("fieldValidation"), String("force"), String("pretty")]
            ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"]
        "##]]
        .assert_eq(&format!(
            "{}\n{strategy}\n{} {} {}\n{parameters:?}\n{content:?}\n",
            schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"][0],
            containers["x-kubernetes-patch-merge-key"],
            containers["x-kubernetes-patch-strategy"],
            containers["x-kubernetes-list-map-keys"],
        ));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for kind in kinds() {
            let document = openapi_v3(kind.group, kind.version);
            let text = document.to_string();
            for (at, _) in text.match_indices(SCHEMAS) {
                let name = text[at + SCHEMAS.len()..].split('"').next().unwrap();
                assert!(document["components"]["schemas"][name].is_object(), "{name}");
            }
        }
    }

    #[test]
    fn the_table_of_merge_keys_names_fields_that_exist() {
        let mut known = std::collections::BTreeSet::new();
        for kind in kinds() {
            let document = openapi_v3(kind.group, kind.version);
            for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
                for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                    if property.get("x-kubernetes-patch-strategy").is_some() {
                        known.insert((name.clone(), field.clone()));
                    }
                }
            }
        }
        assert_eq!(known.len(), merge::ROWS.len());
    }
}
