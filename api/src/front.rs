//! The door: one request in, one answer out. Authentication, authorization, and who answers what.

use crate::authn::{self, User};
use crate::authz;
use crate::body::{self, Answer};
use crate::config::{ApiConfig, Limits};
use crate::discovery;
use crate::metrics;
use crate::negotiate::{self, Wanted};
use crate::query::Query;
use crate::reviews;
use crate::route::{self, ResourceRoute, Route};
use crate::services::Allocator;
use crate::snapshots::Snapshots;
use crate::status::Status;
use crate::streams;
use crate::verbs;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;
use jiff::Timestamp;
use manifests::{Kind, Resource};
use serde_json::json;
use state::{Key, Stamp, World};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::Store;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Methods that a path without a resource answers.
const READS: &[Method] = &[Method::GET, Method::HEAD];

/// The API of one cluster. Shared by all connections.
pub struct Api {
    pub(crate) config: ApiConfig,
    pub(crate) services: Allocator,
    pub(crate) snapshots: Snapshots,
    /// OpenAPI documents that were asked for, by path; there are as many as groups and versions.
    pub(crate) schemas: Mutex<HashMap<String, Bytes>>,
    /// Slots of sessions that have left HTTP, and the sessions.
    pub(crate) sessions: Arc<Semaphore>,
    pub(crate) tracker: TaskTracker,
}

impl Api {
    /// An API over the store of `config`.
    pub fn new(config: ApiConfig) -> Arc<Self> {
        Arc::new(Self {
            services: Allocator::new(config.service_cidr, &config.service_addresses_reserved),
            snapshots: Snapshots::new(config.limits.snapshots_max),
            schemas: Mutex::default(),
            sessions: Arc::new(Semaphore::new(config.limits.sessions_max)),
            tracker: TaskTracker::new(),
            config,
        })
    }

    /// Its bounds.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    pub(crate) fn store(&self) -> &Store {
        &self.config.store
    }

    pub(crate) fn world(&self) -> Arc<World> {
        self.config.store.world()
    }

    /// Runs `act` with the moment and fresh identities.
    pub(crate) fn stamped<R>(&self, act: impl FnOnce(&mut Stamp<'_>) -> R) -> R {
        let now = self.now();
        // a generator is whole after any panic of its user
        let mut identities = self.config.identities.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut Stamp { now, identities: identities.as_mut() })
    }
}

/// A request for a resource, everything about it known but whether the object exists.
pub(crate) struct Call {
    /// The API.
    pub api: Arc<Api>,
    /// The kind, its row.
    pub kind: &'static Kind,
    /// Where the path points.
    pub at: ResourceRoute,
    /// Who asks.
    pub user: User,
    /// Options.
    pub query: Query,
    /// Headers.
    pub headers: HeaderMap,
    /// The body, read whole; empty for reads.
    pub body: Bytes,
    /// How the answer is wanted.
    pub wanted: Wanted,
    /// Ends watches and streams.
    pub ended: CancellationToken,
}

impl Call {
    /// The kind's resource.
    pub fn resource(&self) -> Resource {
        self.kind.resource()
    }

    /// The key the path names.
    pub fn key(&self) -> Key {
        Key::new(self.resource(), &self.at.namespace, &self.at.name)
    }
}

/// Answers a request.
pub(crate) async fn handle(
    api: &Arc<Api>,
    request: Request<Incoming>,
    certified: Option<Arc<User>>,
    ended: CancellationToken,
) -> Answer {
    let is_head = request.method() == Method::HEAD;
    let mut answer = answer(api, request, certified, ended).await.unwrap_or_else(|status| {
        // where there is nothing at all, Kubernetes answers as any web server does
        if status == Status::no_such_path() { body::text(404, "404 page not found\n") } else { body::refusal(&status) }
    });
    answer.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if is_head {
        *answer.body_mut() = body::full(Bytes::new());
    }
    answer
}

async fn answer(
    api: &Arc<Api>,
    request: Request<Incoming>,
    certified: Option<Arc<User>>,
    ended: CancellationToken,
) -> Result<Answer, Status> {
    let (mut head, incoming) = request.into_parts();
    let query = Query::parse(head.uri.query());
    let route = route::route(&head.method, head.uri.path(), &query);
    let user = authn::authenticate(certified.as_deref(), &head.headers, &api.config.tokens, &api.world(), api.now())?;
    authz::authorize(api, &user, &route)?;
    let Some(at) = route.resource.clone() else {
        return plain(api, &head.method, &route, &head.headers, &query);
    };
    let is_stream = at.group.is_empty() && at.plural == "pods" && streams::serves("Pod", &at.subresource);
    let body = match route.verb {
        "get" | "list" | "watch" => Bytes::new(),
        // what follows the head is not HTTP's
        _ if is_stream => Bytes::new(),
        _ => body::read(incoming, &head.headers, api.limits()).await?,
    };
    // what a stream's client accepts is in its protocol
    let wanted = if is_stream { Wanted::default() } else { negotiate::wanted(&head.headers)? };
    if let Some(review) = reviews::find(&at) {
        return reviews::answer(api, review, &route, &user, &head.headers, &body, wanted);
    }
    if let Some(found) = metrics::find(&at) {
        return metrics::answer(api, found, &route, &at, &query).await;
    }
    if route.verb == "list" && is_custom_kinds(&at) {
        return Ok(no_custom_kinds(api));
    }
    let kind = find_kind(&at)?;
    let leaving = streams::Leaving::of(&mut head.extensions);
    let call = Call { api: api.clone(), kind, at, user, query, headers: head.headers, body, wanted, ended };
    if is_stream {
        if route.verb == "get" {
            // a WebSocket is opened by GET, and is no reading
            authz::authorize(api, &call.user, &Route { verb: "create", ..route.clone() })?;
        }
        return streams::answer(call, route.verb, leaving).await;
    }
    verbs::answer(call, route.verb).await
}

/// The one question about CustomResourceDefinitions that has an answer while they cannot be made: kubectl asks which there
/// are before it says that a kind is unknown.
fn is_custom_kinds(at: &ResourceRoute) -> bool {
    at.group == "apiextensions.k8s.io" && at.version == "v1" && at.plural == "customresourcedefinitions"
}

fn no_custom_kinds(api: &Api) -> Answer {
    let list = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinitionList",
        "metadata": {"resourceVersion": api.world().revision().to_string()},
        "items": [],
    });
    body::json(200, &list)
}

/// The row of a path's kind, if the path fits its scope.
fn find_kind(at: &ResourceRoute) -> Result<&'static Kind, Status> {
    let kind = manifests::by_resource(&Resource::new(at.group.clone(), at.plural.clone()))
        .filter(|kind| kind.version == at.version)
        .ok_or_else(Status::no_such_path)?;
    if kind.namespaced == at.namespace.is_empty() && (!at.name.is_empty() || !kind.namespaced) {
        return Err(Status::no_such_path());
    }
    Ok(kind)
}

/// Paths that are no resources.
fn plain(api: &Arc<Api>, method: &Method, route: &Route, headers: &HeaderMap, query: &Query) -> Result<Answer, Status> {
    if !READS.contains(method) {
        return Err(Status::method_not_allowed());
    }
    let path = route.path.trim_end_matches('/');
    if matches!(path, "/healthz" | "/livez" | "/readyz") {
        return Ok(health(api, path, query));
    }
    if path == "/cacerts" {
        return Ok(body::text(200, api.config.server_ca_pem.clone()));
    }
    discovery::answer(api, path, headers, query)
}

fn health(api: &Api, path: &str, query: &Query) -> Answer {
    let checks = [("ping", true), ("store", true), ("server", path != "/readyz" || (api.config.ready)())];
    let is_well = checks.iter().all(|(_, well)| *well);
    if is_well && query.flag_given("verbose").is_none() {
        return body::text(200, "ok");
    }
    let mut text = String::new();
    for (name, well) in checks {
        text.push_str(&if well { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") });
    }
    let what = path.trim_start_matches('/');
    text.push_str(&format!("{what} check {}\n", if is_well { "passed" } else { "failed" }));
    body::text(if is_well { 200 } else { 500 }, text)
}
