//! Kinds that are questions: who am I, may I. They are answered, never stored.

use crate::authn::User;
use crate::authz;
use crate::body::{self, Answer};
use crate::decode;
use crate::front::Api;
use crate::negotiate::{Format, Wanted};
use crate::route::{ResourceRoute, Route};
use crate::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use manifests::yaml;
use serde_json::{Value, json};

/// A kind that is a question.
pub struct Review {
    /// API group; the version is `v1`.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural.
    pub plural: &'static str,
    answer: fn(&Api, &User, &mut Value) -> Result<(), Status>,
}

/// All of them.
pub static REVIEWS: &[Review] = &[
    Review {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        answer: self_subject,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        answer: self_access,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        answer: self_rules,
    },
    Review {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        answer: subject_access,
    },
];

/// The review that a path names.
pub fn find(at: &ResourceRoute) -> Option<&'static Review> {
    let fits = |review: &&Review| review.group == at.group && at.version == "v1" && review.plural == at.plural;
    REVIEWS.iter().find(fits)
}

/// Answers a review.
///
/// # Errors
/// 405 for anything but a creation, 400 for a body that is none.
pub fn answer(
    api: &Api,
    review: &Review,
    route: &Route,
    user: &User,
    headers: &HeaderMap,
    body: &Bytes,
    wanted: Wanted,
) -> Result<Answer, Status> {
    if route.verb != "create" {
        return Err(Status::method_not_allowed());
    }
    let mut value = decode::value(headers, body)?;
    if !value.is_object() || value["kind"].as_str().is_some_and(|kind| !kind.is_empty() && kind != review.kind) {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {})",
            review.kind
        )));
    }
    value["apiVersion"] = format!("{}/v1", review.group).into();
    value["kind"] = review.kind.into();
    (review.answer)(api, user, &mut value)?;
    Ok(match wanted.format {
        Format::Json => body::json(201, &value),
        Format::Yaml => body::answer(201, "application/yaml", body::full(yaml::to_string(&value))),
    })
}

fn self_subject(_: &Api, user: &User, review: &mut Value) -> Result<(), Status> {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    review["status"] = json!({"userInfo": info});
    Ok(())
}

fn self_access(api: &Api, user: &User, review: &mut Value) -> Result<(), Status> {
    access(api, user, review)
}

fn subject_access(api: &Api, _: &User, review: &mut Value) -> Result<(), Status> {
    let name = review["spec"]["user"].as_str().unwrap_or_default();
    let groups = review["spec"]["groups"].as_array().into_iter().flatten();
    let groups = groups.filter_map(|group| group.as_str().map(str::to_owned)).collect();
    let subject = User { name: name.to_owned(), groups, ..User::default() };
    access(api, &subject, review)
}

fn access(api: &Api, user: &User, review: &mut Value) -> Result<(), Status> {
    let allowed = authz::allows(api, user, &asked(&review["spec"])?);
    review["status"] = json!({"allowed": allowed});
    if allowed {
        review["status"]["reason"] = "every authenticated user is allowed: this server has no RBAC yet".into();
    }
    Ok(())
}

/// The request that a review asks about.
fn asked(spec: &Value) -> Result<Route, Status> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (resource, plain) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), plain.is_object()) {
        (true, false) => {
            let resource = ResourceRoute {
                group: text(&resource["group"]),
                version: text(&resource["version"]),
                plural: text(&resource["resource"]),
                namespace: text(&resource["namespace"]),
                name: text(&resource["name"]),
                subresource: text(&resource["subresource"]),
                rest: false,
            };
            Ok(Route { path: String::new(), verb: verb(&spec["resourceAttributes"]["verb"]), resource: Some(resource) })
        }
        (false, true) => {
            let verb = if plain["verb"] == "get" { "get" } else { "other" };
            Ok(Route { path: text(&plain["path"]), verb, resource: None })
        }
        _ => Err(Status::bad_request("exactly one of nonResourceAttributes or resourceAttributes must be specified")),
    }
}

/// The verb a review asks about.
fn verb(value: &Value) -> &'static str {
    const VERBS: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    VERBS.iter().copied().find(|verb| value == verb).unwrap_or("other")
}

fn self_rules(api: &Api, user: &User, review: &mut Value) -> Result<(), Status> {
    let secrets = ResourceRoute { version: "v1".into(), plural: "secrets".into(), ..ResourceRoute::default() };
    let anything = Route { path: String::new(), verb: "deletecollection", resource: Some(secrets) };
    review["status"] = if authz::allows(api, user, &anything) {
        json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        })
    } else {
        json!({
            "resourceRules": [],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version"]}],
            "incomplete": false,
        })
    };
    Ok(())
}
