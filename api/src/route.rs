//! What a path and a method mean, in Kubernetes' terms; no look at whether the thing exists.

use crate::query::Query;
use http::Method;
use percent_encoding::percent_decode_str;

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The path as it came.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a path that is no
    /// resource the method in lower case.
    pub verb: &'static str,
    /// Of a resource (`None` for `/version` and the like).
    pub resource: Option<ResourceRoute>,
}

/// The resource that a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRoute {
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Lower-case plural.
    pub plural: String,
    /// Namespace, empty for cluster-scoped kinds and for lists of all namespaces.
    pub namespace: String,
    /// Name, empty for collections.
    pub name: String,
    /// Subresource, empty for the object itself.
    pub subresource: String,
    /// What follows the subresource (a proxy's path); nothing that is served has it.
    pub rest: bool,
}

/// Reads a request's line.
pub fn route(method: &Method, path: &str, query: &Query) -> Route {
    let segments: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Route { path: path.to_owned(), verb: plain_verb(method), resource: None },
    };
    let (is_watch_path, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let mut found = match rest {
        // the namespace itself and its subresources
        ["namespaces"] => of("namespaces", "", "", &[]),
        ["namespaces", name] => of("namespaces", "", name, &[]),
        ["namespaces", name, subresource @ ("status" | "finalize")] => of("namespaces", "", name, &[subresource]),
        ["namespaces", namespace, plural] => of(plural, namespace, "", &[]),
        ["namespaces", namespace, plural, name, rest @ ..] => of(plural, namespace, name, rest),
        [plural] => of(plural, "", "", &[]),
        [plural, name, rest @ ..] => of(plural, "", name, rest),
        [] => ResourceRoute::default(),
    };
    group.clone_into(&mut found.group);
    version.clone_into(&mut found.version);
    let is_watch = is_watch_path || query.flag("watch");
    let verb = match (method, found.name.is_empty()) {
        (&Method::GET | &Method::HEAD, true) if is_watch => "watch",
        (&Method::GET | &Method::HEAD, false) if is_watch_path => "watch",
        (&Method::GET | &Method::HEAD, true) => "list",
        (&Method::GET | &Method::HEAD, false) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "deletecollection",
        (&Method::DELETE, false) => "delete",
        _ => plain_verb(method),
    };
    Route { path: path.to_owned(), verb, resource: Some(found) }
}

fn of(plural: &str, namespace: &str, name: &str, rest: &[&str]) -> ResourceRoute {
    ResourceRoute {
        plural: plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: rest.first().copied().unwrap_or_default().to_owned(),
        rest: rest.len() > 1,
        ..ResourceRoute::default()
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}
