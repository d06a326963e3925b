//! The `paths` of an OpenAPI document: every verb of every kind, with the query parameters that clients look for.

use super::types::SCHEMAS;
use crate::Kind;
use serde_json::{Map, Value, json};

/// The paths of these kinds, each with the name of its schema.
pub(super) fn paths<'k>(kinds: impl Iterator<Item = (&'k Kind, &'k str)>) -> Value {
    let mut paths = Map::new();
    for (kind, schema) in kinds {
        let prefix = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let all = format!("{prefix}/{}", kind.plural);
        let collection =
            if kind.namespaced { format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural) } else { all.clone() };
        if kind.namespaced {
            paths.insert(all, json!({"get": operation(kind, "list", &format!("{schema}List"))}));
        }
        paths.insert(
            collection.clone(),
            scoped(
                kind,
                false,
                json!({
                    "get": operation(kind, "list", &format!("{schema}List")),
                    "post": operation(kind, "create", schema),
                    "delete": operation(kind, "deletecollection", schema),
                }),
            ),
        );
        let item = format!("{collection}/{{name}}");
        for part in kind.subresources.iter().filter(|part| matches!(**part, "status")) {
            paths.insert(
                format!("{item}/{part}"),
                scoped(
                    kind,
                    true,
                    json!({
                        "get": operation(kind, "get", schema),
                        "put": operation(kind, "update", schema),
                        "patch": operation(kind, "patch", schema),
                    }),
                ),
            );
        }
        paths.insert(
            item,
            scoped(
                kind,
                true,
                json!({
                    "get": operation(kind, "get", schema),
                    "put": operation(kind, "update", schema),
                    "patch": operation(kind, "patch", schema),
                    "delete": operation(kind, "delete", schema),
                }),
            ),
        );
    }
    paths.into()
}

/// A path's operations with the parameters in its URL.
fn scoped(kind: &Kind, is_item: bool, mut operations: Value) -> Value {
    let named = |name: &str, description: &str| {
        json!({
            "name": name,
            "in": "path",
            "description": description,
            "required": true,
            "schema": {"type": "string", "uniqueItems": true},
        })
    };
    let mut parameters = Vec::new();
    if is_item {
        parameters.push(named("name", &format!("name of the {}", kind.kind)));
    }
    if kind.namespaced {
        parameters.push(named("namespace", "object name and auth scope, such as for teams and projects"));
    }
    parameters.push(query("pretty", "string", "If 'true', then the output is pretty printed."));
    operations["parameters"] = parameters.into();
    operations
}

fn query(name: &str, of: &str, description: &str) -> Value {
    json!({
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": of, "uniqueItems": true},
    })
}

fn operation(kind: &Kind, verb: &str, schema: &str) -> Value {
    let action = match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    };
    let body = |types: &[&str], schema: &str| {
        let schema = json!({"schema": {"$ref": format!("{SCHEMAS}{schema}")}});
        types.iter().map(|name| ((*name).to_owned(), schema.clone())).collect::<Map<_, _>>()
    };
    let answers = if matches!(verb, "delete" | "deletecollection") {
        json!({"200": {"description": "OK"}})
    } else {
        json!({"200": {"description": "OK", "content": body(&["application/json", "application/yaml"], schema)}})
    };
    let mut operation = json!({
        "tags": [format!("{}_{}", if kind.group.is_empty() { "core" } else { kind.group }, kind.version)],
        "description": format!("{verb} {}", kind.plural),
        "operationId": format!("{verb}{}{}", kind.version, kind.kind),
        "parameters": parameters(verb),
        "responses": answers,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
    });
    match verb {
        "create" | "update" => {
            operation["requestBody"] =
                json!({"required": true, "content": body(&["application/json", "application/yaml"], schema)});
        }
        "patch" => {
            let types = [
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ];
            let any = json!({"schema": {"type": "object"}});
            let content: Map<String, Value> = types.iter().map(|name| ((*name).to_owned(), any.clone())).collect();
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        _ => {}
    }
    operation
}

fn parameters(verb: &str) -> Vec<Value> {
    let dry_run = query("dryRun", "string", "When present, indicates that modifications should not be persisted.");
    let manager = query("fieldManager", "string", "Name of the actor that makes these changes.");
    let validation =
        query("fieldValidation", "string", "How unknown and duplicate fields are treated: Ignore, Warn or Strict.");
    let force = query("force", "boolean", "Force is going to \"force\" Apply requests.");
    let selectors = [
        query("labelSelector", "string", "A selector to restrict the list of returned objects by their labels."),
        query("fieldSelector", "string", "A selector to restrict the list of returned objects by their fields."),
    ];
    let pretty = query("pretty", "string", "If 'true', then the output is pretty printed.");
    match verb {
        "create" | "update" => vec![dry_run, manager, validation],
        "patch" => vec![dry_run, manager, validation, force, pretty],
        "delete" => vec![
            dry_run,
            query("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."),
            query("propagationPolicy", "string", "Whether and how garbage collection will be performed."),
        ],
        "list" => {
            let mut parameters = selectors.to_vec();
            parameters.extend([
                query("limit", "integer", "The maximum number of responses to return for a list call."),
                query("continue", "string", "Where the server should continue a list."),
                query("resourceVersion", "string", "The version that the answer must be at least as new as."),
                query("watch", "boolean", "Watch for changes instead of listing."),
                query("timeoutSeconds", "integer", "How long the call may take."),
            ]);
            parameters
        }
        "deletecollection" => {
            let mut parameters = selectors.to_vec();
            parameters.push(dry_run);
            parameters
        }
        _ => Vec::new(),
    }
}
