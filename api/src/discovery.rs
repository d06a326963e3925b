//! What there is: versions, groups and resources (in the old form and the aggregated one), and their OpenAPI schemas.
//! All of it is read off the table of kinds.

use crate::body::{self, Answer};
use crate::front::Api;
use crate::metrics::{self, METRICS, Metrics};
use crate::negotiate::{MediaRange, accepted};
use crate::openapi_v2;
use crate::query::Query;
use crate::reviews::{REVIEWS, Review};
use crate::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use manifests::{Kind, schema};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::PoisonError;

/// Groups in the order that kubectl prefers them where a name is in several.
const GROUPS_FIRST: &[&str] =
    &["", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch"];
/// What everybody can do with a kind.
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Answers a path that is no resource.
///
/// # Errors
/// 404 for one that there is not.
pub fn answer(api: &Api, path: &str, headers: &HeaderMap, query: &Query) -> Result<Answer, Status> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let value = match segments.as_slice() {
        ["version"] => version(&api.config.git_version),
        ["api"] if wants_aggregated(headers).is_some() => return Ok(aggregated(headers, true)),
        ["apis"] if wants_aggregated(headers).is_some() => return Ok(aggregated(headers, false)),
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
        ["apis"] => {
            let groups: Vec<Value> = groups()
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, versions)| group(name, versions))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", "v1"] => resources("", "v1").ok_or_else(Status::no_such_path)?,
        ["apis", name] => {
            let groups = groups();
            let (name, versions) = groups.iter().find(|(known, _)| known == name).ok_or_else(Status::no_such_path)?;
            let mut value = group(name, versions);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            value
        }
        ["apis", group, version] => resources(group, version).ok_or_else(Status::no_such_path)?,
        ["openapi", "v2"] => return openapi_v2(&api.config.git_version, headers),
        ["openapi", "v3"] => openapi_index(&api.config.git_version),
        ["openapi", "v3", rest @ ..] => return openapi(api, rest, headers, query),
        [""] | [] => json!({"paths": paths()}),
        _ => return Err(Status::no_such_path()),
    };
    Ok(body::json(200, &value))
}

fn version(git_version: &str) -> Value {
    let mut numbers = git_version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": git_version,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (rust)",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_architecture()),
    })
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Groups and their versions, the preferred version first.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let of_reviews = REVIEWS.iter().map(|review| (review.group, "v1"));
    let of_metrics = [(metrics::GROUP, metrics::VERSION)];
    let of_kinds = manifests::kinds().iter().map(|kind| (kind.group, kind.version));
    for (name, version) in of_kinds.chain(of_reviews).chain(of_metrics) {
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((name, vec![version])),
        }
    }
    let rank = |name: &str| GROUPS_FIRST.iter().position(|first| *first == name).unwrap_or(GROUPS_FIRST.len());
    groups.sort_by_key(|(name, _)| (rank(name), *name));
    for (_, versions) in &mut groups {
        // v2 before v1, v1 before v1beta1
        versions
            .sort_by_key(|version| (version.contains("beta"), version.contains("alpha"), std::cmp::Reverse(*version)));
    }
    groups
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let versions: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
}

fn kinds_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    manifests::kinds().iter().filter(move |kind| kind.group == group && kind.version == version)
}

fn reviews_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Review> + 'a {
    REVIEWS.iter().filter(move |review| review.group == group && version == "v1")
}

fn metrics_of(group: &str, version: &str) -> &'static [Metrics] {
    if (group, version) == (metrics::GROUP, metrics::VERSION) { METRICS } else { &[] }
}

fn verbs(kind: &Kind) -> Vec<&'static str> {
    VERBS.iter().copied().filter(|verb| kind.kind != "Namespace" || *verb != "deletecollection").collect()
}

/// Verbs of a subresource, and the group, version and kind of its body where it is not its parent's.
fn subresource(name: &str) -> (&'static [&'static str], Option<(&'static str, &'static str, &'static str)>) {
    match name {
        "scale" => (&["get", "patch", "update"], Some(("autoscaling", "v1", "Scale"))),
        "log" => (&["get"], None),
        "binding" => (&["create"], Some(("", "v1", "Binding"))),
        "eviction" => (&["create"], Some(("policy", "v1", "Eviction"))),
        "exec" => (&["create", "get"], Some(("", "v1", "PodExecOptions"))),
        "attach" => (&["create", "get"], Some(("", "v1", "PodAttachOptions"))),
        "portforward" => (&["create", "get"], Some(("", "v1", "PodPortForwardOptions"))),
        "finalize" => (&["update"], None),
        _ => (&["get", "patch", "update"], None),
    }
}

/// `APIResourceList` of a group and version.
fn resources(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds_of(group, version) {
        let mut row = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs(kind),
            "storageVersionHash": hash(&(kind.group, kind.version, kind.kind)),
        });
        if !kind.short_names.is_empty() {
            row["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            row["categories"] = json!(kind.categories);
        }
        resources.push(row);
        for name in kind.subresources {
            let (verbs, body) = subresource(name);
            let mut row = json!({
                "name": format!("{}/{name}", kind.plural),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": body.map_or(kind.kind, |(_, _, kind)| kind),
                "verbs": verbs,
            });
            if let Some((group, version, _)) = body.filter(|(group, ..)| *group != kind.group) {
                row["group"] = group.into();
                row["version"] = version.into();
            }
            resources.push(row);
        }
    }
    for review in reviews_of(group, version) {
        resources.push(json!({
            "name": review.plural,
            "singularName": review.kind.to_lowercase(),
            "namespaced": false,
            "kind": review.kind,
            "verbs": ["create"],
        }));
    }
    for row in metrics_of(group, version) {
        resources.push(json!({
            "name": row.plural,
            "singularName": "",
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": metrics::VERBS,
        }));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
}

/// Version of the aggregated form that the client wants before the old one.
fn wants_aggregated(headers: &HeaderMap) -> Option<&'static str> {
    for range in accepted(headers) {
        match (range.media_type, range.group, range.version, range.kind) {
            ("application/json", "apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => return Some("v2"),
            ("application/json", "apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => return Some("v2beta1"),
            ("application/json" | "*/*" | "application/*", _, _, "") => return None,
            _ => {}
        }
    }
    None
}

fn aggregated(headers: &HeaderMap, core: bool) -> Answer {
    let version = wants_aggregated(headers).unwrap_or("v2");
    let items: Vec<Value> = groups()
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            let versions: Vec<Value> = versions.iter().map(|version| aggregated_version(name, version)).collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let value = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let content_type = match version {
        "v2beta1" => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    };
    let mut answer = body::answer(200, content_type, body::full(value.to_string()));
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    answer
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let scope = |namespaced| if namespaced { "Namespaced" } else { "Cluster" };
    let response = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut resources = Vec::new();
    for kind in kinds_of(group, version) {
        let mut row = json!({
            "resource": kind.plural,
            "responseKind": response(group, version, kind.kind),
            "scope": scope(kind.namespaced),
            "singularResource": kind.singular,
            "verbs": verbs(kind),
        });
        if !kind.short_names.is_empty() {
            row["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            row["categories"] = json!(kind.categories);
        }
        let subresources: Vec<Value> = kind
            .subresources
            .iter()
            .map(|name| {
                let (verbs, body) = subresource(name);
                let (group, version, kind) = body.unwrap_or((group, version, kind.kind));
                json!({"subresource": name, "responseKind": response(group, version, kind), "verbs": verbs})
            })
            .collect();
        if !subresources.is_empty() {
            row["subresources"] = subresources.into();
        }
        resources.push(row);
    }
    for review in reviews_of(group, version) {
        resources.push(json!({
            "resource": review.plural,
            "responseKind": response(group, version, review.kind),
            "scope": "Cluster",
            "singularResource": review.kind.to_lowercase(),
            "verbs": ["create"],
        }));
    }
    for row in metrics_of(group, version) {
        resources.push(json!({
            "resource": row.plural,
            "responseKind": response(group, version, row.kind),
            "scope": scope(row.namespaced),
            "singularResource": "",
            "verbs": metrics::VERBS,
        }));
    }
    json!({"version": version, "freshness": "Current", "resources": resources})
}

fn paths() -> Vec<String> {
    let mut paths: Vec<String> =
        ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]
            .into_iter()
            .map(str::to_owned)
            .collect();
    for (name, versions) in groups().iter().filter(|(name, _)| !name.is_empty()) {
        paths.push(format!("/apis/{name}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{name}/{version}")));
    }
    paths.sort();
    paths
}

/// A short text that changes when what it is made of does.
fn hash(of: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:016X}", hasher.finish())
}

fn openapi_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// Groups and versions that have a schema: those of stored kinds.
fn schemas() -> BTreeMap<String, (&'static str, &'static str)> {
    manifests::kinds().iter().map(|kind| (openapi_path(kind.group, kind.version), (kind.group, kind.version))).collect()
}

/// OpenAPI v2, in the one form there is.
fn openapi_v2(git_version: &str, headers: &HeaderMap) -> Result<Answer, Status> {
    let is_taken = |range: &MediaRange<'_>| {
        matches!(range.media_type, openapi_v2::ACCEPTED | openapi_v2::CONTENT_TYPE | "*/*" | "application/*")
    };
    if !accepted(headers).iter().any(is_taken) {
        return Err(Status::not_acceptable(openapi_v2::ACCEPTED));
    }
    Ok(body::answer(200, openapi_v2::CONTENT_TYPE, body::full(openapi_v2::document(git_version))))
}

fn openapi_index(git_version: &str) -> Value {
    let mut paths = serde_json::Map::new();
    for path in schemas().into_keys() {
        let url = format!("/openapi/v3/{path}?hash={}", hash(&(git_version, &path)));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn openapi(api: &Api, path: &[&str], headers: &HeaderMap, query: &Query) -> Result<Answer, Status> {
    let takes_json =
        accepted(headers).iter().any(|range| matches!(range.media_type, "application/json" | "application/*" | "*/*"));
    if !takes_json {
        return Err(Status::not_acceptable("application/json"));
    }
    let path = path.join("/");
    let (group, version) = schemas().get(&path).copied().ok_or_else(Status::no_such_path)?;
    let tag = hash(&(&api.config.git_version, &path));
    let quoted = format!("\"{tag}\"");
    let is_known = headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == quoted.as_bytes());
    let mut answer = if is_known {
        body::answer(304, "application/json", body::full(Bytes::new()))
    } else {
        body::json_bytes(200, document(api, &path, group, version))
    };
    let headers = answer.headers_mut();
    if let Ok(quoted) = HeaderValue::from_str(&quoted) {
        headers.insert(ETAG, quoted);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if query.get("hash") == Some(tag.as_str()) {
        // the URL changes with the server's version, so what it names never does
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(answer)
}

/// A group's and version's document; made once.
fn document(api: &Api, path: &str, group: &str, version: &str) -> Bytes {
    let mut made = api.schemas.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(document) = made.get(path) {
        return document.clone();
    }
    let document = Bytes::from(schema::openapi_v3(group, version).to_string());
    made.insert(path.to_owned(), document.clone());
    document
}
