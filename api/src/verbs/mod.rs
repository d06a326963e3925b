//! What can be done with a resource, one file a verb.

mod commit;
mod create;
mod delete;
mod list;
mod patch;
mod update;
mod watch;

use crate::body::Answer;
use crate::front::Call;
use crate::status::Status;
use crate::{eviction, pods, render, scale};
use state::{Object, Revision, World};
use std::sync::Arc;

pub(crate) use commit::{commit, commit_all};
pub(crate) use delete::{Options as DeleteOptions, delete_object, precondition};
pub(crate) use patch::Patch;
pub(crate) use update::{Subresource, update_with};

/// Answers a call.
///
/// # Errors
/// Whatever the verb's own word for it is.
pub(crate) async fn answer(call: Call, verb: &str) -> Result<Answer, Status> {
    if !call.at.subresource.is_empty() {
        return subresource(call, verb).await;
    }
    match verb {
        "get" => get(&call).await,
        "list" => list::list(&call).await,
        "watch" => watch::watch(call).await,
        "create" if call.at.name.is_empty() => create::create(&call).await,
        "update" => update::update(&call, Subresource::None).await,
        "patch" => patch::patch(&call, Subresource::None).await,
        "delete" => delete::delete(&call).await,
        "deletecollection" => delete::delete_collection(&call).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn subresource(call: Call, verb: &str) -> Result<Answer, Status> {
    let wanted = call.at.subresource.as_str();
    if matches!((call.kind.kind, wanted), ("Pod" | "Node" | "Service", "proxy")) {
        return Err(Status::not_implemented(format!(
            "the subresource {wanted} of {} is not supported by this server yet",
            call.resource()
        )));
    }
    if call.at.rest || !call.kind.subresources.contains(&wanted) {
        return Err(Status::no_such_path());
    }
    match (wanted, verb) {
        ("status", "get") => get(&call).await,
        ("status", "update") => update::update(&call, Subresource::Status).await,
        ("status", "patch") => patch::patch(&call, Subresource::Status).await,
        ("ephemeralcontainers", "get") => get(&call).await,
        ("ephemeralcontainers", "update") => update::update(&call, Subresource::EphemeralContainers).await,
        ("ephemeralcontainers", "patch") => patch::patch(&call, Subresource::EphemeralContainers).await,
        ("approval", "get") => get(&call).await,
        ("approval", "update") => update::update(&call, Subresource::Approval).await,
        ("approval", "patch") => patch::patch(&call, Subresource::Approval).await,
        ("finalize", "update") => update::update(&call, Subresource::Finalize).await,
        ("scale", "get") => scale::get(&call),
        ("scale", "update") => scale::update(&call).await,
        ("scale", "patch") => scale::patch(&call).await,
        ("log", "get") => pods::log(call).await,
        ("binding", "create") => pods::bind(&call).await,
        ("eviction", "create") => eviction::evict(&call).await,
        ("resize", "get") => get(&call).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn get(call: &Call) -> Result<Answer, Status> {
    let world = fresh_world(call, call.query.revision()?).await?;
    let object = find(call, &world)?;
    render::object(call, 200, &object)
}

/// The object the path names.
pub(crate) fn find(call: &Call, world: &World) -> Result<Arc<Object>, Status> {
    world.get(&call.key()).cloned().ok_or_else(|| Status::not_found(&call.resource(), &call.at.name))
}

/// The current world, which is at least as new as `wanted`; waits a little for one that is not there yet.
pub(crate) async fn fresh_world(call: &Call, wanted: Option<Revision>) -> Result<Arc<World>, Status> {
    let world = call.api.world();
    let Some(wanted) = wanted.filter(|wanted| *wanted > world.revision()) else { return Ok(world) };
    let reached = async {
        let Ok(mut events) = call.api.store().watch(world.revision()) else { return };
        while let Ok(event) = events.next().await {
            if event.revision >= wanted {
                return;
            }
        }
    };
    // whether it was reached is what the world says
    let _ = tokio::time::timeout(call.api.limits().fresh_time_max, reached).await;
    let world = call.api.world();
    if world.revision() >= wanted { Ok(world) } else { Err(too_large(wanted, world.revision())) }
}

fn too_large(wanted: Revision, current: Revision) -> Status {
    let message = format!("Too large resource version: {wanted}, current: {current}");
    let mut status = Status::timeout(message.clone());
    status.details = Some(serde_json::json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }));
    status
}
