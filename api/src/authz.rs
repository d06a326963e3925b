//! Whether somebody may do something. There is no RBAC yet: whoever is authenticated may do everything, but for those who
//! hold nothing but a token to join with, and those of whom the server decides ([`Authorizer`]: nodes). Whoever is not
//! may only ask for health, version and the server's authority. Everything that decides about permission is asked here,
//! so RBAC has one door.

use crate::authn::{BOOTSTRAPPERS, UNAUTHENTICATED, User};
use crate::front::Api;
use crate::route::{ResourceRoute, Route};
use crate::status::Status;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use manifests::Resource;
use serde_json::json;
use state::{Key, World};

/// Paths that everybody may read, as Kubernetes' `system:public-info-viewer` has them, and the authority of the server's
/// certificate: who joins compares it with what their token says.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/cacerts"];

/// Decides about some users, and has no opinion of others.
pub trait Authorizer: Send + Sync {
    /// Whether `user` may do what `route` says in this world; `None` for users of whom others decide.
    fn allows(&self, user: &User, route: &Route, world: &World) -> Option<bool>;
}

/// Whether `user` may do what `route` says.
pub fn allows(api: &Api, user: &User, route: &Route) -> bool {
    if user.is_of(UNAUTHENTICATED) {
        return is_public(route);
    }
    let world = api.world();
    if let Some(allowed) = api.config.authorizer.allows(user, route, &world) {
        return allowed;
    }
    !user.is_of(BOOTSTRAPPERS) || is_joining(user, route, &world)
}

fn is_public(route: &Route) -> bool {
    let path = route.path.trim_end_matches('/');
    is_plain_read(route) && PUBLIC_PATHS.contains(&path)
}

/// A read of what is no resource: discovery, schemas, health.
fn is_plain_read(route: &Route) -> bool {
    route.resource.is_none() && matches!(route.verb, "get" | "head")
}

/// What it takes to join: to ask for a certificate, and to look what became of the request.
fn is_joining(user: &User, route: &Route, world: &World) -> bool {
    let Some(at) = &route.resource else { return is_plain_read(route) };
    is_question_about_oneself(route.verb, at) || is_own_request(user, route.verb, at, world)
}

/// Whether this is a review of the one who asks.
pub fn is_question_about_oneself(verb: &str, at: &ResourceRoute) -> bool {
    verb == "create"
        && matches!(&*at.group, "authentication.k8s.io" | "authorization.k8s.io")
        && at.plural.starts_with("selfsubject")
}

/// Whether this makes a CertificateSigningRequest, or reads one that the user made (or that is not there).
pub fn is_own_request(user: &User, verb: &str, at: &ResourceRoute, world: &World) -> bool {
    let resource = Resource::of::<CertificateSigningRequest>();
    if at.group != resource.group || at.plural != resource.plural || !at.subresource.is_empty() {
        return false;
    }
    match verb {
        "create" => true,
        "get" => {
            let request = world.get(&Key::new(resource, "", &at.name));
            request.is_none_or(|request| {
                let spec = request.view::<CertificateSigningRequest>().map(|request| &request.spec);
                spec.is_some_and(|spec| spec.username.as_deref() == Some(&user.name))
            })
        }
        _ => false,
    }
}

/// As [`allows`], as a refusal in Kubernetes' words.
///
/// # Errors
/// 403.
pub fn authorize(api: &Api, user: &User, route: &Route) -> Result<(), Status> {
    if allows(api, user, route) {
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
