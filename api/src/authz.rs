//! Whether somebody may do something. There is no RBAC yet: whoever is authenticated may do everything, whoever is not
//! may only ask for health and version. Everything that decides about permission is asked here, so RBAC has one door.

use crate::authn::{UNAUTHENTICATED, User};
use crate::route::{ResourceRoute, Route};
use crate::status::Status;
use manifests::Resource;
use serde_json::json;

/// Paths that everybody may read, as Kubernetes' `system:public-info-viewer` has them.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Whether `user` may do what `route` says.
pub fn allows(user: &User, route: &Route) -> bool {
    if !user.groups.iter().any(|group| group == UNAUTHENTICATED) {
        return true;
    }
    let path = route.path.trim_end_matches('/');
    route.resource.is_none() && matches!(route.verb, "get" | "head") && PUBLIC_PATHS.contains(&path)
}

/// As [`allows`], as a refusal in Kubernetes' words.
///
/// # Errors
/// 403.
pub fn authorize(user: &User, route: &Route) -> Result<(), Status> {
    if allows(user, route) {
        return Ok(());
    }
    let Some(resource) = &route.resource else {
        let message = format!("forbidden: User {:?} cannot {} path {:?}", user.name, route.verb, route.path);
        let mut status = Status::new(403, "Forbidden", message);
        status.details = Some(json!({}));
        return Err(status);
    };
    let named = Resource::new(resource.group.clone(), resource.plural.clone());
    Err(Status::forbidden(&named, &resource.name, &refusal(user, route.verb, resource)))
}

fn refusal(user: &User, verb: &str, resource: &ResourceRoute) -> String {
    let what = match resource.subresource.as_str() {
        "" => resource.plural.clone(),
        subresource => format!("{}/{subresource}", resource.plural),
    };
    let place = match resource.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!("User {:?} cannot {verb} resource {what:?} in API group {:?} {place}", user.name, resource.group)
}
